//! The health check of Redis.

use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use crate::platform::config;
use crate::platform::error_class::ErrorClass;
use crate::platform::health::monitor::Probe;
use crate::platform::redis::cache::Cache;

/// Sends PING on a connection of its own.
pub struct RedisProbe {
    cache: Cache,
    /// Longer than the monitor's timeout, which ends a check first.
    timeout: Duration,
    connection: Option<MultiplexedConnection>,
}

impl RedisProbe {
    pub fn new(cache: Cache, config: &config::Health) -> Self {
        Self { cache, timeout: 2 * config.timeout, connection: None }
    }

    async fn ping(&mut self) -> Result<(), RedisError> {
        // Taken out, so that a failed or cancelled check leaves no broken connection behind.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.cache.connect(self.timeout).await?,
        };
        redis::cmd("PING").query_async::<()>(&mut connection).await?;
        self.connection = Some(connection);
        Ok(())
    }
}

impl Probe for RedisProbe {
    async fn check(&mut self) -> Result<(), ErrorClass> {
        self.ping().await.map_err(|error| ErrorClass::from(&error))
    }
}
