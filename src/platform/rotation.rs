//! Credentials that change while the service runs.
//!
//! Secrets are files, and whoever rotates them replaces the files: Kubernetes swaps a symbolic link, compose and people
//! write in place. So the files are read again every few seconds. New credentials are tried first and used once they
//! work; until then those in use stay in use. That covers a file that is written before or after the password changes,
//! half written, gone for a moment, or simply wrong. Host and database do not change: their schema is checked at start.
//!
//! Read rather than watched by inotify, which follows neither a swapped link nor a network file system.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use crate::platform::PACKAGE;
use crate::platform::cli::DOMAINS;
use crate::platform::config::secret::Credentials;
use crate::platform::config::sources::Settings;
use crate::platform::config::{self, Config};
use crate::platform::postgres::Database;
use crate::platform::redis::cache::Cache;
use crate::platform::telemetry::metrics::Metrics;

/// What did not work is tried again after this time, and then after twice the last one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Follows the credentials of both dependencies.
pub struct Rotation {
    interval: Duration,
    postgres: Followed<config::database::Endpoint>,
    redis: Followed<config::redis::Endpoint>,
    database: Database,
    cache: Cache,
    metrics: Arc<Metrics>,
}

/// The credentials of one dependency.
struct Followed<E> {
    dependency: &'static str,
    endpoint: E,
    in_use: Credentials,
    /// Those in use have been refused.
    doubted: bool,
    failure: Option<Failure>,
}

/// Credentials that did not work.
struct Failure {
    credentials: Credentials,
    problem: String,
    pause: Duration,
    next_try: Instant,
}

impl Rotation {
    pub fn new(config: &Config, database: Database, cache: Cache, metrics: Arc<Metrics>) -> Self {
        let (postgres, redis) = (&config.database, &config.redis);
        Self {
            interval: config.rotation.reload_interval,
            postgres: Followed::new("postgres", postgres.endpoint.clone(), postgres.credentials.clone()),
            redis: Followed::new("redis", redis.endpoint.clone(), redis.credentials.clone()),
            database,
            cache,
            metrics,
        }
    }

    /// Follows the files until the process ends.
    pub async fn watch(mut self) {
        let mut told = Vec::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = self.database.refused() => self.postgres.doubted = true,
                () = self.cache.refused() => self.redis.doubted = true,
            }
            let problems = self.reload().await;
            for problem in problems.iter().filter(|problem| !told.contains(*problem)) {
                tracing::warn!(problem, "credentials cannot be used");
            }
            told = problems;
        }
    }

    /// Reads the settings again and changes to credentials that are new and work; what is wrong otherwise.
    async fn reload(&mut self) -> Vec<String> {
        let read = spawn_blocking(|| {
            let mut settings = Settings::read(&PACKAGE, DOMAINS, std::env::vars_os());
            let postgres = config::database::read_address(&mut settings);
            let addresses = (postgres, config::redis::read_address(&mut settings));
            (addresses, settings.problems().to_vec())
        });
        let Ok(((postgres, redis), problems)) = read.await else { return vec![] };
        let is_readable = |section: &str| {
            let mut keys = problems.iter().filter_map(|problem| problem.key.as_deref());
            !keys.any(|key| key.starts_with(section))
        };
        let postgres = postgres.filter(|_| is_readable("database."));
        let redis = redis.filter(|_| is_readable("redis."));

        let (database, cache, metrics) = (&self.database, &self.cache, &self.metrics);
        let change_postgres = async |credentials: &Credentials| {
            let result = database.change_credentials(credentials).await;
            metrics.credentials(
                "postgres",
                result.as_ref().copied().map_err(crate::platform::postgres::connect::error_class),
            );
            result.map_err(|error| error.to_string())
        };
        let change_redis = async |credentials: &Credentials| {
            let result = cache.change_credentials(credentials).await;
            metrics.credentials(
                "redis",
                result.as_ref().copied().map_err(crate::platform::redis::connect::error_class),
            );
            result.map_err(|error| error.to_string())
        };
        let (postgres, redis) = tokio::join!(
            self.postgres.follow(postgres, change_postgres),
            self.redis.follow(redis, change_redis),
        );
        let problems = problems.iter().map(ToString::to_string);
        problems.chain(postgres).chain(redis).collect()
    }
}

impl<E: PartialEq> Followed<E> {
    fn new(dependency: &'static str, endpoint: E, in_use: Credentials) -> Self {
        Self { dependency, endpoint, in_use, doubted: false, failure: None }
    }

    /// Takes in what the settings say now, if they could be read, and returns what is wrong with it.
    async fn follow(
        &mut self,
        read: Option<(E, Credentials)>,
        change: impl AsyncFnOnce(&Credentials) -> Result<(), String>,
    ) -> Option<String> {
        let (endpoint, credentials) = read?;
        if endpoint != self.endpoint {
            return Some(format!("{}: another address takes a restart", self.dependency));
        }
        let failed_before = self.failure.as_ref().filter(|failure| failure.credentials == credentials);
        let due = match failed_before {
            Some(failure) => failure.next_try <= Instant::now(),
            None => self.doubted || self.failure.is_some() || credentials != self.in_use,
        };
        if due {
            let pause = failed_before.map_or(FIRST_PAUSE, |failure| LONGEST_PAUSE.min(2 * failure.pause));
            self.failure = match change(&credentials).await {
                Ok(()) => {
                    tracing::info!(dependency = self.dependency, "credentials are in use");
                    self.in_use = credentials;
                    None
                }
                Err(error) => {
                    let problem = format!("{}: {error}", self.dependency);
                    Some(Failure { credentials, problem, pause, next_try: Instant::now() + pause })
                }
            };
            self.doubted = false;
        }
        self.failure.as_ref().map(|failure| failure.problem.clone())
    }
}
