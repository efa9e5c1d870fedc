//! Where settings come from: defaults, then conventional variables such as `PORT`, then `APP__SECTION__KEY`.
//!
//! Any variable may end in `_FILE` and then gives the path of a file that holds the value. figment merges the layers.
//! Its own environment provider is not used: it turns a password such as `98765432` into a number and drops malformed
//! names. Secrets never pass through figment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};

use crate::platform::config::Package;
use crate::platform::config::definitions::{self, DEFAULTS, Definitions, variable, without_file_suffix};
use crate::platform::config::secret::{SecretString, read_file};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// One configuration error: a line of the report at startup.
///
/// It never contains a value, which may be a secret in the wrong place.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The setting that the problem is about; `None` if no setting has this name.
    pub key: Option<String>,
    /// The variable, and the path of its file if it has one.
    pub source: String,
    pub message: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.message)
    }
}

/// All settings as text, with the problems found so far.
pub struct Settings {
    definitions: Definitions,
    figment: Figment,
    secrets: BTreeMap<String, SecretString>,
    /// Per key, the variables that give it a value: the last one wins and shadows the others.
    sources: BTreeMap<String, Vec<String>>,
    problems: Vec<Problem>,
}

impl Settings {
    /// Reads the defaults of the platform and of `domains`, then `variables`, normally [`std::env::vars_os`].
    ///
    /// # Panics
    ///
    /// If `domains` is not in the format of `default.toml`, or defines a section of the platform.
    pub fn read(
        package: &Package,
        domains: &'static str,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut settings = Self {
            definitions: Definitions::new(package, domains),
            figment: Figment::from(Toml::string(DEFAULTS)).merge(Toml::string(domains)),
            secrets: BTreeMap::new(),
            sources: BTreeMap::new(),
            problems: Vec::new(),
        };
        let environment = settings.read_environment(variables);
        let service_name = Serialized::default("service.name", package.name);
        settings.figment = settings.figment.merge(service_name).merge(Serialized::defaults(environment));
        settings
    }

    /// Returns the values that `variables` give, by section and key, and keeps the secrets among them.
    fn read_environment(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> BTreeMap<String, BTreeMap<String, String>> {
        let given = self.own_variables(variables);
        let mut values = BTreeMap::<String, BTreeMap<String, String>>::new();
        let (prefixed, conventional): (Vec<_>, Vec<_>) =
            given.iter().partition(|(name, _)| definitions::is_prefixed(name));
        for (name, value) in conventional.into_iter().chain(prefixed) {
            let plain = without_file_suffix(name).filter(|plain| given.contains_key(*plain));
            if let Some(plain) = plain {
                let message = format!("{plain} is set as well; only one of them may be");
                self.add_problem(self.definitions.key(plain), name, message);
            } else if let Some((key, source, value)) = self.resolve(name, value) {
                self.sources.entry(key.clone()).or_default().push(source);
                if self.definitions.get(&key).secret {
                    self.secrets.insert(key, value.into());
                } else if let Some((section, key)) = key.split_once('.') {
                    values.entry(section.to_owned()).or_default().insert(key.to_owned(), value);
                }
            }
        }
        values
    }

    /// Returns those of `variables` that are meant for this service and have a value.
    fn own_variables(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> BTreeMap<String, String> {
        let mut given = BTreeMap::new();
        for (name, value) in variables {
            // Every name of the service is ASCII.
            let Ok(name) = name.into_string() else { continue };
            if !definitions::is_prefixed(&name) && !definitions::is_conventional(&name) {
                continue;
            }
            match value.into_string() {
                // Compose files pass variables on as `X: ${X:-}`, so an empty value means that X is not set.
                Ok(value) if value.is_empty() => {}
                Ok(value) => {
                    given.insert(name, value);
                }
                Err(_) => self.add_problem(self.key(&name), &name, "must be valid UTF-8"),
            }
        }
        given
    }

    /// Returns the key that the variable sets, its source and its value, which may be in a file.
    fn resolve(&mut self, name: &str, value: &str) -> Option<(String, String, String)> {
        let Some(key) = self.key(name) else {
            let nearest = self.definitions.nearest(without_file_suffix(name).unwrap_or(name));
            self.add_problem(None, name, format!("no such setting; did you mean {nearest}?"));
            return None;
        };
        if self.definitions.key(name).is_some() {
            return Some((key, name.to_owned(), value.to_owned()));
        }
        match read_file(Path::new(value)) {
            Ok(content) => Some((key, format!("{name} ({value})"), content)),
            Err(error) => {
                self.add_problem(Some(key), name, error);
                None
            }
        }
    }

    /// Returns the key that the variable called `name` sets, by its value or by its file.
    fn key(&self, name: &str) -> Option<String> {
        let by_file = || self.definitions.key(without_file_suffix(name)?);
        self.definitions.key(name).or_else(by_file)
    }

    /// Reports a problem of the setting `key`.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.add_problem(Some(key.to_owned()), &self.name(key), message);
    }

    fn add_problem(&mut self, key: Option<String>, source: &str, message: impl Into<String>) {
        let problem = Problem { key, source: source.to_owned(), message: message.into() };
        // A setting may be read more than once; its problem is reported once.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Returns the value of `key`. If it cannot be parsed, reports a problem and returns the default.
    pub fn get<T: FromStr<Err: Display>>(&mut self, key: &str) -> T {
        self.text(key).parse().unwrap_or_else(|error: T::Err| {
            self.problem(key, error.to_string());
            let default = self.definitions.get(key).default.parse().ok();
            default.unwrap_or_else(|| panic!("the default of {key} cannot be parsed"))
        })
    }

    /// Returns the value of a `key` that has no default; `None` if it is not set or cannot be parsed.
    pub fn get_optional<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        let text = self.text(key);
        if text.is_empty() {
            return None;
        }
        text.parse().map_err(|error: T::Err| self.problem(key, error.to_string())).ok()
    }

    /// Returns a time from 1 ms to one day. PostgreSQL reads 0 as no limit, and accepts at most 24 days.
    pub fn duration(&mut self, key: &str) -> Duration {
        let duration = self.duration_or_zero(key);
        if duration < Duration::from_millis(1) {
            self.problem(key, "must be at least 1ms");
        }
        duration
    }

    /// Returns a time from 0 to one day.
    pub fn duration_or_zero(&mut self, key: &str) -> Duration {
        let Time(duration) = self.get(key);
        if duration > DAY {
            self.problem(key, "must be at most 1day");
        }
        duration
    }

    /// Returns a number from 1 to 2^30.
    pub fn size(&mut self, key: &str) -> usize {
        let size = self.get::<NonZeroUsize>(key).get();
        if size > 1 << 30 {
            self.problem(key, "must be at most 1073741824");
        }
        size
    }

    /// Returns the value of a `key` that is defined as a secret; `None` if it is not set.
    pub fn secret(&self, key: &str) -> Option<SecretString> {
        assert!(self.definitions.get(key).secret, "{key} is not defined as a secret");
        self.secrets.get(key).cloned()
    }

    /// Returns every problem found so far.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns where the operator sets `key`: the variable that wins, or the one that would set it.
    pub fn name(&self, key: &str) -> String {
        let source = self.sources.get(key).and_then(|sources| sources.last());
        source.cloned().unwrap_or_else(|| variable(key))
    }

    fn text(&self, key: &str) -> String {
        assert!(!self.definitions.get(key).secret, "{key} is a secret, which `secret` reads");
        self.figment.find_value(key).ok().as_ref().and_then(definitions::text).unwrap_or_default()
    }

    /// Returns one line per setting: name, effective value (secrets redacted), source, and what the source shadows.
    pub fn show(&self) -> String {
        let mut lines = String::new();
        for (key, definition) in self.definitions.iter() {
            let value = if self.secrets.contains_key(key) {
                "[redacted]".to_owned()
            } else if definition.secret {
                "\"\"".to_owned()
            } else {
                format!("{:?}", self.text(key))
            };
            let mut sources = self.sources.get(key).cloned().unwrap_or_default();
            let source = sources.pop().unwrap_or_else(|| "default".to_owned());
            if source != "default" && !definition.default.is_empty() {
                sources.insert(0, format!("the default {:?}", definition.default));
            }
            lines += &format!("{} = {value}  # {source}", variable(key));
            if !sources.is_empty() {
                lines += &format!(", over {}", sources.join(" and "));
            }
            lines += "\n";
        }
        lines
    }
}

/// A number above 0, or `auto`.
pub enum AutoOr<T> {
    Auto,
    Value(T),
}

impl<T> AutoOr<T> {
    /// Returns the number, or `automatic` for `auto`.
    pub fn resolve(self, automatic: T) -> T {
        match self {
            Self::Auto => automatic,
            Self::Value(value) => value,
        }
    }
}

impl FromStr for AutoOr<usize> {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let number = text.parse().map(NonZeroUsize::get);
        number.map(Self::Value).map_err(|_| "must be a number above 0, or auto")
    }
}

/// A time with its unit, such as `100ms`.
struct Time(Duration);

impl FromStr for Time {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // humantime's own message contains the text.
        let time = humantime::parse_duration(text);
        time.map(Self).map_err(|_| "must be a time with its unit, such as 100ms or 5s")
    }
}
