//! Notes: a write, a list, and a read through the cache. The load for all tests that are not about the example domain, used
//! by the example `workload` and as an additional domain in the image of the stacks.

use std::time::SystemTime;

use app::platform::error::Error;
use app::platform::http::extract::{Json, Path, Query};
use app::platform::postgres::Database;
use app::platform::redis::cache::Cache;
use app::platform::state::AppState;
use app::platform::tasks::Tasks;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;

const MAX_LIMIT: u16 = 100;

pub fn router() -> Router<AppState> {
    Router::new().route("/v1/notes", post(create).get(list)).route("/v1/notes/{id}", get(read).delete(delete))
}

#[derive(Deserialize, Serialize, sqlx::FromRow)]
struct Note {
    id: i64,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateNote {
    text: String,
}

async fn create(
    State(database): State<Database>,
    State(cache): State<Cache>,
    State(tasks): State<Tasks>,
    Json(body): Json<CreateNote>,
) -> Result<impl IntoResponse, Error> {
    if body.text.is_empty() {
        return Err(Error::invalid("text", "must not be empty"));
    }
    let note = database
        .transaction(&tasks, move |mut transaction| {
            Box::pin(async move {
                let note: Note = sqlx::query_as("insert into notes (text) values ($1) returning id, text")
                    .bind(body.text)
                    .fetch_one(&mut *transaction)
                    .await?;
                // The cache may contain the entry "does not exist".
                cache.invalidate_around(&cache_key(note.id), transaction.commit()).await?;
                Ok(note)
            })
        })
        .await?;
    Ok((StatusCode::CREATED, axum::Json(note)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    limit: Option<u16>,
    cursor: Option<i64>,
}

/// Returns the newest notes first.
async fn list(
    State(database): State<Database>,
    Query(page): Query<Page>,
) -> Result<impl IntoResponse, Error> {
    let limit = page.limit.unwrap_or(20);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Error::invalid("limit", format!("must be 1 to {MAX_LIMIT}")));
    }
    let mut connection = database.acquire().await?;
    let items: Vec<Note> =
        sqlx::query_as("select id, text from notes where id < $1 order by id desc limit $2")
            .bind(page.cursor.unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
    let next = items.last().filter(|_| items.len() == usize::from(limit)).map(|note| note.id);
    Ok(axum::Json(json!({"items": items, "next_cursor": next})))
}

/// Reads from the cache, otherwise from PostgreSQL and fills the cache.
async fn read(
    State(database): State<Database>,
    State(cache): State<Cache>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, Error> {
    let key = cache_key(id);
    let note = match cache.get::<Option<Note>>(&key).await {
        Some(cached) if cached.as_ref().is_none_or(|note| note.id == id) => cached,
        unusable => {
            if unusable.is_some() {
                cache.invalidate(&key).await;
            }
            let read_at = SystemTime::now();
            let mut connection = database.acquire().await?;
            let note: Option<Note> = sqlx::query_as("select id, text from notes where id = $1")
                .bind(id)
                .fetch_optional(&mut *connection)
                .await?;
            // Return the connection to the pool before waiting for the cache.
            drop(connection);
            cache.fill(&key, &note, read_at).await;
            note
        }
    };
    note.map(axum::Json).ok_or(Error::NotFound)
}

async fn delete(
    State(database): State<Database>,
    State(cache): State<Cache>,
    State(tasks): State<Tasks>,
    Path(id): Path<i64>,
) -> Result<StatusCode, Error> {
    tasks
        .run(async move {
            let mut connection = database.acquire().await?;
            let delete = sqlx::query("delete from notes where id = $1").bind(id);
            let result = cache.invalidate_around(&cache_key(id), delete.execute(&mut *connection)).await?;
            if result.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(StatusCode::NO_CONTENT) }
        })
        .await
}

fn cache_key(id: i64) -> String {
    format!("note:{id}")
}
