//! The sessions of the pool: opened at startup, renewed without a gap, and kept while a new login is impossible.
//!
//! If the password changes before the service learns of it, the open sessions are all it has. So none is closed because of
//! its age before a new login has succeeded, and requests share the remaining ones.

use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{ConnectOptions, Connection as _, PgConnection, Postgres};
use tokio::sync::watch;

use crate::platform::config::secret::Credentials;
use crate::platform::error_class::ErrorClass;
use crate::platform::postgres::connect::{password, with_timeout};
use crate::platform::postgres::{CHECK_TIMEOUT, Database};

/// Timeout for a login in the background, where no request waits.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between attempts to fill the pool at startup.
const WARM_UP_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between attempts to take an open session while logins are rejected. The pool cannot be waited for then: it
/// would log in.
const OPEN_SESSION_INTERVAL: Duration = Duration::from_millis(2);

impl Database {
    /// Opens all connections once PostgreSQL is available, or as many as it allows.
    ///
    /// sqlx's `min_connections` is not used: its task holds a slot of the pool while it waits, for up to a minute after
    /// PostgreSQL is back.
    pub async fn warm_up(self) {
        let size = self.pool.options().get_max_connections() as usize;
        let mut connections = Vec::new();
        while connections.len() < size {
            match self.pool.acquire().await {
                Ok(connection) => connections.push(connection),
                Err(_) if connections.is_empty() => tokio::time::sleep(WARM_UP_INTERVAL).await,
                // PostgreSQL has no more to give. Requests need those that this task holds.
                Err(_) => return,
            }
        }
    }

    /// Replaces every session once per `session_lifetime`, the longest idle first, until the process ends. The new session
    /// is opened first; without it the old one stays.
    pub async fn renew(self) {
        let interval = self.session_lifetime / self.pool.options().get_max_connections();
        let mut last_reported = None;
        loop {
            tokio::time::sleep(interval).await;
            let result = with_timeout(LOGIN_TIMEOUT, self.connect()).await;
            let failure = result.as_ref().err().map(ErrorClass::from);
            if let Err(error) = &result
                && last_reported != failure
            {
                tracing::warn!(error = %error, "failed to open a new session; the open ones stay");
            }
            last_reported = failure;
            if let Ok(new) = result
                && let Ok(mut session) = self.pool.acquire().await
            {
                let _ = std::mem::replace(&mut *session, new).close().await;
            }
        }
    }

    /// Opens a session beside the pool.
    pub async fn connect(&self) -> sqlx::Result<PgConnection> {
        let result = self.pool.connect_options().connect().await;
        self.record_login(&result);
        result
    }

    /// Switches to `credentials`, if they work and can read the schema. [`Database::renew`] replaces open sessions.
    pub async fn change_credentials(&self, credentials: &Credentials) -> sqlx::Result<()> {
        let user = credentials.user.as_deref().unwrap_or_default();
        let options = (*self.pool.connect_options()).clone();
        let options = options.username(user).password(password(&credentials.password));
        let mut session = with_timeout(LOGIN_TIMEOUT, options.connect()).await?;
        with_timeout(LOGIN_TIMEOUT, self.pending(&mut session)).await?;
        let _ = session.close().await;
        self.pool.set_connect_options(options);
        self.refused.send_replace(false);
        Ok(())
    }

    /// Returns a receiver of whether PostgreSQL rejects the credentials in use.
    pub fn refused(&self) -> watch::Receiver<bool> {
        self.refused.subscribe()
    }

    fn record_login<T>(&self, result: &sqlx::Result<T>) {
        match result.as_ref().map_err(ErrorClass::from) {
            Ok(_) => _ = self.refused.send_replace(false),
            Err(ErrorClass::Authentication) => _ = self.refused.send_replace(true),
            Err(_) => {}
        }
    }

    /// Takes a session from the pool; while PostgreSQL rejects the credentials, one that is already open.
    pub(super) async fn session(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        let deadline = Instant::now() + self.pool.options().get_acquire_timeout();
        if !self.is_refused() {
            let result = self.pool.acquire().await;
            // Success proves nothing about the credentials: the session may have been idle.
            if result.is_err() {
                self.record_login(&result);
            }
            if result.is_ok() || !self.is_refused() {
                return result;
            }
        }
        while self.pool.size() > 0 && Instant::now() < deadline {
            match self.pool.try_acquire() {
                // `try_acquire` skips the check of the pool.
                Some(mut session) => {
                    if with_timeout(CHECK_TIMEOUT, session.ping()).await.is_ok() {
                        return Ok(session);
                    }
                }
                None => tokio::time::sleep(OPEN_SESSION_INTERVAL).await,
            }
        }
        Err(sqlx::Error::PoolTimedOut)
    }

    fn is_refused(&self) -> bool {
        *self.refused.borrow()
    }
}
