//! Typed settings. Loading is pure: nothing is bound or connected, and every problem is reported at once.
//!
//! `default.toml` documents each key; [`crate::platform::config::sources`] says where values come from. The rules between
//! settings (which time has to be shorter than which) are in `rules`.

pub mod otlp;
pub mod secret;
pub mod sources;
pub mod url;
pub mod validate;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use tracing_subscriber::filter::Targets;

use crate::platform::config::otlp::Collector;
use crate::platform::config::sources::{Problem, Settings};
use crate::platform::config::url::{PostgresAddress, RedisAddress};

/// Everything that can be set, valid as a whole.
pub struct Config {
    pub service: Service,
    pub http: Http,
    pub management: Management,
    pub database: Database,
    pub redis: Redis,
    pub secrets: Secrets,
    pub health: Health,
    pub shutdown: Shutdown,
    pub log: Log,
    /// `None`: no spans are made.
    pub collector: Option<Collector>,
    pub runtime: Runtime,
}

pub struct Service {
    pub name: String,
    pub environment: String,
    pub instance: String,
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
    /// `None`: the management endpoints are on the public listener, with all details.
    pub address: Option<SocketAddr>,
    pub stall_timeout: Duration,
}

pub struct Database {
    pub address: PostgresAddress,
    pub application_name: String,
    pub max_connections: u32,
    pub acquire_timeout: Duration,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    pub idle_in_transaction_timeout: Duration,
    pub session_lifetime: Duration,
}

pub struct Redis {
    pub address: RedisAddress,
    pub operation_timeout: Duration,
    pub breaker_pause: Duration,
}

#[derive(Clone, Copy)]
pub struct Secrets {
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

/// What the loss of a dependency means for readiness.
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
    /// Reads and checks all settings; `Err` holds every problem that there is.
    pub fn load(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Settings), Vec<Problem>> {
        let mut settings = Settings::read(variables);
        match Self::build(&mut settings) {
            Some(config) if settings.problems().is_empty() => Ok((config, settings)),
            _ => Err(settings.problems().to_vec()),
        }
    }

    fn build(s: &mut Settings) -> Option<Self> {
        // Cpuset and cgroup quota included, rounded down, at least 1.
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let runtime = Runtime {
            worker_threads: s.get::<Auto>("runtime.worker_threads").or(cpus),
            max_blocking_threads: s.count("runtime.max_blocking_threads"),
        };
        let service = Service {
            name: s.get("service.name"),
            environment: s.get("service.environment"),
            instance: s.get("service.instance"),
        };
        let http = Http::read(s);
        let management_ip = s.get::<IpAddr>("management.address");
        let management_port = s.get_optional("management.port");
        let management = Management {
            address: management_port.map(|port| SocketAddr::new(management_ip, port)),
            stall_timeout: s.duration("management.stall_timeout"),
        };
        let database_address = PostgresAddress::read(s);
        let max_connections: Auto = s.get("database.max_connections");
        let database = database_address.map(|address| Database {
            address,
            application_name: service.name.clone(),
            max_connections: max_connections.or(4 * runtime.worker_threads).try_into().unwrap_or(u32::MAX),
            acquire_timeout: s.duration("database.acquire_timeout"),
            statement_timeout: s.duration("database.statement_timeout"),
            lock_timeout: s.duration("database.lock_timeout"),
            idle_in_transaction_timeout: s.duration("database.idle_in_transaction_timeout"),
            session_lifetime: s.duration("database.session_lifetime"),
        });
        let redis = RedisAddress::read(s).map(|address| Redis {
            address,
            operation_timeout: s.duration("redis.operation_timeout"),
            breaker_pause: s.duration("redis.breaker_pause"),
        });
        let secrets = Secrets { reload_interval: s.duration("secrets.reload_interval") };
        let health = Health::read(s);
        let shutdown = Shutdown {
            ready_delay: s.pause("shutdown.ready_delay"),
            drain_timeout: s.duration("shutdown.drain_timeout"),
            pool_close_timeout: s.duration("shutdown.pool_close_timeout"),
        };
        let log = Log {
            filter: s.get("log.level"),
            format: s.get("log.format"),
            buffer_lines: s.count("log.buffer_lines"),
        };
        let collector = Collector::read(s);
        validate::check(s);
        Some(Self {
            service,
            http,
            management,
            database: database?,
            redis: redis?,
            secrets,
            health,
            shutdown,
            log,
            collector,
            runtime,
        })
    }
}

impl Http {
    fn read(s: &mut Settings) -> Self {
        Self {
            address: SocketAddr::new(s.get::<IpAddr>("http.address"), s.get("http.port")),
            max_connections: s.count("http.max_connections"),
            header_timeout: s.duration("http.header_timeout"),
            write_timeout: s.duration("http.write_timeout"),
            request_timeout: s.duration("http.request_timeout"),
            max_in_flight: s.count("http.max_in_flight"),
            queue_timeout: s.pause("http.queue_timeout"),
            max_head_bytes: s.count("http.max_head_bytes"),
            max_headers: s.count("http.max_headers"),
            max_uri_bytes: s.count("http.max_uri_bytes"),
            max_body_bytes: s.count("http.max_body_bytes"),
        }
    }
}

impl Health {
    fn read(s: &mut Settings) -> Self {
        Self {
            interval: s.duration("health.interval"),
            recovery_interval: s.duration("health.recovery_interval"),
            timeout: s.duration("health.timeout"),
            failures: s.count("health.failures"),
            successes: s.count("health.successes"),
            stale_after: s.duration("health.stale_after"),
            postgres: s.get("health.postgres"),
            redis: s.get("health.redis"),
        }
    }
}

/// A number above 0, or `auto`.
struct Auto(Option<NonZeroUsize>);

impl Auto {
    fn or(&self, default: usize) -> usize {
        self.0.map_or(default, NonZeroUsize::get)
    }
}

impl FromStr for Auto {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self(None)),
            _ => text.parse().map(|n| Self(Some(n))).map_err(|_| "must be a number above 0, or auto"),
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
