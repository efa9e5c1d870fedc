//! How the health of each dependency is checked: by a round trip on a connection that is kept for it.

use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;
use sqlx::{Connection, PgConnection};

use crate::platform::config;
use crate::platform::health::Health;
use crate::platform::postgres::Database;
use crate::platform::redis::cache::Cache;

/// A check of one dependency.
pub trait Probe: Send {
    /// Checks once. May be cancelled, and then begins with a new connection. An error is a word for the public.
    fn check(&mut self) -> impl Future<Output = Result<(), &'static str>> + Send;
}

/// Verifies the schema once, then asks for any answer.
pub struct PostgresProbe {
    database: Database,
    connection: Option<PgConnection>,
    health: Health,
}

impl PostgresProbe {
    pub fn new(database: Database, health: Health) -> Self {
        Self { database, connection: None, health }
    }

    async fn try_check(&mut self) -> sqlx::Result<Result<(), &'static str>> {
        // Taken out, so that a failed or cancelled check leaves no broken connection behind.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.database.connect().await?,
        };
        let mut result = Ok(());
        if self.health.is_started() {
            connection.ping().await?;
        } else if self.database.pending(&mut connection).await?.is_empty() {
            self.health.set_started();
        } else {
            // Refused rather than served with errors; `app migrate` brings it up to date.
            result = Err("schema_outdated");
        }
        self.connection = Some(connection);
        Ok(result)
    }
}

impl Probe for PostgresProbe {
    async fn check(&mut self) -> Result<(), &'static str> {
        self.try_check()
            .await
            .unwrap_or_else(|error| Err(crate::platform::postgres::connect::error_class(&error)))
    }
}

/// Sends PING.
pub struct RedisProbe {
    cache: Cache,
    /// The caller of `check` has a shorter time; this only has to be longer.
    limit: Duration,
    connection: Option<MultiplexedConnection>,
}

impl RedisProbe {
    pub fn new(cache: Cache, config: &config::Health) -> Self {
        Self { cache, limit: 2 * config.timeout, connection: None }
    }

    async fn try_check(&mut self) -> Result<(), RedisError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.cache.connect(self.limit).await?,
        };
        redis::cmd("PING").query_async::<()>(&mut connection).await?;
        self.connection = Some(connection);
        Ok(())
    }
}

impl Probe for RedisProbe {
    async fn check(&mut self) -> Result<(), &'static str> {
        self.try_check().await.map_err(|error| crate::platform::redis::connect::error_class(&error))
    }
}
