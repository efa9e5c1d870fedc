//! Redis as a cache that may be slow, unavailable, or hold garbage without any client getting a wrong answer.
//!
//! Every failure is a miss within `operation_timeout`. After five consecutive failures a circuit breaker skips Redis and
//! admits one operation per `breaker_pause`, so an outage costs next to nothing.
//!
//! Tombstones keep stale values out. A writer replaces the value by a tombstone before it commits, in case it crashes, and
//! again after, in case the commit takes long ([`Cache::invalidate_around`]). Readers fill only absent keys
//! ([`Cache::fill`]): a reader of the old row cannot restore it while the tombstone exists, and a tombstone outlives every
//! request. Where a tombstone cannot be written, this instance ignores the key and retries until the write succeeds or the
//! value has expired. One case remains: instances that reach Redis while the writer cannot may read the old value, for at
//! most [`MAX_TTL`] after it was read from the database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, RedisError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::platform::breaker::Breaker;
use crate::platform::config;
use crate::platform::config::redis::Endpoint;
use crate::platform::config::secret::Credentials;
use crate::platform::error_class::ErrorClass;
use crate::platform::redis::connect::RedisClient;
use crate::platform::telemetry::metrics::Metrics;
use crate::platform::telemetry::{request_context, spans};

/// Maximum age of a value, and so of a stale one in the worst case.
pub const MAX_TTL: Duration = Duration::from_secs(60);
/// No JSON value is empty.
const TOMBSTONE: &[u8] = b"";
/// Interval between attempts to write a tombstone.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Handle to the cache. Cloning is cheap and shares the connection.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    client: RwLock<RedisClient>,
    /// Whether Redis rejected the credentials in use at the last login.
    refused: watch::Sender<bool>,
    prefix: String,
    operation_timeout: Duration,
    tombstone_ttl: Duration,
    breaker: Breaker,
    /// Keys whose tombstone is not in Redis yet, and the time from which none is needed.
    pending_invalidations: Mutex<HashMap<String, Instant>>,
    metrics: Arc<Metrics>,
}

/// Why an operation has no result.
enum Failure {
    /// Not attempted: the breaker is open.
    Skipped,
    /// The key holds another type than a string.
    Corrupt,
    /// An error, or no answer in time.
    Unavailable,
}

