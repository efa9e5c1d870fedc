//! What every service needs. The order of the `mod` lines is the layering: a module imports only from modules above it.

pub mod breaker;
pub mod cli;
pub mod config;
pub mod error;
pub mod health;
pub mod http;
pub mod postgres;
pub mod redis;
pub mod rotation;
pub mod server;
pub mod shutdown;
pub mod state;
pub mod telemetry;

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit that the binary was built from, or `unknown`.
pub const REVISION: &str = env!("APP_REVISION");
