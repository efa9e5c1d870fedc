//! How connections to Redis are made, and the one that the cache works on.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisError};

use crate::platform::config::secret::ExposeSecret;
use crate::platform::config::url::RedisAddress;

/// An address with its credentials. A clone shares the connection.
#[derive(Clone)]
pub struct RedisClient {
    client: Client,
    manager: ConnectionManager,
}

impl RedisClient {
    /// Connects when it is first used.
    pub fn new(address: &RedisAddress) -> Result<Self, RedisError> {
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

    /// The connection that is shared, and made anew when it breaks.
    pub fn manager(&self) -> ConnectionManager {
        self.manager.clone()
    }

    /// A connection of its own.
    pub async fn connect(&self, limit: Duration) -> Result<MultiplexedConnection, RedisError> {
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(limit));
        self.client.get_multiplexed_async_connection_with_config(&limits).await
    }
}

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