impl Cache {
    /// Returns a handle that connects when it is first used.
    ///
    /// Keys begin with `prefix`, because other services may use the same Redis. `request_timeout` is the longest time
    /// that a reader takes from the database to [`Cache::fill`].
    pub fn new(
        config: &config::redis::Redis,
        prefix: &str,
        request_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RedisError> {
        Ok(Self(Arc::new(Inner {
            endpoint: config.endpoint.clone(),
            client: RwLock::new(RedisClient::new(&config.endpoint, &config.credentials)?),
            refused: watch::Sender::new(false),
            prefix: format!("{prefix}:"),
            operation_timeout: config.operation_timeout,
            tombstone_ttl: 2 * request_timeout,
            breaker: Breaker::new(config.breaker_pause),
            pending_invalidations: Mutex::default(),
            metrics,
        })))
    }

    /// Switches to `credentials`, if Redis accepts them and allows writing.
    pub async fn change_credentials(&self, credentials: &Credentials) -> Result<(), RedisError> {
        let client = RedisClient::new(&self.0.endpoint, credentials)?;
        let mut write = Cmd::set(self.key("credentials"), TOMBSTONE);
        write.arg("PX").arg(1).query_async::<()>(&mut client.manager()).await?;
        *self.0.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        self.0.refused.send_replace(false);
        Ok(())
    }

    /// Opens a connection beside that of the cache.
    pub async fn connect(&self, timeout: Duration) -> Result<MultiplexedConnection, RedisError> {
        let client = self.client().clone();
        let result = client.connect(timeout).await;
        match result.as_ref().map_err(ErrorClass::from) {
            Ok(_) => _ = self.0.refused.send_replace(false),
            Err(ErrorClass::Authentication) => _ = self.0.refused.send_replace(true),
            Err(_) => {}
        }
        result
    }

    /// Returns a receiver of whether Redis rejects the credentials in use.
    pub fn refused(&self) -> watch::Receiver<bool> {
        self.0.refused.subscribe()
    }

    /// Returns the value of `key`, or `None` if the database has to be asked.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        if self.pending_invalidations().contains_key(key) {
            self.count("get", "invalidated");
            return None;
        }
        let command = Cmd::get(self.key(key));
        let outcome = match self.run::<Option<Vec<u8>>>(&command).await {
            Ok(Some(bytes)) if bytes == TOMBSTONE => "invalidated",
            Ok(Some(bytes)) => match serde_json::from_slice(&bytes) {
                Ok(value) => {
                    self.count("get", "hit");
                    return Some(value);
                }
                Err(_) => "corrupt",
            },
            Ok(None) => "miss",
            Err(Failure::Corrupt) => "corrupt",
            Err(Failure::Skipped) => "skipped",
            Err(Failure::Unavailable) => "error",
        };
        self.count("get", outcome);
        if outcome == "corrupt" {
            tracing::warn!(key, "discarded a cache entry that could not be deserialized");
            self.invalidate(key).await;
        }
        None
    }

    /// Stores a value from the database, unless the key has a value or a tombstone.
    ///
    /// The value expires [`MAX_TTL`] after `read_at`, the time at which the database was asked, however long the command
    /// takes. A random part of up to a tenth is subtracted, so that values stored together do not expire together.
    pub async fn fill<T: Serialize>(&self, key: &str, value: &T, read_at: SystemTime) {
        let Ok(value) = serde_json::to_vec(value) else { return };
        let expires = read_at + MAX_TTL.mul_f64(rand::random_range(0.9..=1.0));
        let expires = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut command = Cmd::set(self.key(key), value);
        command.arg("NX").arg("PXAT").arg(expires.as_millis() as u64);
        let result = self.run::<Option<()>>(&command).await;
        self.count("fill", outcome(&result));
    }

    /// Awaits `change`, normally a commit, between two invalidations of `key`. The module documentation says why two.
    pub async fn invalidate_around<T>(&self, key: &str, change: impl Future<Output = T>) -> T {
        self.invalidate(key).await;
        let result = change.await;
        self.invalidate(key).await;
        result
    }

    /// Ensures that the current value of `key` is not read again.
    pub async fn invalidate(&self, key: &str) {
        if self.write_tombstone(key).await {
            return;
        }
        let give_up_at = Instant::now() + MAX_TTL + self.0.tombstone_ttl;
        if self.pending_invalidations().insert(key.to_owned(), give_up_at).is_some() {
            return;
        }
        let cache = self.clone();
        let key = key.to_owned();
        #[expect(clippy::disallowed_methods, reason = "a shutdown must not wait for Redis to return")]
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY_INTERVAL).await;
                let written = cache.write_tombstone(&key).await;
                let mut pending = cache.pending_invalidations();
                if written || pending.get(&key).is_none_or(|give_up_at| *give_up_at < Instant::now()) {
                    pending.remove(&key);
                    break;
                }
            }
        });
    }

    async fn write_tombstone(&self, key: &str) -> bool {
        let mut command = Cmd::set(self.key(key), TOMBSTONE);
        command.arg("PX").arg(self.0.tombstone_ttl.as_millis() as u64);
        let result = self.run::<()>(&command).await;
        self.count("invalidate", outcome(&result));
        result.is_ok()
    }

    async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let inner = &self.0;
        if !inner.breaker.admits(Instant::now()) {
            return Err(Failure::Skipped);
        }
        let start = Instant::now();
        let span = spans::redis(command);
        let mut connection = self.client().manager();
        let reply = command.query_async::<T>(&mut connection);
        let result = tokio::time::timeout(inner.operation_timeout, reply).await;
        if let Some(context) = request_context::current() {
            context.cache.add(start.elapsed());
        }
        let result = match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.code() == Some("WRONGTYPE") => Err(Failure::Corrupt),
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "cache operation failed");
                Err(Failure::Unavailable)
            }
            Err(_) => Err(Failure::Unavailable),
        };
        if result.is_err() {
            spans::fail(&span);
        }
        inner.breaker.record(!matches!(result, Err(Failure::Unavailable)), Instant::now());
        inner.metrics.cache_breaker_open.set(inner.breaker.is_open().into());
        result
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.0.prefix)
    }

    fn client(&self) -> RwLockReadGuard<'_, RedisClient> {
        self.0.client.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending_invalidations(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.pending_invalidations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, operation: &str, outcome: &str) {
        self.0.metrics.cache_operations.with_label_values(&[operation, outcome]).inc();
    }
}

fn outcome<T>(result: &Result<T, Failure>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(Failure::Skipped) => "skipped",
        Err(Failure::Corrupt | Failure::Unavailable) => "error",
    }
}
