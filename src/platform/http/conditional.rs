//! Versions as entity tags, and conditional requests (RFC 9110 13.1). No I/O.

use axum::http::{HeaderMap, header};

use crate::platform::error::Error;
use crate::platform::http::extract;

/// Returns the entity tag of `version`.
pub fn etag(version: i32) -> String {
    format!("\"{version}\"")
}

/// Returns whether If-None-Match names `version` or `*`: the client holds the version already.
pub fn none_match(headers: &HeaderMap, version: i32) -> Result<bool, Error> {
    let tags = extract::list(headers, &header::IF_NONE_MATCH)?;
    Ok(tags.is_some_and(|tags| lists(&tags, version)))
}

/// Returns the versions that If-Match names, if there is one.
pub fn if_match(headers: &HeaderMap) -> Result<Option<Versions>, Error> {
    let tags = extract::list(headers, &header::IF_MATCH)?;
    Ok(tags.map(|tags| Versions::parse(&tags)))
}

/// Returns whether the list `tags` has the tag of `version`, weak or strong, or `*`.
pub fn lists(tags: &str, version: i32) -> bool {
    let etag = etag(version);
    tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag || tag.trim() == "*")
}

/// The versions that an If-Match header names.
#[derive(Debug, PartialEq)]
pub enum Versions {
    Any,
    Listed(Vec<i32>),
}

impl Versions {
    /// Parses a list of tags or `*`. Weak and unknown tags match no version.
    pub fn parse(tags: &str) -> Self {
        if tags.trim() == "*" {
            return Self::Any;
        }
        let version = |tag: &str| {
            let version = tag.trim().trim_matches('"').parse().ok()?;
            (etag(version) == tag.trim()).then_some(version)
        };
        Self::Listed(tags.split(',').filter_map(version).collect())
    }

    /// Returns the listed versions, or `None` for any.
    pub fn list(&self) -> Option<&[i32]> {
        match self {
            Self::Any => None,
            Self::Listed(versions) => Some(versions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_list_names_the_versions_that_it_contains(versions: Vec<i32>, space in "[ \t]{0,2}", other: i32) {
            let tags: Vec<_> = versions.iter().map(|version| etag(*version)).collect();
            let tags = tags.join(&format!("{space},{space}"));

            prop_assert_eq!(Versions::parse(&tags), Versions::Listed(versions.clone()));
            prop_assert!(versions.iter().all(|version| lists(&tags, *version)));
            prop_assert_eq!(lists(&tags, other), versions.contains(&other));
        }

        #[test]
        fn any_text_names_only_tags_that_it_contains(tags in "[W/\"0-9, +*-]{0,30}|.{0,30}") {
            let versions = Versions::parse(&tags);
            for version in versions.list().unwrap_or_default() {
                prop_assert!(tags.contains(&etag(*version)));
                prop_assert!(lists(&tags, *version));
            }
        }
    }

    #[test]
    fn a_weak_tag_matches_for_reading_and_not_for_changing() {
        assert!(lists("\"7\", W/\"1\"", 1));
        assert_eq!(Versions::parse("W/\"1\", \"+1\", \"01\", 1, *"), Versions::Listed(Vec::new()));
        assert_eq!(Versions::parse(" * "), Versions::Any);
    }
}
