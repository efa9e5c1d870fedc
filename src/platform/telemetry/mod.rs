//! What the service reports about itself: logs, metrics, spans. Logs are one JSON object a line from the first to the
//! last line, panics included; readable text on a terminal.

pub mod trace_context;
pub mod request_context;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod spans;
pub mod writer;
pub mod json;

use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::time::Duration;

use anyhow::Context;
use prometheus::IntCounter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt as text};

use crate::platform::config::{Config, LogFormat};
use crate::platform::telemetry::json::{Fields, JsonLayer, ServiceFields};
#[cfg(feature = "otlp")]
use crate::platform::telemetry::otlp::Exporter;
use crate::platform::telemetry::spans::Sampler;
use crate::platform::telemetry::writer::{LogGuard, LogWriter};

/// Timeout for the last lines at exit.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(100);

/// The running telemetry. The last log lines are written when it is dropped.
pub struct Telemetry {
    writer: LogWriter,
    panics: IntCounter,
    guard: LogGuard,
    sampler: Sampler,
    #[cfg(feature = "otlp")]
    exporter: Option<Exporter>,
}

impl Telemetry {
    /// Installs the subscriber and the panic hook.
    ///
    /// # Errors
    ///
    /// If the process has a subscriber already, or a thread cannot be started.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let Config { log, service, otlp, .. } = config;
        let is_terminal = std::io::stdout().is_terminal();
        let is_json = match log.format {
            LogFormat::Auto => !is_terminal,
            LogFormat::Json => true,
            LogFormat::Text => false,
        };
        let service_fields = ServiceFields::new(service);
        let report = drop_report(is_json.then(|| service_fields.clone()));
        let (writer, guard) = LogWriter::start(std::io::stdout(), log.buffer_lines, report)
            .context("failed to start the log thread")?;
        let format: Box<dyn Layer<Registry> + Send + Sync> = if is_json {
            Box::new(JsonLayer { service: service_fields, writer: writer.clone() })
        } else {
            Box::new(text::layer().with_ansi(is_terminal).with_writer(writer.clone()))
        };
        // Spans with the target `otlp` are for the collector only. The exporter's own errors would log each failure
        // twice.
        let filter = log
            .filter
            .clone()
            .with_targets(["otlp", "opentelemetry-otlp"].map(|name| (name, LevelFilter::OFF)));
        let subscriber = tracing_subscriber::registry().with(format.with_filter(filter));
        #[cfg(feature = "otlp")]
        let exporter = otlp.as_ref().map(|otlp| Exporter::start(otlp, service)).transpose()?;
        #[cfg(feature = "otlp")]
        let subscriber = subscriber.with(exporter.as_ref().map(Exporter::layer));
        subscriber.try_init()?;
        let panics = IntCounter::new("panics_total", "Total number of panics in any task or thread.")?;
        let counter = panics.clone();
        std::panic::set_hook(Box::new(move |panic| {
            counter.inc();
            log_panic(panic);
        }));
        Ok(Self {
            writer,
            panics,
            guard,
            sampler: otlp.as_ref().map_or_else(Sampler::default, |otlp| Sampler::new(otlp.sample_ratio)),
            #[cfg(feature = "otlp")]
            exporter,
        })
    }

    /// Returns the counters of panics and of dropped log lines, to register with the metrics.
    pub fn counters(&self) -> [IntCounter; 2] {
        [self.panics.clone(), self.writer.dropped.clone()]
    }

    /// Returns the sampler of requests; without a collector it samples none.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// Sends the queued spans within the flush timeout. Spans that end later are dropped.
    pub fn flush_spans(&self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = &self.exporter {
            exporter.flush();
        }
    }
}

/// Runs even if `main` panics.
impl Drop for Telemetry {
    fn drop(&mut self) {
        let _ = self.guard.finish(FLUSH_TIMEOUT);
    }
}

/// Returns what renders the line with the number of dropped lines: JSON with `service_fields`, otherwise text.
fn drop_report(service_fields: Option<ServiceFields>) -> impl Fn(u64) -> Vec<u8> {
    move |dropped| {
        let Some(service) = &service_fields else {
            return format!("{dropped} log lines were dropped\n").into_bytes();
        };
        let mut fields = Fields::default();
        fields.message = "log lines were dropped".to_owned();
        fields.add("dropped", &dropped);
        service.log_line("WARN", "log", &fields)
    }
}

/// Logs a panic. Its message is logged only if it is a literal: a formatted one may contain a request's data or a
/// secret.
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
