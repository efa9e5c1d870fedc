//! The accept loop. `axum::serve` is not used: it has no limit on connections, no timeout for slow clients, and no deadline
//! at shutdown, and it loses the connections that the kernel has completed when it stops.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::platform::http::closing::ignore_handshakes;
use crate::platform::http::connection::Connections;
use crate::platform::stages::Stages;
use crate::platform::telemetry::metrics::Metrics;

/// Connections that the kernel completes ahead of the accept loop.
const BACKLOG: u32 = 1024;
/// Handshakes that have begun before the listener closes get this long to end: a round trip to a proxy. A longer grace
/// would keep new clients waiting, and a proxy prefers a refusal, after which it asks another instance.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(1);
/// Pause after a failed accept; the usual cause is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Failed accepts are logged at most once per interval.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// A bound listener with its limit on connections.
pub struct Listener {
    listener: TcpListener,
    max_connections: usize,
    stages: Stages,
    metrics: Arc<Metrics>,
}

impl Listener {
    /// Binds `address`, even while connections of a previous process linger there.
    pub fn bind(
        address: SocketAddr,
        max_connections: usize,
        stages: Stages,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        metrics.http_connections_limit.set(max_connections as i64);
        Ok(Self { listener, max_connections, stages, metrics })
    }

    /// Returns the bound address, with the port that the kernel chose for port 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts connections until the stage `closing`, then those that the kernel still holds, and closes the listener.
    /// The accepted connections live on in `connections`.
    pub async fn accept(self, connections: Connections) -> io::Result<()> {
        self.accept_until_closing(&connections).await;
        // To their clients the connections in the backlog are open; closing the listener now would reset them.
        let listener = self.listener.into_std()?;
        // Twice the capacity of the backlog, in case an accept fails.
        for _ in 0..2 * BACKLOG {
            let accepted = listener.accept().and_then(|(stream, peer)| {
                stream.set_nonblocking(true)?;
                Ok((TcpStream::from_std(stream)?, peer))
            });
            match accepted {
                Ok((stream, peer)) => connections.spawn(stream, peer, None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.metrics.http_accept_errors.inc(),
            }
        }
        Ok(())
    }

    async fn accept_until_closing(&self, connections: &Connections) {
        let permits = Arc::new(Semaphore::new(self.max_connections));
        let mut last_logged: Option<Instant> = None;
        let mut closing = pin!(async {
            self.stages.closing.cancelled().await;
            ignore_handshakes(&self.listener);
            tokio::time::sleep(HANDSHAKE_GRACE).await;
        });
        loop {
            let accepted = tokio::select! {
                () = &mut closing => return,
                accepted = self.accept_with_permit(&permits) => accepted,
            };
            match accepted {
                Ok((stream, peer, permit)) => connections.spawn(stream, peer, Some(permit)),
                // The client gave up while it waited in the backlog.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.metrics.http_accept_errors.inc();
                    if last_logged.is_none_or(|at| at.elapsed() > ACCEPT_LOG_INTERVAL) {
                        tracing::error!(error = %error, "failed to accept a connection");
                        last_logged = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes the permit first: a connection beyond the limit waits in the kernel and costs the service nothing.
    async fn accept_with_permit(
        &self,
        permits: &Arc<Semaphore>,
    ) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = self.listener.accept().await?;
        Ok((stream, peer, permit))
    }
}
