//! The SQL of the domain.

use serde_json::Value;
use sqlx::{PgConnection, query, query_as};

use super::model::{Cursor, IdempotencyKey, Link, Slug, StoredAnswer, Target};

/// Inserts a link. Returns `None` if the slug is taken.
pub async fn insert(
    connection: &mut PgConnection,
    slug: &Slug,
    target: &Target,
) -> sqlx::Result<Option<Link>> {
    query_as!(
        Link,
        "insert into links (slug, url) values ($1, $2)
         on conflict (slug) do nothing
         returning slug, url, version, created_at, updated_at",
        slug.as_str(),
        target.as_str(),
    )
    .fetch_optional(connection)
    .await
}

pub async fn find(connection: &mut PgConnection, slug: &Slug) -> sqlx::Result<Option<Link>> {
    query_as!(
        Link,
        "select slug, url, version, created_at, updated_at from links where slug = $1",
        slug.as_str(),
    )
    .fetch_optional(connection)
    .await
}

/// Returns a page of links, newest first, that begins after `after`, and the cursor of the next page if there is one.
pub async fn list(
    connection: &mut PgConnection,
    after: Option<Cursor>,
    limit: u16,
) -> sqlx::Result<(Vec<Link>, Option<Cursor>)> {
    let before = after.map_or(i64::MAX, |cursor| cursor.0);
    // One more row than requested shows whether there is a next page.
    let mut rows = query!(
        "select id, slug, url, version, created_at, updated_at from links
         where id < $1 order by id desc limit $2",
        before,
        i64::from(limit) + 1,
    )
    .fetch_all(connection)
    .await?;
    let more = rows.len() > usize::from(limit);
    rows.truncate(usize::from(limit));
    let next = rows.last().filter(|_| more).map(|row| Cursor(row.id));
    let links = rows.into_iter().map(|row| Link {
        slug: row.slug,
        url: row.url,
        version: row.version,
        created_at: row.created_at,
        updated_at: row.updated_at,
    });
    Ok((links.collect(), next))
}

/// Updates a link whose version is in `versions`; `None` means any version.
pub async fn update(
    connection: &mut PgConnection,
    slug: &Slug,
    target: &Target,
    versions: Option<&[i32]>,
) -> sqlx::Result<Option<Link>> {
    query_as!(
        Link,
        "update links set url = $2, version = version + 1, updated_at = now()
         where slug = $1 and ($3::int[] is null or version = any($3))
         returning slug, url, version, created_at, updated_at",
        slug.as_str(),
        target.as_str(),
        versions,
    )
    .fetch_optional(connection)
    .await
}

/// Deletes a link under the same condition as [`update`], and returns whether it did.
pub async fn delete(
    connection: &mut PgConnection,
    slug: &Slug,
    versions: Option<&[i32]>,
) -> sqlx::Result<bool> {
    let result = query!(
        "delete from links where slug = $1 and ($2::int[] is null or version = any($2))",
        slug.as_str(),
        versions,
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected() > 0)
}

/// Claims an idempotency key for the rest of the transaction. Returns `false` if the key has been used.
///
/// A concurrent request with the same key waits here until the first one has committed. Each call also deletes a few
/// expired keys, so the table holds about one day of keys.
pub async fn claim_key(
    connection: &mut PgConnection,
    key: &IdempotencyKey,
    request: &Value,
) -> sqlx::Result<bool> {
    query!(
        "delete from idempotency_keys where key in (
             select key from idempotency_keys where created_at < now() - interval '1 day'
             order by created_at limit 10 for update skip locked)",
    )
    .execute(&mut *connection)
    .await?;
    let result = query!(
        "insert into idempotency_keys (key, request) values ($1, $2) on conflict (key) do nothing",
        key.as_str(),
        request,
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected() > 0)
}

/// Returns the request and the answer that are stored under `key`.
pub async fn find_answer(
    connection: &mut PgConnection,
    key: &IdempotencyKey,
) -> sqlx::Result<Option<StoredAnswer>> {
    query_as!(StoredAnswer, "select request, response from idempotency_keys where key = $1", key.as_str(),)
        .fetch_optional(connection)
        .await
}

pub async fn save_answer(
    connection: &mut PgConnection,
    key: &IdempotencyKey,
    response: &Value,
) -> sqlx::Result<()> {
    query!("update idempotency_keys set response = $2 where key = $1", key.as_str(), response)
        .execute(connection)
        .await?;
    Ok(())
}
