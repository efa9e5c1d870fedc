//! The section `[redis]`: where Redis is, the credentials for it, and the limits of the cache.

use std::time::Duration;

use crate::platform::config::secret::Credentials;
use crate::platform::config::sources::Settings;
use crate::platform::config::url::{ConnectionUrl, require};

pub struct Redis {
    pub endpoint: Endpoint,
    pub credentials: Credentials,
    pub operation_timeout: Duration,
    pub breaker_pause: Duration,
}

/// The Redis database and how to reach it. A change takes effect at a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub db: i64,
    pub tls: bool,
}

impl Redis {
    /// Reads the section; `None` after reporting a problem of the address.
    pub fn read(settings: &mut Settings) -> Option<Self> {
        let address = read_address(settings);
        let operation_timeout = settings.duration("redis.operation_timeout");
        let breaker_pause = settings.duration("redis.breaker_pause");
        let (endpoint, credentials) = address?;
        Some(Self { endpoint, credentials, operation_timeout, breaker_pause })
    }
}

/// Reads the endpoint and the credentials. Returns `None` after reporting a problem.
///
/// A single setting wins over the same part of the URL.
pub fn read_address(settings: &mut Settings) -> Option<(Endpoint, Credentials)> {
    let url = ConnectionUrl::read(settings, "redis.url", &["redis", "rediss"], &[])?;
    let host = require(settings, "redis.host", url.host);
    let db = url.path.map_or(Ok(0), |path| path.parse());
    if db.is_err() {
        settings.problem("redis.url", "must have the number of a database as its path");
    }
    let port = settings.get_optional("redis.port").or(url.port).unwrap_or(6379);
    let credentials = Credentials {
        user: settings.get_optional("redis.user").or(url.user),
        password: settings.secret("redis.password").or(url.password),
    };
    Some((Endpoint { host: host?, port, db: db.ok()?, tls: url.scheme == "rediss" }, credentials))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::config::Package;
    use crate::platform::config::secret::ExposeSecret;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let package = Package { name: "shop", version: "1.2.3", revision: "abc" };
        Settings::read(&package, "", variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn reads_database_number_and_tls_from_the_url() {
        let mut settings = settings(&[("REDIS_URL", "rediss://:pw@cache.example:6380/2")]);

        let (endpoint, credentials) = read_address(&mut settings).unwrap();

        let expected = Endpoint { host: "cache.example".to_owned(), port: 6380, db: 2, tls: true };
        assert_eq!(endpoint, expected);
        assert_eq!(credentials.user, None);
        assert_eq!(credentials.password.unwrap().expose_secret(), "pw");
    }

    #[test]
    fn rejects_a_database_that_is_not_a_number() {
        let mut settings = settings(&[("REDIS_URL", "redis://localhost/main")]);

        assert!(read_address(&mut settings).is_none());
        assert_eq!(settings.problems()[0].key.as_deref(), Some("redis.url"));
    }
}
