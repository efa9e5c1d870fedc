//! Redis as a cache: it may be slow, gone or hold garbage, and nobody is told anything wrong because of it.
//!
//! Every failure is a miss within `operation_timeout`. After five in a row a breaker leaves Redis alone and
//! lets one operation try it again after each pause, so that an outage costs next to nothing.
//!
//! Stale data is kept out by tombstones. A writer puts one in place of the value before it commits, in case that it
//! crashes, and again after, in case that committing took long ([`Cache::invalidate`]). Readers only fill a key that
//! is absent ([`Cache::fill`]), so that whoever read the old row cannot bring it back while the tombstone stands, and
//! it stands longer than any request. Where it cannot be placed, this instance ignores the key and tries until it can
//! or the value has expired. What remains: instances that reach Redis while the writer does not may see the old value
//! until then, at most [`MAX_TTL`] after it was read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, RedisError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::platform::breaker::Breaker;
use crate::platform::config;
use crate::platform::config::url::{Credentials, RedisAddress};
use crate::platform::redis::connect::{RedisClient, error_class};
use crate::platform::telemetry::metrics::Metrics;
use crate::platform::telemetry::request_context;
use crate::platform::telemetry::spans;

/// Longest life of a value, and so of a stale one in the worst case.
pub const MAX_TTL: Duration = Duration::from_secs(60);
/// No JSON value is empty.
const TOMBSTONE: &[u8] = b"";
/// Between two tries to place a tombstone.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Handle of the cache. Cloning is cheap and shares the connection.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    address: RedisAddress,
    client: RwLock<RedisClient>,
    refused: Notify,
    prefix: String,
    operation_timeout: Duration,
    tombstone_ttl: Duration,
    breaker: Breaker,
    /// Keys whose tombstone is not in Redis yet, and when it is needed no more.
    unplaced: Mutex<HashMap<String, Instant>>,
    metrics: Arc<Metrics>,
}

/// Why an operation has no result.
enum Failure {
    /// Not tried: the breaker is open.
    Skipped,
    /// The key holds another type than text.
    Corrupt,
    /// An error or no answer in time.
    Away,
}

impl Cache {
    /// Makes a handle that connects when it is first used.
    ///
    /// Keys begin with `prefix`, as others may use the same Redis. `request_timeout` is the longest time that a
    /// reader takes from the database to [`Cache::fill`].
    pub fn new(
        config: &config::Redis,
        prefix: &str,
        request_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RedisError> {
        Ok(Self(Arc::new(Inner {
            address: config.address.clone(),
            client: RwLock::new(RedisClient::new(&config.address)?),
            refused: Notify::new(),
            prefix: format!("{prefix}:"),
            operation_timeout: config.operation_timeout,
            tombstone_ttl: 2 * request_timeout,
            breaker: Breaker::new(config.breaker_pause),
            unplaced: Mutex::default(),
            metrics,
        })))
    }

    /// Uses `credentials` from now on, if Redis accepts them and lets us write.
    pub async fn change_credentials(&self, credentials: &Credentials) -> Result<(), RedisError> {
        let Credentials { user, password } = credentials.clone();
        let client = RedisClient::new(&RedisAddress { user, password, ..self.0.address.clone() })?;
        let mut write = Cmd::set(self.key("credentials"), TOMBSTONE);
        write.arg("PX").arg(1).query_async::<()>(&mut client.manager()).await?;
        *self.0.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        Ok(())
    }

    /// Opens a connection beside that of the cache, and notes whether the credentials are refused.
    pub async fn connect(&self, limit: Duration) -> Result<MultiplexedConnection, RedisError> {
        let client = self.client().clone();
        let result = client.connect(limit).await;
        if result.as_ref().is_err_and(|error| error_class(error) == "authentication") {
            self.0.refused.notify_one();
        }
        result
    }

    /// Waits until Redis has refused the credentials in use.
    pub async fn refused(&self) {
        self.0.refused.notified().await;
    }

    /// The value of `key`, or `None` where the database has to be asked.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        if self.unplaced().contains_key(key) {
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
            Err(Failure::Away) => "error",
        };
        self.count("get", outcome);
        if outcome == "corrupt" {
            tracing::warn!(key, "the cache held a value of another shape");
            self.invalidate(key).await;
        }
        None
    }

    /// Stores what the database said, unless the key has a value or a tombstone. It expires [`MAX_TTL`] after `asked`,
    /// when the database was, however long the command is on its way; up to a tenth is taken off at random, so that
    /// values stored together do not expire together.
    pub async fn fill<T: Serialize>(&self, key: &str, value: &T, asked: SystemTime) {
        let Ok(value) = serde_json::to_vec(value) else { return };
        let jitter = MAX_TTL.mul_f64(0.1 * f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0);
        let expires = asked + MAX_TTL - jitter;
        let expires = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut command = Cmd::set(self.key(key), value);
        command.arg("NX").arg("PXAT").arg(expires.as_millis() as u64);
        let result = self.run::<Option<()>>(&command).await;
        self.count("fill", outcome(&result));
    }

    /// Makes sure that the value of `key` as of now is not read again. To be called before a change is committed and
    /// after.
    pub async fn invalidate(&self, key: &str) {
        if self.place_tombstone(key).await {
            return;
        }
        let needless = Instant::now() + MAX_TTL + self.0.tombstone_ttl;
        if self.unplaced().insert(key.to_owned(), needless).is_some() {
            return;
        }
        let (cache, key) = (self.clone(), key.to_owned());
        #[expect(clippy::disallowed_methods, reason = "a shutdown must not wait for Redis to return")]
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY_PAUSE).await;
                let placed = cache.place_tombstone(&key).await;
                let mut unplaced = cache.unplaced();
                if placed || unplaced.get(&key).is_none_or(|needless| *needless < Instant::now()) {
                    unplaced.remove(&key);
                    break;
                }
            }
        });
    }

    async fn place_tombstone(&self, key: &str) -> bool {
        let mut command = Cmd::set(self.key(key), TOMBSTONE);
        command.arg("PX").arg(self.0.tombstone_ttl.as_millis() as u64);
        let result = self.run::<()>(&command).await;
        self.count("invalidate", outcome(&result));
        result.is_ok()
    }

    async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let inner = &self.0;
        if !inner.breaker.admits() {
            return Err(Failure::Skipped);
        }
        let since = Instant::now();
        let span = spans::redis(command);
        let mut connection = self.client().manager();
        let reply = command.query_async::<T>(&mut connection);
        let result = tokio::time::timeout(inner.operation_timeout, reply).await;
        if let Some(context) = request_context::current() {
            context.cache.add(since.elapsed());
        }
        let result = match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.code() == Some("WRONGTYPE") => Err(Failure::Corrupt),
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "a cache operation failed");
                Err(Failure::Away)
            }
            Err(_) => Err(Failure::Away),
        };
        if result.is_err() {
            spans::fail(&span);
        }
        inner.breaker.record(!matches!(result, Err(Failure::Away)));
        inner.metrics.cache_breaker_open.set(inner.breaker.is_open().into());
        result
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.0.prefix)
    }

    fn client(&self) -> RwLockReadGuard<'_, RedisClient> {
        self.0.client.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn unplaced(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.unplaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, operation: &str, outcome: &str) {
        self.0.metrics.cache_operations.with_label_values(&[operation, outcome]).inc();
    }
}

fn outcome<T>(result: &Result<T, Failure>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(Failure::Skipped) => "skipped",
        Err(Failure::Corrupt | Failure::Away) => "error",
    }
}
