//! The JSON log format: each event is one line with one object.

use std::fmt;

use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber, span};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::platform::config::Service;
use crate::platform::telemetry::request_context;
use crate::platform::telemetry::writer::LogWriter;

/// Capacity for the parts of a line that are not fields, and for the fields of an access line.
const LINE_BYTES: usize = 384;

/// The fields that every line begins with. A library's field of such a name gets the prefix `field_`.
const RESERVED: [&str; 8] =
    ["time", "level", "message", "target", "service", "version", "environment", "instance"];

/// Writes each event as one line, with the fields of its spans and the ids of the request in progress. The ids are not
/// fields of a span because that would cost more than all other middleware.
///
/// Not the `json` format of tracing-subscriber: it nests the fields of spans, which makes them hard to search, and
/// cannot add [`ServiceFields`].
pub struct JsonLayer {
    pub service: ServiceFields,
    pub writer: LogWriter,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLayer {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, spans: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = spans.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, spans: Context<'_, S>) {
        if let Some(span) = spans.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, spans: Context<'_, S>) {
        let mut fields = Fields::for_line();
        event.record(&mut fields);
        for span in spans.event_scope(event).into_iter().flatten() {
            if let Some(span_fields) = span.extensions().get::<Fields>() {
                fields.add_all(span_fields);
            }
        }
        if let Some(request) = request_context::current() {
            fields.add("request_id", &request.request_id);
            fields.add("trace_id", &format_args!("{:032x}", request.trace.trace_id));
            fields.add("span_id", &format_args!("{:016x}", request.trace.span_id));
        }
        let metadata = event.metadata();
        let line = self.service.log_line(metadata.level().as_str(), metadata.target(), &fields);
        self.writer.write_line(&line);
    }
}

/// The fields that identify the service, rendered once.
#[derive(Clone)]
pub struct ServiceFields(String);

impl ServiceFields {
    pub fn new(service: &Service) -> Self {
        Self(format!(
            r#""service":{},"version":{},"environment":{},"instance":{}"#,
            json!(service.name),
            json!(service.version),
            json!(service.environment),
            json!(service.instance),
        ))
    }

    /// Returns the line of an event, with its newline.
    pub fn log_line(&self, level: &str, target: &str, fields: &Fields) -> Vec<u8> {
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

/// The fields of an event or a span as parts of a JSON object, `,"name":value` each. Each name is unique.
#[derive(Default)]
pub struct Fields {
    pub message: String,
    text: Vec<u8>,
    /// Each name, and the end of its part in `text`.
    index: Vec<(&'static str, usize)>,
}

impl Fields {
    /// Reserves space for the fields of an access line.
    fn for_line() -> Self {
        Self { text: Vec::with_capacity(LINE_BYTES), ..Self::default() }
    }

    /// Adds a field, unless there is one of this name.
    pub fn add(&mut self, name: &'static str, value: &(impl Serialize + ?Sized)) {
        if self.has(name) {
            return;
        }
        let prefix = if RESERVED.contains(&name) { "field_" } else { "" };
        for text in [",\"", prefix, name, "\":"] {
            self.text.extend_from_slice(text.as_bytes());
        }
        write_json(&mut self.text, value);
        self.index.push((name, self.text.len()));
    }

    /// Adds each field of `others`, unless there is one of its name.
    fn add_all(&mut self, others: &Self) {
        let mut start = 0;
        for (name, end) in &others.index {
            if !self.has(name) {
                self.text.extend_from_slice(&others.text[start..*end]);
                self.index.push((name, self.text.len()));
            }
            start = *end;
        }
    }

    fn has(&self, name: &str) -> bool {
        self.index.iter().any(|(known, _)| *known == name)
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
    // Serializing numbers and text into memory cannot fail.
    let _ = serde_json::to_writer(text, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object_for_any_input() {
        let service = Service {
            name: "a\"b\n".to_owned(),
            environment: String::new(),
            instance: "\u{1b}[31m".to_owned(),
            version: "1.2.3",
            revision: "abc",
        };
        let mut fields = Fields { message: "new\nline \"quoted\"".to_owned(), ..Fields::default() };
        let mut span_fields = Fields::default();
        fields.add("twice", &1);
        fields.add("twice", &2);
        span_fields.add("twice", &3);
        span_fields.add("once", &4);
        fields.add_all(&span_fields);

        let line = ServiceFields::new(&service).log_line("INFO", "test", &fields);

        let line = String::from_utf8(line).unwrap();
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(line.matches("twice").count(), 1);
        assert_eq!((&object["twice"], &object["once"]), (&json!(1), &json!(4)));
        assert_eq!(object["message"], "new\nline \"quoted\"");
    }

    #[test]
    fn a_field_of_a_reserved_name_neither_overwrites_nor_duplicates() {
        let service = Service {
            name: "app".to_owned(),
            environment: String::new(),
            instance: String::new(),
            version: "1.2.3",
            revision: "abc",
        };
        let mut fields = Fields::default();
        for name in RESERVED {
            fields.add(name, "forged");
        }

        let line = ServiceFields::new(&service).log_line("INFO", "test", &fields);

        let line = String::from_utf8(line).unwrap();
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        for name in RESERVED {
            assert_eq!(line.matches(&format!("\"{name}\":")).count(), 1, "{name}: {line}");
            assert_ne!(object[name], "forged");
            assert_eq!(object[format!("field_{name}")], "forged");
        }
    }
}
