//! Connections to Redis.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisError};

use crate::platform::config::redis::Endpoint;
use crate::platform::config::secret::{Credentials, ExposeSecret};

/// An endpoint with its credentials. Clones share one connection.
#[derive(Clone)]
pub struct RedisClient {
    client: Client,
    manager: ConnectionManager,
}

impl RedisClient {
    /// Returns a client that connects when it is first used.
    pub fn new(endpoint: &Endpoint, credentials: &Credentials) -> Result<Self, RedisError> {
        // The defaults of the manager retry for seconds, and callers wait for that.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(50))
            .set_max_delay(Duration::from_millis(200))
            .set_connection_timeout(Some(Duration::from_millis(250)))
            .set_response_timeout(Some(Duration::from_millis(250)));
        let client = client(endpoint, credentials)?;
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), config)?;
        Ok(Self { client, manager })
    }

    /// Returns the shared connection, which reconnects after a failure.
    pub fn manager(&self) -> ConnectionManager {
        self.manager.clone()
    }

    /// Opens a separate connection with `timeout` for connecting and for each answer.
    pub async fn connect(&self, timeout: Duration) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

fn client(endpoint: &Endpoint, credentials: &Credentials) -> Result<Client, RedisError> {
    let Endpoint { host, port, db, tls } = endpoint.clone();
    let address = if tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    let mut info = redis::RedisConnectionInfo::default().set_db(db);
    if let Some(user) = &credentials.user {
        info = info.set_username(user);
    }
    if let Some(password) = &credentials.password {
        info = info.set_password(password.expose_secret());
    }
    let tcp = TcpSettings::default().set_nodelay(true);
    // The kernel gives up a connection whose peer has vanished; the manager then replaces it.
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(Duration::from_secs(2));
    Client::open(address.into_connection_info()?.set_tcp_settings(tcp).set_redis_settings(info))
}
