//! Every route, and the middleware around them in order.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use crate::links;
use crate::platform::config::Http;
use crate::platform::error::{Error, problem};
use crate::platform::health::Health;
use crate::platform::http::access_log::{HeadLimits, Observer, observe};
use crate::platform::http::load_shed::{Admission, admit};
use crate::platform::state::AppState;
use crate::platform::telemetry::metrics::Metrics;

/// The routes of all domains. A new domain is a line here.
pub fn domains() -> Router<AppState> {
    Router::new().merge(links::router())
}

/// The public service: `domains` behind admission control, `management` beside it.
pub fn build(
    domains: Router<AppState>,
    management: Router,
    state: AppState,
    http: &Http,
    health: Health,
    metrics: Arc<Metrics>,
) -> Router {
    let admission = Arc::new(Admission::new(http, health.clone(), Arc::clone(&metrics)));
    let business = domains.with_state(state).layer(from_fn_with_state(admission, admit));
    surround(business.merge(management), http, health, metrics)
}

/// Puts the middleware around `routes`, the outermost first. All in one `layer`: each one boxes every route anew.
pub fn surround(routes: Router, http: &Http, health: Health, metrics: Arc<Metrics>) -> Router {
    let limits = HeadLimits { uri_bytes: http.max_uri_bytes, headers: http.max_headers };
    // The panic hook has logged and counted it.
    let after_panic =
        |_| problem(StatusCode::INTERNAL_SERVER_ERROR, "Something went wrong here.".to_owned(), vec![]);
    routes.fallback(async || Error::NotFound).layer((
        from_fn_with_state(Arc::new(Observer { limits, metrics, health }), observe),
        CatchPanicLayer::custom(after_panic),
        TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, http.request_timeout),
        RequestBodyLimitLayer::new(http.max_body_bytes),
        // axum's own limit binds only its extractors.
        DefaultBodyLimit::disable(),
    ))
}
