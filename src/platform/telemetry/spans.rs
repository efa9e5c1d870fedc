//! Names and fields of spans, by the OpenTelemetry semantic conventions (<https://opentelemetry.io/docs/specs/semconv/>).
//! Without a collector every span is disabled; see `otlp`.

use std::net::IpAddr;

use axum::extract::Request;
use redis::{Arg, Cmd};
use tracing::Span;
use tracing::field::Empty;

use crate::platform::telemetry::request_context;
use crate::platform::telemetry::trace_context::{TRACEPARENT, TraceContext};
#[cfg(feature = "otlp")]
use crate::platform::telemetry::{metrics::method_label, otlp, trace_context::TRACESTATE};

/// Decides which requests have spans. The default, for a service without a collector, samples no request.
#[derive(Clone, Copy, Default)]
pub struct Sampler {
    ratio: Option<f64>,
}

impl Sampler {
    /// Samples `ratio` (0 to 1) of the requests whose caller has not decided.
    pub fn new(ratio: f64) -> Self {
        Self { ratio: Some(ratio) }
    }

    /// Returns whether a request gets spans: the caller's decision, otherwise a random one.
    pub fn samples(&self, caller: Option<TraceContext>) -> bool {
        self.ratio.is_some_and(|ratio| match caller {
            Some(caller) => caller.is_sampled(),
            None => rand::random_bool(ratio),
        })
    }
}

/// Returns the span of a request, disabled if the request is not sampled, and the ids of the request, which are the
/// span's. `path` is the path as the log may show it.
#[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "only a request's span has them"))]
pub fn request(
    request: &Request,
    route: &str,
    path: &str,
    peer: Option<IpAddr>,
    sampler: &Sampler,
) -> (Span, TraceContext) {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let caller = header(TRACEPARENT).and_then(TraceContext::parse);
    // Probes and scrapes arrive every few seconds; their spans would bury the others.
    #[cfg(feature = "otlp")]
    if !is_management_route(route) && sampler.samples(caller) {
        let span = request_span(request, route, path, peer);
        if let Some(trace) = otlp::join(&span, caller, header(TRACESTATE)) {
            return (span, trace);
        }
    }
    (Span::none(), TraceContext::within(caller))
}

#[cfg(feature = "otlp")]
fn request_span(request: &Request, route: &str, path: &str, peer: Option<IpAddr>) -> Span {
    let method = method_label(request.method());
    tracing::info_span!(
        target: "otlp",
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        url.path = path,
        client.address = peer.map(tracing::field::display),
        request_id = Empty,
    )
}

/// Returns the span of a pooled connection: from the wait for the connection until the pool has it back.
pub fn postgresql() -> Span {
    if request_context::is_sampled() != Some(true) {
        return Span::none();
    }
    tracing::info_span!(
        target: "otlp",
        "postgresql",
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "postgresql",
        pool.wait_ms = Empty,
    )
}

/// Returns the span of a Redis command.
pub fn redis(command: &Cmd) -> Span {
    // Outside of requests, such as in pending invalidations of the cache, the span would be a trace of its own.
    if request_context::is_sampled() != Some(true) {
        return Span::none();
    }
    let operation = match command.args_iter().next() {
        Some(Arg::Simple(name)) => String::from_utf8_lossy(name),
        _ => "".into(),
    };
    tracing::info_span!(
        target: "otlp",
        "redis",
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "redis",
        db.operation.name = &*operation,
    )
}

/// Returns whether a route is for the orchestrator and for Prometheus: health and metrics.
pub fn is_management_route(route: &str) -> bool {
    route.starts_with("/health/") || route == "/metrics"
}

/// Marks `span` as failed.
pub fn fail(span: &Span) {
    span.record("otel.status_code", "ERROR");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_decides_and_otherwise_the_ratio() {
        let caller = |flags| Some(TraceContext { flags, ..TraceContext::within(None) });
        for (ratio, alone) in [(0.0, false), (1.0, true)] {
            let sampler = Sampler::new(ratio);
            assert_eq!(sampler.samples(None), alone);
            assert!(sampler.samples(caller(1)));
            assert!(!sampler.samples(caller(0)));
        }
        let half = Sampler::new(0.5);
        let sampled = (0..10_000).filter(|_| half.samples(None)).count();
        assert!((4_500..5_500).contains(&sampled), "{sampled}");
    }

    #[test]
    fn no_request_is_sampled_without_a_collector() {
        let caller = TraceContext { flags: 1, ..TraceContext::within(None) };
        assert!(!Sampler::default().samples(Some(caller)));
        assert!(!Sampler::default().samples(None));
    }
}
