//! The schema: applied by `app migrate`, checked by the server.

use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};

use crate::platform::config;
use crate::platform::postgres::connect;

/// The migrations of `migrations/`, embedded.
pub static MIGRATIONS: Migrator = sqlx::migrate!();

const UNDEFINED_TABLE: &str = "42P01";
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Applies those of `migrations` that are pending, on a connection of its own that is closed afterwards: the advisory
/// lock belongs to the session, and a pooled session would keep it after a failure.
///
/// Two at once are safe: the second waits for the lock, as long as `lock_timeout`. Statements have no limit,
/// because building an index may take its time; waiting for locks has, because the service queues up behind.
pub async fn apply(config: &config::Database, migrations: &Migrator) -> anyhow::Result<()> {
    let mut migrator = Migrator::with_migrations(migrations.iter().cloned().collect());
    // A rolled-back release meets a schema that is ahead of it, and has nothing to do.
    migrator.set_ignore_missing(true);
    let lock_timeout = config.lock_timeout.as_millis().to_string();
    let options = connect::base_options(config).options([("lock_timeout", lock_timeout)]);
    let mut connection = tokio::time::timeout(Duration::from_secs(10), options.connect())
        .await
        .context("PostgreSQL did not answer in 10 seconds")?
        .context("cannot connect to PostgreSQL")?;
    // When we are killed, PostgreSQL gives up our statement and its lock rather than finish for nobody. From version 14
    // on, and not on every system; without it the next run waits, or is told that the lock is held.
    let _ = connection.execute("set client_connection_check_interval = '1s'").await;
    let result = migrator.run(&mut connection).await;
    let closed = connection.close().await;
    match result {
        Err(MigrateError::Execute(error)) if is_lock_timeout(&error) => {
            Err(error).context("another migration holds the lock")
        }
        other => other.context("a migration failed"),
    }?;
    closed.context("the connection broke after the migrations")?;
    tracing::info!(
        version = migrations.iter().last().map(|newest| newest.version),
        "the schema is up to date"
    );
    Ok(())
}

/// The versions of `migrations` that the database lacks. One that is ahead of us lacks none.
pub async fn pending(migrations: &Migrator, connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    let applied = sqlx::query_scalar("select version from _sqlx_migrations where success");
    let applied: Vec<i64> = match applied.fetch_all(connection).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => {
            vec![]
        }
        other => other?,
    };
    let known = migrations.iter().map(|migration| migration.version);
    Ok(known.filter(|version| !applied.contains(version)).collect())
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some(LOCK_NOT_AVAILABLE)
}
