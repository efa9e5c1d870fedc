//! The keys that can be set, with their defaults, and the names of their environment variables.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use figment::Provider;
use figment::providers::{Format, Toml};
use figment::value::Value;

use crate::platform::config::Package;

/// The platform's keys. A project has a second file of the same format for its domains.
pub const DEFAULTS: &str = include_str!("default.toml");
const PREFIX: &str = "APP__";
const FILE_SUFFIX: &str = "_FILE";
/// Variables that container engines, orchestrators and libraries already use, with the key that each one sets.
const CONVENTIONAL: [(&str, &str); 6] = [
    ("PORT", "http.port"),
    ("DATABASE_URL", "database.url"),
    ("REDIS_URL", "redis.url"),
    ("RUST_LOG", "log.level"),
    ("HOSTNAME", "service.instance"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp.endpoint"),
];

/// The platform's own keys, in alphabetical order.
pub static KEYS: LazyLock<BTreeMap<String, Definition>> = LazyLock::new(|| parse(DEFAULTS));

/// One key of the settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Empty if the key has no default.
    pub default: String,
    /// Whether the value is a secret, which has no default and is never shown.
    pub secret: bool,
}

/// Every key of a service: those of the platform and those of the domains.
pub struct Definitions(BTreeMap<String, Definition>);

impl Definitions {
    /// Combines the platform's keys with those in `domains`. The default of `service.name` is the package's name.
    ///
    /// # Panics
    ///
    /// If `domains` is not in the format of `default.toml`, or defines a section of the platform.
    pub fn new(package: &Package, domains: &str) -> Self {
        let mut definitions = KEYS.clone();
        for (key, definition) in parse(domains) {
            let section = key.split('.').next().unwrap_or_default();
            let taken = KEYS.keys().any(|key| key.split('.').next() == Some(section));
            assert!(!taken, "settings of the domains: the section [{section}] belongs to the platform");
            definitions.insert(key, definition);
        }
        let name = Definition { default: package.name.to_owned(), secret: false };
        definitions.insert("service.name".to_owned(), name);
        Self(definitions)
    }

    /// Returns the definition of `key`.
    ///
    /// # Panics
    ///
    /// If no key has this name.
    pub fn get(&self, key: &str) -> &Definition {
        self.0.get(key).unwrap_or_else(|| panic!("the settings define no key {key}"))
    }

    /// Returns each key with its definition, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Definition)> {
        self.0.iter()
    }

    /// Returns the key that the variable called `name` sets.
    pub fn key(&self, name: &str) -> Option<String> {
        if let Some((_, key)) = CONVENTIONAL.iter().find(|(conventional, _)| *conventional == name) {
            return Some((*key).to_owned());
        }
        let key = name.strip_prefix(PREFIX)?.to_lowercase().replace("__", ".");
        // Names are case-sensitive: APP__http__port sets nothing.
        (self.0.contains_key(&key) && variable(&key) == name).then_some(key)
    }

    /// Returns the variable whose name is most like `name`.
    pub fn nearest(&self, name: &str) -> String {
        let names = self.0.keys().map(|key| variable(key));
        names.min_by_key(|known| strsim::damerau_levenshtein(known, name)).unwrap_or_default()
    }
}

/// Returns the name of the variable that sets `key`: `APP__HTTP__PORT` for `http.port`.
pub fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// Returns the variable that `name` is the `_FILE` form of.
pub fn without_file_suffix(name: &str) -> Option<&str> {
    name.strip_suffix(FILE_SUFFIX)
}

/// Whether `name` has the prefix that all variables of the service share.
pub fn is_prefixed(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Whether `name` is a conventional variable or its `_FILE` form.
pub fn is_conventional(name: &str) -> bool {
    let name = without_file_suffix(name).unwrap_or(name);
    CONVENTIONAL.iter().any(|(conventional, _)| *conventional == name)
}

/// Returns a plain value as text; `None` for a table or an array.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Num(_, number) => number.to_i128().map(|number| number.to_string()),
        Value::Bool(_, flag) => Some(flag.to_string()),
        _ => None,
    }
}

fn parse(toml: &str) -> BTreeMap<String, Definition> {
    let data = Toml::string(toml).data().unwrap_or_else(|error| panic!("settings: {error}"));
    let mut definitions = BTreeMap::new();
    for (section, keys) in data.into_values().flatten() {
        let keys = keys.into_dict().unwrap_or_else(|| panic!("settings: {section} is outside of a section"));
        for (name, value) in keys {
            let key = format!("{section}.{name}");
            let in_variable = variable(&key).replacen(PREFIX, "", 1).to_lowercase().replace("__", ".");
            let is_settable = in_variable == key && without_file_suffix(&variable(&key)).is_none();
            assert!(is_settable, "settings: {key} must be lower case, without `__`, and not end in _file");
            definitions.insert(key.clone(), define(&key, &value));
        }
    }
    definitions
}

fn define(key: &str, value: &Value) -> Definition {
    if let Some(default) = text(value) {
        return Definition { default, secret: false };
    }
    let marked = value.as_dict().filter(|table| table.len() == 1).and_then(|table| table.get("secret"));
    let secret = marked.and_then(Value::to_bool) == Some(true);
    assert!(secret, "settings: {key} must be text, an integer, true, false, or {{ secret = true }}");
    Definition { default: String::new(), secret }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGE: Package = Package { name: "shop", version: "1.2.3", revision: "abc" };

    fn definitions(domains: &str) -> Definitions {
        Definitions::new(&PACKAGE, domains)
    }

    #[test]
    fn a_domain_adds_keys_and_the_package_names_the_service() {
        let definitions = definitions("[links]\nlimit = 7\nstrict = true\ntoken = { secret = true }");

        assert_eq!(definitions.get("links.limit").default, "7");
        assert_eq!(definitions.get("links.strict").default, "true");
        assert_eq!(*definitions.get("links.token"), Definition { default: String::new(), secret: true });
        assert_eq!(definitions.get("service.name").default, "shop");
    }

    #[test]
    fn the_name_of_a_variable_is_exact() {
        let definitions = definitions("[links]\nslug_length = 7");

        assert_eq!(definitions.key("APP__LINKS__SLUG_LENGTH").as_deref(), Some("links.slug_length"));
        assert_eq!(definitions.key("PORT").as_deref(), Some("http.port"));
        for name in ["APP__http__port", "APP__HTTP.PORT", "APP__HTTP", "APP__", "HTTP__PORT", "port"] {
            assert_eq!(definitions.key(name), None, "{name}");
        }
    }

    #[test]
    #[should_panic(expected = "the section [http] belongs to the platform")]
    fn a_domain_cannot_redefine_a_section_of_the_platform() {
        definitions("[http]\nspeed = 1");
    }

    #[test]
    #[should_panic(expected = "links.ratio must be text, an integer, true, false, or { secret = true }")]
    fn a_default_is_a_plain_value() {
        definitions("[links]\nratio = [1]");
    }

    #[test]
    #[should_panic(expected = "links.key_file must be lower case")]
    fn a_key_cannot_be_mistaken_for_the_file_of_another() {
        definitions("[links]\nkey_file = \"\"");
    }
}
