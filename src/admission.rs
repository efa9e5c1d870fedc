//! Admission control: under overload some requests are answered as quickly as ever, and the others refused soon.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::Http;
use crate::error::Error;
use crate::health::Health;
use crate::metrics::Metrics;

/// Places for business requests.
pub struct Admission {
    places: Semaphore,
    queue_timeout: Duration,
    start: Instant,
    /// Milliseconds after `start`: when a request has waited in vain, and `queue_timeout` more.
    overloaded_until: AtomicU64,
    health: Health,
    metrics: Arc<Metrics>,
}

impl Admission {
    pub fn new(http: &Http, health: Health, metrics: Arc<Metrics>) -> Self {
        let (places, queue_timeout) = (Semaphore::new(http.max_in_flight), http.queue_timeout);
        Self {
            places,
            queue_timeout,
            start: Instant::now(),
            overloaded_until: AtomicU64::new(0),
            health,
            metrics,
        }
    }

    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        let overloaded = self.now() < self.overloaded_until.load(Ordering::Relaxed);
        let wait = if overloaded { self.queue_timeout / 20 } else { self.queue_timeout };
        let place = tokio::time::timeout(wait, self.places.acquire()).await;
        if place.is_err() {
            let until = self.now() + self.queue_timeout.as_millis() as u64;
            self.overloaded_until.store(until, Ordering::Relaxed);
        }
        place.ok()?.ok()
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

/// Lets a bounded number of business requests in and refuses the rest soon, so that those inside are answered
/// in time. Health and metrics are outside: a busy service is not a broken one.
///
/// A burst may wait for `queue_timeout`. When a request has waited in vain it is no burst, and waiting only makes those
/// requests slow that are admitted: until there is room again, a twentieth is all. The idea and the numbers are those of
/// "Fail at Scale" (B. Maurer, ACM Queue 13/8), whose rule looks at when the queue was last empty.
///
/// Not tower's `ConcurrencyLimit`: in a router it counts per connection.
pub async fn admit(State(admission): State<Arc<Admission>>, request: Request, next: Next) -> Response {
    if !admission.health.is_started() {
        return Error::Unavailable("The service is starting.").into_response();
    }
    let Some(_place) = admission.place().await else {
        admission.metrics.http_requests_shed.inc();
        return Error::Unavailable("The service is busy.").into_response();
    };
    next.run(request).await
}
