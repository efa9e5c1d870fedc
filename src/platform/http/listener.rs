//! The accept loop. Not `axum::serve`, which has no limits on connections, no timer against slow clients and
//! no deadline at shutdown, and loses the connections that the kernel has accepted when it stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{io, net::SocketAddr, pin::pin};

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::IntGauge;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_util::task::TaskTracker;

use crate::platform::config::Http;
use crate::platform::http::framing::{Recent, Tap};
use crate::platform::shutdown::Stages;
use crate::platform::telemetry::metrics::Metrics;

/// Connections that the kernel completes before we accept them.
const BACKLOG: u32 = 1024;
/// Once the listener is closed, an open connection that has no request yet gets this long to send one: its
/// request may be on the way.
const FIRST_BYTE_GRACE: Duration = Duration::from_millis(300);
/// Handshakes that have begun before the listener closes get this long to end: a round trip to a proxy. Not longer,
/// since whoever asks meanwhile is left waiting, and a proxy would rather be refused and ask another instance.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(1);
/// Pause after a failed accept, which is mostly the want of a descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Failed accepts are logged at most this often.
const ACCEPT_LOG_PAUSE: Duration = Duration::from_secs(1);

/// Binds `address`, also while connections of a previous process linger there.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Request extension: the other end of the connection, which is the proxy where there is one.
#[derive(Clone, Copy)]
pub struct Client(pub SocketAddr);

/// Serves connections, and knows how many there are.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    router: Router,
    http: Http,
    stages: Stages,
    metrics: Arc<Metrics>,
    connections: TaskTracker,
    cut: AtomicU64,
}

impl Server {
    pub fn new(router: Router, http: Http, stages: Stages, metrics: Arc<Metrics>) -> Self {
        let (connections, cut) = (TaskTracker::new(), AtomicU64::new(0));
        metrics.http_connections_limit.set(http.max_connections as i64);
        Self(Arc::new(Inner { router, http, stages, metrics, connections, cut }))
    }

    /// Accepts connections until the stage `closing`, then those that the kernel still holds, and closes
    /// `listener`. Connections live on; see [`Server::finished`].
    pub async fn accept(self, listener: TcpListener) -> io::Result<()> {
        self.accept_until_closing(&listener).await;
        // To their clients these connections are open; closing the listener now would reset them.
        let listener = listener.into_std()?;
        // Twice what it can hold, should an accept fail.
        for _ in 0..2 * BACKLOG {
            match listener.accept() {
                Ok((stream, client)) => {
                    match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                        Ok(stream) => self.spawn(stream, client, None),
                        Err(_) => self.0.metrics.http_accept_errors.inc(),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.0.metrics.http_accept_errors.inc(),
            }
        }
        Ok(())
    }

    async fn accept_until_closing(&self, listener: &TcpListener) {
        let places = Arc::new(Semaphore::new(self.0.http.max_connections));
        let mut last_logged: Option<Instant> = None;
        let mut closing = pin!(async {
            self.0.stages.closing.cancelled().await;
            ignore_handshakes(listener);
            tokio::time::sleep(HANDSHAKE_GRACE).await;
        });
        loop {
            // The place first: what we have no place for waits in the kernel and costs us nothing.
            let accepted = tokio::select! {
                () = &mut closing => return,
                accepted = accept_with_place(listener, &places) => accepted,
            };
            match accepted {
                Ok((stream, client, place)) => self.spawn(stream, client, Some(place)),
                // The client gave up while it waited.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.0.metrics.http_accept_errors.inc();
                    if last_logged.is_none_or(|at| at.elapsed() > ACCEPT_LOG_PAUSE) {
                        tracing::error!(error = %error, "cannot accept connections");
                        last_logged = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Waits until the last connection has ended.
    pub async fn finished(&self) {
        self.0.connections.close();
        self.0.connections.wait().await;
    }

    /// How many connections the stage `cutting` has ended with a request in progress.
    pub fn cut(&self) -> u64 {
        self.0.cut.load(Ordering::Relaxed)
    }

    fn spawn(&self, stream: TcpStream, client: SocketAddr, place: Option<OwnedSemaphorePermit>) {
        let server = self.clone();
        self.0.connections.spawn(async move {
            let _open = Open::new(&server.0.metrics, place);
            server.serve(stream, client).await;
        });
    }

    async fn serve(&self, stream: TcpStream, client: SocketAddr) {
        let Inner { router, http, stages, metrics, .. } = &*self.0;
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(http.write_timeout));

        let (recent, used) = (Recent::default(), AtomicBool::new(false));
        let io = TokioIo::new(Tap::new(stream, recent.clone()));
        let router = TowerToHyperService::new(router.clone());
        let service = service_fn(|mut request: Request<Incoming>| {
            used.store(true, Ordering::Relaxed);
            recent.mark_conflict(&mut request);
            request.extensions_mut().insert(Client(client));
            router.call(request.map(Body::new))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(http.header_timeout)
            .max_buf_size(http.max_head_bytes)
            .max_header_size(http.max_head_bytes)
            .serve_connection(io, service);
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
                            self.0.cut.fetch_add(1, Ordering::Relaxed);
                            metrics.http_connections_cut.inc();
                        }
                        Ok(())
                    }
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(error = %error, "a connection ended with an error");
            metrics.http_connection_errors.with_label_values(&[error_kind(&error)]).inc();
        }
    }
}

/// An open connection, in whatever way it ends: a panic in a response body unwinds through here.
struct Open {
    gauge: IntGauge,
    _place: Option<OwnedSemaphorePermit>,
}

impl Open {
    fn new(metrics: &Metrics, place: Option<OwnedSemaphorePermit>) -> Self {
        metrics.http_connections_accepted.inc();
        metrics.http_connections_open.inc();
        Self { gauge: metrics.http_connections_open.clone(), _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Lets the kernel drop each request for a connection, and complete those that it has begun to answer. Without
/// this there is a moment between the last accept and the close in which a connection completes and is reset.
/// Whoever asks in this time asks again after a second (RFC 6298), and is refused.
#[cfg(target_os = "linux")]
fn ignore_handshakes(listener: &TcpListener) {
    use socket2::{SockFilter, SockRef};
    // Classic BPF over the TCP header: drop what has SYN and not ACK.
    // https://docs.kernel.org/networking/filter.html
    let filter = [
        SockFilter::new(0x30, 0, 0, 13),       // ldb [13]: the flags
        SockFilter::new(0x54, 0, 0, 0x12),     // and SYN | ACK
        SockFilter::new(0x15, 0, 1, 0x02),     // jne SYN, to the last line
        SockFilter::new(0x06, 0, 0, 0),        // ret 0: drop
        SockFilter::new(0x06, 0, 0, u32::MAX), // ret: keep
    ];
    if let Err(error) = SockRef::from(listener).attach_filter(&filter) {
        tracing::warn!(error = %error, "connections made in this moment may be reset");
    }
}

/// Elsewhere that moment remains.
#[cfg(not(target_os = "linux"))]
fn ignore_handshakes(_: &TcpListener) {}

async fn accept_with_place(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    Ok((stream, client, place))
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
