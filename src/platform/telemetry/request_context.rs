//! The context of the request in progress: its ids, and the time it spends in PostgreSQL and Redis.
//!
//! Task-local rather than an argument, so that `postgres` and `redis` can add their time and an error can name its
//! request without every function between passing the context on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::platform::telemetry::trace_context::TraceContext;

tokio::task_local! {
    static CURRENT: Option<Arc<RequestContext>>;
}

/// Ids and clocks of one request. Each line logged for the request has the ids.
pub struct RequestContext {
    pub request_id: String,
    pub trace: TraceContext,
    pub database: Clock,
    pub cache: Clock,
}

/// Sums up time that several tasks spend.
#[derive(Default)]
pub struct Clock(AtomicU64);

impl Clock {
    pub fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }

    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

impl RequestContext {
    /// Keeps the caller's request id if it is well formed; otherwise creates one.
    pub fn new(request_id: Option<&str>, trace: TraceContext) -> Self {
        Self {
            request_id: request_id
                .filter(|id| is_request_id(id))
                .map_or_else(|| Uuid::now_v7().to_string(), ToOwned::to_owned),
            trace,
            database: Clock::default(),
            cache: Clock::default(),
        }
    }
}

/// Returns the context of the request that the current task works for.
pub fn current() -> Option<Arc<RequestContext>> {
    CURRENT.try_with(Option::clone).ok().flatten()
}

/// Returns whether the request that the current task works for is sampled; `None` outside of requests.
pub fn is_sampled() -> Option<bool> {
    let of_request =
        |context: &Option<Arc<RequestContext>>| context.as_ref().map(|context| context.trace.is_sampled());
    CURRENT.try_with(of_request).ok().flatten()
}

/// Runs `work` with `context` as the current one.
pub async fn scope<T>(context: Option<Arc<RequestContext>>, work: impl Future<Output = T>) -> T {
    CURRENT.scope(context, work).await
}

/// Runs a synchronous `work` with `context` as the current one: the end of a response body comes after the scope of its
/// request.
pub fn sync_scope<T>(context: Arc<RequestContext>, work: impl FnOnce() -> T) -> T {
    CURRENT.sync_scope(Some(context), work)
}

/// Returns whether `id` has at most 64 characters, all of which are safe without escaping.
fn is_request_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=64).contains(&id.len()) && id.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_request_id_is_well_formed_for_any_input(id in ".{0,80}") {
            let context = RequestContext::new(Some(&id), TraceContext::within(None));

            prop_assert!(is_request_id(&context.request_id));
            prop_assert_eq!(context.request_id == id, is_request_id(&id));
        }
    }
}
