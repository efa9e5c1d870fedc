//! For any variables and values: loading does not panic and is deterministic, no error message contains a value, and no
//! secret is printed.
#![no_main]

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;

use app::platform::config::definitions::{KEYS, variable};
use app::platform::config::sources::Settings;
use app::platform::config::{Config, Package};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tempfile::NamedTempFile;

const PACKAGE: Package = Package { name: "fuzz", version: "0.0.0", revision: "unknown" };
const DOMAINS: &str = "[orders]\nlimit = 7\ntoken = { secret = true }";
/// Marker in the values, to search for in the output.
const SECRET: &str = "s3cr3t-c4n4ry";
const PLAIN: &str = "pl41n-c4n4ry";
const CONVENTIONAL: [&str; 5] = ["PORT", "DATABASE_URL", "REDIS_URL", "RUST_LOG", "HOSTNAME"];
/// Texts that random bytes rarely contain.
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
    canary: bool,
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
    ["DATABASE_URL", "DATABASE_PASSWORD", "REDIS_URL", "REDIS_PASSWORD", "OTLP_AUTHORIZATION", "ORDERS_TOKEN"]
        .contains(&name.as_str())
}

/// The output of loading, successful or not.
fn output(variables: &[(OsString, OsString)]) -> Result<String, String> {
    match Config::load(&PACKAGE, DOMAINS, variables.to_vec(), |settings| settings.size("orders.limit")) {
        Ok((_, _, settings)) => Ok(settings.show()),
        Err(problems) => Err(problems.iter().map(|problem| format!("{problem} {problem:?}\n")).collect()),
    }
}

fuzz_target!(|given: Vec<Variable<'_>>| {
    let mut files = Vec::new();
    let mut variables: Vec<(OsString, OsString)> = Vec::new();
    for variable in &given {
        let name = variable.name.text();
        if name.ends_with("_FILE") {
            continue; // Error messages contain the path, by design.
        }
        let canary = if !variable.canary {
            ""
        } else if is_secret(&name) {
            SECRET
        } else {
            PLAIN
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

    let once = output(&variables);
    assert_eq!(once, output(&variables));
    if let Err(problems) = once {
        assert!(!problems.contains(SECRET) && !problems.contains(PLAIN), "{problems}");
    }
    let shown = Settings::read(&PACKAGE, DOMAINS, variables).show();
    assert!(!shown.contains(SECRET), "{shown}");
});
