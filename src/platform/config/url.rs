//! Addresses of PostgreSQL and Redis, from a URL, from single settings, or both: the single setting wins.
//!
//! The drivers' own URL parsers are lenient where it hurts: `localhost:5432/db` becomes a database `5432/db`
//! on an empty host, unknown parameters are ignored and logged with their value. Here both are problems.

use std::net::IpAddr;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret;
use sqlx::postgres::PgSslMode;
use url::Url;

use crate::platform::config::secret::SecretString;
use crate::platform::config::sources::Settings;

/// Where PostgreSQL is and who we are there.
#[derive(Clone, Debug)]
pub struct PostgresAddress {
    /// Name, IP address, or the directory of a Unix socket.
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Option<SecretString>,
    pub name: String,
    pub ssl_mode: PgSslMode,
    pub ssl_root_cert: Option<PathBuf>,
}

/// Where Redis is and who we are there.
#[derive(Clone, Debug)]
pub struct RedisAddress {
    pub host: String,
    pub port: u16,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub db: i64,
    pub tls: bool,
}

/// Who we are there: what can change while the service runs.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub user: Option<String>,
    pub password: Option<SecretString>,
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        let passwords = [self, other].map(|c| c.password.as_ref().map(ExposeSecret::expose_secret));
        self.user == other.user && passwords[0] == passwords[1]
    }
}

impl PostgresAddress {
    /// Reads the address; `None` when a problem was noted instead.
    pub fn read(s: &mut Settings) -> Option<Self> {
        let url = read_url(s, "database.url", &["postgres", "postgresql"], &["sslmode", "sslrootcert"])?;
        let host = require(s, "database.host", url.host)?;
        let user = require(s, "database.user", url.user);
        let name = require(s, "database.name", url.path);
        let parameter = |name| url.parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let ssl_mode = s.get_optional("database.ssl_mode").or_else(|| parameter("sslmode"));
        let ssl_mode = read_ssl_mode(s, ssl_mode.as_deref(), &host);
        let ssl_root_cert = s.get_optional("database.ssl_root_cert").or_else(|| parameter("sslrootcert"));
        Some(Self {
            port: s.get_optional("database.port").or(url.port).unwrap_or(5432),
            password: s.secret("database.password").or(url.password),
            ssl_root_cert: ssl_root_cert.map(PathBuf::from),
            host,
            user: user?,
            name: name?,
            ssl_mode: ssl_mode?,
        })
    }

    /// Where it is and how to get there: what cannot change while the service runs.
    pub fn place(&self) -> String {
        let Self { host, port, name, ssl_mode, ssl_root_cert, .. } = self;
        format!("{host} {port} {name} {ssl_mode:?} {ssl_root_cert:?}")
    }

    pub fn credentials(&self) -> Credentials {
        Credentials { user: Some(self.user.clone()), password: self.password.clone() }
    }
}

impl RedisAddress {
    /// Reads the address; `None` when a problem was noted instead.
    pub fn read(s: &mut Settings) -> Option<Self> {
        let url = read_url(s, "redis.url", &["redis", "rediss"], &[])?;
        let host = require(s, "redis.host", url.host);
        let db = url.path.map_or(Ok(0), |path| path.parse());
        if db.is_err() {
            s.problem(s.name("redis.url"), "the path must be the number of a database");
        }
        Some(Self {
            port: s.get_optional("redis.port").or(url.port).unwrap_or(6379),
            user: s.get_optional("redis.user").or(url.user),
            password: s.secret("redis.password").or(url.password),
            tls: url.scheme == "rediss",
            host: host?,
            db: db.ok()?,
        })
    }

    /// Where it is and how to get there: what cannot change while the service runs.
    pub fn place(&self) -> String {
        let Self { host, port, db, tls, .. } = self;
        format!("{host} {port} {db} {tls}")
    }

    pub fn credentials(&self) -> Credentials {
        Credentials { user: self.user.clone(), password: self.password.clone() }
    }
}

#[derive(Default)]
struct Parts {
    scheme: String,
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<SecretString>,
    path: Option<String>,
    parameters: Vec<(String, String)>,
}

/// Nothing where no URL is set; `None` when a problem was noted instead.
fn read_url(s: &mut Settings, key: &str, schemes: &[&str], parameters: &[&str]) -> Option<Parts> {
    let Some(secret) = s.secret(key) else { return Some(Parts::default()) };
    match parse_url(secret.expose_secret(), schemes, parameters) {
        Ok(parts) => Some(parts),
        Err(problem) => {
            s.problem(s.name(key), problem);
            None
        }
    }
}

