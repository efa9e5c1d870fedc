//! A service built from this template for the tests: notes as load, and misbehaving handlers.

mod notes;

use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

use app::platform::error::Error;
use app::platform::postgres::Database;
use app::platform::service::Service;
use app::platform::state::AppState;
use app::platform::tasks::Tasks;
use app::{PACKAGE, platform};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::routing::{get, post};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection, SqlSafeStr};

fn routes() -> Router<AppState> {
    notes::router()
        .route("/panic", get(async || -> &'static str { panic!("a literal message") }))
        .route("/panic/{secret}", get(panic_with))
        .route("/panic-in-task", get(panic_in_task))
        .route("/panic-in-body", get(panic_in_body))
        .route("/sleep/{ms}", get(sleep))
        .route("/drip", get(drip))
        .route("/large", get(async || Bytes::from(vec![b'x'; 64 << 20])))
        .route("/echo", post(async |body: Bytes| body))
        .route("/transaction/{ms}", post(transaction))
        .route("/naive/{ms}", post(naive))
        .route("/row", post(row))
}

async fn panic_with(Path(secret): Path<String>) -> &'static str {
    panic!("cannot use {secret}")
}

async fn panic_in_task(State(tasks): State<Tasks>) -> Result<&'static str, Error> {
    tasks.run(async { panic!("in a task") }).await
}

async fn panic_in_body() -> Body {
    stream(|part| if part == 0 { "first" } else { panic!("in a body") })
}

async fn sleep(Path(ms): Path<u64>) -> &'static str {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    "slept"
}

/// Sends a response that never ends.
async fn drip() -> Body {
    stream(|_| "drop\n")
}

fn stream(part: impl Fn(u64) -> &'static str + Send + 'static) -> Body {
    struct Parts<F>(F, u64, tokio::time::Interval);

    impl<F: Fn(u64) -> &'static str + Unpin> axum::body::HttpBody for Parts<F> {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            std::task::ready!(self.2.poll_tick(cx));
            self.1 += 1;
            let data = (self.0)(self.1 - 1);
            std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(Bytes::from_static(data.as_bytes())))))
        }
    }

    let part: Box<dyn Fn(u64) -> &'static str + Send> = Box::new(part);
    Body::new(Parts(part, 0, tokio::time::interval(Duration::from_millis(50))))
}

/// Writes a row in a transaction that takes `ms`, the correct way.
async fn transaction(
    State(database): State<Database>,
    State(tasks): State<Tasks>,
    Path(ms): Path<u64>,
) -> Result<&'static str, Error> {
    tasks.run(write_row(database, ms)).await
}

/// The same without a task: a disconnecting client cancels it at any point.
async fn naive(State(database): State<Database>, Path(ms): Path<u64>) -> Result<&'static str, Error> {
    write_row(database, ms).await
}

async fn write_row(database: Database, ms: u64) -> Result<&'static str, Error> {
    let mut connection = database.acquire().await?;
    let mut transaction = connection.begin().await?;
    sqlx::query("insert into rows default values").execute(&mut *transaction).await?;
    sqlx::query("select pg_sleep($1)").bind(ms as f64 / 1e3).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok("written")
}

async fn row(State(database): State<Database>) -> Result<&'static str, Error> {
    let mut connection = database.acquire().await?;
    sqlx::query("insert into rows default values").execute(&mut *connection).await?;
    Ok("written")
}

/// The schema of this example, in place of `migrations/`.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let tables =
        concat!(include_str!("notes.sql"), "create table rows (id bigint generated always as identity);",);
    let first = Migration::new(1, "tables".into(), MigrationType::Simple, tables.into_sql_str(), false);
    Migrator::with_migrations(vec![first])
});

fn main() -> ExitCode {
    platform::run(Service {
        package: PACKAGE,
        migrations: &MIGRATIONS,
        settings: "",
        routes: |_setup| routes(),
    })
}
