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

use crate::platform::config::Config;
use crate::platform::config::sources::Settings;
use crate::platform::config::url::{Credentials, PostgresAddress, RedisAddress};
use crate::platform::postgres::Database;
use crate::platform::redis::cache::Cache;
use crate::platform::telemetry::metrics::Metrics;

/// What did not work is tried again after this time, and then after twice the last one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Follows the credentials of both dependencies.
pub struct Rotation {
    interval: Duration,
    postgres: Followed,
    redis: Followed,
    database: Database,
    cache: Cache,
    metrics: Arc<Metrics>,
}

/// The credentials of one dependency.
struct Followed {
    dependency: &'static str,
    place: String,
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
        let (postgres, redis) = (&config.database.address, &config.redis.address);
        Self {
            interval: config.secrets.reload_interval,
            postgres: Followed::new("postgres", postgres.place(), postgres.credentials()),
            redis: Followed::new("redis", redis.place(), redis.credentials()),
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
            let mut settings = Settings::read(std::env::vars_os());
            let addresses = (PostgresAddress::read(&mut settings), RedisAddress::read(&mut settings));
            (addresses, settings.problems().to_vec())
        });
        let Ok(((postgres, redis), problems)) = read.await else { return vec![] };
        let readable = |section: &str| !problems.iter().any(|problem| problem.source.contains(section));
        let postgres = postgres.filter(|_| readable("DATABASE")).map(|a| (a.place(), a.credentials()));
        let redis = redis.filter(|_| readable("REDIS")).map(|a| (a.place(), a.credentials()));

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

impl Followed {
    fn new(dependency: &'static str, place: String, in_use: Credentials) -> Self {
        Self { dependency, place, in_use, doubted: false, failure: None }
    }

    /// Takes in what the settings say now, if they could be read, and returns what is wrong with it.
    async fn follow(
        &mut self,
        read: Option<(String, Credentials)>,
        change: impl AsyncFnOnce(&Credentials) -> Result<(), String>,
    ) -> Option<String> {
        let (place, credentials) = read?;
        if place != self.place {
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
