//! A production web service, in reading order:
//!
//! - Life cycle: [`cli`] loads [`config`], starts [`telemetry`] and runs [`server`], which builds all the rest.
//!   [`shutdown`] has the stages that it ends in. [`log_line`] and [`log_writer`] are the log, [`spans`] and `otlp` what
//!   a collector gets.
//! - A request: [`listener`] accepts its connection, [`router`] has every route and the [`middleware`] in order,
//!   [`admission`] lets it in or not, the handlers of a domain such as [`links`] use [`extract`], [`state`] and [`error`].
//! - Dependencies: [`postgres`] with [`postgres_client`] and [`migrations`], [`cache`] with [`redis_client`]. [`health`]
//!   watches them, [`rotation`] renews their credentials, [`management`] and [`metrics`] tell about them.

pub mod address;
pub mod admission;
pub mod breaker;
pub mod cache;
pub mod cli;
pub mod collector;
pub mod config;
pub mod context;
pub mod error;
pub mod extract;
pub mod framing;
pub mod health;
pub mod healthcheck;
pub mod links;
pub mod listener;
pub mod log_line;
pub mod log_writer;
pub mod management;
pub mod metrics;
pub mod middleware;
pub mod migrations;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod postgres;
pub mod postgres_client;
pub mod probe;
pub mod redis_client;
pub mod rotation;
pub mod router;
pub mod rules;
pub mod secret;
pub mod server;
pub mod settings;
pub mod shutdown;
pub mod spans;
pub mod state;
pub mod telemetry;

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit that the binary was built from, or `unknown`.
pub const REVISION: &str = env!("APP_REVISION");
