//! Every route, and the middleware around them in order.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;

use crate::platform::error::Error;
use crate::platform::http::access_log::{Observer, observe};
use crate::platform::http::load_shed::{LoadShed, shed_load};
use crate::platform::state::AppState;

/// Returns the public service: the domains behind load shedding, and the management endpoints beside them.
pub fn public(domains: Router<AppState>, state: AppState, load: LoadShed, management: Router) -> Router {
    domains.with_state(state).layer(from_fn_with_state(Arc::new(load), shed_load)).merge(management)
}

/// Adds the middleware to `routes`, the outermost first. A single `layer`, because each one boxes every route anew.
pub fn with_middleware(routes: Router, observer: Observer, max_body_bytes: usize) -> Router {
    routes
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer((
            // Context, log, and metrics; rejects malformed heads; limits the time.
            from_fn_with_state(Arc::new(observer), observe),
            // The panic hook has logged and counted the panic.
            CatchPanicLayer::custom(|_| Error::Panicked.into_response()),
            // Ends a chunked body at the limit; the length of any other is checked with the head.
            RequestBodyLimitLayer::new(max_body_bytes),
            // axum's own limit applies only to its extractors.
            DefaultBodyLimit::disable(),
        ))
}
