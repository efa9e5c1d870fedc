//! The spans that a collector gets, with names of the OpenTelemetry semantic conventions
//! (<https://opentelemetry.io/docs/specs/semconv/>). Where there is none, they are nothing; see `otlp`.

use axum::extract::Request;
use redis::{Arg, Cmd};
use tracing::Span;
use tracing::field::Empty;

#[cfg(feature = "otlp")]
use crate::platform::http::listener::Client;
use crate::platform::telemetry::metrics::method_label;
use crate::platform::telemetry::otlp;
use crate::platform::telemetry::request_context::{self, TraceContext};

/// The span of a request, if one is wanted, and the ids of the request, which are those of the span. `path` as it may
/// be shown.
#[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "nobody wants one"))]
pub fn request(request: &Request, route: &str, path: &str) -> (Span, TraceContext) {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let caller = header("traceparent").and_then(TraceContext::parse);
    // Probes and scrapes come every few seconds and would drown the rest.
    #[cfg(feature = "otlp")]
    if !is_routine(route) && otlp::samples(caller) {
        let span = request_span(request, route, path);
        if let Some(trace) = otlp::join(&span, caller, header("tracestate")) {
            return (span, trace);
        }
    }
    (Span::none(), TraceContext::within(caller))
}

#[cfg(feature = "otlp")]
fn request_span(request: &Request, route: &str, path: &str) -> Span {
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
        client.address = request.extensions().get::<Client>().map(|client| tracing::field::display(client.0.ip())),
        request_id = Empty,
    )
}

/// A connection of the pool: from the wait for it until it goes back.
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

/// One command.
pub fn redis(command: &Cmd) -> Span {
    // Outside of requests, such as while the cache catches up, it would be a trace of its own.
    if request_context::is_sampled() != Some(true) {
        return Span::none();
    }
    let operation = || match command.args_iter().next() {
        Some(Arg::Simple(name)) => String::from_utf8_lossy(name),
        _ => "".into(),
    };
    tracing::info_span!(
        target: "otlp",
        "redis",
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "redis",
        db.operation.name = &*operation(),
    )
}

/// Whether requests of this route are those of supervisors.
pub fn is_routine(route: &str) -> bool {
    route.starts_with("/health/") || route == "/metrics"
}

/// Marks what `span` is about as failed.
pub fn fail(span: &Span) {
    span.record("otel.status_code", "ERROR");
}
