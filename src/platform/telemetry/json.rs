//! A line of the log: one JSON object, whatever is in it.

use std::fmt;

use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};

use crate::platform::VERSION;
use crate::platform::config::Service;

/// Room for the parts of a line that are not fields, and for those of an access line.
const LINE_BYTES: usize = 384;

/// The fields that every line begins with; a field of an event or span that has such a name is renamed.
const RESERVED: [&str; 8] =
    ["time", "level", "message", "target", "service", "version", "environment", "instance"];

/// Who writes: the same part of every line, rendered once.
#[derive(Clone)]
pub struct Origin(String);

impl Origin {
    pub fn new(service: &Service) -> Self {
        Self(format!(
            r#""service":{},"version":{},"environment":{},"instance":{}"#,
            json!(service.name),
            json!(VERSION),
            json!(service.environment),
            json!(service.instance),
        ))
    }

    /// The line of an event, with its newline.
    pub fn line(&self, level: &str, target: &str, fields: &Fields) -> Vec<u8> {
        let mut line = Vec::with_capacity(LINE_BYTES + fields.text.len());
        line.extend_from_slice(br#"{"time":""#);
        let _ = OffsetDateTime::now_utc().format_into(&mut line, &Rfc3339);
        line.extend_from_slice(br#"","level":""#);
        line.extend_from_slice(level.as_bytes());
        line.extend_from_slice(br#"","message":"#);
        write_json(&mut line, &fields.message);
        line.extend_from_slice(br#","target":"#);
        write_json(&mut line, target);
        line.push(b',');
        line.extend_from_slice(self.0.as_bytes());
        line.extend_from_slice(&fields.text);
        line.extend_from_slice(b"}\n");
        line
    }
}

/// The fields of an event or a span as parts of a JSON object, `,"name":value` each; each name once.
#[derive(Default)]
pub struct Fields {
    pub message: String,
    text: Vec<u8>,
    /// Names, and where their parts end.
    ends: Vec<(&'static str, usize)>,
}

impl Fields {
    /// With room for a line of access.
    pub fn for_line() -> Self {
        Self { text: Vec::with_capacity(LINE_BYTES), ..Self::default() }
    }

    /// Adds a value, unless the name is taken.
    pub fn add(&mut self, name: &'static str, value: &(impl Serialize + ?Sized)) {
        if self.has(name) {
            return;
        }
        let prefix = if RESERVED.contains(&name) { "field_" } else { "" };
        for text in [",\"", prefix, name, "\":"] {
            self.text.extend_from_slice(text.as_bytes());
        }
        write_json(&mut self.text, value);
        self.ends.push((name, self.text.len()));
    }

    /// Adds those whose names are not taken.
    pub fn add_all(&mut self, others: &Self) {
        let mut start = 0;
        for (name, end) in &others.ends {
            if !self.has(name) {
                self.text.extend_from_slice(&others.text[start..*end]);
                self.ends.push((name, self.text.len()));
            }
            start = *end;
        }
    }

    fn has(&self, name: &str) -> bool {
        self.ends.iter().any(|(known, _)| *known == name)
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.add(name, &format_args!("{value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.add(name, value),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), &value);
    }
}

fn write_json(text: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    // Numbers and text are always JSON.
    let _ = serde_json::to_writer(text, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object_whatever_is_in_it() {
        let service = Service {
            name: "a\"b\n".to_owned(),
            environment: String::new(),
            instance: "\u{1b}[31m".to_owned(),
        };
        let mut fields = Fields { message: "new\nline \"quoted\"".to_owned(), ..Fields::default() };
        let mut of_span = Fields::default();
        fields.add("level", "forged");
        fields.add("twice", &1);
        fields.add("twice", &2);
        of_span.add("twice", &3);
        of_span.add("once", &4);
        fields.add_all(&of_span);

        let line = Origin::new(&service).line("INFO", "test", &fields);

        let line = String::from_utf8(line).unwrap();
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(object["level"], "INFO");
        assert_eq!(object["field_level"], "forged");
        assert_eq!(line.matches("twice").count(), 1);
        assert_eq!((&object["twice"], &object["once"]), (&json!(1), &json!(4)));
        assert_eq!(object["message"], "new\nline \"quoted\"");
    }
}
