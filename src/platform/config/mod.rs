//! Typed settings. Loading has no side effects: it binds and connects nothing, and reports all configuration errors
//! together.
//!
//! `default.toml` documents each key, [`sources`] defines where values come from, and [`validate`] holds the rules
//! between settings.

pub mod definitions;
pub mod secret;
pub mod sources;
pub mod url;
pub mod database;
pub mod redis;
pub mod otlp;
pub mod validate;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use tracing_subscriber::filter::Targets;

use crate::platform::config::database::Database;
use crate::platform::config::otlp::Otlp;
use crate::platform::config::redis::Redis;
use crate::platform::config::sources::{AutoOr, Problem, Settings};

/// The package that the binary was built from.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Default of `service.name`.
    pub name: &'static str,
    pub version: &'static str,
    /// Git commit, or `unknown`.
    pub revision: &'static str,
}

/// Every setting of the platform, valid as a whole.
pub struct Config {
    pub service: Service,
    pub http: Http,
    pub management: Management,
    pub database: Database,
    pub redis: Redis,
    pub rotation: Rotation,
    pub health: Health,
    pub shutdown: Shutdown,
    pub log: Log,
    /// `None` if the service exports no spans.
    pub otlp: Option<Otlp>,
    pub runtime: Runtime,
}

pub struct Service {
    pub name: String,
    pub environment: String,
    pub instance: String,
    pub version: &'static str,
    pub revision: &'static str,
}

#[derive(Clone)]
pub struct Http {
    pub address: SocketAddr,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub write_timeout: Duration,
    pub request_timeout: Duration,
    pub max_in_flight: usize,
    pub queue_timeout: Duration,
    pub max_head_bytes: usize,
    pub max_headers: usize,
    pub max_uri_bytes: usize,
    pub max_body_bytes: usize,
}

pub struct Management {
    /// `None` if the public listener serves the management endpoints, with all details.
    pub address: Option<SocketAddr>,
    pub stall_timeout: Duration,
}

/// How credentials are rotated.
#[derive(Clone, Copy)]
pub struct Rotation {
    pub reload_interval: Duration,
}

#[derive(Clone)]
pub struct Health {
    pub interval: Duration,
    pub recovery_interval: Duration,
    pub timeout: Duration,
    pub failures: usize,
    pub successes: usize,
    pub stale_after: Duration,
    pub postgres: Criticality,
    pub redis: Criticality,
}

/// Whether the service is ready while a dependency is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Criticality {
    Required,
    Degraded,
}

#[derive(Clone, Copy)]
pub struct Shutdown {
    pub ready_delay: Duration,
    pub drain_timeout: Duration,
    pub pool_close_timeout: Duration,
}

pub struct Log {
    pub filter: Targets,
    pub format: LogFormat,
    pub buffer_lines: usize,
}

#[derive(Clone, Copy, PartialEq)]
pub enum LogFormat {
    Auto,
    Json,
    Text,
}

#[derive(Clone, Copy)]
pub struct Runtime {
    pub worker_threads: usize,
    pub max_blocking_threads: usize,
}

impl Config {
    /// Reads and validates the settings of the platform, and those of the domains with `read_domains`.
    ///
    /// `domains` has the keys of the domains in the format of `default.toml`. `variables` is normally
    /// [`std::env::vars_os`].
    ///
    /// # Errors
    ///
    /// Every problem of all settings.
    ///
    /// # Panics
    ///
    /// If `domains` is malformed or defines a section of the platform.
    pub fn load<T>(
        package: &Package,
        domains: &'static str,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        read_domains: impl FnOnce(&mut Settings) -> T,
    ) -> Result<(Self, T, Settings), Vec<Problem>> {
        let mut settings = Settings::read(package, domains, variables);
        let config = Self::read(package, &mut settings);
        let of_domains = read_domains(&mut settings);
        match config {
            Some(config) if settings.problems().is_empty() => Ok((config, of_domains, settings)),
            _ => Err(settings.problems().to_vec()),
        }
    }

    fn read(package: &Package, settings: &mut Settings) -> Option<Self> {
        let runtime = Runtime::read(settings);
        let service = Service::read(package, settings);
        let http = Http::read(settings);
        let management = Management::read(settings);
        let database = Database::read(settings, &service.name, runtime.worker_threads);
        let redis = Redis::read(settings);
        let rotation = Rotation { reload_interval: settings.duration("secrets.reload_interval") };
        let health = Health::read(settings);
        let shutdown = Shutdown {
            ready_delay: settings.duration_or_zero("shutdown.ready_delay"),
            drain_timeout: settings.duration("shutdown.drain_timeout"),
            pool_close_timeout: settings.duration("shutdown.pool_close_timeout"),
        };
        let log = Log {
            filter: settings.get("log.level"),
            format: settings.get("log.format"),
            buffer_lines: settings.size("log.buffer_lines"),
        };
        let otlp = Otlp::read(settings);
        validate::check(settings);
        Some(Self {
            service,
            http,
            management,
            database: database?,
            redis: redis?,
            rotation,
            health,
            shutdown,
            log,
            otlp,
            runtime,
        })
    }
}

impl Service {
    fn read(package: &Package, settings: &mut Settings) -> Self {
        Self {
            name: settings.get("service.name"),
            environment: settings.get("service.environment"),
            instance: settings.get("service.instance"),
            version: package.version,
            revision: package.revision,
        }
    }
}

impl Http {
    fn read(settings: &mut Settings) -> Self {
        Self {
            address: SocketAddr::new(settings.get::<IpAddr>("http.address"), settings.get("http.port")),
            max_connections: settings.size("http.max_connections"),
            header_timeout: settings.duration("http.header_timeout"),
            write_timeout: settings.duration("http.write_timeout"),
            request_timeout: settings.duration("http.request_timeout"),
            max_in_flight: settings.size("http.max_in_flight"),
            queue_timeout: settings.duration_or_zero("http.queue_timeout"),
            max_head_bytes: settings.size("http.max_head_bytes"),
            max_headers: settings.size("http.max_headers"),
            max_uri_bytes: settings.size("http.max_uri_bytes"),
            max_body_bytes: settings.size("http.max_body_bytes"),
        }
    }
}

impl Management {
    fn read(settings: &mut Settings) -> Self {
        let ip = settings.get::<IpAddr>("management.address");
        let port = settings.get_optional("management.port");
        Self {
            address: port.map(|port| SocketAddr::new(ip, port)),
            stall_timeout: settings.duration("management.stall_timeout"),
        }
    }
}

impl Health {
    fn read(settings: &mut Settings) -> Self {
        Self {
            interval: settings.duration("health.interval"),
            recovery_interval: settings.duration("health.recovery_interval"),
            timeout: settings.duration("health.timeout"),
            failures: settings.size("health.failures"),
            successes: settings.size("health.successes"),
            stale_after: settings.duration("health.stale_after"),
            postgres: settings.get("health.postgres"),
            redis: settings.get("health.redis"),
        }
    }
}

impl Runtime {
    fn read(settings: &mut Settings) -> Self {
        // Respects the cpuset and the cgroup quota, rounded down; at least 1.
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            worker_threads: settings.get::<AutoOr<usize>>("runtime.worker_threads").resolve(cpus),
            max_blocking_threads: settings.size("runtime.max_blocking_threads"),
        }
    }
}

impl FromStr for Criticality {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "required" => Ok(Self::Required),
            "degraded" => Ok(Self::Degraded),
            _ => Err("must be required or degraded"),
        }
    }
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err("must be auto, json or text"),
        }
    }
}
