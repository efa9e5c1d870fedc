//! Logs: one JSON object a line from the first to the last, panics included; readable text on a terminal.

use std::fmt::{self, Write};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::time::Duration;

use anyhow::Context;
use prometheus::IntCounter;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber, span};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{self, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt as text};

use crate::VERSION;
use crate::config::{Config, LogFormat, Service};
use crate::context;
use crate::log_writer::{LogGuard, LogWriter};
#[cfg(feature = "otlp")]
use crate::otlp::Exporter;

/// The longest wait for the last lines at exit.
const FLUSH_LIMIT: Duration = Duration::from_millis(100);

/// Logging as it runs; [`Telemetry::finish`] writes the last lines.
pub struct Telemetry {
    writer: LogWriter,
    panics: IntCounter,
    guard: LogGuard,
    #[cfg(feature = "otlp")]
    exporter: Option<Exporter>,
}

impl Telemetry {
    /// Installs the subscriber and the panic hook. Once per process.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let Config { log, service, .. } = config;
        let terminal = std::io::stdout().is_terminal();
        let as_json = match log.format {
            LogFormat::Auto => !terminal,
            LogFormat::Json => true,
            LogFormat::Text => false,
        };
        let origin = Origin::new(service);
        let report_origin = origin.clone();
        let report = move |dropped: u64| {
            if as_json {
                let values = vec![("dropped", dropped.to_string())];
                let message = "log lines were dropped".to_owned();
                report_origin.line("WARN", "log", &Fields { message, values })
            } else {
                format!("{dropped} log lines were dropped\n")
            }
        };
        let (writer, guard) = LogWriter::start(std::io::stdout(), log.buffer_lines, report)
            .context("cannot start the log thread")?;
        let format: Box<dyn Layer<Registry> + Send + Sync> = if as_json {
            Box::new(JsonLayer { origin, writer: writer.clone() })
        } else {
            Box::new(text::layer().with_ansi(terminal).with_writer(writer.clone()))
        };
        // Spans that are made for a collector are no matter of the log.
        let filter = log.filter.clone().with_target("otlp", LevelFilter::OFF);
        let subscriber = tracing_subscriber::registry().with(format.with_filter(filter));
        #[cfg(feature = "otlp")]
        let exporter =
            config.collector.as_ref().map(|collector| Exporter::start(collector, service)).transpose()?;
        #[cfg(feature = "otlp")]
        let subscriber = subscriber.with(exporter.as_ref().map(Exporter::layer));
        subscriber.try_init()?;
        let panics = IntCounter::new("panics_total", "Panics in any task or thread.")?;
        let counter = panics.clone();
        std::panic::set_hook(Box::new(move |panic| {
            counter.inc();
            log_panic(panic);
        }));
        Ok(Self {
            writer,
            panics,
            guard,
            #[cfg(feature = "otlp")]
            exporter,
        })
    }

    /// What is counted outside of any request: panics and dropped lines.
    pub fn counters(&self) -> [IntCounter; 2] {
        [self.panics.clone(), self.writer.dropped.clone()]
    }

    /// Sends the spans and writes the lines that are still queued, for as long as somebody takes them.
    pub fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            exporter.finish();
        }
        let _ = self.guard.finish(FLUSH_LIMIT);
    }
}

/// A panic's message is logged only when it is a literal: a formatted one may hold a request's data or a secret.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload().downcast_ref::<&'static str>();
    let thread = std::thread::current();
    tracing::error!(
        target: "panic",
        panic = message.unwrap_or(&"formatted message withheld"),
        location = panic.location().map(tracing::field::display),
        thread = thread.name().unwrap_or("unnamed"),
        "a panic was caught",
    );
}

/// The fields that every line begins with; a field of an event or span that has such a name is renamed.
const RESERVED: [&str; 8] =
    ["time", "level", "message", "target", "service", "version", "environment", "instance"];

/// Who writes: the same part of every line, rendered once.
#[derive(Clone)]
struct Origin(String);

impl Origin {
    fn new(service: &Service) -> Self {
        Self(format!(
            r#""service":{},"version":{},"environment":{},"instance":{}"#,
            json(&service.name),
            json(VERSION),
            json(&service.environment),
            json(&service.instance),
        ))
    }

    fn line(&self, level: &str, target: &str, fields: &Fields) -> String {
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let (message, target, origin) = (json(&fields.message), json(target), &self.0);
        let mut line =
            format!(r#"{{"time":"{time}","level":"{level}","message":{message},"target":{target},{origin}"#);
        for (name, value) in &fields.values {
            let prefix = if RESERVED.contains(name) { "field_" } else { "" };
            let _ = write!(line, r#","{prefix}{name}":{value}"#);
        }
        line += "}\n";
        line
    }
}

/// The fields of an event or a span, as JSON values; each name once.
#[derive(Default)]
struct Fields {
    message: String,
    values: Vec<(&'static str, String)>,
}

impl Fields {
    fn add(&mut self, name: &'static str, value: String) {
        if !self.values.iter().any(|(known, _)| *known == name) {
            self.values.push((name, value));
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.add(name, json(value)),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), serde_json::json!(value).to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), value.to_string());
    }
}

/// Writes each event as one line, with the fields of the spans around it and the ids of the request in progress:
/// to keep those in a span would cost more than all other middleware.
///
/// Not the `json` format of tracing-subscriber: it nests span fields, where searching them is awkward,
/// and has no place for the fields of [`Origin`].
struct JsonLayer {
    origin: Origin,
    writer: LogWriter,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLayer {
    fn on_new_span(&self, span: &span::Attributes<'_>, id: &span::Id, spans: layer::Context<'_, S>) {
        let mut fields = Fields::default();
        span.record(&mut fields);
        if let Some(span) = spans.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, spans: layer::Context<'_, S>) {
        if let Some(span) = spans.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, spans: layer::Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in spans.event_scope(event).into_iter().flatten() {
            if let Some(span_fields) = span.extensions().get::<Fields>() {
                for (name, value) in &span_fields.values {
                    fields.add(name, value.clone());
                }
            }
        }
        if let Some(request) = context::current() {
            fields.add("request_id", json(&request.request_id));
            fields.add("trace_id", format!("\"{:032x}\"", request.trace.trace_id));
            fields.add("span_id", format!("\"{:016x}\"", request.trace.span_id));
        }
        let metadata = event.metadata();
        let line = self.origin.line(metadata.level().as_str(), metadata.target(), &fields);
        self.writer.write_line(line.into_bytes());
    }
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
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
        let mut fields = Fields { message: "new\nline \"quoted\"".to_owned(), values: Vec::new() };
        fields.add("level", json("forged"));
        fields.add("twice", "1".to_owned());
        fields.add("twice", "2".to_owned());

        let line = Origin::new(&service).line("INFO", "test", &fields);

        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(object["level"], "INFO");
        assert_eq!(object["field_level"], "forged");
        assert_eq!(line.matches("twice").count(), 1);
        assert_eq!(object["message"], "new\nline \"quoted\"");
    }
}
