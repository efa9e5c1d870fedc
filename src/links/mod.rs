//! EXAMPLE DOMAIN: short links. Delete it with `make remove-example`, or copy the folder for a domain of your own.
//!
//! It shows each pattern once: creation with an idempotency key, keyset pagination, conditional requests with ETags, a
//! transaction that outlives its client, and a read path through the cache.

mod handlers;
pub mod model;
mod store;

use axum::Router;
use axum::routing::{get, post};

use crate::platform::state::AppState;

pub fn router() -> Router<AppState> {
    Router::new()
        .route("/v1/links", post(handlers::create).get(handlers::list))
        .route("/v1/links/{slug}", get(handlers::get).patch(handlers::update).delete(handlers::delete))
        .route("/r/{slug}", get(handlers::follow))
}
