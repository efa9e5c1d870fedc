//! Signals and the stages of a shutdown. `server` walks through them; everything else only looks.
//!
//! 1. draining: not ready; new connections are still served, each response closes its connection.
//! 2. closing: the listener is gone; requests in progress go on.
//! 3. cutting: the deadline has passed.

use std::panic::resume_unwind;
use std::pin::pin;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::platform::error::Error;
use crate::platform::telemetry::request_context;

/// SIGTERM (orchestrators) and SIGINT (Ctrl-C). tokio never gives back the default action, so a second
/// signal has to be read too.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers: before anything slow, or an early signal kills PID 1 never or a start-up rudely.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and returns its number.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 15,
            _ = self.interrupt.recv() => 2,
        }
    }
}

/// Does `work`, or stops it at the first signal with exit code 128 + n.
pub async fn or_signal(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<u8> {
    let mut signals = Signals::install()?;
    tokio::select! {
        result = work => result.map(|()| 0),
        signal = signals.next() => Ok(128 + signal),
    }
}

/// The stage of the shutdown, as tokens that are cancelled one after the other and never come back.
#[derive(Clone, Default)]
pub struct Stages {
    pub draining: CancellationToken,
    pub closing: CancellationToken,
    pub cutting: CancellationToken,
}

/// Work that the shutdown waits for.
#[derive(Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    limit: Duration,
}

impl Tasks {
    /// No work takes longer than `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { tracker: TaskTracker::new(), limit }
    }

    /// Runs `work` to its end even when the caller goes away, as a handler does when its client disconnects.
    ///
    /// Each transaction belongs in here: a `begin()` cancelled half-way leaves its session in a transaction
    /// that swallows the writes of later borrowers (sqlx issue 4393).
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let work = timeout(self.limit, work);
        let work = async { work.await.unwrap_or(Err(Error::Unavailable("The request took too long."))) };
        let task =
            self.tracker.spawn(request_context::scope(request_context::current(), work).in_current_span());
        match pin!(task).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // Tasks are never aborted: only the end of the runtime gets here, and it ends us as well.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Waits until all work has ended.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
