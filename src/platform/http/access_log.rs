//! The outermost middleware: the context, the access log line, and the metrics of every request.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tracing::{Instrument, Span};

use crate::platform::error::Error;
use crate::platform::http::connection::PeerAddr;
use crate::platform::http::head::HeadLimits;
use crate::platform::stages::Stages;
use crate::platform::telemetry::metrics::Metrics;
use crate::platform::telemetry::request_context::{self, RequestContext};
use crate::platform::telemetry::spans::{self, Sampler};
use crate::platform::telemetry::trace_context::TRACEPARENT;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// The route of requests that no template matches. A constant, because clients choose paths.
const UNMATCHED: &str = "unmatched";

/// Maximum length of a path in the log.
const LOGGED_PATH_BYTES: usize = 256;

/// For a service without pages: nothing may be embedded, guessed, cached, or used as a referrer.
const SECURITY_HEADERS: [(HeaderName, HeaderValue); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// What [`observe`] needs. Shared, because axum clones the state for each request.
pub struct Observer {
    pub head_limits: HeadLimits,
    pub request_timeout: Duration,
    pub metrics: Arc<Metrics>,
    pub sampler: Sampler,
    pub stages: Stages,
}

/// Gives a request its context, checks its head, limits its time, and records it when the response is finished.
///
/// One middleware rather than five, because each costs a clone of every inner service for each request.
pub async fn observe(State(observer): State<Arc<Observer>>, request: Request, next: Next) -> Response {
    let mut log = RequestLog::start(&request, &observer);
    let context = Arc::clone(&log.context);
    let work = async {
        match observer.head_limits.check(&request) {
            Ok(()) => {
                let response = tokio::time::timeout(observer.request_timeout, next.run(request)).await;
                response.unwrap_or_else(|_| Error::Timeout.into_response())
            }
            Err(error) => {
                let mut response = error.into_response();
                response.headers_mut().insert(header::CONNECTION, CLOSE);
                response
            }
        }
    };
    let work = request_context::scope(Some(Arc::clone(&context)), work);
    let mut response = work.instrument(log.span.clone()).await;

    log.status = Some(response.status());
    let headers = response.headers_mut();
    headers.reserve(SECURITY_HEADERS.len() + 3);
    for (name, value) in SECURITY_HEADERS {
        headers.entry(name).or_insert(value);
    }
    insert_text(headers, REQUEST_ID, &context.request_id);
    insert_text(headers, TRACEPARENT, &context.trace.traceparent());
    // The client's next connection reaches an instance that stays.
    if observer.stages.draining.is_cancelled() {
        headers.insert(header::CONNECTION, CLOSE);
    }
    response.map(|body| Body::new(LoggedBody { body, log }))
}

fn insert_text(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// Writes the line at a level, which `tracing` requires to be a constant.
macro_rules! access_line {
    ($level:ident, $log:expr, $route:expr, $duration:expr, $message:expr) => {
        tracing::$level!(
            target: "access",
            method = $log.method.as_str(),
            route = $route,
            path = $log.path,
            status = $log.status.map(|status| status.as_u16()),
            duration_ms = milliseconds($duration),
            database_ms = milliseconds($log.context.database.total()),
            cache_ms = milliseconds($log.context.cache.total()),
            bytes = $log.bytes,
            client = $log.peer.map(tracing::field::display),
            "{}", $message,
        )
    };
}

/// One request and its response. Recorded on drop, so cancelled requests are counted too.
struct RequestLog {
    start: Instant,
    method: Method,
    /// The template that matched.
    route: Option<MatchedPath>,
    path: String,
    peer: Option<IpAddr>,
    /// `None`: the client disconnected before there was a response.
    status: Option<StatusCode>,
    bytes: u64,
    context: Arc<RequestContext>,
    span: Span,
    metrics: Arc<Metrics>,
}

impl RequestLog {
    fn start(request: &Request, observer: &Observer) -> Self {
        let route = request.extensions().get::<MatchedPath>().cloned();
        let path = request.uri().path();
        let path = &path[..path.floor_char_boundary(LOGGED_PATH_BYTES)];
        let peer = request.extensions().get::<PeerAddr>().map(|peer| peer.0.ip());
        let (span, trace) = spans::request(request, route_label(&route), path, peer, &observer.sampler);
        let request_id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
        let context = Arc::new(RequestContext::new(request_id, trace));
        span.record("request_id", &context.request_id);
        observer.metrics.http_requests_in_flight.inc();
        Self {
            start: Instant::now(),
            method: request.method().clone(),
            route,
            path: path.to_owned(),
            peer,
            status: None,
            bytes: 0,
            context,
            span,
            metrics: Arc::clone(&observer.metrics),
        }
    }

    fn record_metrics(&self, duration: Duration) {
        let status = self.status.as_ref().map_or("cancelled", StatusCode::as_str);
        self.metrics.http_requests_in_flight.dec();
        self.metrics.request(&self.method, route_label(&self.route), status, duration);
    }

    fn close_span(&self) {
        if let Some(status) = self.status {
            self.span.record("http.response.status_code", status.as_u16());
        }
        if self.status.is_none_or(|status| status.is_server_error()) {
            spans::fail(&self.span);
        }
    }

    fn write_line(&self, duration: Duration) {
        let route = route_label(&self.route);
        let message = if self.status.is_some() { "request" } else { "request cancelled" };
        request_context::sync_scope(Arc::clone(&self.context), || {
            // Probes and scrapes would drown the rest.
            if spans::is_management_route(route) {
                access_line!(debug, self, route, duration, message);
            } else {
                access_line!(info, self, route, duration, message);
            }
        });
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let duration = self.start.elapsed();
        self.record_metrics(duration);
        self.close_span();
        self.write_line(duration);
    }
}

fn route_label(route: &Option<MatchedPath>) -> &str {
    route.as_ref().map_or(UNMATCHED, MatchedPath::as_str)
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A response body that keeps its log entry open until the last byte has been handed over.
struct LoggedBody {
    body: Body,
    log: RequestLog,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.log.bytes += data.len() as u64;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
