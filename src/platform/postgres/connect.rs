//! How sessions of PostgreSQL are made.

use std::io::ErrorKind;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use crate::platform::config;
use crate::platform::config::secret::{ExposeSecret, SecretString};

/// How to connect; each session gets the limits, so that PostgreSQL keeps them when we cannot.
pub fn options(config: &config::Database) -> PgConnectOptions {
    let milliseconds = |time: Duration| time.as_millis().to_string();
    base_options(config).options([
        ("statement_timeout", milliseconds(config.statement_timeout)),
        ("lock_timeout", milliseconds(config.lock_timeout)),
        ("idle_in_transaction_session_timeout", milliseconds(config.idle_in_transaction_timeout)),
    ])
}

/// How to connect, without limits.
pub fn base_options(config: &config::Database) -> PgConnectOptions {
    let address = &config.address;
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(address.port)
        .username(&address.user)
        .database(&address.name)
        .ssl_mode(address.ssl_mode)
        .application_name(&config.application_name);
    options = match address.host.starts_with('/') {
        true => options.socket(&address.host),
        false => options.host(&address.host),
    };
    options = options.password(password(&address.password));
    if let Some(path) = &address.ssl_root_cert {
        options = options.ssl_root_cert(path);
    }
    options
}

/// A word for what went wrong, fit for the public: no host, no user, no statement.
pub fn error_class(error: &sqlx::Error) -> &'static str {
    let state = error.as_database_error().and_then(|error| error.code());
    match (error, state.as_deref()) {
        (sqlx::Error::Io(error), _) if error.kind() == ErrorKind::ConnectionRefused => "refused",
        (sqlx::Error::Io(_), _) => "connection",
        (sqlx::Error::Tls(_), _) => "tls",
        (_, Some(state)) if state.starts_with("28") => "authentication",
        (_, Some("3D000")) => "no_such_database",
        (_, Some("53300")) => "too_many_connections",
        (_, Some(state)) if state.starts_with("57P") => "shutting_down",
        (_, Some(_)) => "database",
        _ => "protocol",
    }
}

/// A password to set in any case, or sqlx would take PGPASSWORD from the environment.
pub fn password(password: &Option<SecretString>) -> &str {
    password.as_ref().map_or("", ExposeSecret::expose_secret)
}
