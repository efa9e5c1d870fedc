//! Credentials that change while the service runs.
//!
//! Secrets are files, and whoever rotates them replaces the files: Kubernetes swaps a symbolic link, compose and people
//! write in place. So the settings are read again every few seconds. A new login is tried first and used once it works;
//! until then it is tried each time, and the one in use stays in use. That covers a file that is written before or after
//! the password changes, half written, gone for a moment, or simply wrong.
//!
//! Read rather than watched by inotify, which follows neither a swapped link nor a network file system.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::address::{PostgresAddress, RedisAddress};
use crate::cache::Cache;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::postgres::Database;

/// The logins in use, and whose they are.
pub struct Rotation {
    interval: Duration,
    postgres: Login<PostgresAddress>,
    redis: Login<RedisAddress>,
    database: Database,
    cache: Cache,
    metrics: Arc<Metrics>,
}

struct Login<A> {
    in_use: A,
    /// The last one that was tried did not work.
    refused: bool,
}

impl Rotation {
    pub fn new(config: &Config, database: Database, cache: Cache, metrics: Arc<Metrics>) -> Self {
        Self {
            interval: config.secrets.reload_interval,
            postgres: Login { in_use: config.database.address.clone(), refused: false },
            redis: Login { in_use: config.redis.address.clone(), refused: false },
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
                () = self.database.login_refused() => self.postgres.refused = true,
            }
            let problems = self.reload().await;
            for problem in problems.iter().filter(|problem| !told.contains(*problem)) {
                tracing::warn!(problem, "settings have changed and cannot be used");
            }
            told = problems;
        }
    }

    /// Reads the settings again and changes to the logins that are new and work; what is wrong with the others.
    async fn reload(&mut self) -> Vec<String> {
        let new = match spawn_blocking(|| Config::load(std::env::vars_os())).await {
            Ok(Ok((config, _))) => config,
            Ok(Err(problems)) => return problems.iter().map(ToString::to_string).collect(),
            Err(_) => return vec!["cannot be read".to_owned()],
        };
        let mut problems = Vec::new();
        // After a refusal again and again, also when the old login is back.
        let login = &mut self.postgres;
        let is_new = !new.database.address.has_login_of(&login.in_use);
        if is_new || login.refused {
            let result = self.database.change_login(&new.database).await;
            self.metrics.credentials("postgres", result);
            problems.extend(login.tried("postgres", is_new.then_some(new.database.address), result));
        }
        let login = &mut self.redis;
        let is_new = !new.redis.address.has_login_of(&login.in_use);
        if is_new || login.refused {
            let result = self.cache.change_login(&new.redis).await;
            self.metrics.credentials("redis", result);
            problems.extend(login.tried("redis", is_new.then_some(new.redis.address), result));
        }
        problems
    }
}

impl<A> Login<A> {
    /// Takes in how a login went, to a `new` address or again to the one in use, and returns what is wrong with it.
    fn tried(&mut self, dependency: &str, new: Option<A>, result: Result<(), &str>) -> Option<String> {
        self.refused = result.is_err();
        match (result, new) {
            (Ok(()), Some(address)) => {
                self.in_use = address;
                tracing::info!(dependency, "new credentials are in use");
                None
            }
            (result, _) => result.err().map(|error| format!("{dependency}: {error}")),
        }
    }
}
