//! Whatever variables are set, to whatever values: loading does not panic and says the same again, no problem repeats
//! a value, and no secret is shown.
#![no_main]

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;

use app::platform::config::Config;
use app::platform::config::sources::{KEYS, Settings, variable};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tempfile::NamedTempFile;

/// Part of the values; what must not be told is found by it.
const SECRET: &str = "s3cr3t-c4n4ry";
const PLAIN: &str = "pl41n-c4n4ry";
const CONVENTIONAL: [&str; 5] = ["PORT", "DATABASE_URL", "REDIS_URL", "RUST_LOG", "HOSTNAME"];
/// What random bytes seldom are.
const LIKELY: [&str; 16] = [
    "postgres://user:",
    "postgres://user@localhost:5432/",
    "redis://:",
    "@localhost/1",
    "?sslmode=",
    "localhost",
    "verify-full",
    "127.0.0.1",
    "::1",
    "/run/",
    "0",
    "80",
    "500ms",
    "1day",
    "app=debug,",
    "required",
];

#[derive(Arbitrary, Debug)]
struct Variable<'a> {
    name: Name<'a>,
    start: Text<'a>,
    telling: bool,
    end: Text<'a>,
    in_file: bool,
}

#[derive(Arbitrary, Debug)]
enum Name<'a> {
    Key(usize),
    Conventional(usize),
    Ours(&'a str),
    Any(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Text<'a> {
    Likely(usize),
    Any(&'a [u8]),
}

impl Name<'_> {
    fn text(&self) -> String {
        match self {
            Self::Key(index) => variable(KEYS.keys().nth(index % KEYS.len()).expect("the index is below")),
            Self::Conventional(index) => CONVENTIONAL[index % CONVENTIONAL.len()].to_owned(),
            Self::Ours(rest) => format!("APP__{rest}"),
            Self::Any(name) => (*name).to_owned(),
        }
    }
}

impl Text<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Likely(index) => LIKELY[index % LIKELY.len()].as_bytes(),
            Self::Any(bytes) => bytes,
        }
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.strip_prefix("APP__").unwrap_or(name).replace("__", "_");
    ["DATABASE_URL", "DATABASE_PASSWORD", "REDIS_URL", "REDIS_PASSWORD"].contains(&name.as_str())
}

/// What loading tells people, however it ends.
fn told(variables: &[(OsString, OsString)]) -> Result<String, String> {
    match Config::load(variables.to_vec()) {
        Ok((_, settings)) => Ok(settings.show()),
        Err(problems) => Err(problems.iter().map(|problem| format!("{problem} {problem:?}\n")).collect()),
    }
}

fuzz_target!(|given: Vec<Variable<'_>>| {
    let mut files = Vec::new();
    let mut variables: Vec<(OsString, OsString)> = Vec::new();
    for variable in &given {
        let name = variable.name.text();
        if name.ends_with("_FILE") {
            continue; // The path is told, and rightly.
        }
        let canary = match variable.telling {
            true if is_secret(&name) => SECRET,
            true => PLAIN,
            false => "",
        };
        let value = [variable.start.bytes(), canary.as_bytes(), variable.end.bytes()].concat();
        if variable.in_file {
            let mut file = NamedTempFile::new().unwrap();
            file.write_all(&value).unwrap();
            variables.push((format!("{name}_FILE").into(), file.path().into()));
            files.push(file);
        } else {
            variables.push((name.into(), OsString::from_vec(value)));
        }
    }

    let told_once = told(&variables);
    assert_eq!(told_once, told(&variables));
    if let Err(problems) = told_once {
        assert!(!problems.contains(SECRET) && !problems.contains(PLAIN), "{problems}");
    }
    let shown = Settings::read(variables).show();
    assert!(!shown.contains(SECRET), "{shown}");
});
