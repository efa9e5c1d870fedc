//! Endpoints for whoever operates the service: `/health/live`, `/health/ready`, `/health/startup`, `/metrics`.
//!
//! They are on the public listener, or, when `management.port` is set, on a listener with a thread and runtime of
//! its own, which answers when the main runtime does not. Then `/metrics` and the details of readiness are there
//! only, out of the proxy's reach, and the public listener keeps `/health/*` with a short body.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::runtime::RuntimeMetrics;

use crate::platform::error::Error;
use crate::platform::health::{Health, Status};
use crate::platform::postgres::Database;
use crate::platform::telemetry::metrics::Metrics;

/// What the endpoints tell about.
pub struct Management {
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub database: Database,
    pub heartbeat: Heartbeat,
    /// Of the runtime that serves the public.
    pub runtime: RuntimeMetrics,
}

impl Management {
    /// The endpoints with all details.
    pub fn full(self: Arc<Self>) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/health/ready", get(ready_in_detail))
            .with_state(Arc::clone(&self))
            .merge(self.probes())
    }

    /// What may be told in public.
    pub fn short(self: Arc<Self>) -> Router {
        let ready = Router::new().route("/health/ready", get(ready)).with_state(Arc::clone(&self));
        ready.merge(self.probes())
    }

    fn probes(self: Arc<Self>) -> Router {
        Router::new().route("/health/live", get(live)).route("/health/startup", get(startup)).with_state(self)
    }
}

/// The process makes progress. Never asks a dependency: a restart repairs none.
async fn live(State(management): State<Arc<Management>>) -> Response {
    match management.heartbeat.is_beating() {
        true => Json(json!({"status": "alive"})).into_response(),
        false => told(StatusCode::SERVICE_UNAVAILABLE, json!({"status": "stalled"})),
    }
}

/// The schema has been verified; 200 from then on.
async fn startup(State(management): State<Arc<Management>>) -> Response {
    match management.health.is_started() {
        true => Json(json!({"status": "started"})).into_response(),
        false => told(StatusCode::SERVICE_UNAVAILABLE, json!({"status": "starting"})),
    }
}

/// Whether this instance should get requests.
async fn ready(State(management): State<Arc<Management>>) -> Response {
    let status = management.health.status();
    told(ready_code(status.is_ready()), json!({"status": status}))
}

async fn ready_in_detail(State(management): State<Arc<Management>>) -> Response {
    let report = management.health.report();
    told(ready_code(report.status.is_ready()), json!(report))
}

fn ready_code(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// A status of our own, which stays JSON rather than a problem document even when it is not 200.
fn told(code: StatusCode, body: serde_json::Value) -> Response {
    (code, Json(body)).into_response()
}

async fn metrics(State(management): State<Arc<Management>>) -> Result<Response, Error> {
    let metrics = &management.metrics;
    management.database.observe();
    metrics.runtime(&management.runtime);
    let status = management.health.status();
    metrics.service_ready.set(status.is_ready().into());
    metrics.service_degraded.set((status == Status::Degraded).into());
    let text = metrics.render().map_err(anyhow::Error::from)?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

/// A task of the main runtime that leaves a mark each second, for readers outside of that runtime.
#[derive(Clone)]
pub struct Heartbeat {
    start: Instant,
    stall_timeout: Duration,
    last_beat_ms: Arc<AtomicU64>,
}

impl Heartbeat {
    pub fn new(stall_timeout: Duration) -> Self {
        Self { start: Instant::now(), stall_timeout, last_beat_ms: Arc::default() }
    }

    /// Beats until the process ends.
    pub async fn beat(self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            self.last_beat_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    fn is_beating(&self) -> bool {
        let silence = self.now_ms().saturating_sub(self.last_beat_ms.load(Ordering::Relaxed));
        u128::from(silence) < self.stall_timeout.as_millis()
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}
