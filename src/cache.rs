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

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisError,
};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::address::RedisAddress;
use crate::breaker::Breaker;
use crate::config;
use crate::context;
use crate::metrics::Metrics;

/// Longest life of a value, and so of a stale one in the worst case.
pub const MAX_TTL: Duration = Duration::from_secs(60);
/// Failures in a row after which Redis is left alone.
const FAILURES: u32 = 5;
/// No JSON value is empty.
const TOMBSTONE: &[u8] = b"";
/// Longest login in the background, where nobody waits for it.
const LOGIN_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries to place a tombstone.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Handle of the cache. Cloning is cheap and shares the connection.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    connected: RwLock<Connected>,
    prefix: String,
    operation_timeout: Duration,
    tombstone_ttl: Duration,
    breaker: Breaker,
    /// Keys whose tombstone is not in Redis yet, and when it is needed no more.
    unplaced: Mutex<HashMap<String, Instant>>,
    metrics: Arc<Metrics>,
}

/// How connections are made, and the one that is in use.
struct Connected {
    client: Client,
    manager: ConnectionManager,
}

impl Connected {
    /// Connects when it is first used.
    fn new(address: &RedisAddress) -> Result<Self, RedisError> {
        // The manager's own retries and waits would hold up callers for seconds.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(50))
            .set_max_delay(Duration::from_millis(200))
            .set_connection_timeout(Some(Duration::from_millis(250)))
            .set_response_timeout(Some(Duration::from_millis(250)));
        let client = client(address)?;
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), config)?;
        Ok(Self { client, manager })
    }
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
            connected: RwLock::new(Connected::new(&config.address)?),
            prefix: format!("{prefix}:"),
            operation_timeout: config.operation_timeout,
            tombstone_ttl: 2 * request_timeout,
            breaker: Breaker::new(FAILURES, config.breaker_pause),
            unplaced: Mutex::default(),
            metrics,
        })))
    }

    /// Uses the login of `config` from now on, if it works.
    pub async fn change_login(&self, config: &config::Redis) -> Result<(), &'static str> {
        let connected = Connected::new(&config.address).map_err(|error| error_class(&error))?;
        let login = tokio::time::timeout(LOGIN_LIMIT, connect(&connected.client, LOGIN_LIMIT));
        login.await.map_err(|_| "timeout")?.map_err(|error| error_class(&error))?;
        *self.0.connected.write().unwrap_or_else(PoisonError::into_inner) = connected;
        Ok(())
    }

    /// How new connections are made.
    pub fn client(&self) -> Client {
        self.connected().client.clone()
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
        let mut connection = self.connected().manager.clone();
        let reply = command.query_async::<T>(&mut connection);
        let result = tokio::time::timeout(inner.operation_timeout, reply).await;
        if let Some(context) = context::current() {
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
        inner.breaker.record(!matches!(result, Err(Failure::Away)));
        inner.metrics.cache_breaker_open.set(inner.breaker.is_open().into());
        result
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.0.prefix)
    }

    fn connected(&self) -> RwLockReadGuard<'_, Connected> {
        self.0.connected.read().unwrap_or_else(PoisonError::into_inner)
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

/// Connects and logs in.
pub async fn connect(client: &Client, limit: Duration) -> Result<MultiplexedConnection, RedisError> {
    let limits =
        AsyncConnectionConfig::new().set_connection_timeout(Some(limit)).set_response_timeout(Some(limit));
    client.get_multiplexed_async_connection_with_config(&limits).await
}

/// Connects to nothing yet.
fn client(address: &RedisAddress) -> Result<Client, RedisError> {
    let (host, port) = (address.host.clone(), address.port);
    let addr = match address.tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    };
    let mut info = redis::RedisConnectionInfo::default().set_db(address.db);
    if let Some(user) = &address.user {
        info = info.set_username(user);
    }
    if let Some(password) = &address.password {
        info = info.set_password(password.expose_secret());
    }
    let tcp = TcpSettings::default().set_nodelay(true);
    // A connection whose other end has vanished is given up by the kernel, and then replaced.
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(Duration::from_secs(2));
    let info = addr.into_connection_info()?.set_tcp_settings(tcp).set_redis_settings(info);
    Client::open(info)
}

/// A word for what went wrong, fit for the public.
pub fn error_class(error: &RedisError) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_connection_refusal() {
        "refused"
    } else if error.kind() == redis::ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
    {
        "authentication"
    } else if error.is_io_error() {
        "connection"
    } else {
        "protocol"
    }
}
