//! The schema: applied by `app migrate`, verified by the server.

use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};

use crate::platform::config::database::Database;
use crate::platform::postgres::connect;

const UNDEFINED_TABLE: &str = "42P01";
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Applies those of `migrations` that are pending.
///
/// Uses a connection of its own and closes it: the advisory lock belongs to the session, and a pooled session would keep
/// the lock after a failure. Concurrent calls are safe: the second waits for the lock, for at most `lock_timeout`.
/// Statements have no timeout, because building an index may take long. Waiting for locks has one, because the queries
/// of the service queue up behind it.
pub async fn apply(config: &Database, migrations: &Migrator) -> anyhow::Result<()> {
    let mut migrator = Migrator::with_migrations(migrations.iter().cloned().collect());
    // After a rollback the schema is ahead of this release, which then has nothing to do.
    migrator.set_ignore_missing(true);
    let lock_timeout = config.lock_timeout.as_millis().to_string();
    let options = connect::options_without_limits(config).options([("lock_timeout", lock_timeout)]);
    let mut connection = tokio::time::timeout(Duration::from_secs(10), options.connect())
        .await
        .context("PostgreSQL did not answer within 10 seconds")?
        .context("failed to connect to PostgreSQL")?;
    // If this process is killed, PostgreSQL cancels the statement and releases the lock (version 14 or newer, on most
    // systems). Otherwise the next run has to wait for the lock.
    let _ = connection.execute("set client_connection_check_interval = '1s'").await;
    let result = migrator.run(&mut connection).await;
    let closed = connection.close().await;
    match result {
        Err(MigrateError::Execute(error)) if is_lock_timeout(&error) => {
            Err(error).context("another migration holds the lock")
        }
        other => other.context("failed to apply a migration"),
    }?;
    closed.context("failed to close the connection after the migrations")?;
    let newest = migrations.iter().last();
    tracing::info!(schema_version = newest.map(|newest| newest.version), "the schema is up to date");
    Ok(())
}

/// Returns the versions of `migrations` that the database lacks. Empty if the database is newer than this binary.
pub async fn pending(migrations: &Migrator, connection: &mut PgConnection) -> sqlx::Result<Vec<i64>> {
    let applied = sqlx::query_scalar("select version from _sqlx_migrations where success");
    let applied: Vec<i64> = match applied.fetch_all(connection).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => vec![],
        other => other?,
    };
    let known = migrations.iter().map(|migration| migration.version);
    Ok(known.filter(|version| !applied.contains(version)).collect())
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some(LOCK_NOT_AVAILABLE)
}