fn parse_url(text: &str, schemes: &[&str], parameters: &[&str]) -> Result<Parts, String> {
    // The scheme first: "localhost:5432/db" and "user:password@host" are URLs of other schemes.
    if !schemes.iter().any(|scheme| text.starts_with(&format!("{scheme}://"))) {
        return Err(format!("must begin with {}://", schemes[0]));
    }
    let hint = "special characters of a password are written as %40 for @, %2F for /, %23 for #, %3F for ?";
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}; {hint}"))?;
    if url.fragment().is_some() {
        return Err(format!("has a # in it; {hint}"));
    }
    for (name, _) in url.query_pairs() {
        if !parameters.contains(&name.as_ref()) {
            return Err(format!("has an unknown parameter; known: {parameters:?}; {hint}"));
        }
    }
    let decoded = |part: &str| {
        let text = percent_decode_str(part).decode_utf8();
        text.map(String::from).map_err(|_| "has a part that is not valid UTF-8".to_owned())
    };
    let optional = |part: &str| (!part.is_empty()).then(|| decoded(part)).transpose();
    Ok(Parts {
        scheme: url.scheme().to_owned(),
        host: optional(url.host_str().unwrap_or_default())?
            .map(|host| host.trim_matches(['[', ']']).to_owned()),
        port: url.port(),
        user: optional(url.username())?,
        password: optional(url.password().unwrap_or_default())?.map(SecretString::from),
        path: optional(url.path().trim_start_matches('/'))?,
        parameters: url.query_pairs().into_owned().collect(),
    })
}

fn require(s: &mut Settings, key: &str, from_url: Option<String>) -> Option<String> {
    let value = s.get_optional(key).or(from_url);
    if value.is_none() {
        let (section, part) = key.split_once('.').unwrap_or_default();
        let url = s.name(&format!("{section}.url"));
        s.problem(s.name(key), format!("must be set, or {url} with a {part}"));
    }
    value
}

/// `prefer` and `allow` are not offered: they send the password in plain text when somebody in between asks for it.
fn read_ssl_mode(s: &mut Settings, given: Option<&str>, host: &str) -> Option<PgSslMode> {
    let problem = match given {
        Some("disable") => return Some(PgSslMode::Disable),
        Some("require") => return Some(PgSslMode::Require),
        Some("verify-ca") => return Some(PgSslMode::VerifyCa),
        Some("verify-full") => return Some(PgSslMode::VerifyFull),
        Some(_) => "must be one of",
        None if is_local(host) => return Some(PgSslMode::Disable),
        None => "must be chosen for a host that is not local:",
    };
    let values = "disable, require, verify-ca, verify-full";
    s.problem(s.name("database.ssl_mode"), format!("{problem} {values}"));
    None
}

fn is_local(host: &str) -> bool {
    host.starts_with('/')
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        Settings::read(variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    fn postgres(url: &str) -> Result<PostgresAddress, String> {
        let mut s = settings(&[("DATABASE_URL", url)]);
        let address = PostgresAddress::read(&mut s);
        address.ok_or_else(|| format!("{:?}", s.problems()))
    }

    #[test]
    fn a_url_gives_every_part() {
        let address = postgres("postgres://me:p%40%2F%23@db.example:5433/shop?sslmode=verify-full").unwrap();

        assert_eq!((address.host.as_str(), address.port), ("db.example", 5433));
        assert_eq!((address.user.as_str(), address.name.as_str()), ("me", "shop"));
        assert_eq!(address.password.unwrap().expose_secret(), "p@/#");
        assert!(matches!(address.ssl_mode, PgSslMode::VerifyFull));
    }

    #[test]
    fn single_settings_win_over_the_url() {
        let mut s = settings(&[
            ("DATABASE_URL", "postgres://me:old@localhost/shop"),
            ("APP__DATABASE__PASSWORD", "new"),
            ("APP__DATABASE__HOST", "/run/postgresql"),
        ]);

        let address = PostgresAddress::read(&mut s).unwrap();

        assert_eq!(address.host, "/run/postgresql");
        assert_eq!(address.password.unwrap().expose_secret(), "new");
    }

    #[test]
    fn misleading_urls_are_refused_without_being_repeated() {
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
            let problems = postgres(url).unwrap_err();
            assert!(problems.contains("DATABASE_URL") || problems.contains("APP__"), "{problems}");
            assert!(!problems.contains("s3cr3t"), "{problems}");
        }
    }

    #[test]
    fn redis_has_a_database_number_and_tls() {
        let mut s = settings(&[("REDIS_URL", "rediss://:pw@cache.example:6380/2")]);

        let address = RedisAddress::read(&mut s).unwrap();

        assert_eq!((address.host.as_str(), address.port), ("cache.example", 6380));
        assert_eq!((address.db, address.tls), (2, true));
        assert_eq!(address.password.unwrap().expose_secret(), "pw");
    }
}
