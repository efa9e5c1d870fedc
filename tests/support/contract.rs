//! Validates log lines against `docs/log.schema.json`: every line that a test reads.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Value, json};

static SCHEMA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../docs/log.schema.json")).unwrap());
static SERVICE: LazyLock<Validator> = LazyLock::new(|| jsonschema::draft202012::new(&SCHEMA).unwrap());
static NGINX: LazyLock<Validator> = LazyLock::new(|| {
    let access = json!({"$ref": "#/$defs/nginx", "$defs": SCHEMA["$defs"]});
    jsonschema::draft202012::new(&access).unwrap()
});

#[track_caller]
fn parse(line: &str, validator: &Validator) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let faults: Vec<_> = validator.iter_errors(&value).map(|fault| fault.to_string()).collect();
    assert!(faults.is_empty(), "{}: {line}", faults.join("; "));
    value
}

/// Parses a line of the service.
///
/// # Panics
///
/// If the line violates the schema, has a name twice, or has a field whose name is reserved.
#[track_caller]
pub fn service_line(line: &str) -> Value {
    let value = parse(line, &SERVICE);
    // serde_json keeps the last of two equal names, so the line is longer than what was parsed.
    let compact = serde_json::to_string(&value).unwrap();
    assert_eq!(compact.len(), line.len(), "a name twice: {line}");
    let renamed = value.as_object().unwrap().keys().find(|name| name.starts_with("field_"));
    assert_eq!(renamed, None, "an event has a field whose name is reserved: {line}");
    value
}

/// Parses an access line of nginx.
#[track_caller]
pub fn nginx_line(line: &str) -> Value {
    parse(line, &NGINX)
}
