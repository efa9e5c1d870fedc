//! The section `[otlp]`: the collector that receives spans.

use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderValue;
use url::Url;

use crate::platform::config::secret::{ExposeSecret, SecretString};
use crate::platform::config::sources::Settings;

/// How spans are exported.
pub struct Otlp {
    pub endpoint: Url,
    /// Value of the `Authorization` header.
    pub authorization: Option<SecretString>,
    /// Fraction of the requests without a `traceparent` that get spans.
    pub sample_ratio: f64,
    pub flush_timeout: Duration,
}

impl Otlp {
    /// Reads the section; `None` without an endpoint.
    pub fn read(settings: &mut Settings) -> Option<Self> {
        let Ratio(sample_ratio) = settings.get("otlp.sample_ratio");
        let flush_timeout = settings.duration_or_zero("otlp.flush_timeout");
        let authorization = settings.secret("otlp.authorization");
        if authorization.as_ref().is_some_and(|value| HeaderValue::from_str(value.expose_secret()).is_err()) {
            settings.problem("otlp.authorization", "must be a valid value of an HTTP header");
        }
        let CollectorUrl(endpoint) = settings.get_optional("otlp.endpoint")?;
        Some(Self { endpoint, authorization, sample_ratio, flush_timeout })
    }
}

/// A number from 0 to 1.
struct Ratio(f64);

impl FromStr for Ratio {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Self).ok_or("must be a number from 0 to 1")
    }
}

/// An `http` or `https` URL without credentials.
struct CollectorUrl(Url);

impl FromStr for CollectorUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Credentials before an @ would be shown as part of the address.
        let is_valid = |url: &Url| {
            matches!(url.scheme(), "http" | "https") && !url.authority().contains('@') && url.has_host()
        };
        let url = text.parse().ok().filter(is_valid);
        let url = url.ok_or("must be a URL such as http://collector:4318")?;
        if cfg!(not(feature = "otlp")) {
            return Err("must not be set: this binary was built without the feature otlp");
        }
        Ok(Self(url))
    }
}
