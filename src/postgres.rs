//! PostgreSQL: the pool and its limits.

use std::io::ErrorKind;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection as _, Executor, PgConnection, PgPool, Postgres};
use tokio::sync::Notify;

use crate::breaker::Breaker;
use crate::config;
use crate::context::{self, RequestContext};
use crate::error::Error;
use crate::metrics::Metrics;

/// A pooled connection that was used more recently needs no check before its next use.
const FRESH: Duration = Duration::from_secs(1);
/// Longest login in the background, where nobody waits for it.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);
/// A refused login is not tried again for so long: some servers lock accounts after too many.
const LOGIN_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks for a free session meanwhile.
const SESSION_PAUSE: Duration = Duration::from_millis(2);
/// Longest check of a connection before and after its use; a silent one is thrown away.
const CHECK_LIMIT: Duration = Duration::from_millis(250);

/// The pool. Cloning is cheap and shares it.
///
/// It is filled at the start and keeps its size: a login costs PostgreSQL a process and us 4,096 rounds of SCRAM, in
/// which sqlx gives way to other tasks 800 times. On a busy runtime that takes close to the acquire timeout, just when
/// more connections are needed.
///
/// When the password has changed and nobody has told us, the open sessions are all that we have. So none goes because
/// of its age before a new login has worked ([`Database::renew`]), and requests share those that are left.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    session_lifetime: Duration,
    /// Open while PostgreSQL refuses our login.
    logins: Arc<Breaker>,
    refused: Arc<Notify>,
    metrics: Arc<Metrics>,
}

impl Database {
    /// Makes a pool that connects when it is first used.
    pub fn new(config: &config::Database, metrics: Arc<Metrics>) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .idle_timeout(None)
            .acquire_timeout(config.acquire_timeout)
            // `renew` does better.
            .max_lifetime(None)
            .test_before_acquire(false)
            .before_acquire(|connection, used| {
                Box::pin(async move {
                    if used.idle_for > FRESH {
                        limited(CHECK_LIMIT, connection.ping()).await?;
                    }
                    Ok(true)
                })
            })
            // Ends a transaction that a cancelled `begin()` left open without sqlx knowing (sqlx issue 4393).
            // `rollback` alone would write a warning into PostgreSQL's log each time.
            .after_release(|connection, _| {
                Box::pin(async move {
                    limited(CHECK_LIMIT, connection.execute("begin; rollback")).await?;
                    Ok(true)
                })
            })
            .connect_lazy_with(options(config));
        metrics.database_connections_limit.set(config.max_connections.into());
        let logins = Arc::new(Breaker::new(1, LOGIN_PAUSE));
        Self { pool, session_lifetime: config.session_lifetime, logins, refused: Arc::default(), metrics }
    }

    /// Opens all connections once PostgreSQL is there, or as many as it allows.
    ///
    /// Not by `min_connections`: sqlx refills to it with a task that keeps a place of the pool while it waits, up to
    /// a minute after PostgreSQL is back.
    pub async fn warm_up(self) {
        let size = self.pool.options().get_max_connections() as usize;
        let mut connections = Vec::new();
        while connections.len() < size {
            match self.pool.acquire().await {
                Ok(connection) => connections.push(connection),
                Err(_) if connections.is_empty() => tokio::time::sleep(Duration::from_secs(1)).await,
                // More than PostgreSQL has to give; those that we hold are needed.
                Err(_) => return,
            }
        }
    }

    /// Replaces one session after the other, all of them in about `session_lifetime`, until the process ends. A new
    /// one is there before an old one goes; when the login fails they stay.
    pub async fn renew(self) {
        let pause = self.session_lifetime / self.pool.options().get_max_connections();
        loop {
            tokio::time::sleep(pause).await;
            match log_in(&self.login()).await {
                Ok(new) => {
                    if let Ok(mut session) = self.pool.acquire().await {
                        let _ = std::mem::replace(&mut *session, new).close().await;
                    }
                }
                Err(error) => {
                    tracing::warn!(error, "a login failed: the open sessions stay");
                    self.note(error);
                }
            }
        }
    }

    /// Waits until a login is refused.
    pub async fn login_refused(&self) {
        self.refused.notified().await;
    }

    /// Takes in the class of an error of a login; whether PostgreSQL refused it.
    fn note(&self, error: &str) -> bool {
        let refused = error == "authentication";
        if refused {
            self.refused.notify_one();
        }
        refused
    }

    /// Makes new sessions with the login of `config` from now on, if it works; [`Database::renew`] replaces the others.
    pub async fn change_login(&self, config: &config::Database) -> Result<(), &'static str> {
        let options = options(config);
        let _ = log_in(&options).await?.close().await;
        self.pool.set_connect_options(options);
        Ok(())
    }

    /// How new sessions are made.
    pub fn login(&self) -> Arc<PgConnectOptions> {
        self.pool.connect_options()
    }

    /// Takes a connection, waiting at most the acquire timeout.
    pub async fn acquire(&self) -> Result<Connection, Error> {
        let since = Instant::now();
        let result = self.session().await;
        self.metrics.database_acquire_seconds.observe(since.elapsed().as_secs_f64());
        match result {
            Ok(inner) => Ok(Connection { inner, since, context: context::current() }),
            Err(error) => {
                self.metrics.database_acquire_errors.inc();
                if let Some(context) = context::current() {
                    context.database.add(since.elapsed());
                }
                Err(error.into())
            }
        }
    }

    /// A session of the pool; while our login is refused, one of those that are open.
    async fn session(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        if self.logins.admits() {
            let result = self.pool.acquire().await;
            let refused = result.as_ref().is_err_and(|error| self.note(error_class(error)));
            self.logins.record(!refused);
            if !refused || self.pool.size() == 0 {
                return result;
            }
        }
        let wait = async {
            loop {
                match self.pool.try_acquire() {
                    Some(session) => return session,
                    None => tokio::time::sleep(SESSION_PAUSE).await,
                }
            }
        };
        let limit = self.pool.options().get_acquire_timeout();
        tokio::time::timeout(limit, wait).await.map_err(|_| sqlx::Error::PoolTimedOut)
    }

    /// Sets the gauges that are read at the time of a scrape.
    pub fn observe(&self) {
        let (size, idle) = (i64::from(self.pool.size()), self.pool.num_idle() as i64);
        let connections = &self.metrics.database_connections;
        connections.with_label_values(&["idle"]).set(idle);
        connections.with_label_values(&["used"]).set((size - idle).max(0));
    }

    /// Closes every connection; waits for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection of the pool, which goes back when dropped. Its time counts as the request's database time.
