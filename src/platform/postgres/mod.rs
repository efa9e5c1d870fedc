//! PostgreSQL: the connection pool, transactions, and limits. [`sessions`] keeps the pool filled with fresh sessions.

pub mod connect;
pub mod migrations;
pub mod sessions;
pub mod probe;

use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection as _, Executor, PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::watch;
use tracing::Span;

use crate::platform::config;
use crate::platform::error::Error;
use crate::platform::tasks::Tasks;
use crate::platform::telemetry::metrics::Metrics;
use crate::platform::telemetry::request_context::{self, RequestContext};
use crate::platform::telemetry::spans;
use connect::with_timeout;

/// A pooled connection that was used more recently is not checked before its next use.
const RECENTLY_USED: Duration = Duration::from_secs(1);
/// Timeout for the check of a connection before and after its use. A connection that exceeds it is discarded.
const CHECK_TIMEOUT: Duration = Duration::from_millis(250);
/// Characters of the service's name before the trace ID in `application_name`: PostgreSQL keeps 63 bytes in all.
const NAME_CHARACTERS: usize = 30;

/// The work of [`Database::transaction`], boxed: a closure's future cannot borrow from its argument otherwise.
pub type TransactionFuture<'t, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 't>>;

/// The connection pool. Cloning is cheap and shares it.
///
/// The pool is filled at startup and keeps its size, because a login is expensive: PostgreSQL forks a process, and sqlx
/// computes 4,096 rounds of SCRAM and yields 800 times. On a busy runtime a login takes close to the acquire timeout, just
/// when more connections are needed.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    migrations: &'static Migrator,
    application_name: String,
    session_lifetime: Duration,
    /// Whether PostgreSQL rejected the credentials in use at the last login.
    refused: Arc<watch::Sender<bool>>,
    metrics: Arc<Metrics>,
}

impl Database {
    /// Returns a pool that connects when it is first used.
    pub fn new(
        config: &config::database::Database,
        migrations: &'static Migrator,
        metrics: Arc<Metrics>,
    ) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .idle_timeout(None)
            .acquire_timeout(config.acquire_timeout)
            // `Database::renew` replaces sessions without a gap.
            .max_lifetime(None)
            .test_before_acquire(false)
            .before_acquire(|connection, used| {
                Box::pin(async move {
                    if used.idle_for > RECENTLY_USED {
                        with_timeout(CHECK_TIMEOUT, connection.ping()).await?;
                    }
                    Ok(true)
                })
            })
            // Ends a transaction that a cancelled `begin()` left open without sqlx knowing (sqlx issue 4393); `rollback`
            // alone would write a warning into PostgreSQL's log each time. Also ends what `label` began.
            .after_release(|connection, _| {
                Box::pin(async move {
                    let reset = connection.execute("begin; rollback; reset application_name");
                    with_timeout(CHECK_TIMEOUT, reset).await?;
                    Ok(true)
                })
            })
            .connect_lazy_with(connect::options(config));
        metrics.database_connections_limit.set(config.max_connections.into());
        Self {
            pool,
            migrations,
            application_name: config.application_name.clone(),
            session_lifetime: config.session_lifetime,
            refused: Arc::new(watch::Sender::new(false)),
            metrics,
        }
    }

    /// Takes a connection from the pool.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] after the acquire timeout.
    pub async fn acquire(&self) -> Result<Connection, Error> {
        let start = Instant::now();
        let context = request_context::current();
        let span = spans::postgresql();
        let mut result = self.session().await;
        let wait = start.elapsed();
        self.metrics.database_acquire_seconds.observe(wait.as_secs_f64());
        span.record("pool.wait_ms", wait.as_secs_f64() * 1e3);
        if let (Ok(session), Some(context), false) = (&mut result, &context, span.is_disabled()) {
            self.label(session, context.trace.trace_id).await;
        }
        match result {
            Ok(inner) => Ok(Connection { inner, start, context, _span: span }),
            Err(error) => {
                spans::fail(&span);
                self.metrics.database_acquire_errors.inc();
                if let Some(context) = context {
                    context.database.add(start.elapsed());
                }
                Err(error.into())
            }
        }
    }

    /// Runs `work` in a transaction, in a task that outlives the client ([`Tasks::run`]). `work` commits; a transaction
    /// that it drops is rolled back.
    ///
    /// # Errors
    ///
    /// Those of `work` and of [`Database::acquire`]; [`Error::Timeout`] after the time limit of `tasks`.
    pub async fn transaction<T: Send + 'static>(
        &self,
        tasks: &Tasks,
        work: impl for<'t> FnOnce(Transaction<'t, Postgres>) -> TransactionFuture<'t, T> + Send + 'static,
    ) -> Result<T, Error> {
        let database = self.clone();
        tasks
            .run(async move {
                let mut connection = database.acquire().await?;
                work(connection.begin().await?).await
            })
            .await
    }

    /// Names the trace in the log and the activity of PostgreSQL until the session returns to the pool. This costs one
    /// round trip, for sampled requests only. A comment in each statement would defeat the cache of prepared statements.
    ///
    /// Errors are ignored: a broken connection fails at the next statement.
    async fn label(&self, session: &mut PgConnection, trace_id: u128) {
        let name = format!("{:.NAME_CHARACTERS$} {trace_id:032x}", self.application_name);
        let label = sqlx::query("select set_config('application_name', $1, false)").bind(name);
        let _ = with_timeout(CHECK_TIMEOUT, label.execute(session)).await;
    }

    /// Returns the versions of the migrations that the database lacks.
    pub async fn pending(&self, session: &mut PgConnection) -> sqlx::Result<Vec<i64>> {
        migrations::pending(self.migrations, session).await
    }

    /// Sets the gauges that are read at the time of a scrape.
    pub fn update_metrics(&self) {
        let size = i64::from(self.pool.size());
        let idle = self.pool.num_idle() as i64;
        let connections = &self.metrics.database_connections;
        connections.with_label_values(&["idle"]).set(idle);
        connections.with_label_values(&["used"]).set((size - idle).max(0));
    }

    /// Closes every connection, after waiting for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection of the pool, returned when dropped. The time until then counts as the request's database time.
pub struct Connection {
    inner: PoolConnection<Postgres>,
    start: Instant,
    context: Option<Arc<RequestContext>>,
    /// Closed together with the connection.
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
            context.database.add(self.start.elapsed());
        }
    }
}
