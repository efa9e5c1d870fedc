//! The spans that a collector gets, with names of the OpenTelemetry semantic conventions
//! (<https://opentelemetry.io/docs/specs/semconv/>). Where there is none, they are nothing; see `otlp`.

use axum::extract::Request;
use redis::{Arg, Cmd};
use tracing::Span;
use tracing::field::{self, Empty};

use crate::context::TraceContext;
use crate::listener::Client;
use crate::metrics::method_label;
#[cfg(feature = "otlp")]
use crate::otlp::join;

/// A request; `path` as it may be shown.
pub fn request(request: &Request, route: &str, path: &str) -> Span {
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
        client.address = request.extensions().get::<Client>().map(|client| field::display(client.0.ip())),
        request_id = Empty,
    )
}

/// The ids of a request: those of its span if that goes to a collector. Either way in the caller's trace.
pub fn trace(span: &Span, request: &Request) -> TraceContext {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let caller = header("traceparent").and_then(TraceContext::parse);
    join(span, caller, header("tracestate")).unwrap_or_else(|| TraceContext::within(caller))
}

/// A connection of the pool: from the wait for it until it goes back.
pub fn postgresql() -> Span {
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

/// Marks what `span` is about as failed.
pub fn fail(span: &Span) {
    span.record("otel.status_code", "ERROR");
}

#[cfg(not(feature = "otlp"))]
fn join(_: &Span, _: Option<TraceContext>, _: Option<&str>) -> Option<TraceContext> {
    None
}
