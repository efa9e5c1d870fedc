//! HTTP in, HTTP out.

use std::time::SystemTime;

use anyhow::Context;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::Connection;

use super::model::{CreateLink, Cursor, IdempotencyKey, Link, Slug, Target, UpdateLink};
use super::store;
use crate::platform::error::Error;
use crate::platform::http::conditional::{Versions, etag, is_held};
use crate::platform::http::extract::{self, Json, Path, Query};
use crate::platform::postgres::Database;
use crate::platform::redis::cache::Cache;
use crate::platform::shutdown::Tasks;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const DEFAULT_LIMIT: u16 = 20;
const MAX_LIMIT: u16 = 100;
/// Random slugs collide about never; more in a row means that something else is wrong.
const SLUG_TRIES: usize = 3;

pub async fn create(
    State(database): State<Database>,
    State(cache): State<Cache>,
    State(tasks): State<Tasks>,
    headers: HeaderMap,
    Json(body): Json<CreateLink>,
) -> Result<Response, Error> {
    let (slug, target) = body.validate().map_err(Error::Invalid)?;
    let key = extract::header(&headers, &IDEMPOTENCY_KEY)?;
    let key: Option<IdempotencyKey> = key.map(str::parse).transpose()?;
    let request = json!({"slug": slug.as_ref().map(Slug::as_str), "url": target.as_str()});

    let link = tasks.run(insert_once(database, cache, key, request, (slug, target))).await?;
    let location = [(header::LOCATION, format!("/v1/links/{}", link.slug))];
    Ok((StatusCode::CREATED, location, tagged(link)).into_response())
}

/// Inserts a link, or finds the one that an earlier request with the same key has made.
async fn insert_once(
    database: Database,
    cache: Cache,
    key: Option<IdempotencyKey>,
    request: Value,
    (slug, target): (Option<Slug>, Target),
) -> Result<Link, Error> {
    let mut connection = database.acquire().await?;
    let mut transaction = connection.begin().await?;
    if let Some(key) = &key
        && !store::claim_key(&mut transaction, key, &request).await?
    {
        let answer = store::find_answer(&mut transaction, key).await?;
        return replay(answer, &request);
    }
    let link = insert(&mut transaction, slug, &target).await?;
    if let Some(key) = &key {
        store::save_answer(&mut transaction, key, &json!(link)).await?;
    }
    // The cache may know that there was no such link.
    let cached = cache_key(&link.slug);
    cache.invalidate(&cached).await;
    transaction.commit().await?;
    cache.invalidate(&cached).await;
    Ok(link)
}

async fn insert(
    connection: &mut sqlx::PgConnection,
    slug: Option<Slug>,
    target: &Target,
) -> Result<Link, Error> {
    if let Some(slug) = slug {
        let link = store::insert(connection, &slug, target).await?;
        return link.ok_or(Error::Conflict("The slug is taken."));
    }
    for _ in 0..SLUG_TRIES {
        if let Some(link) = store::insert(connection, &Slug::random(), target).await? {
            return Ok(link);
        }
    }
    Err(Error::Unavailable("No free slug was found."))
}

/// The answer to an earlier request with the same key, if that request was the same.
fn replay(answer: Option<(Value, Option<Value>)>, request: &Value) -> Result<Link, Error> {
    match answer {
        Some((earlier, _)) if earlier != *request => {
            Err(Error::invalid("Idempotency-Key", "was used with another body"))
        }
        Some((_, Some(response))) => {
            Ok(serde_json::from_value(response).context("cannot read a stored answer")?)
        }
        _ => Err(Error::Unavailable("The first request with this key is not finished.")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    limit: Option<u16>,
    cursor: Option<String>,
}

pub async fn list(
    State(database): State<Database>,
    Query(page): Query<Page>,
) -> Result<impl IntoResponse, Error> {
    let limit = page.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Error::invalid("limit", format!("must be 1 to {MAX_LIMIT}")));
    }
    let after: Option<Cursor> = page.cursor.map(|cursor| cursor.parse()).transpose()?;

    let mut connection = database.acquire().await?;
    let (items, next) = store::list(&mut connection, after, limit).await?;

    let next_cursor = next.map(|cursor| cursor.to_string());
    Ok(axum::Json(json!({"items": items, "next_cursor": next_cursor})))
}

