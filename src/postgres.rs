//! PostgreSQL: the pool, its limits, and migrations.

use std::io::ErrorKind;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use secrecy::ExposeSecret;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection as _, Executor, PgConnection, PgPool, Postgres};

use crate::config;
use crate::context::{self, RequestContext};
use crate::error::Error;
use crate::metrics::Metrics;

/// The migrations of `migrations/`, embedded.
pub static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    // A rolled-back release meets a schema that is ahead of it, and has nothing to do.
    migrator.set_ignore_missing(true);
    migrator
});

/// A pooled connection that was used more recently needs no check before its next use.
const FRESH: Duration = Duration::from_secs(1);
/// Longest check of a connection before and after its use; a silent one is thrown away.
const CHECK_LIMIT: Duration = Duration::from_millis(250);

/// The pool. Cloning is cheap and shares it.
///
/// It is filled at the start and keeps its size: a login costs PostgreSQL a process and us 4,096 rounds of SCRAM, in
/// which sqlx gives way to other tasks 800 times. On a busy runtime that takes close to the acquire timeout, just when
/// more connections are needed.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    metrics: Arc<Metrics>,
}

impl Database {
    /// Makes a pool that connects when it is first used.
    pub fn new(config: &config::Database, metrics: Arc<Metrics>) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .idle_timeout(None)
            .acquire_timeout(config.acquire_timeout)
            .max_lifetime(config.max_lifetime)
            .test_before_acquire(false)
            .before_acquire(|connection, used| {
                Box::pin(async move {
                    if used.idle_for > FRESH {
                        limited(connection.ping()).await?;
                    }
                    Ok(true)
                })
            })
            // Ends a transaction that a cancelled `begin()` left open without sqlx knowing (sqlx issue 4393).
            // `rollback` alone would write a warning into PostgreSQL's log each time.
            .after_release(|connection, _| {
                Box::pin(async move {
                    limited(connection.execute("begin; rollback")).await?;
                    Ok(true)
                })
            })
            .connect_lazy_with(options(config));
        metrics.database_connections_limit.set(config.max_connections.into());
        Self { pool, metrics }
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

    /// Takes a connection, waiting at most the acquire timeout.
    pub async fn acquire(&self) -> Result<Connection, Error> {
        let since = Instant::now();
        let result = self.pool.acquire().await;
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

fn base_options(config: &config::Database) -> PgConnectOptions {
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

/// Applies the pending migrations, on a connection of its own that is closed afterwards: the advisory lock
/// belongs to the session, and a pooled session would keep it after a failure.
///
/// Two at once are safe: the second waits for the lock, as long as `lock_timeout`. Statements have no limit,
/// because building an index may take its time; waiting for locks has, because the service queues up behind.
pub async fn migrate(config: &config::Database) -> anyhow::Result<()> {
    let lock_timeout = config.lock_timeout.as_millis().to_string();
    let options = base_options(config).options([("lock_timeout", lock_timeout)]);
    let mut connection = tokio::time::timeout(Duration::from_secs(10), options.connect())
        .await
        .context("PostgreSQL did not answer in 10 seconds")?
        .context("cannot connect to PostgreSQL")?;
    let before = pending_migrations(&mut connection).await.unwrap_or_default().len();
    let result = MIGRATIONS.run(&mut connection).await;
    let closed = connection.close().await;
    match result {
        Err(MigrateError::Execute(error)) if is_lock_timeout(&error) => {
            Err(error).context("another migration holds the lock")
        }
        other => other.context("a migration failed"),
    }?;
    closed.context("the connection broke after the migrations")?;
    tracing::info!(applied = before, "the schema is up to date");
    Ok(())
}

/// The versions of the migrations that the database lacks. One that is ahead of us lacks none.
pub async fn pending_migrations(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    let applied = sqlx::query_scalar("select version from _sqlx_migrations where success");
    let applied: Vec<i64> = match applied.fetch_all(connection).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => {
            vec![]
        }
        other => other?,
    };
    let known = MIGRATIONS.iter().map(|migration| migration.version);
    Ok(known.filter(|version| !applied.contains(version)).collect())
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

const UNDEFINED_TABLE: &str = "42P01";
const LOCK_NOT_AVAILABLE: &str = "55P03";

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some(LOCK_NOT_AVAILABLE)
}

async fn limited<T>(check: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let silent = || sqlx::Error::Io(ErrorKind::TimedOut.into());
    tokio::time::timeout(CHECK_LIMIT, check).await.map_err(|_| silent())?
}
