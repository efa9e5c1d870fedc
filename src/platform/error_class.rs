//! The class of a dependency's failure: one word for health reports, logs, and metrics.

use std::io;

use redis::RedisError;
use serde::Serialize;

/// Why a dependency did not do what it was asked. Safe to show to anyone: it names no host, user, or statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The dependency rejected the credentials.
    Authentication,
    /// The connection broke.
    Connection,
    /// PostgreSQL rejected the statement.
    Database,
    /// An error on this side, such as a value that cannot be decoded.
    Internal,
    NoSuchDatabase,
    /// The answer was not in the dependency's protocol.
    Protocol,
    /// Nothing listens at the address.
    Refused,
    /// Migrations are pending.
    SchemaOutdated,
    ShuttingDown,
    Timeout,
    Tls,
    TooManyConnections,
}

impl ErrorClass {
    /// Returns whether a later attempt may succeed without a change of the request.
    pub fn is_transient(self) -> bool {
        !matches!(self, Self::Database | Self::Internal | Self::NoSuchDatabase | Self::SchemaOutdated)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::Connection => "connection",
            Self::Database => "database",
            Self::Internal => "internal",
            Self::NoSuchDatabase => "no_such_database",
            Self::Protocol => "protocol",
            Self::Refused => "refused",
            Self::SchemaOutdated => "schema_outdated",
            Self::ShuttingDown => "shutting_down",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::TooManyConnections => "too_many_connections",
        }
    }

    /// Classifies a SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    fn of_sqlstate(state: &str) -> Self {
        match state {
            "3D000" => Self::NoSuchDatabase,
            "53300" => Self::TooManyConnections,
            // Statement, lock, and idle-in-transaction timeouts.
            "57014" | "55P03" | "25P03" => Self::Timeout,
            _ if state.starts_with("08") => Self::Connection,
            _ if state.starts_with("28") => Self::Authentication,
            _ if state.starts_with("57P") => Self::ShuttingDown,
            _ => Self::Database,
        }
    }
}

impl From<&sqlx::Error> for ErrorClass {
    fn from(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => Self::Refused,
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => Self::Timeout,
            sqlx::Error::Io(_) | sqlx::Error::PoolClosed => Self::Connection,
            sqlx::Error::PoolTimedOut => Self::Timeout,
            sqlx::Error::Tls(_) => Self::Tls,
            sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => Self::Protocol,
            sqlx::Error::Database(error) => {
                error.code().map_or(Self::Database, |state| Self::of_sqlstate(&state))
            }
            _ => Self::Internal,
        }
    }
}

impl From<&RedisError> for ErrorClass {
    fn from(error: &RedisError) -> Self {
        if error.is_timeout() {
            Self::Timeout
        } else if error.is_connection_refusal() {
            Self::Refused
        } else if error.kind() == redis::ErrorKind::AuthenticationFailed
            || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
        {
            Self::Authentication
        } else if error.is_io_error() {
            Self::Connection
        } else {
            Self::Protocol
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_the_same_in_logs_and_in_reports() {
        for class in [
            ErrorClass::Authentication,
            ErrorClass::Connection,
            ErrorClass::Database,
            ErrorClass::Internal,
            ErrorClass::NoSuchDatabase,
            ErrorClass::Protocol,
            ErrorClass::Refused,
            ErrorClass::SchemaOutdated,
            ErrorClass::ShuttingDown,
            ErrorClass::Timeout,
            ErrorClass::Tls,
            ErrorClass::TooManyConnections,
        ] {
            assert_eq!(serde_json::json!(class), class.as_str());
        }
    }

    #[test]
    fn only_failures_that_pass_are_transient() {
        for (state, class, is_transient) in [
            ("08006", ErrorClass::Connection, true),
            ("28P01", ErrorClass::Authentication, true),
            ("53300", ErrorClass::TooManyConnections, true),
            ("55P03", ErrorClass::Timeout, true),
            ("57014", ErrorClass::Timeout, true),
            ("57P01", ErrorClass::ShuttingDown, true),
            ("3D000", ErrorClass::NoSuchDatabase, false),
            ("42P01", ErrorClass::Database, false),
            ("23505", ErrorClass::Database, false),
        ] {
            assert_eq!(
                (ErrorClass::of_sqlstate(state), class.is_transient()),
                (class, is_transient),
                "{state}"
            );
        }
    }
}
