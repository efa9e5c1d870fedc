//! How the health of each dependency is checked: by a round trip on a connection that is kept for it.

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::health::Health;
use crate::{cache, config, postgres};

/// A check of one dependency.
pub trait Probe: Send {
    /// Checks once. May be cancelled, and then begins with a new connection. An error is a word for the public.
    fn check(&mut self) -> impl Future<Output = Result<(), &'static str>> + Send;
}

/// Verifies the schema once, then asks for any answer.
pub struct PostgresProbe {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    health: Health,
}

impl PostgresProbe {
    pub fn new(config: &config::Database, health: Health) -> Self {
        Self { options: postgres::options(config), connection: None, health }
    }

    async fn try_check(&mut self) -> sqlx::Result<Result<(), &'static str>> {
        // Taken out, so that a failed or cancelled check leaves no broken connection behind.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        let mut result = Ok(());
        if self.health.is_started() {
            connection.ping().await?;
        } else if postgres::pending_migrations(&mut connection).await?.is_empty() {
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
        self.try_check().await.unwrap_or_else(|error| Err(postgres::error_class(&error)))
    }
}

/// Sends PING.
pub struct RedisProbe {
    client: Client,
    limits: AsyncConnectionConfig,
    connection: Option<MultiplexedConnection>,
}

impl RedisProbe {
    pub fn new(config: &config::Redis, health: &config::Health) -> Result<Self, RedisError> {
        // The caller of `check` has the shorter time; these only have to be longer.
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(2 * health.timeout))
            .set_response_timeout(Some(2 * health.timeout));
        Ok(Self { client: cache::client(&config.address)?, limits, connection: None })
    }

    async fn try_check(&mut self) -> Result<(), RedisError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.client.get_multiplexed_async_connection_with_config(&self.limits).await?,
        };
        redis::cmd("PING").query_async::<()>(&mut connection).await?;
        self.connection = Some(connection);
        Ok(())
    }
}

impl Probe for RedisProbe {
    async fn check(&mut self) -> Result<(), &'static str> {
        self.try_check().await.map_err(|error| cache::error_class(&error))
    }
}
