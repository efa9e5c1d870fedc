//! The handles that handlers may ask for, each on its own: `State(database): State<Database>`.

use axum::extract::FromRef;

use crate::platform::postgres::Database;
use crate::platform::redis::cache::Cache;
use crate::platform::tasks::Tasks;

/// Clonable handles of the platform. A domain adds its own with `Router::with_state` or a layer.
#[derive(Clone, FromRef)]
pub struct AppState {
    pub database: Database,
    pub cache: Cache,
    pub tasks: Tasks,
}
