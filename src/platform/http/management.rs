//! Endpoints for the operator: `/health/live`, `/health/ready`, `/health/startup`, `/metrics`.
//!
//! They are on the public listener, or, if `management.port` is set, on a listener with a thread and runtime of its own,
//! which answers even when the main runtime does not. `/metrics` and the details of readiness are then only there, out of
//! the proxy's reach, and the public listener keeps `/health/*` with a short body.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::runtime::RuntimeMetrics;

use crate::platform::error::Error;
use crate::platform::health::heartbeat::Heartbeat;
use crate::platform::health::{Health, Status};
use crate::platform::postgres::Database;
use crate::platform::telemetry::metrics::Metrics;

/// What the endpoints report.
pub struct Management {
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub database: Database,
    pub heartbeat: Heartbeat,
    /// Of the main runtime.
    pub runtime: RuntimeMetrics,
}

impl Management {
    /// Returns the endpoints with all details.
    pub fn detailed(self: Arc<Self>) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/health/ready", get(ready_in_detail))
            .with_state(Arc::clone(&self))
            .merge(self.probes())
    }

    /// Returns the endpoints without what clients should not see.
    pub fn public(self: Arc<Self>) -> Router {
        let ready = Router::new().route("/health/ready", get(ready)).with_state(Arc::clone(&self));
        ready.merge(self.probes())
    }

    fn probes(self: Arc<Self>) -> Router {
        Router::new().route("/health/live", get(live)).route("/health/startup", get(startup)).with_state(self)
    }
}

/// Whether the process makes progress. Asks no dependency, because a restart repairs none.
async fn live(State(management): State<Arc<Management>>) -> Response {
    if management.heartbeat.is_beating() {
        status_response(StatusCode::OK, json!({"status": "alive"}))
    } else {
        status_response(StatusCode::SERVICE_UNAVAILABLE, json!({"status": "stalled"}))
    }
}

async fn startup(State(management): State<Arc<Management>>) -> Response {
    if management.health.is_started() {
        status_response(StatusCode::OK, json!({"status": "started"}))
    } else {
        status_response(StatusCode::SERVICE_UNAVAILABLE, json!({"status": "starting"}))
    }
}

async fn ready(State(management): State<Arc<Management>>) -> Response {
    let status = management.health.status();
    status_response(ready_code(status), json!({"status": status}))
}

async fn ready_in_detail(State(management): State<Arc<Management>>) -> Response {
    let report = management.health.report();
    status_response(ready_code(report.status), json!(report))
}

fn ready_code(status: Status) -> StatusCode {
    if status.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Returns a status as plain JSON rather than a problem document, even if it is not 200.
fn status_response(code: StatusCode, body: serde_json::Value) -> Response {
    (code, Json(body)).into_response()
}

async fn metrics(State(management): State<Arc<Management>>) -> Result<Response, Error> {
    let metrics = &management.metrics;
    management.database.update_metrics();
    metrics.runtime(&management.runtime);
    let status = management.health.status();
    metrics.service_ready.set(status.is_ready().into());
    metrics.service_degraded.set((status == Status::Degraded).into());
    let text = metrics.render().map_err(anyhow::Error::from)?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}
