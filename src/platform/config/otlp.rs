//! The collector of spans: where it is and what it gets. `otlp` sends to it.

use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderValue;
use url::Url;

use crate::platform::config::secret::{ExposeSecret, SecretString};
use crate::platform::config::sources::Settings;

/// Where spans are sent.
pub struct Collector {
    pub endpoint: Url,
    /// Value of the header `Authorization`.
    pub authorization: Option<SecretString>,
    /// Share of the requests that get spans where the caller does not say.
    pub sample_ratio: f64,
    pub flush_timeout: Duration,
}

impl Collector {
    /// Reads the settings; `None` without an endpoint.
    pub fn read(s: &mut Settings) -> Option<Self> {
        let Ratio(sample_ratio) = s.get("otlp.sample_ratio");
        let flush_timeout = s.pause("otlp.flush_timeout");
        let authorization = s.secret("otlp.authorization");
        if authorization.as_ref().is_some_and(|value| HeaderValue::from_str(value.expose_secret()).is_err()) {
            s.problem(s.name("otlp.authorization"), "cannot be the value of a header");
        }
        let Endpoint(endpoint) = s.get_optional("otlp.endpoint")?;
        Some(Self { endpoint, authorization, sample_ratio, flush_timeout })
    }
}

/// From 0 to 1.
struct Ratio(f64);

impl FromStr for Ratio {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Self).ok_or("must be a number from 0 to 1")
    }
}

/// A URL of HTTP.
struct Endpoint(Url);

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // What is in front of an @ would be shown as part of the address.
        let fits = |url: &Url| {
            matches!(url.scheme(), "http" | "https") && !url.authority().contains('@') && url.has_host()
        };
        let url = text.parse().ok().filter(fits);
        match url {
            Some(_) if cfg!(not(feature = "otlp")) => {
                Err("is set, but this build is without the feature otlp")
            }
            url => url.map(Self).ok_or("must be a URL such as http://collector:4318"),
        }
    }
}
