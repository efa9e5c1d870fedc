//! What surrounds every request: its context, access log and metrics; refusal of malformed heads; one
//! shape for all errors. Body limit, timeout and panics are tower-http's; the order is in `router`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tracing::{Instrument, Span};

use crate::platform::error::problem;
use crate::platform::health::Health;
use crate::platform::http::framing::Conflict;
use crate::platform::http::listener::Client;
use crate::platform::telemetry::metrics::Metrics;
use crate::platform::telemetry::request_context::{self, RequestContext};
use crate::platform::telemetry::spans;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// The route of requests that no template matches: a constant, as paths are chosen by clients.
const UNMATCHED: &str = "unmatched";

/// A path in the log is cut here.
const LOGGED_PATH_BYTES: usize = 256;

/// For a service without pages: nothing may be embedded, guessed, cached or referred to.
const SECURITY_HEADERS: [(HeaderName, HeaderValue); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// What [`observe`] needs; shared, as it is cloned for each request.
pub struct Observer {
    pub limits: HeadLimits,
    pub metrics: Arc<Metrics>,
    pub health: Health,
}

/// Outermost: gives the request its context, refuses malformed heads, makes each error a problem document, and tells
/// log and metrics when the response is finished.
///
/// One middleware rather than four: each costs a clone of everything inside it, for each request.
pub async fn observe(State(observer): State<Arc<Observer>>, request: Request, next: Next) -> Response {
    let mut exchange = Exchange::begin(&request, Arc::clone(&observer.metrics));
    let context = Arc::clone(&exchange.context);
    let work = async {
        match refusal(&request, observer.limits) {
            None => as_problem(next.run(request).await),
            Some((status, detail)) => {
                let mut response = problem(status, detail.to_owned(), vec![]);
                response.headers_mut().insert(header::CONNECTION, CLOSE);
                response
            }
        }
    };
    let work = request_context::scope(Some(Arc::clone(&context)), work);
    let mut response = work.instrument(exchange.span.clone()).await;

    exchange.status = Some(response.status());
    let headers = response.headers_mut();
    headers.reserve(SECURITY_HEADERS.len() + 3);
    for (name, value) in SECURITY_HEADERS {
        headers.entry(name).or_insert(value);
    }
    insert_text(headers, REQUEST_ID, &context.request_id);
    insert_text(headers, TRACEPARENT, &context.trace.traceparent());
    // The connection's next request goes to an instance that stays.
    if observer.health.is_draining() {
        headers.insert(header::CONNECTION, CLOSE);
    }
    response.map(|body| Body::new(ObservedBody { body, exchange }))
}

fn insert_text(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

fn shortened(path: &str) -> &str {
    &path[..path.floor_char_boundary(LOGGED_PATH_BYTES)]
}

/// One request and its response. Its end, in whatever way, is its drop.
struct Exchange {
    since: Instant,
    method: Method,
    /// The template that matched.
    route: Option<MatchedPath>,
    path: String,
    client: Option<std::net::IpAddr>,
    /// `None`: the client left before there was a response.
    status: Option<StatusCode>,
    bytes: u64,
    context: Arc<RequestContext>,
    span: Span,
    metrics: Arc<Metrics>,
}

impl Exchange {
    fn begin(request: &Request, metrics: Arc<Metrics>) -> Self {
        let route = request.extensions().get::<MatchedPath>().cloned();
        let path = shortened(request.uri().path());
        let (span, trace) = spans::request(request, route_label(&route), path);
        let request_id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
        let context = Arc::new(RequestContext::new(request_id, trace));
        span.record("request_id", &context.request_id);
        metrics.http_requests_in_flight.inc();
        Self {
            since: Instant::now(),
            method: request.method().clone(),
            route,
            path: path.to_owned(),
            client: request.extensions().get::<Client>().map(|client| client.0.ip()),
            status: None,
            bytes: 0,
            context,
            span,
            metrics,
        }
    }
}

fn route_label(route: &Option<MatchedPath>) -> &str {
    route.as_ref().map_or(UNMATCHED, MatchedPath::as_str)
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let time = self.since.elapsed();
        let status = self.status.as_ref().map_or("cancelled", StatusCode::as_str);
        self.metrics.http_requests_in_flight.dec();
        let route = route_label(&self.route);
        self.metrics.request(&self.method, route, status, time);
        let message = if self.status.is_some() { "request" } else { "request cancelled" };
        if let Some(status) = self.status {
            self.span.record("http.response.status_code", status.as_u16());
        }
        if self.status.is_none_or(|status| status.is_server_error()) {
            spans::fail(&self.span);
        }
        // Probes and scrapes would drown the rest.
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    method = self.method.as_str(),
                    route,
                    path = self.path,
                    status = self.status.map(|status| status.as_u16()),
                    duration_ms = milliseconds(time),
                    database_ms = milliseconds(self.context.database.total()),
                    cache_ms = milliseconds(self.context.cache.total()),
                    bytes = self.bytes,
                    client = self.client.map(tracing::field::display),
                    "{message}",
                )
            };
        }
        request_context::sync_scope(Arc::clone(&self.context), || {
            if spans::is_routine(route) { log!(debug) } else { log!(info) }
        });
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A response body that keeps its exchange open until the last byte has been handed over.
struct ObservedBody {
    body: Body,
    exchange: Exchange,
}

impl HttpBody for ObservedBody {
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
            self.exchange.bytes += data.len() as u64;
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

/// What a request head may have.
#[derive(Clone, Copy)]
pub struct HeadLimits {
    pub uri_bytes: usize,
    pub headers: usize,
}

/// Refuses what RFC 9112 3.2 says must be refused and hyper lets through, and heads that are too large.
fn refusal(request: &Request, limits: HeadLimits) -> Option<(StatusCode, &'static str)> {
    let uri = request.uri();
    if uri.path_and_query().is_some_and(|target| target.as_str().len() > limits.uri_bytes) {
        return Some((StatusCode::URI_TOO_LONG, "The request target is too long."));
    }
    if request.headers().len() > limits.headers {
        return Some((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "There are too many header fields."));
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next(), request.version()) {
        (Some(host), None, _) => Some(host.as_bytes()),
        (None, _, Version::HTTP_10) => None,
        _ => return Some((StatusCode::BAD_REQUEST, "There must be exactly one Host header.")),
    };
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    if authority.zip(host).is_some_and(|(authority, host)| !authority.eq_ignore_ascii_case(host)) {
        return Some((StatusCode::BAD_REQUEST, "The Host header contradicts the request target."));
    }
    if request.extensions().get::<Conflict>().is_some() {
        let detail = "Content-Length and Transfer-Encoding exclude each other.";
        return Some((StatusCode::BAD_REQUEST, detail));
    }
    None
}

/// Makes a problem document of the bare error statuses of axum and tower-http.
fn as_problem(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let content_type = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !is_error || content_type.is_some_and(|name| name.starts_with(b"application/")) {
        return response;
    }
    let detail = match status {
        StatusCode::METHOD_NOT_ALLOWED => "The resource does not have this method.",
        StatusCode::PAYLOAD_TOO_LARGE => "The request body is too large.",
        StatusCode::SERVICE_UNAVAILABLE => "The request took too long.",
        _ => "The request could not be served.",
    };
    let mut document = problem(status, detail.to_owned(), vec![]);
    if let Some(allow) = response.headers().get(header::ALLOW) {
        document.headers_mut().insert(header::ALLOW, allow.clone());
    }
    document
}
