//! Where settings come from: layers of named text, with every problem collected and every source remembered.
//!
//! From the bottom: `default.toml`, the names that platforms already use, `APP__SECTION__KEY`.
//! Any name may end in `_FILE` and then gives the path of a file that holds the value.
//! figment merges the layers and knows the winner's source. Two things do not go through it: its environment
//! provider, which turns a password such as `98765432` into a number and drops malformed names; and secrets.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use crate::platform::config::secret::{SecretString, read_file};

const DEFAULTS: &str = include_str!("default.toml");
const PREFIX: &str = "APP__";
const FILE_SUFFIX: &str = "_FILE";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CONVENTIONAL: [(&str, &str); 6] = [
    ("PORT", "http.port"),
    ("DATABASE_URL", "database.url"),
    ("REDIS_URL", "redis.url"),
    ("RUST_LOG", "log.level"),
    ("HOSTNAME", "service.instance"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp.endpoint"),
];
const SECRET: [&str; 5] =
    ["database.url", "database.password", "redis.url", "redis.password", "otlp.authorization"];

/// One thing that is wrong with the settings: a line of the start-up report.
///
/// It never repeats a value, which may be a secret in the wrong place.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub source: String,
    pub message: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.message)
    }
}

/// All settings as text, and what went wrong so far.
pub struct Settings {
    figment: Figment,
    secrets: BTreeMap<String, (String, SecretString)>,
    /// Sources that gave a value, in rising priority.
    sources: BTreeMap<String, Vec<String>>,
    problems: Vec<Problem>,
}

/// One variable as a figment layer: the value stays the text that it is.
struct Variable {
    source: String,
    key: String,
    value: String,
}

impl Provider for Variable {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let value = Value::from(self.value.clone());
        let dict = figment::util::nest(&self.key, value).into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

impl Settings {
    /// Reads the defaults and `variables`, normally [`std::env::vars_os`].
    pub fn read(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let package = Serialized::default("service.name", env!("CARGO_PKG_NAME"));
        let mut settings = Self {
            figment: Figment::from(Toml::string(DEFAULTS)).merge(package),
            secrets: BTreeMap::new(),
            sources: BTreeMap::new(),
            problems: Vec::new(),
        };
        let mut given = BTreeMap::new();
        for (name, value) in variables {
            // A name that is not UTF-8 is not ours: ours are ASCII.
            let Ok(name) = name.into_string() else { continue };
            if !name.starts_with(PREFIX) && conventional(&name).is_none() {
                continue;
            }
            match value.into_string() {
                // Compose files pass variables on as `X: ${X:-}`: empty means that it was not set.
                Ok(value) if value.is_empty() => {}
                Ok(value) => {
                    given.insert(name, value);
                }
                Err(_) => settings.problem(name, "does not hold valid UTF-8"),
            }
        }
        let (ours, conventional): (Vec<_>, Vec<_>) =
            given.iter().partition(|(name, _)| name.starts_with(PREFIX));
        for (name, value) in conventional.into_iter().chain(ours) {
            if name.strip_suffix(FILE_SUFFIX).is_some_and(|plain| given.contains_key(plain)) {
                let plain = name.trim_end_matches(FILE_SUFFIX);
                settings.problem(name, format!("{plain} is set as well; only one of them may be"));
            } else {
                settings.add(name, value);
            }
        }
        settings
    }

    fn add(&mut self, name: &str, value: &str) {
        let (key, source, value) = if let Some(key) = key_of(name) {
            (key, name.to_owned(), value.to_owned())
        } else if let Some(key) = name.strip_suffix(FILE_SUFFIX).and_then(key_of) {
            match read_file(Path::new(value)) {
                Ok(content) => (key, format!("{name} ({value})"), content),
                Err(error) => return self.problem(name, error),
            }
        } else {
            return self.problem(name, unknown(name));
        };
        self.sources.entry(key.clone()).or_default().push(source.clone());
        if SECRET.contains(&key.as_str()) {
            self.secrets.insert(key, (source, SecretString::from(value)));
        } else {
            let layer = Variable { source, key, value };
            self.figment = std::mem::take(&mut self.figment).merge(layer);
        }
    }

