//! Logs: one JSON object a line from the first to the last, panics included; readable text on a terminal.

pub mod json;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod request_context;
pub mod spans;
pub mod writer;

use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::time::Duration;

use anyhow::Context;
use prometheus::IntCounter;
use tracing::{Event, Subscriber, span};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{self, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt as text};

use crate::platform::config::{Config, LogFormat};
use crate::platform::telemetry::json::{Fields, Origin};
#[cfg(feature = "otlp")]
use crate::platform::telemetry::otlp::Exporter;
use crate::platform::telemetry::writer::{LogGuard, LogWriter};

/// The longest wait for the last lines at exit.
const FLUSH_LIMIT: Duration = Duration::from_millis(100);

/// Logging as it runs; the last lines are written when this is dropped.
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
                let mut fields = Fields::default();
                fields.message = "log lines were dropped".to_owned();
                fields.add("dropped", &dropped);
                report_origin.line("WARN", "log", &fields)
            } else {
                format!("{dropped} log lines were dropped\n").into_bytes()
            }
        };
        let (writer, guard) = LogWriter::start(std::io::stdout(), log.buffer_lines, report)
            .context("cannot start the log thread")?;
        let format: Box<dyn Layer<Registry> + Send + Sync> = if as_json {
            Box::new(JsonLayer { origin, writer: writer.clone() })
        } else {
            Box::new(text::layer().with_ansi(terminal).with_writer(writer.clone()))
        };
        // Spans that are made for a collector are no matter of the log, and one line for each failure is enough.
        let filter = log
            .filter
            .clone()
            .with_targets(["otlp", "opentelemetry-otlp"].map(|name| (name, LevelFilter::OFF)));
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

    /// Sends the spans that are still queued, for as long as the collector takes them. There are none after that.
    pub fn send_spans(&self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = &self.exporter {
            exporter.finish();
        }
    }
}

/// Also when `main` panics.
impl Drop for Telemetry {
    fn drop(&mut self) {
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
        let mut fields = Fields::for_line();
        event.record(&mut fields);
        for span in spans.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.add_all(of_span);
            }
        }
        if let Some(request) = request_context::current() {
            fields.add("request_id", &request.request_id);
            fields.add("trace_id", &format_args!("{:032x}", request.trace.trace_id));
            fields.add("span_id", &format_args!("{:016x}", request.trace.span_id));
        }
        let metadata = event.metadata();
        let line = self.origin.line(metadata.level().as_str(), metadata.target(), &fields);
        self.writer.write_line(&line);
    }
}
