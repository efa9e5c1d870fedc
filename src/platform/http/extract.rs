//! axum's extractors, with problem documents for what they reject.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::platform::error::Error;

/// A JSON body. Rejects with 400 (malformed), 413 (too large), 415 (content type), or 422 (shape).
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(Error))]
pub struct Json<T>(pub T);

/// Parameters of the path. Rejects with 400.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Error))]
pub struct Path<T>(pub T);

/// Parameters of the query. Rejects with 400.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Error))]
pub struct Query<T>(pub T);

impl From<JsonRejection> for Error {
    fn from(rejection: JsonRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            status => Self::Rejected(status, rejection.body_text()),
        }
    }
}

impl From<PathRejection> for Error {
    fn from(rejection: PathRejection) -> Self {
        Self::Rejected(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Self {
        Self::Rejected(rejection.status(), rejection.body_text())
    }
}

/// Returns the text of a header that may occur once.
///
/// # Errors
///
/// 400 if the header occurs twice or is not visible ASCII.
pub fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter().map(|value| text(name, value));
    let value = values.next().transpose()?;
    if values.next().is_some() {
        return Err(rejected(name, "may occur only once."));
    }
    Ok(value)
}

/// Returns the text of a header that is a list: several occurrences count as one (RFC 9110 5.3).
///
/// # Errors
///
/// 400 if the header is not visible ASCII.
pub fn list(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Error> {
    let values = headers.get_all(name).iter().map(|value| text(name, value));
    let values: Vec<_> = values.collect::<Result<_, _>>()?;
    Ok((!values.is_empty()).then(|| values.join(",")))
}

fn text<'a>(name: &HeaderName, value: &'a HeaderValue) -> Result<&'a str, Error> {
    value.to_str().map_err(|_| rejected(name, "must be visible ASCII."))
}

fn rejected(name: &HeaderName, what: &str) -> Error {
    Error::Rejected(StatusCode::BAD_REQUEST, format!("{name} {what}"))
}
