//! A service as in the guides of its crates: `axum::serve` with default settings. The guarantees are also measured on this
//! service, for the right-hand column of `docs/guarantees.md`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "written as in the guides")]
#![expect(clippy::disallowed_methods, reason = "settings are read directly from the environment")]

use std::env::var;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use redis::AsyncCommands;
use redis::aio::ConnectionManager;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Clone)]
struct AppState {
    pool: PgPool,
    redis: ConnectionManager,
}

fn password(name: &str) -> String {
    std::fs::read_to_string(var(name).unwrap()).unwrap().trim_end().to_owned()
}

fn port(name: &str) -> u16 {
    var(name).unwrap().parse().unwrap()
}

#[tokio::main]
async fn main() {
    let options = PgConnectOptions::new()
        .host("127.0.0.1")
        .port(port("APP__DATABASE__PORT"))
        .username("app")
        .password(&password("APP__DATABASE__PASSWORD_FILE"))
        .database(&var("APP__DATABASE__NAME").unwrap())
        .ssl_mode(PgSslMode::Disable);
    // Only the size is set, to that of the service under comparison.
    let size = var("APP__DATABASE__MAX_CONNECTIONS").map_or(10, |size| size.parse().unwrap());
    let pool = PgPoolOptions::new().max_connections(size).connect_lazy_with(options);
    let address = redis::ConnectionAddr::Tcp("127.0.0.1".to_owned(), port("APP__REDIS__PORT"));
    let login = redis::RedisConnectionInfo::default().set_password(password("APP__REDIS__PASSWORD_FILE"));
    let info = redis::IntoConnectionInfo::into_connection_info(address).unwrap().set_redis_settings(login);
    let redis = ConnectionManager::new(redis::Client::open(info).unwrap()).await.unwrap();

    let router = Router::new()
        .route("/health/live", get(async || "alive"))
        .route("/health/ready", get(ready))
        .route("/v1/notes", get(list))
        .route("/v1/notes/{id}", get(read))
        .route("/panic", get(async || -> &'static str { panic!("a literal message") }))
        .route("/sleep/{ms}", get(sleep))
        .route("/large", get(async || Bytes::from(vec![b'x'; 64 << 20])))
        .route("/echo", post(async |body: Bytes| body))
        .route("/naive/{ms}", post(naive))
        .route("/row", post(row))
        .with_state(AppState { pool, redis });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!(r#"{{"message":"listening","address":"{}"}}"#, listener.local_addr().unwrap());
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let shutdown = async move {
        terminate.recv().await;
    };
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await.unwrap();
}

async fn ready(State(state): State<AppState>) -> Result<&'static str, StatusCode> {
    sqlx::query("select 1").execute(&state.pool).await.map_err(internal)?;
    Ok("ready")
}

async fn list(State(state): State<AppState>) -> Result<Json<Vec<String>>, StatusCode> {
    let notes = sqlx::query_scalar("select text from notes order by id desc limit 20");
    notes.fetch_all(&state.pool).await.map(Json).map_err(internal)
}

/// Cache-aside; an error of the cache counts as a miss.
async fn read(State(state): State<AppState>, Path(id): Path<i64>) -> Result<String, StatusCode> {
    let mut redis = state.redis.clone();
    if let Ok(Some(text)) = redis.get::<_, Option<String>>(id).await {
        return Ok(text);
    }
    let note = sqlx::query_scalar("select text from notes where id = $1").bind(id);
    let text: String =
        note.fetch_optional(&state.pool).await.map_err(internal)?.ok_or(StatusCode::NOT_FOUND)?;
    let _ = redis.set_ex::<_, _, ()>(id, &text, 60).await;
    Ok(text)
}

async fn sleep(Path(ms): Path<u64>) -> &'static str {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    "slept"
}

async fn naive(State(state): State<AppState>, Path(ms): Path<u64>) -> Result<&'static str, StatusCode> {
    let mut transaction = state.pool.begin().await.map_err(internal)?;
    let insert = sqlx::query("insert into rows default values");
    insert.execute(&mut *transaction).await.map_err(internal)?;
    let pause = sqlx::query("select pg_sleep($1)").bind(ms as f64 / 1e3);
    pause.execute(&mut *transaction).await.map_err(internal)?;
    transaction.commit().await.map_err(internal)?;
    Ok("written")
}

async fn row(State(state): State<AppState>) -> Result<&'static str, StatusCode> {
    sqlx::query("insert into rows default values").execute(&state.pool).await.map_err(internal)?;
    Ok("written")
}

fn internal(_: sqlx::Error) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}
