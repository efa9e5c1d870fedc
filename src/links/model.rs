//! Types of the domain and their validation. No I/O.

use std::fmt;
use std::str::FromStr;

use rand::distr::{Alphanumeric, SampleString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use url::Url;

use crate::platform::error::FieldError;

const MAX_URL_BYTES: usize = 2048;
const MAX_SLUG_BYTES: usize = 64;
const MAX_KEY_BYTES: usize = 255;
/// 62^7 = 3.5 * 10^12 random slugs.
const RANDOM_SLUG_CHARACTERS: usize = 7;

/// A link as clients see it.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub struct Link {
    pub slug: String,
    pub url: String,
    /// Also the ETag. Each change adds 1.
    pub version: i32,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// Body of `POST /v1/links`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateLink {
    url: String,
    slug: Option<String>,
}

/// Body of `PATCH /v1/links/{slug}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateLink {
    url: String,
}

/// A valid request for a new link.
pub struct NewLink {
    /// `None`: the service chooses one.
    pub slug: Option<Slug>,
    pub target: Target,
}

/// What is stored under an idempotency key.
pub struct StoredAnswer {
    pub request: Value,
    /// `None` inside the transaction that creates it.
    pub response: Option<Value>,
}

impl CreateLink {
    /// Returns the new link, or every field that is wrong.
    pub fn validate(&self) -> Result<NewLink, Vec<FieldError>> {
        let slug = self.slug.as_deref().map(Slug::from_str).transpose();
        match (slug, self.url.parse()) {
            (Ok(slug), Ok(target)) => Ok(NewLink { slug, target }),
            (slug, target) => Err([slug.err(), target.err()].into_iter().flatten().collect()),
        }
    }
}

impl UpdateLink {
    pub fn validate(&self) -> Result<Target, Vec<FieldError>> {
        self.url.parse().map_err(|error| vec![error])
    }
}

/// Name of a link in a URL: 1 to 64 of `A-Z a-z 0-9 _ -`.
#[derive(Clone, Debug, PartialEq)]
pub struct Slug(String);

impl Slug {
    pub fn random() -> Self {
        Self(Alphanumeric.sample_string(&mut rand::rng(), RANDOM_SLUG_CHARACTERS))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Slug {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if (1..=MAX_SLUG_BYTES).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            let detail = format!("must be 1 to {MAX_SLUG_BYTES} letters, digits, - or _");
            Err(FieldError { field: "slug", detail })
        }
    }
}

/// The target of a link: an absolute http or https URL in normal form, which is ASCII and fits a header.
#[derive(Clone, Debug, PartialEq)]
pub struct Target(String);

impl Target {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Target {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let refused = |detail: &str| FieldError { field: "url", detail: detail.to_owned() };
        let url = Url::parse(text).map_err(|error| refused(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            // A javascript: or data: URL would run code in the reader's browser.
            return Err(refused("must be an http or https URL"));
        }
        let text = String::from(url);
        if text.len() > MAX_URL_BYTES {
            return Err(refused(&format!("must be at most {MAX_URL_BYTES} bytes")));
        }
        Ok(Self(text))
    }
}

/// A client's name for one creation, so that it can repeat the request: 1 to 255 characters of its choice.
#[derive(Clone, Debug, PartialEq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        if (1..=MAX_KEY_BYTES).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            let detail = format!("must have 1 to {MAX_KEY_BYTES} characters");
            Err(FieldError { field: "Idempotency-Key", detail })
        }
    }
}

/// The next page begins after the link with this ID. Opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cursor(pub i64);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Cursor {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let id = (text.len() == 16).then(|| i64::from_str_radix(text, 16).ok()).flatten();
        let detail = || FieldError { field: "cursor", detail: "must come from an earlier page".to_owned() };
        id.filter(|id| *id > 0).map(Self).ok_or_else(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_slug_fits_a_path_segment(text in ".{0,70}") {
            let valid = !text.is_empty()
                && text.len() <= 64
                && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
            prop_assert_eq!(text.parse::<Slug>().is_ok(), valid);
        }

        #[test]
        fn a_target_fits_a_header_whatever_was_sent(rest in ".{0,80}") {
            if let Ok(target) = format!("https://example.com/{rest}").parse::<Target>() {
                prop_assert!(target.as_str().bytes().all(|byte| (0x21..=0x7e).contains(&byte)));
            }
        }

        #[test]
        fn an_idempotency_key_is_kept_as_it_is(text in "[!-~]{0,3}|[!-~]{253,257}") {
            let key = text.parse::<IdempotencyKey>().ok().map(|key| key.0);
            let valid = !text.is_empty() && text.len() <= 255;
            prop_assert_eq!(key, valid.then_some(text));
        }

        #[test]
        fn a_cursor_survives_the_round_trip(id in 1..i64::MAX) {
            prop_assert_eq!(Cursor(id).to_string().parse::<Cursor>().unwrap(), Cursor(id));
        }

        #[test]
        fn any_text_is_a_cursor_or_refused(text in ".{0,20}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert!(cursor.0 > 0);
            }
        }
    }

    #[test]
    fn only_http_and_https_are_targets() {
        for refused in ["javascript:alert(1)", "data:text/html,x", "ftp://h/", "//h/", "/x", "http://", ""] {
            assert!(refused.parse::<Target>().is_err(), "{refused}");
        }
        for accepted in ["http://h", "HTTPS://H/a?b#c", "https://例え.jp/ü"] {
            assert!(accepted.parse::<Target>().is_ok(), "{accepted}");
        }
    }

    #[test]
    fn random_slugs_are_valid_and_differ() {
        let (one, other) = (Slug::random(), Slug::random());

        assert_eq!(one.as_str().parse::<Slug>().unwrap(), one);
        assert_ne!(one, other);
    }
}