pub struct Connection {
    inner: PoolConnection<Postgres>,
    since: Instant,
    context: Option<Arc<RequestContext>>,
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(context) = &self.context {
            context.database.add(self.since.elapsed());
        }
    }
}

/// How to connect; each session gets the limits, so that PostgreSQL keeps them when we cannot.
pub fn options(config: &config::Database) -> PgConnectOptions {
    let milliseconds = |time: Duration| time.as_millis().to_string();
    base_options(config).options([
        ("statement_timeout", milliseconds(config.statement_timeout)),
        ("lock_timeout", milliseconds(config.lock_timeout)),
        ("idle_in_transaction_session_timeout", milliseconds(config.idle_in_transaction_timeout)),
    ])
}

/// How to connect, without limits.
pub fn base_options(config: &config::Database) -> PgConnectOptions {
    let address = &config.address;
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(address.port)
        .username(&address.user)
        .database(&address.name)
        .ssl_mode(address.ssl_mode)
        .application_name(&config.application_name);
    options = match address.host.starts_with('/') {
        true => options.socket(&address.host),
        false => options.host(&address.host),
    };
    // Set in any case, or sqlx would take PGPASSWORD from the environment.
    options = options.password(address.password.as_ref().map_or("", ExposeSecret::expose_secret));
    if let Some(path) = &address.ssl_root_cert {
        options = options.ssl_root_cert(path);
    }
    options
}

/// A word for what went wrong, fit for the public: no host, no user, no statement.
pub fn error_class(error: &sqlx::Error) -> &'static str {
    let state = error.as_database_error().and_then(|error| error.code());
    match (error, state.as_deref()) {
        (sqlx::Error::Io(error), _) if error.kind() == ErrorKind::ConnectionRefused => "refused",
        (sqlx::Error::Io(_), _) => "connection",
        (sqlx::Error::Tls(_), _) => "tls",
        (_, Some(state)) if state.starts_with("28") => "authentication",
        (_, Some("3D000")) => "no_such_database",
        (_, Some("53300")) => "too_many_connections",
        (_, Some(state)) if state.starts_with("57P") => "shutting_down",
        (_, Some(_)) => "database",
        _ => "protocol",
    }
}

async fn log_in(options: &PgConnectOptions) -> Result<PgConnection, &'static str> {
    limited(LOGIN_LIMIT, options.connect()).await.map_err(|error| error_class(&error))
}

async fn limited<T>(limit: Duration, work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let silent = || sqlx::Error::Io(ErrorKind::TimedOut.into());
    tokio::time::timeout(limit, work).await.map_err(|_| silent())?
}
