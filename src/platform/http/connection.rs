//! One connection: its timeouts, its part in a shutdown, and its metrics.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::IntGauge;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_io_timeout::TimeoutStream;
use tokio_util::task::TaskTracker;

use crate::platform::config::Http;
use crate::platform::stages::Stages;
use crate::platform::telemetry::metrics::Metrics;

/// Once the listener is closed, an open connection without a request gets this long to send one: a request may be on
/// its way.
const FIRST_BYTE_GRACE: Duration = Duration::from_millis(300);

/// Request extension: the address of the peer, which is the proxy if there is one.
#[derive(Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);

/// The open connections and what serves them. Cloning is cheap and shares them.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    router: Router,
    http: Http,
    stages: Stages,
    metrics: Arc<Metrics>,
    tracker: TaskTracker,
    aborted: AtomicU64,
}

impl Connections {
    pub fn new(router: Router, http: Http, stages: Stages, metrics: Arc<Metrics>) -> Self {
        let tracker = TaskTracker::new();
        Self(Arc::new(Inner { router, http, stages, metrics, tracker, aborted: AtomicU64::new(0) }))
    }

    /// Serves `stream` in a task of its own. `permit` is released at the end.
    pub fn spawn(&self, stream: TcpStream, peer: SocketAddr, permit: Option<OwnedSemaphorePermit>) {
        let inner = Arc::clone(&self.0);
        self.0.tracker.spawn(async move {
            let _guard = ConnectionGuard::new(&inner.metrics, permit);
            serve(&inner, stream, peer).await;
        });
    }

    /// Waits until the last connection has ended.
    pub async fn finished(&self) {
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }

    /// Returns the number of connections aborted with a request in progress.
    pub fn aborted(&self) -> u64 {
        self.0.aborted.load(Ordering::Relaxed)
    }
}

async fn serve(inner: &Inner, stream: TcpStream, peer: SocketAddr) {
    let Inner { router, http, stages, metrics, aborted, .. } = inner;
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(http.write_timeout));

    let used = AtomicBool::new(false);
    let router = TowerToHyperService::new(router.clone());
    let service = service_fn(|mut request: Request<Incoming>| {
        used.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(PeerAddr(peer));
        router.call(request.map(Body::new))
    });
    // hyper reads a request with both Content-Length and Transfer-Encoding as chunked and then closes the connection
    // (RFC 9112 6.1), so no byte after it is taken for another request.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(http.header_timeout)
        .max_buf_size(http.max_head_bytes)
        .max_header_size(http.max_head_bytes)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = pin!(connection);

    let result = tokio::select! {
        result = &mut connection => result,
        () = async {
            stages.closing.cancelled().await;
            tokio::time::sleep(FIRST_BYTE_GRACE).await;
        } => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = &mut connection => result,
                () = stages.cutting.cancelled() => {
                    // Without a request there is only a client that never finished its head.
                    if used.load(Ordering::Relaxed) {
                        aborted.fetch_add(1, Ordering::Relaxed);
                        metrics.http_connections_cut.inc();
                    }
                    Ok(())
                }
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = %error, "connection ended with an error");
        metrics.http_connection_errors.with_label_values(&[error_kind(&error)]).inc();
    }
}

/// Decrements the gauge on drop, even if the connection's task panics.
struct ConnectionGuard {
    gauge: IntGauge,
    _permit: Option<OwnedSemaphorePermit>,
}

impl ConnectionGuard {
    fn new(metrics: &Metrics, permit: Option<OwnedSemaphorePermit>) -> Self {
        metrics.http_connections_accepted.inc();
        metrics.http_connections_open.inc();
        Self { gauge: metrics.http_connections_open.clone(), _permit: permit }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

fn error_kind(error: &hyper::Error) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_parse_too_large() {
        "too_large"
    } else if error.is_parse() {
        "malformed"
    } else if error.is_incomplete_message() {
        "incomplete"
    } else {
        "broken"
    }
}
