//! Work that runs to its end, even when the client that asked for it disconnects. A shutdown waits for it.

use std::panic::resume_unwind;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::platform::error::Error;
use crate::platform::telemetry::request_context;

/// Handle to the tasks in progress. Cloning is cheap and shares them.
#[derive(Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    time_limit: Duration,
}

impl Tasks {
    /// Returns a handle whose tasks end after `time_limit`.
    pub fn new(time_limit: Duration) -> Self {
        Self { tracker: TaskTracker::new(), time_limit }
    }

    /// Runs `work` to its end. Cancelling the returned future, as a disconnecting client does, does not cancel `work`.
    ///
    /// Transactions run through here ([`Database::transaction`](super::postgres::Database::transaction)): a `begin()`
    /// that is cancelled half-way leaves its session in a transaction that swallows later writes (sqlx issue 4393).
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] after the time limit.
    ///
    /// # Panics
    ///
    /// If `work` panics.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let work = timeout(self.time_limit, work);
        let work = async { work.await.unwrap_or(Err(Error::Timeout)) };
        let work = request_context::scope(request_context::current(), work);
        let task = self.tracker.spawn(work.in_current_span());
        match pin!(task).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // Tasks are never aborted. Only the end of the runtime gets here, and it ends the caller as well.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Waits until all tasks have ended.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
