//! Admission control: under overload some requests are answered as quickly as ever, and the others refused soon.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

use crate::platform::config::Http;
use crate::platform::error::Error;
use crate::platform::health::Health;
use crate::platform::telemetry::metrics::Metrics;

/// Places for business requests.
pub struct Admission {
    places: Semaphore,
    queue_timeout: Duration,
    health: Health,
    metrics: Arc<Metrics>,
}

impl Admission {
    pub fn new(http: &Http, health: Health, metrics: Arc<Metrics>) -> Self {
        let (places, queue_timeout) = (Semaphore::new(http.max_in_flight), http.queue_timeout);
        metrics.http_requests_limit.set(http.max_in_flight as i64);
        Self { places, queue_timeout, health, metrics }
    }
}

/// Lets a bounded number of business requests in and refuses the rest soon, so that those inside are answered
/// in time. Health and metrics are outside: a busy service is not a broken one.
///
/// Under lasting overload everybody who is admitted has waited for all of `queue_timeout`: it is short.
///
/// Not tower's `ConcurrencyLimit`: in a router it counts per connection.
pub async fn admit(State(admission): State<Arc<Admission>>, request: Request, next: Next) -> Response {
    if !admission.health.is_started() {
        return Error::Unavailable("The service is starting.").into_response();
    }
    let place = tokio::time::timeout(admission.queue_timeout, admission.places.acquire());
    let Ok(Ok(_place)) = place.await else {
        admission.metrics.http_requests_shed.inc();
        return Error::Unavailable("The service is busy.").into_response();
    };
    next.run(request).await
}
