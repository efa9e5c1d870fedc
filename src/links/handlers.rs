//! HTTP in, HTTP out.

use std::time::SystemTime;

use anyhow::Context;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::model::{
    CreateLink, Cursor, IdempotencyKey, Link, NewLink, Slug, StoredAnswer, Target, UpdateLink,
};
use super::store;
use crate::platform::error::Error;
use crate::platform::http::conditional::{Versions, etag, if_match, none_match};
use crate::platform::http::extract::{self, Json, Path, Query};
use crate::platform::postgres::Database;
use crate::platform::redis::cache::Cache;
use crate::platform::tasks::Tasks;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const DEFAULT_LIMIT: u16 = 20;
const MAX_LIMIT: u16 = 100;
/// Random slugs practically never collide. More collisions in a row mean that something else is wrong.
const SLUG_ATTEMPTS: usize = 3;

pub async fn create(
    State(database): State<Database>,
    State(cache): State<Cache>,
    State(tasks): State<Tasks>,
    headers: HeaderMap,
    Json(body): Json<CreateLink>,
) -> Result<Response, Error> {
    let new = body.validate().map_err(Error::Invalid)?;
    let key = extract::header(&headers, &IDEMPOTENCY_KEY)?;
    let key: Option<IdempotencyKey> = key.map(str::parse).transpose()?;

    let link = database
        .transaction(&tasks, move |mut transaction| {
            Box::pin(async move {
                let request =
                    json!({"slug": new.slug.as_ref().map(Slug::as_str), "url": new.target.as_str()});
                if let Some(key) = &key
                    && !store::claim_key(&mut transaction, key, &request).await?
                {
                    return replay(store::find_answer(&mut transaction, key).await?, &request);
                }
                let link = insert(&mut transaction, &new).await?;
                if let Some(key) = &key {
                    store::save_answer(&mut transaction, key, &json!(link)).await?;
                }
                // The cache may hold that the link does not exist.
                cache.invalidate_around(&cache_key(&link.slug), transaction.commit()).await?;
                Ok(link)
            })
        })
        .await?;
    let location = [(header::LOCATION, format!("/v1/links/{}", link.slug))];
    Ok((StatusCode::CREATED, location, with_etag(link)).into_response())
}

async fn insert(connection: &mut PgConnection, new: &NewLink) -> Result<Link, Error> {
    if let Some(slug) = &new.slug {
        let link = store::insert(connection, slug, &new.target).await?;
        return link.ok_or(Error::Conflict("The slug is taken. Choose another one."));
    }
    for _ in 0..SLUG_ATTEMPTS {
        if let Some(link) = store::insert(connection, &Slug::random(), &new.target).await? {
            return Ok(link);
        }
    }
    Err(Error::unavailable("No free slug was found. Retry the request."))
}

/// Returns the answer to an earlier request with the same key, if that request was the same.
fn replay(answer: Option<StoredAnswer>, request: &Value) -> Result<Link, Error> {
    match answer {
        Some(answer) if answer.request != *request => {
            Err(Error::invalid("Idempotency-Key", "was used with another body"))
        }
        Some(StoredAnswer { response: Some(response), .. }) => {
            Ok(serde_json::from_value(response).context("failed to read a stored answer")?)
        }
        _ => Err(Error::unavailable("The first request with this key is not finished. Retry the request.")),
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
    let slug = parse_slug(&slug)?;
    let mut connection = database.acquire().await?;
    let link = store::find(&mut connection, &slug).await?.ok_or(Error::NotFound)?;

    if none_match(&headers, link.version)? {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag(link.version))]).into_response());
    }
    Ok(with_etag(link).into_response())
}

pub async fn update(
    State(database): State<Database>,
    State(cache): State<Cache>,
    State(tasks): State<Tasks>,
    Path(slug): Path<String>,
    headers: HeaderMap,
    Json(body): Json<UpdateLink>,
) -> Result<impl IntoResponse, Error> {
    let slug = parse_slug(&slug)?;
    let target = body.validate().map_err(Error::Invalid)?;
    let versions = if_match(&headers)?.ok_or(Error::PreconditionRequired)?;

    let link = database
        .transaction(&tasks, move |mut transaction| {
            Box::pin(async move {
                let link = store::update(&mut transaction, &slug, &target, versions.list()).await?;
                let Some(link) = link else {
                    return Err(not_changed(&mut transaction, &slug).await);
                };
                cache.invalidate_around(&cache_key(slug.as_str()), transaction.commit()).await?;
                Ok(link)
            })
        })
        .await?;
    Ok(with_etag(link))
}

pub async fn delete(
    State(database): State<Database>,
    State(cache): State<Cache>,
    State(tasks): State<Tasks>,
    Path(slug): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Error> {
    let slug = parse_slug(&slug)?;
    let versions = if_match(&headers)?.unwrap_or(Versions::Any);

    database
        .transaction(&tasks, move |mut transaction| {
            Box::pin(async move {
                if !store::delete(&mut transaction, &slug, versions.list()).await? {
                    return Err(not_changed(&mut transaction, &slug).await);
                }
                cache.invalidate_around(&cache_key(slug.as_str()), transaction.commit()).await?;
                Ok(StatusCode::NO_CONTENT)
            })
        })
        .await
}

/// Returns why a conditional change did nothing: the link does not exist, or has another version.
async fn not_changed(connection: &mut PgConnection, slug: &Slug) -> Error {
    match store::find(connection, slug).await {
        Ok(Some(_)) => Error::PreconditionFailed,
        Ok(None) => Error::NotFound,
        Err(error) => error.into(),
    }
}

/// What the cache holds for a slug; JSON `null` for a link that does not exist.
#[derive(Deserialize, Serialize)]
struct CachedLink {
    slug: String,
    url: String,
}

impl CachedLink {
    /// Returns whether the entry belongs to `slug` and its URL is a target in normal form. Garbage in the cache must
    /// neither redirect elsewhere nor break a header.
    fn is_valid_for(&self, slug: &Slug) -> bool {
        self.slug == slug.as_str()
            && self.url.parse::<Target>().is_ok_and(|target| target.as_str() == self.url)
    }
}

/// The hot path: from the cache, otherwise from PostgreSQL into the cache.
pub async fn follow(
    State(database): State<Database>,
    State(cache): State<Cache>,
    Path(slug): Path<String>,
) -> Result<Response, Error> {
    let slug = parse_slug(&slug)?;
    let key = cache_key(slug.as_str());
    let target = match cache.get::<Option<CachedLink>>(&key).await {
        Some(None) => None,
        Some(Some(cached)) if cached.is_valid_for(&slug) => Some(cached.url),
        unusable => {
            if unusable.is_some() {
                cache.invalidate(&key).await;
            }
            let read_at = SystemTime::now();
            let mut connection = database.acquire().await?;
            let link = store::find(&mut connection, &slug).await?;
            // Return the connection before waiting for the cache.
            drop(connection);
            let found = link.map(|link| CachedLink { slug: link.slug, url: link.url });
            cache.fill(&key, &found, read_at).await;
            found.map(|found| found.url)
        }
    };
    let target = target.ok_or(Error::NotFound)?;
    Ok((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]).into_response())
}

fn cache_key(slug: &str) -> String {
    format!("link:{slug}")
}

/// Text that is no slug names no link.
fn parse_slug(slug: &str) -> Result<Slug, Error> {
    slug.parse().map_err(|_| Error::NotFound)
}

fn with_etag(link: Link) -> impl IntoResponse {
    ([(header::ETAG, etag(link.version))], axum::Json(link))
}
