//! The handles that handlers may ask for, each on its own: `State(database): State<Database>`.

use axum::extract::FromRef;

use crate::platform::postgres::Database;
use crate::platform::redis::cache::Cache;
use crate::platform::shutdown::Tasks;

/// Clonable handles without behaviour; nothing in here belongs to one domain.
#[derive(Clone, FromRef)]
pub struct AppState {
    pub database: Database,
    pub cache: Cache,
    pub tasks: Tasks,
}
