//! Versions as entity tags, and the conditions that requests make with them (RFC 9110 13.1). No I/O.

/// The tag of `version`.
pub fn etag(version: i32) -> String {
    format!("\"{version}\"")
}

/// Whether the list of an If-None-Match header names `version`, by its tag, weak or not, or by `*`.
pub fn is_held(tags: &str, version: i32) -> bool {
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
    /// Reads a list of tags or `*`; weak tags and those that we never gave match nothing.
    pub fn read(tags: &str) -> Self {
        if tags.trim() == "*" {
            return Self::Any;
        }
        let version = |tag: &str| {
            let version = tag.trim().trim_matches('"').parse().ok()?;
            (etag(version) == tag.trim()).then_some(version)
        };
        Self::Listed(tags.split(',').filter_map(version).collect())
    }

    /// The versions listed; `None` for any.
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
        fn a_list_names_the_versions_that_it_was_made_of(versions: Vec<i32>, space in "[ \t]{0,2}", other: i32) {
            let tags: Vec<_> = versions.iter().map(|version| etag(*version)).collect();
            let tags = tags.join(&format!("{space},{space}"));

            prop_assert_eq!(Versions::read(&tags), Versions::Listed(versions.clone()));
            prop_assert!(versions.iter().all(|version| is_held(&tags, *version)));
            prop_assert_eq!(is_held(&tags, other), versions.contains(&other));
        }

        #[test]
        fn any_text_names_only_tags_that_are_in_it(tags in "[W/\"0-9, +*-]{0,30}|.{0,30}") {
            let versions = Versions::read(&tags);
            for version in versions.list().unwrap_or_default() {
                prop_assert!(tags.contains(&etag(*version)));
                prop_assert!(is_held(&tags, *version));
            }
        }
    }

    #[test]
    fn a_weak_tag_is_held_but_not_to_be_changed() {
        assert!(is_held("\"7\", W/\"1\"", 1));
        assert_eq!(Versions::read("W/\"1\", \"+1\", \"01\", 1, *"), Versions::Listed(Vec::new()));
        assert_eq!(Versions::read(" * "), Versions::Any);
    }
}