pub async fn get(
    State(database): State<Database>,
    Path(slug): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let slug = known_form(&slug)?;
    let mut connection = database.acquire().await?;
    let link = store::find(&mut connection, &slug).await?.ok_or(Error::NotFound)?;

    let tags = extract::list(&headers, &header::IF_NONE_MATCH)?.unwrap_or_default();
    if is_held(&tags, link.version) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag(link.version))]).into_response());
    }
    Ok(tagged(link).into_response())
}

pub async fn update(
    State(database): State<Database>,
    State(cache): State<Cache>,
    State(tasks): State<Tasks>,
    Path(slug): Path<String>,
    headers: HeaderMap,
    Json(body): Json<UpdateLink>,
) -> Result<impl IntoResponse, Error> {
    let slug = known_form(&slug)?;
    let target = body.validate().map_err(Error::Invalid)?;
    let versions = if_match(&headers)?.ok_or(Error::PreconditionRequired)?;

    let link = tasks
        .run(async move {
            let mut connection = database.acquire().await?;
            let mut transaction = connection.begin().await?;
            let link = store::update(&mut transaction, &slug, &target, versions.list()).await?;
            let Some(link) = link else {
                return Err(refusal(store::find(&mut transaction, &slug).await?.as_ref()));
            };
            let cached = cache_key(slug.as_str());
            cache.invalidate(&cached).await;
            transaction.commit().await?;
            cache.invalidate(&cached).await;
            Ok(link)
        })
        .await?;
    Ok(tagged(link))
}

pub async fn delete(
    State(database): State<Database>,
    State(cache): State<Cache>,
    State(tasks): State<Tasks>,
    Path(slug): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Error> {
    let slug = known_form(&slug)?;
    let versions = if_match(&headers)?.unwrap_or(Versions::Any);

    tasks
        .run(async move {
            let mut connection = database.acquire().await?;
            let mut transaction = connection.begin().await?;
            if !store::delete(&mut transaction, &slug, versions.list()).await? {
                return Err(refusal(store::find(&mut transaction, &slug).await?.as_ref()));
            }
            let cached = cache_key(slug.as_str());
            cache.invalidate(&cached).await;
            transaction.commit().await?;
            cache.invalidate(&cached).await;
            Ok(StatusCode::NO_CONTENT)
        })
        .await
}

/// A conditional change did nothing: the link is not there, or has another version.
fn refusal(found: Option<&Link>) -> Error {
    if found.is_some() { Error::PreconditionFailed } else { Error::NotFound }
}

/// What the cache holds for a slug; JSON `null` for one that does not exist.
#[derive(Deserialize, Serialize)]
struct Cached {
    slug: String,
    url: String,
}

impl Cached {
    /// Whatever wrote it, it must not lead elsewhere or break a header: a target in normal form is the same parsed.
    fn is_of(&self, slug: &Slug) -> bool {
        self.slug == slug.as_str()
            && self.url.parse::<Target>().is_ok_and(|target| target.as_str() == self.url)
    }
}

/// The hot path: from the cache, else from PostgreSQL into the cache.
pub async fn follow(
    State(database): State<Database>,
    State(cache): State<Cache>,
    Path(slug): Path<String>,
) -> Result<Response, Error> {
    let slug = known_form(&slug)?;
    let key = cache_key(slug.as_str());
    let target = match cache.get::<Option<Cached>>(&key).await {
        Some(None) => None,
        Some(Some(cached)) if cached.is_of(&slug) => Some(cached.url),
        unusable => {
            if unusable.is_some() {
                cache.invalidate(&key).await;
            }
            let asked = SystemTime::now();
            let mut connection = database.acquire().await?;
            let link = store::find(&mut connection, &slug).await?;
            // Back to the pool before the cache takes its time.
            drop(connection);
            let found = link.map(|link| Cached { slug: link.slug, url: link.url });
            cache.fill(&key, &found, asked).await;
            found.map(|found| found.url)
        }
    };
    let target = target.ok_or(Error::NotFound)?;
    Ok((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]).into_response())
}

fn cache_key(slug: &str) -> String {
    format!("link:{slug}")
}

/// What cannot be a slug cannot have been created either.
fn known_form(slug: &str) -> Result<Slug, Error> {
    slug.parse().map_err(|_| Error::NotFound)
}

fn tagged(link: Link) -> impl IntoResponse {
    ([(header::ETAG, etag(link.version))], axum::Json(link))
}

fn if_match(headers: &HeaderMap) -> Result<Option<Versions>, Error> {
    let tags = extract::list(headers, &header::IF_MATCH)?;
    Ok(tags.map(|tags| Versions::read(&tags)))
}
