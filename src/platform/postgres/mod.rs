//! PostgreSQL: the pool and its limits.

pub mod connect;
pub mod migrations;

use std::io::ErrorKind;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, Connection as _, Executor, PgConnection, PgPool, Postgres};
use tokio::sync::Notify;
use tracing::Span;

use crate::platform::config;
use crate::platform::config::url::Credentials;
use crate::platform::error::Error;
use crate::platform::postgres::connect::{error_class, options, password};
use crate::platform::telemetry::metrics::Metrics;
use crate::platform::telemetry::request_context::{self, RequestContext};
use crate::platform::telemetry::spans;

/// A pooled connection that was used more recently needs no check before its next use.
const FRESH: Duration = Duration::from_secs(1);
/// Longest login in the background, where nobody waits for it.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks for a free session while no new one can be had.
const SESSION_PAUSE: Duration = Duration::from_millis(2);
/// Characters of the service's name that stand before the id of a trace: PostgreSQL keeps 63 bytes in all.
const NAME_CHARACTERS: usize = 30;
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
    migrations: &'static Migrator,
    application_name: String,
    session_lifetime: Duration,
    refusal: Arc<Refusal>,
    metrics: Arc<Metrics>,
}

/// Whether PostgreSQL refused the credentials in use when they were last tried.
#[derive(Default)]
struct Refusal {
    stands: AtomicBool,
    begins: Notify,
}

impl Database {
    /// Makes a pool that connects when it is first used.
    pub fn new(config: &config::Database, migrations: &'static Migrator, metrics: Arc<Metrics>) -> Self {
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
            // `rollback` alone would write a warning into PostgreSQL's log each time. And ends what `label` began.
            .after_release(|connection, _| {
                Box::pin(async move {
                    limited(CHECK_LIMIT, connection.execute("begin; rollback; reset application_name"))
                        .await?;
                    Ok(true)
                })
            })
            .connect_lazy_with(options(config));
        metrics.database_connections_limit.set(config.max_connections.into());
        let application_name = config.application_name.clone();
        Self {
            pool,
            migrations,
            application_name,
            session_lifetime: config.session_lifetime,
            refusal: Arc::default(),
            metrics,
        }
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

    /// Replaces as many sessions as there are in each `session_lifetime`, those that idle longest first, until the
    /// process ends. A new one is there before an old one goes; when it cannot be had, they stay.
    pub async fn renew(self) {
        let pause = self.session_lifetime / self.pool.options().get_max_connections();
        let mut told = None;
        loop {
            tokio::time::sleep(pause).await;
            let result = limited(CONNECT_LIMIT, self.connect()).await;
            let failed = result.as_ref().err().map(error_class);
            if let Err(error) = &result
                && told != failed
            {
                tracing::warn!(error = %error, "no new session: the open ones stay");
            }
            told = failed;
            if let Ok(new) = result
                && let Ok(mut session) = self.pool.acquire().await
            {
                let _ = std::mem::replace(&mut *session, new).close().await;
            }
        }
    }

    /// Opens a session beside the pool, and notes whether the credentials are refused.
    pub async fn connect(&self) -> sqlx::Result<PgConnection> {
        let result = self.pool.connect_options().connect().await;
        self.note(&result);
        result
    }

    /// Uses `credentials` from now on, if they work and see the schema; [`Database::renew`] replaces open sessions.
    pub async fn change_credentials(&self, credentials: &Credentials) -> sqlx::Result<()> {
        let user = credentials.user.as_deref().unwrap_or_default();
        let options =
            (*self.pool.connect_options()).clone().username(user).password(password(&credentials.password));
        let mut session = limited(CONNECT_LIMIT, options.connect()).await?;
        limited(CONNECT_LIMIT, self.pending(&mut session)).await?;
        let _ = session.close().await;
        self.pool.set_connect_options(options);
        self.refusal.stands.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The versions of the migrations that the database lacks.
    pub async fn pending(&self, session: &mut PgConnection) -> sqlx::Result<Vec<i64>> {
        migrations::pending(self.migrations, session).await
    }

    /// Waits until PostgreSQL has refused the credentials in use.
    pub async fn refused(&self) {
        self.refusal.begins.notified().await;
    }

    fn note<T>(&self, result: &sqlx::Result<T>) {
        let refused = result.as_ref().is_err_and(|error| error_class(error) == "authentication");
        if refused {
            self.refusal.begins.notify_one();
        }
        if refused || result.is_ok() {
            self.refusal.stands.store(refused, Ordering::Relaxed);
        }
    }

    /// Takes a connection, waiting at most the acquire timeout.
    pub async fn acquire(&self) -> Result<Connection, Error> {
        let (since, context) = (Instant::now(), request_context::current());
        let span = spans::postgresql();
        let mut result = self.session().await;
        let wait = since.elapsed();
        self.metrics.database_acquire_seconds.observe(wait.as_secs_f64());
        span.record("pool.wait_ms", wait.as_secs_f64() * 1e3);
        if let (Ok(session), Some(context), false) = (&mut result, &context, span.is_disabled()) {
            self.label(session, context.trace.trace_id).await;
        }
        match result {
            Ok(inner) => Ok(Connection { inner, since, context, _span: span }),
            Err(error) => {
                spans::fail(&span);
                self.metrics.database_acquire_errors.inc();
                if let Some(context) = context {
                    context.database.add(since.elapsed());
                }
                Err(error.into())
            }
        }
    }

    /// Lets the log and the activity of PostgreSQL name the trace, until the session goes back. It is a round trip more,
    /// for requests that have spans. Whether the session is any good the statement tells that follows.
    ///
    /// Not by a comment in each statement: a prepared statement is found again by its text.
    async fn label(&self, session: &mut PgConnection, trace_id: u128) {
        let name = format!("{:.NAME_CHARACTERS$} {trace_id:032x}", self.application_name);
        let label = sqlx::query("select set_config('application_name', $1, false)").bind(name);
        let _ = limited(CHECK_LIMIT, label.execute(session)).await;
    }

    /// A session of the pool; while the credentials are refused, one of those that are open.
    async fn session(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        let deadline = Instant::now() + self.pool.options().get_acquire_timeout();
        if !self.refusal.stands.load(Ordering::Relaxed) {
            let result = self.pool.acquire().await;
            // One that was idle tells nothing about the credentials.
            if result.is_err() {
                self.note(&result);
            }
            if result.is_ok() || !self.refusal.stands.load(Ordering::Relaxed) {
                return result;
            }
        }
        while self.pool.size() > 0 && Instant::now() < deadline {
            match self.pool.try_acquire() {
                // Which the pool does not check.
                Some(mut session) => {
                    if limited(CHECK_LIMIT, session.ping()).await.is_ok() {
                        return Ok(session);
                    }
                }
                None => tokio::time::sleep(SESSION_PAUSE).await,
            }
        }
        Err(sqlx::Error::PoolTimedOut)
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
    /// Ends with us.
    _span: Span,
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

async fn limited<T>(limit: Duration, work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let silent = || sqlx::Error::Io(ErrorKind::TimedOut.into());
    tokio::time::timeout(limit, work).await.map_err(|_| silent())?
}
