//! Errors by what they mean to a client, as problem documents (RFC 9457). The only place where a status
//! code meets an error.
//!
//! Inside: `{"type": "about:blank", "title", "status", "detail", "request_id", "errors": [{"field", "detail"}]}`.
//! What went wrong in here is in the log, with the same request id, and not in the document.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::platform::telemetry::request_context;

/// Content type of every error response.
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// When to try again after a 503: about the time that a dependency takes to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request did not succeed.
#[derive(Debug)]
pub enum Error {
    /// 404.
    NotFound,
    /// 409: the state of a resource forbids it.
    Conflict(&'static str),
    /// 412: the client's version is not the current one.
    PreconditionFailed,
    /// 428 (RFC 6585): the client has to say which version it changes.
    PreconditionRequired,
    /// 422: understood, but not acceptable.
    Invalid(Vec<FieldError>),
    /// What an extractor refused: 400, 413, 415.
    Rejected(StatusCode, String),
    /// 503 with Retry-After: a dependency is away or everything is busy.
    Unavailable(&'static str),
    /// 500: logged with its cause, told without.
    Internal(anyhow::Error),
}

/// What is wrong with one field of a request.
#[derive(Debug, Serialize)]
pub struct FieldError {
    pub field: &'static str,
    pub detail: String,
}

impl Error {
    /// One field that is not acceptable.
    pub fn invalid(field: &'static str, detail: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError { field, detail: detail.into() }])
    }
}

/// Errors that are certainly not the client's. A violated constraint that is gets mapped by name where it can
/// happen, before this.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let state = error.as_database_error().and_then(|error| error.code());
        let away = match (&error, state.as_deref()) {
            (sqlx::Error::Io(_) | sqlx::Error::Tls(_), _) => true,
            (sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed, _) => true,
            (sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed, _) => true,
            // Connection exceptions, refused credentials, shutting down, too many connections, statement and lock
            // timeouts.
            (_, Some(state)) => {
                ["08", "28", "57P"].iter().any(|class| state.starts_with(class))
                    || matches!(state, "53300" | "57014" | "55P03" | "25P03")
            }
            _ => false,
        };
        if away {
            tracing::warn!(error = %error, "the database did not answer");
            Self::Unavailable("The database did not answer in time.")
        } else {
            Self::Internal(error.into())
        }
    }
}

impl From<FieldError> for Error {
    fn from(error: FieldError) -> Self {
        Self::Invalid(vec![error])
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::Internal(error)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, detail, errors) = match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "There is no such resource.".into(), vec![]),
            Self::Conflict(detail) => (StatusCode::CONFLICT, detail.into(), vec![]),
            Self::PreconditionFailed => {
                let detail = "The resource has changed; read it again.".into();
                (StatusCode::PRECONDITION_FAILED, detail, vec![])
            }
            Self::PreconditionRequired => {
                let detail = "Send If-Match with the ETag of the version that you change.".into();
                (StatusCode::PRECONDITION_REQUIRED, detail, vec![])
            }
            Self::Invalid(errors) => {
                let detail = "The request is not acceptable.".into();
                (StatusCode::UNPROCESSABLE_ENTITY, detail, errors)
            }
            Self::Rejected(status, detail) => (status, detail, vec![]),
            Self::Unavailable(detail) => (StatusCode::SERVICE_UNAVAILABLE, detail.into(), vec![]),
            Self::Internal(error) => {
                tracing::error!(error = format!("{error:#}"), "a request failed");
                let detail = "Something went wrong here; the log knows it by the request id.".into();
                (StatusCode::INTERNAL_SERVER_ERROR, detail, vec![])
            }
        };
        problem(status, detail, errors)
    }
}

/// A response that tells `status` as a problem document.
pub fn problem(status: StatusCode, detail: String, errors: Vec<FieldError>) -> Response {
    #[derive(Serialize)]
    struct Problem {
        r#type: &'static str,
        title: &'static str,
        status: u16,
        detail: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        errors: Vec<FieldError>,
    }
    let document = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail,
        request_id: request_context::current().map(|context| context.request_id.clone()),
        errors,
    };
    let mut response = (status, Json(document)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM_JSON);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER.as_secs().into());
    }
    response
}
