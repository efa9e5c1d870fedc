//! Rotation of credentials while the service runs.
//!
//! Secrets are files, and rotation replaces the files: Kubernetes swaps a symbolic link, Compose and people write in place.
//! So the files are read again at every interval. New credentials are tried first and used once they work; until then the
//! current ones stay in use. This covers a file that is written before or after the password changes, half written,
//! missing for a moment, or wrong. Host and database do not change: the schema is verified at startup only.
//!
//! The files are read rather than watched: inotify follows neither a swapped link nor a network file system.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::platform::config::secret::Credentials;
use crate::platform::config::sources::Problem;
use crate::platform::config::{self, Config, database, redis};
use crate::platform::error_class::ErrorClass;
use crate::platform::postgres::Database;
use crate::platform::redis::cache::Cache;
use crate::platform::service::Service;
use crate::platform::telemetry::metrics::Metrics;

/// Pause before failed credentials are tried again. It doubles after each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Follows the credentials of PostgreSQL and Redis.
pub struct Rotation {
    service: Service,
    interval: Duration,
    postgres: Dependency<database::Endpoint>,
    redis: Dependency<redis::Endpoint>,
    database: Database,
    cache: Cache,
    metrics: Arc<Metrics>,
}

/// The credentials of one dependency.
struct Dependency<E> {
    name: &'static str,
    endpoint: E,
    in_use: Credentials,
    /// Whether the dependency rejects the credentials in use.
    refused: watch::Receiver<bool>,
    retry_requested: bool,
    failure: Option<Failure>,
}

/// Credentials that did not work.
struct Failure {
    credentials: Credentials,
    problem: String,
    pause: Duration,
    next_attempt: Instant,
}

impl Rotation {
    pub fn new(
        service: Service,
        config: &Config,
        database: Database,
        cache: Cache,
        metrics: Arc<Metrics>,
    ) -> Self {
        let config::database::Database { endpoint, credentials, .. } = &config.database;
        let postgres = Dependency::new("postgres", endpoint.clone(), credentials.clone(), database.refused());
        let config::redis::Redis { endpoint, credentials, .. } = &config.redis;
        let redis = Dependency::new("redis", endpoint.clone(), credentials.clone(), cache.refused());
        let interval = config.rotation.reload_interval;
        Self { service, interval, postgres, redis, database, cache, metrics }
    }

    /// Follows the files until the process ends.
    pub async fn watch(mut self) {
        let mut last_reported = Vec::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = self.postgres.is_refused() => self.postgres.retry_requested = true,
                () = self.redis.is_refused() => self.redis.retry_requested = true,
            }
            let problems = self.reload().await;
            for problem in problems.iter().filter(|problem| !last_reported.contains(*problem)) {
                tracing::warn!(problem, "failed to rotate credentials");
            }
            last_reported = problems;
        }
    }

    /// Reads the settings again, switches to credentials that are new and work, and returns the problems.
    async fn reload(&mut self) -> Vec<String> {
        let service = self.service;
        let read = spawn_blocking(move || {
            let mut settings = service.read_settings();
            let postgres = database::read_address(&mut settings);
            let redis = redis::read_address(&mut settings);
            (postgres, redis, settings.problems().to_vec())
        });
        let Ok((postgres, redis, problems)) = read.await else { return vec![] };
        let postgres = postgres.filter(|_| is_readable(&problems, "database."));
        let redis = redis.filter(|_| is_readable(&problems, "redis."));

        let Self { database, cache, metrics, .. } = self;
        let change_postgres = async |credentials: &Credentials| {
            let result = database.change_credentials(credentials).await;
            record(metrics, "postgres", result.as_ref().err().map(ErrorClass::from));
            result.map_err(|error| error.to_string())
        };
        let change_redis = async |credentials: &Credentials| {
            let result = cache.change_credentials(credentials).await;
            record(metrics, "redis", result.as_ref().err().map(ErrorClass::from));
            result.map_err(|error| error.to_string())
        };
        let (postgres, redis) = tokio::join!(
            self.postgres.apply(postgres, change_postgres),
            self.redis.apply(redis, change_redis),
        );
        let problems = problems.iter().map(ToString::to_string);
        problems.chain(postgres).chain(redis).collect()
    }
}

/// Returns whether no problem concerns a setting of `section`.
fn is_readable(problems: &[Problem], section: &str) -> bool {
    let concerns = |problem: &Problem| problem.key.as_ref().is_some_and(|key| key.starts_with(section));
    !problems.iter().any(concerns)
}

/// Records whether the newest credentials work. An error other than a rejection proves nothing about them.
fn record(metrics: &Metrics, dependency: &str, error: Option<ErrorClass>) {
    if error.is_none_or(|error| error == ErrorClass::Authentication) {
        metrics.credentials_valid.with_label_values(&[dependency]).set(error.is_none().into());
    }
}

impl<E: PartialEq> Dependency<E> {
    fn new(name: &'static str, endpoint: E, in_use: Credentials, refused: watch::Receiver<bool>) -> Self {
        Self { name, endpoint, in_use, refused, retry_requested: false, failure: None }
    }

    /// Waits until the dependency has rejected the credentials in use once more.
    async fn is_refused(&mut self) {
        // The sender lives as long as the pool or the cache, which the rotation holds.
        while self.refused.changed().await.is_ok() {
            if *self.refused.borrow_and_update() {
                return;
            }
        }
    }

    /// Applies what the settings say now, if they can be read, and returns the problem with it.
    async fn apply(
        &mut self,
        configured: Option<(E, Credentials)>,
        change: impl AsyncFnOnce(&Credentials) -> Result<(), String>,
    ) -> Option<String> {
        let (endpoint, credentials) = configured?;
        if endpoint != self.endpoint {
            return Some(format!("{}: changing the address requires a restart", self.name));
        }
        let failed_before = self.failure.as_ref().filter(|failure| failure.credentials == credentials);
        let is_due = match failed_before {
            Some(failure) => failure.next_attempt <= Instant::now(),
            None => self.retry_requested || self.failure.is_some() || credentials != self.in_use,
        };
        if is_due {
            let pause = failed_before.map_or(FIRST_PAUSE, |failure| LONGEST_PAUSE.min(2 * failure.pause));
            self.failure = match change(&credentials).await {
                Ok(()) => {
                    tracing::info!(dependency = self.name, "credentials are in use");
                    self.in_use = credentials;
                    None
                }
                Err(error) => {
                    let problem = format!("{}: {error}", self.name);
                    Some(Failure { credentials, problem, pause, next_attempt: Instant::now() + pause })
                }
            };
            self.retry_requested = false;
        }
        self.failure.as_ref().map(|failure| failure.problem.clone())
    }
}
