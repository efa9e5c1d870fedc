//! Load shedding: limits concurrent requests, so that those that are admitted are answered in time.

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

/// The permits for requests of the domains.
pub struct LoadShed {
    permits: Semaphore,
    queue_timeout: Duration,
    health: Health,
    metrics: Arc<Metrics>,
}

impl LoadShed {
    pub fn new(http: &Http, health: Health, metrics: Arc<Metrics>) -> Self {
        metrics.http_requests_limit.set(http.max_in_flight as i64);
        let permits = Semaphore::new(http.max_in_flight);
        Self { permits, queue_timeout: http.queue_timeout, health, metrics }
    }
}

/// Admits at most `max_in_flight` requests of the domains. The others wait for `queue_timeout` and then get a 503. Health
/// and metrics are not limited: a saturated service is not a broken one.
///
/// Under sustained overload every admitted request has waited for `queue_timeout`, so it is short. tower's
/// `ConcurrencyLimit` is not used: in a router it counts per connection.
pub async fn shed_load(State(load): State<Arc<LoadShed>>, request: Request, next: Next) -> Response {
    if !load.health.is_started() {
        return Error::unavailable("The service is starting. Retry the request.").into_response();
    }
    let permit = tokio::time::timeout(load.queue_timeout, load.permits.acquire()).await;
    let Ok(Ok(_permit)) = permit else {
        load.metrics.http_requests_shed.inc();
        return Error::unavailable("The service is saturated. Retry the request.").into_response();
    };
    next.run(request).await
}
