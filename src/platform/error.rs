//! Errors by what they mean to a client, as problem documents (RFC 9457). The only place where a status code meets
//! an error.
//!
//! A document is `{"type": "about:blank", "title", "status", "detail", "request_id", "errors": [{"field", "detail"}]}`.
//! The cause of a 500 or 503 is in the log, under the same request ID, and not in the document.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::platform::error_class::ErrorClass;
use crate::platform::telemetry::request_context;

/// Content type of every error response.
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Value of Retry-After in a 503: about the time that a dependency takes to return.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request did not succeed.
#[derive(Debug)]
pub enum Error {
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 409: the state of a resource forbids it.
    Conflict(&'static str),
    /// 412: the client's version is not the current one.
    PreconditionFailed,
    /// 413.
    BodyTooLarge,
    /// 428 (RFC 6585): the client has to name the version that it changes.
    PreconditionRequired,
    /// 422: understood, but not acceptable.
    Invalid(Vec<FieldError>),
    /// A request that the HTTP layer rejects: 400, 413, 414, 415, or 431.
    Rejected(StatusCode, String),
    /// 503 with Retry-After: a dependency is unavailable or the service is saturated. The source is logged.
    Unavailable { detail: &'static str, source: Option<anyhow::Error> },
    /// 503 with Retry-After: the request exceeded its time limit.
    Timeout,
    /// 500: the cause is logged and not shown.
    Internal(anyhow::Error),
    /// 500 after a panic, which the panic hook has logged and counted.
    Panicked,
}

/// What is wrong with one field of a request.
#[derive(Debug, Serialize)]
pub struct FieldError {
    pub field: &'static str,
    pub detail: String,
}

impl Error {
    /// Returns an error for one field that is not acceptable.
    pub fn invalid(field: &'static str, detail: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError { field, detail: detail.into() }])
    }

    /// Returns a 503 that has no cause worth a log line.
    pub fn unavailable(detail: &'static str) -> Self {
        Self::Unavailable { detail, source: None }
    }
}

/// Converts errors that the client did not cause. Handle constraint violations at the call site, before this
/// conversion.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if ErrorClass::from(&error).is_transient() {
            let detail = "The database did not answer in time. Retry the request.";
            Self::Unavailable { detail, source: Some(error.into()) }
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
        match self {
            Self::NotFound => problem(StatusCode::NOT_FOUND, "The resource does not exist.", vec![]),
            Self::MethodNotAllowed => {
                problem(StatusCode::METHOD_NOT_ALLOWED, "Use one of the methods in the Allow header.", vec![])
            }
            Self::Conflict(detail) => problem(StatusCode::CONFLICT, detail, vec![]),
            Self::PreconditionFailed => {
                let detail = "The resource has changed. Read it again and repeat the change.";
                problem(StatusCode::PRECONDITION_FAILED, detail, vec![])
            }
            Self::BodyTooLarge => {
                problem(StatusCode::PAYLOAD_TOO_LARGE, "Send a smaller request body.", vec![])
            }
            Self::PreconditionRequired => {
                let detail = "Send If-Match with the ETag of the version that you change.";
                problem(StatusCode::PRECONDITION_REQUIRED, detail, vec![])
            }
            Self::Invalid(errors) => {
                problem(StatusCode::UNPROCESSABLE_ENTITY, "Correct the fields in `errors`.", errors)
            }
            Self::Rejected(status, detail) => problem(status, &detail, vec![]),
            Self::Unavailable { detail, source } => {
                if let Some(error) = source {
                    tracing::warn!(error = format!("{error:#}"), "request failed: dependency unavailable");
                }
                problem(StatusCode::SERVICE_UNAVAILABLE, detail, vec![])
            }
            Self::Timeout => {
                let detail = "The request exceeded its time limit. Retry it.";
                problem(StatusCode::SERVICE_UNAVAILABLE, detail, vec![])
            }
            Self::Internal(error) => {
                tracing::error!(error = format!("{error:#}"), "request failed: internal error");
                Self::Panicked.into_response()
            }
            Self::Panicked => {
                let detail = "Internal server error. Quote the request ID when you report it.";
                problem(StatusCode::INTERNAL_SERVER_ERROR, detail, vec![])
            }
        }
    }
}

/// Returns `status` as a problem document.
fn problem(status: StatusCode, detail: &str, errors: Vec<FieldError>) -> Response {
    #[derive(Serialize)]
    struct Problem<'a> {
        r#type: &'static str,
        title: &'static str,
        status: u16,
        detail: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        errors: Vec<FieldError>,
    }
    let context = request_context::current();
    let document = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail,
        request_id: context.as_deref().map(|context| context.request_id.as_str()),
        errors,
    };
    let mut response = (status, Json(document)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM_JSON);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER.as_secs().into());
    }
    response
}