    /// Notes a problem of the setting or variable called `source`.
    pub fn problem(&mut self, source: impl Into<String>, message: impl Into<String>) {
        let problem = Problem { source: source.into(), message: message.into() };
        // A setting may be read more than once; its problem is told once.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// The value of `key`; where it cannot be parsed, notes that and goes on with the default.
    pub fn get<T: FromStr<Err: Display>>(&mut self, key: &str) -> T {
        match self.text(key).parse() {
            Ok(value) => value,
            Err(error) => {
                self.problem(self.name(key), error.to_string());
                KEYS[key].parse().ok().expect("each default can be parsed: a test reads them all")
            }
        }
    }

    /// The value of a `key` that need not be set.
    pub fn get_optional<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        let text = self.text(key);
        if text.is_empty() {
            return None;
        }
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(self.name(key), error.to_string());
                None
            }
        }
    }

    /// A time, from 1 ms to a day: PostgreSQL takes 0 for no limit at all, and no number above 24 days.
    pub fn duration(&mut self, key: &str) -> Duration {
        let duration = self.pause(key);
        self.problem_if(duration < Duration::from_millis(1), key, "must be at least 1ms");
        duration
    }

    /// A time that may be 0.
    pub fn pause(&mut self, key: &str) -> Duration {
        let Time(duration) = self.get(key);
        self.problem_if(duration > DAY, key, "must be at most 1day");
        duration
    }

    /// A number from 1 to 2^30.
    pub fn count(&mut self, key: &str) -> usize {
        let count = self.get::<NonZeroUsize>(key).get();
        self.problem_if(count > 1 << 30, key, "must be at most 1073741824");
        count
    }

    fn problem_if(&mut self, wrong: bool, key: &str, message: &str) {
        if wrong {
            self.problem(self.name(key), message);
        }
    }

    /// The secret called `key`, if it is set.
    pub fn secret(&self, key: &str) -> Option<SecretString> {
        self.secrets.get(key).map(|(_, value)| value.clone())
    }

    /// Every problem found so far.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// What people call `key` where they set it: its winning source, or else its variable.
    pub fn name(&self, key: &str) -> String {
        let source = self.sources.get(key).and_then(|sources| sources.last());
        source.cloned().unwrap_or_else(|| variable(key))
    }

    fn text(&self, key: &str) -> String {
        text(self.figment.find_value(key))
    }

    /// One line per setting: name, effective value (secrets redacted), its source and what it shadows.
    pub fn show(&self) -> String {
        let mut lines = String::new();
        for (key, default) in &*KEYS {
            let value = match self.secrets.get(key) {
                Some(_) => "[redacted]".to_owned(),
                None => format!("{:?}", self.text(key)),
            };
            let mut sources = self.sources.get(key).cloned().unwrap_or_default();
            let source = sources.pop().unwrap_or_else(|| "default".to_owned());
            if source != "default" && !default.is_empty() {
                sources.insert(0, format!("the default {default:?}"));
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

/// Every key with its default, in alphabetical order.
pub static KEYS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let data = Toml::string(DEFAULTS).data().expect("a test parses the embedded file");
    let sections = data.into_values().flatten();
    let keys = sections.flat_map(|(section, values)| {
        let keys = values.into_dict().unwrap_or_default().into_iter();
        keys.map(move |(key, value)| (format!("{section}.{key}"), text(Ok(value))))
    });
    keys.collect()
});

/// The variable of a key: `http.port` is set by `APP__HTTP__PORT`.
pub fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// A time with its unit, such as `100ms`.
struct Time(Duration);

impl FromStr for Time {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // humantime's own message repeats the text.
        let time = humantime::parse_duration(text);
        time.map(Self).map_err(|_| "must be a time with its unit, such as 100ms or 5s")
    }
}

fn conventional(name: &str) -> Option<&'static str> {
    let plain = name.strip_suffix(FILE_SUFFIX).unwrap_or(name);
    CONVENTIONAL.iter().find(|(name, _)| *name == plain).map(|(_, key)| *key)
}

fn key_of(name: &str) -> Option<String> {
    if let Some((_, key)) = CONVENTIONAL.iter().find(|(conventional, _)| *conventional == name) {
        return Some((*key).to_owned());
    }
    KEYS.keys().find(|key| variable(key) == name).cloned()
}

fn unknown(name: &str) -> String {
    let plain = name.strip_suffix(FILE_SUFFIX).unwrap_or(name);
    let known = KEYS.keys().map(|key| variable(key));
    let near = known.min_by_key(|known| strsim::damerau_levenshtein(known, plain));
    format!("no such setting; did you mean {}?", near.unwrap_or_default())
}

fn text(value: Result<Value, figment::Error>) -> String {
    match value {
        Ok(Value::String(_, text)) => text,
        Ok(Value::Num(_, number)) => number.to_i128().unwrap_or_default().to_string(),
        _ => String::new(),
    }
}
