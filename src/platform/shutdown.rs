//! A shutdown from the signal to the exit code.
//!
//! 1. **Draining.** Not ready. New connections are still served for `ready_delay`, so that load balancers can deregister
//!    the instance; each response closes its connection.
//! 2. **Closing.** The listener is closed; requests in progress continue for `drain_timeout`.
//! 3. **Cutting.** Connections that remain are aborted.
//! 4. Tasks end, then the connection pool closes, then the log and the spans are flushed (`cli`).
//!
//! One deadline counts from the signal. A second signal ends the shutdown immediately.

use std::io;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::platform::config;
use crate::platform::http::connection::Connections;
use crate::platform::postgres::Database;
use crate::platform::stages::Stages;
use crate::platform::tasks::Tasks;

/// How long aborted connections get to notice it. A handler that blocks its thread does not.
const ABORT_GRACE: Duration = Duration::from_millis(200);

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Exit {
    /// 0: the command succeeded; a shutdown aborted no work.
    Clean,
    /// 1: an error, which is in the log or on stderr.
    Failed,
    /// 3: the shutdown aborted work at its deadline.
    WorkCut,
    /// 78, EX_CONFIG of sysexits(3): configuration errors, all on stderr.
    ConfigurationInvalid,
    /// 128 + n: signal number n ended the command, or was the second one during a shutdown.
    Signal(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Clean => 0,
            Exit::Failed => 1,
            Exit::WorkCut => 3,
            Exit::ConfigurationInvalid => 78,
            Exit::Signal(number) => 128 + number,
        })
    }
}

/// SIGTERM (orchestrators) and SIGINT (Ctrl-C). tokio never restores the default action, so a second signal has to be
/// handled as well.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers. Call this first: until it returns, SIGTERM kills the process without a drain, and as PID 1
    /// the process ignores it.
    pub fn install() -> anyhow::Result<Self> {
        let install = |kind| signal(kind).context("failed to install a signal handler");
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and returns its number.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 15,
            _ = self.interrupt.recv() => 2,
        }
    }
}

/// Awaits `work`, or cancels it at the first signal.
pub async fn or_signal(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<Exit> {
    let mut signals = Signals::install()?;
    tokio::select! {
        result = work => result.map(|()| Exit::Clean),
        signal = signals.next() => Ok(Exit::Signal(signal)),
    }
}

/// What a shutdown has to stop.
pub struct Running {
    pub stages: Stages,
    pub connections: Connections,
    pub tasks: Tasks,
    pub database: Database,
}

impl Running {
    /// Stops the service. `accept` is the accept loop, which ends after the stage `closing` has begun.
    pub async fn drain(
        self,
        config: &config::Shutdown,
        mut accept: Pin<&mut impl Future<Output = io::Result<()>>>,
    ) -> anyhow::Result<Exit> {
        let start = Instant::now();
        let closing = start + config.ready_delay;
        let deadline = closing + config.drain_timeout;
        self.stages.draining.cancel();
        tokio::select! {
            () = sleep_until(closing) => {}
            ended = &mut accept => return ended.map(|()| Exit::Failed).context("the accept loop ended"),
        }

        self.stages.closing.cancel();
        accept.await.context("failed to accept the last connections")?;
        tracing::info!("no longer accepting connections");
        let mut stuck = false;
        if timeout_at(deadline, self.connections.finished()).await.is_err() {
            self.stages.cutting.cancel();
            stuck = timeout(ABORT_GRACE, self.connections.finished()).await.is_err();
        }
        // Transactions whose client has disconnected.
        let tasks_cut = timeout_at(deadline, self.tasks.finished()).await.is_err();
        if timeout(config.pool_close_timeout, self.database.close()).await.is_err() {
            tracing::warn!("the database connections did not close in time");
        }

        let connections_cut = self.connections.aborted();
        let seconds = start.elapsed().as_secs_f64();
        if connections_cut > 0 || tasks_cut || stuck {
            tracing::error!(
                connections_cut,
                tasks_cut,
                stuck,
                seconds,
                "shutdown complete, work was cut off"
            );
            Ok(Exit::WorkCut)
        } else {
            tracing::info!(seconds, "shutdown complete");
            Ok(Exit::Clean)
        }
    }
}
