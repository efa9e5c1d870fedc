//! Validates every log line that a test reads against `docs/log.schema.json`.

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
/// If the line violates the schema, contains a duplicate name, or has a field with a reserved name.
#[track_caller]
pub fn service_line(line: &str) -> Value {
    let value = parse(line, &SERVICE);
    // serde_json keeps the last of two equal names, so the line is longer than the parsed object.
    let compact = serde_json::to_string(&value).unwrap();
    assert_eq!(compact.len(), line.len(), "duplicate name: {line}");
    let renamed = value.as_object().unwrap().keys().find(|name| name.starts_with("field_"));
    assert_eq!(renamed, None, "a field has a reserved name: {line}");
    value
}

/// Parses an access line of nginx.
#[track_caller]
pub fn nginx_line(line: &str) -> Value {
    parse(line, &NGINX)
}
