//! The section `[database]`: where PostgreSQL is, the credentials for it, and the limits of its sessions.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::platform::config::secret::Credentials;
use crate::platform::config::sources::{AutoOr, Settings};
use crate::platform::config::url::{ConnectionUrl, require};

const SSL_MODES: &str = "disable, require, verify-ca, verify-full";

pub struct Database {
    pub endpoint: Endpoint,
    pub credentials: Credentials,
    pub application_name: String,
    pub max_connections: u32,
    pub acquire_timeout: Duration,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    pub idle_in_transaction_timeout: Duration,
    pub session_lifetime: Duration,
}

/// The database and how to reach it. A change takes effect at a restart, because the schema is verified at startup.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Name, IP address, or the directory of a Unix socket.
    pub host: String,
    pub port: u16,
    pub name: String,
    pub ssl_mode: SslMode,
    pub ssl_root_cert: Option<PathBuf>,
}

/// How a connection is encrypted. `prefer` and `allow` do not exist here, because an attacker between the service and
/// PostgreSQL can make them send the password in plain text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SslMode {
    Disable,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Database {
    /// Reads the section; `None` after reporting a problem of the address.
    pub fn read(settings: &mut Settings, application_name: &str, worker_threads: usize) -> Option<Self> {
        let address = read_address(settings);
        let max_connections = settings.get::<AutoOr<usize>>("database.max_connections");
        let acquire_timeout = settings.duration("database.acquire_timeout");
        let statement_timeout = settings.duration("database.statement_timeout");
        let lock_timeout = settings.duration("database.lock_timeout");
        let idle_in_transaction_timeout = settings.duration("database.idle_in_transaction_timeout");
        let session_lifetime = settings.duration("database.session_lifetime");
        let (endpoint, credentials) = address?;
        Some(Self {
            endpoint,
            credentials,
            application_name: application_name.to_owned(),
            max_connections: max_connections.resolve(4 * worker_threads).try_into().unwrap_or(u32::MAX),
            acquire_timeout,
            statement_timeout,
            lock_timeout,
            idle_in_transaction_timeout,
            session_lifetime,
        })
    }
}

/// Reads the endpoint and the credentials, which always have a user. Returns `None` after reporting a problem.
///
/// A single setting wins over the same part of the URL.
pub fn read_address(settings: &mut Settings) -> Option<(Endpoint, Credentials)> {
    let schemes = ["postgres", "postgresql"];
    let url = ConnectionUrl::read(settings, "database.url", &schemes, &["sslmode", "sslrootcert"])?;
    let [url_ssl_mode, url_ssl_root_cert] = ["sslmode", "sslrootcert"].map(|name| url.parameter(name));
    let host = require(settings, "database.host", url.host)?;
    let user = require(settings, "database.user", url.user);
    let name = require(settings, "database.name", url.path);
    let ssl_mode = read_ssl_mode(settings, url_ssl_mode, &host);
    let ssl_root_cert = settings.get_optional("database.ssl_root_cert").or(url_ssl_root_cert);
    let port = settings.get_optional("database.port").or(url.port).unwrap_or(5432);
    let credentials =
        Credentials { user: Some(user?), password: settings.secret("database.password").or(url.password) };
    let ssl_root_cert = ssl_root_cert.map(PathBuf::from);
    Some((Endpoint { host, port, name: name?, ssl_mode: ssl_mode?, ssl_root_cert }, credentials))
}

fn read_ssl_mode(settings: &mut Settings, from_url: Option<String>, host: &str) -> Option<SslMode> {
    let mode = match settings.get_optional::<String>("database.ssl_mode").or(from_url) {
        Some(mode) => mode.parse().map_err(|()| format!("must be one of {SSL_MODES}")),
        None if is_local(host) => Ok(SslMode::Disable),
        None => Err(format!("must be set for a host that is not local: {SSL_MODES}")),
    };
    mode.map_err(|problem| settings.problem("database.ssl_mode", problem)).ok()
}

impl FromStr for SslMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "disable" => Ok(Self::Disable),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(()),
        }
    }
}

fn is_local(host: &str) -> bool {
    host.starts_with('/')
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
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

    fn address(url: &str) -> Result<(Endpoint, Credentials), String> {
        let mut settings = settings(&[("DATABASE_URL", url)]);
        let address = read_address(&mut settings);
        address.ok_or_else(|| format!("{:?}", settings.problems()))
    }

    #[test]
    fn reads_every_part_of_a_url() {
        let url = "postgres://me:p%40%2F%23@db.example:5433/shop?sslmode=verify-full&sslrootcert=/ca.pem";
        let (endpoint, credentials) = address(url).unwrap();

        let expected = Endpoint {
            host: "db.example".to_owned(),
            port: 5433,
            name: "shop".to_owned(),
            ssl_mode: SslMode::VerifyFull,
            ssl_root_cert: Some("/ca.pem".into()),
        };
        assert_eq!(endpoint, expected);
        assert_eq!(credentials.user.as_deref(), Some("me"));
        assert_eq!(credentials.password.unwrap().expose_secret(), "p@/#");
    }

    #[test]
    fn single_settings_win_over_the_url() {
        let mut settings = settings(&[
            ("DATABASE_URL", "postgres://me:old@localhost/shop?sslmode=require"),
            ("APP__DATABASE__PASSWORD", "new"),
            ("APP__DATABASE__HOST", "/run/postgresql"),
            ("APP__DATABASE__SSL_MODE", "disable"),
        ]);

        let (endpoint, credentials) = read_address(&mut settings).unwrap();

        assert_eq!((endpoint.host.as_str(), endpoint.port), ("/run/postgresql", 5432));
        assert_eq!(endpoint.ssl_mode, SslMode::Disable);
        assert_eq!(credentials.password.unwrap().expose_secret(), "new");
    }

    #[test]
    fn rejects_misleading_urls_without_repeating_them() {
        for url in [
            "localhost:5432/s3cr3t",
            "me:s3cr3t@host",
            "mysql://me:s3cr3t@host/shop",
            "postgres://me:s3cr3t/x@localhost/shop",
            "postgres://me:s3cr3t#x@localhost/shop",
            "postgres://me:pw@localhost/shop?s3cr3t=1",
            "postgres:///s3cr3t",
            "postgres://me:s3cr3t@db.example/shop",
            "postgres://me:s3cr3t@db.example/shop?sslmode=prefer",
        ] {
            let problems = address(url).unwrap_err();
            assert!(problems.contains("DATABASE_URL") || problems.contains("APP__"), "{problems}");
            assert!(!problems.contains("s3cr3t"), "{problems}");
        }
    }
}
