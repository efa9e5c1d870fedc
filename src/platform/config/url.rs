//! Connection URLs of PostgreSQL and Redis.
//!
//! The drivers' own parsers are too lenient: `localhost:5432/db` becomes a database `5432/db` on an empty host, and
//! unknown parameters are ignored and logged with their value. Here both are configuration errors.

use percent_encoding::percent_decode_str;
use url::Url;

use crate::platform::config::secret::{ExposeSecret, SecretString};
use crate::platform::config::sources::Settings;

const ESCAPES: &str = "a password contains %40 for @, %2F for /, %23 for #, %3F for ?";

/// The decoded parts of a connection URL. Each part is `None` if the URL does not have it.
#[derive(Default)]
pub struct ConnectionUrl {
    pub scheme: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub path: Option<String>,
    parameters: Vec<(String, String)>,
}

impl ConnectionUrl {
    /// Reads the secret `key` as a URL with one of `schemes` and no parameters other than `parameters`.
    ///
    /// Returns an empty URL if `key` is not set, and `None` after reporting a problem.
    pub fn read(
        settings: &mut Settings,
        key: &str,
        schemes: &[&str],
        parameters: &[&str],
    ) -> Option<ConnectionUrl> {
        let Some(secret) = settings.secret(key) else { return Some(Self::default()) };
        let url = Self::parse(secret.expose_secret(), schemes, parameters);
        url.map_err(|problem| settings.problem(key, problem)).ok()
    }

    /// Returns the value of the parameter `name`.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.parameters.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    }

    fn parse(text: &str, schemes: &[&str], parameters: &[&str]) -> Result<Self, String> {
        // The scheme comes first: "localhost:5432/db" and "user:password@host" are URLs of other schemes.
        if !schemes.iter().any(|scheme| text.starts_with(&format!("{scheme}://"))) {
            return Err(format!("must begin with {}://", schemes[0]));
        }
        let url = Url::parse(text).map_err(|error| format!("must be a URL: {error}; {ESCAPES}"))?;
        if url.fragment().is_some() {
            return Err(format!("must not contain #; {ESCAPES}"));
        }
        if url.query_pairs().any(|(name, _)| !parameters.contains(&name.as_ref())) {
            return Err(format!("must not have parameters other than {parameters:?}; {ESCAPES}"));
        }
        Ok(Self {
            scheme: url.scheme().to_owned(),
            host: decode(url.host_str().unwrap_or_default())?
                .map(|host| host.trim_matches(['[', ']']).to_owned()),
            port: url.port(),
            user: decode(url.username())?,
            password: decode(url.password().unwrap_or_default())?.map(SecretString::from),
            path: decode(url.path().trim_start_matches('/'))?,
            parameters: url.query_pairs().into_owned().collect(),
        })
    }
}

/// Returns the setting `key`, or else the part of the URL. Reports a problem if both are missing.
pub fn require(settings: &mut Settings, key: &str, from_url: Option<String>) -> Option<String> {
    let value = settings.get_optional(key).or(from_url);
    if value.is_none() {
        let (section, part) = key.split_once('.').unwrap_or_default();
        let url = settings.name(&format!("{section}.url"));
        settings.problem(key, format!("must be set, or {url} with a {part}"));
    }
    value
}

fn decode(part: &str) -> Result<Option<String>, String> {
    if part.is_empty() {
        return Ok(None);
    }
    let text = percent_decode_str(part).decode_utf8();
    text.map(|text| Some(text.into_owned())).map_err(|_| "must be valid UTF-8 in every part".to_owned())
}
