//! Connections to PostgreSQL.

use std::io::ErrorKind;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::platform::config::database::{Database, SslMode};
use crate::platform::config::secret::{ExposeSecret, SecretString};

/// Returns how to connect, with limits that PostgreSQL enforces for each session even if the service cannot.
pub fn options(config: &Database) -> PgConnectOptions {
    let milliseconds = |time: Duration| time.as_millis().to_string();
    options_without_limits(config).options([
        ("statement_timeout", milliseconds(config.statement_timeout)),
        ("lock_timeout", milliseconds(config.lock_timeout)),
        ("idle_in_transaction_session_timeout", milliseconds(config.idle_in_transaction_timeout)),
    ])
}

/// Returns how to connect, without limits.
pub fn options_without_limits(config: &Database) -> PgConnectOptions {
    let endpoint = &config.endpoint;
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(endpoint.port)
        .username(config.credentials.user.as_deref().unwrap_or_default())
        .password(password(&config.credentials.password))
        .database(&endpoint.name)
        .ssl_mode(match endpoint.ssl_mode {
            SslMode::Disable => PgSslMode::Disable,
            SslMode::Require => PgSslMode::Require,
            SslMode::VerifyCa => PgSslMode::VerifyCa,
            SslMode::VerifyFull => PgSslMode::VerifyFull,
        })
        .application_name(&config.application_name);
    options = if endpoint.host.starts_with('/') {
        options.socket(&endpoint.host)
    } else {
        options.host(&endpoint.host)
    };
    if let Some(path) = &endpoint.ssl_root_cert {
        options = options.ssl_root_cert(path);
    }
    options
}

/// Returns the password to set. It is always set, possibly empty; otherwise sqlx reads PGPASSWORD.
pub fn password(password: &Option<SecretString>) -> &str {
    password.as_ref().map_or("", ExposeSecret::expose_secret)
}

/// Awaits `work` for at most `timeout`.
pub(super) async fn with_timeout<T>(
    timeout: Duration,
    work: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    let result = tokio::time::timeout(timeout, work).await;
    result.map_err(|_| sqlx::Error::Io(ErrorKind::TimedOut.into()))?
}
