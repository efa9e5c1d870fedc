//! Validation of a request's head: limits, and what RFC 9112 requires to be rejected and hyper accepts.

use axum::extract::Request;
use axum::http::{StatusCode, Version, header};

use crate::platform::config::Http;
use crate::platform::error::Error;

/// Maximum sizes of what a head announces.
#[derive(Clone, Copy)]
pub struct HeadLimits {
    uri_bytes: usize,
    headers: usize,
    body_bytes: usize,
}

impl HeadLimits {
    pub fn new(http: &Http) -> Self {
        Self { uri_bytes: http.max_uri_bytes, headers: http.max_headers, body_bytes: http.max_body_bytes }
    }

    /// Checks the head of `request`.
    ///
    /// # Errors
    ///
    /// 400 without exactly one Host header or with one that contradicts the target (RFC 9112 3.2), 413, 414, or 431 beyond
    /// a limit.
    pub fn check(self, request: &Request) -> Result<(), Error> {
        let rejected = |status, detail: &str| Err(Error::Rejected(status, detail.to_owned()));
        let uri = request.uri();
        let headers = request.headers();
        if uri.path_and_query().is_some_and(|target| target.as_str().len() > self.uri_bytes) {
            return rejected(StatusCode::URI_TOO_LONG, "Send a shorter request target.");
        }
        if headers.len() > self.headers {
            return rejected(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "Send fewer header fields.");
        }
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next(), request.version()) {
            (Some(host), None, _) => Some(host.as_bytes()),
            (None, _, Version::HTTP_10) => None,
            _ => return rejected(StatusCode::BAD_REQUEST, "Send exactly one Host header."),
        };
        let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
        if authority.zip(host).is_some_and(|(authority, host)| !authority.eq_ignore_ascii_case(host)) {
            return rejected(StatusCode::BAD_REQUEST, "The Host header contradicts the request target.");
        }
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > self.body_bytes) {
            return Err(Error::BodyTooLarge);
        }
        Ok(())
    }
}
