//! Exports spans to an OpenTelemetry collector: OTLP over HTTP (<https://opentelemetry.io/docs/specs/otlp/>).
//!
//! Every `tracing` span of level INFO is exported, such as that of a function with `#[tracing::instrument]`, except in
//! requests that are not sampled; `Sampler` decides that before any span is created. Spans that only the collector gets
//! have the target `otlp`, which keeps their fields out of the log.
//!
//! A finished span goes into a bounded queue, or is dropped when the queue is full. One thread sends the queue in
//! batches and gives up on a batch after three seconds: a slow or unavailable collector costs spans, but delays no
//! request.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::DynFilterFn;
use tracing_subscriber::registry::LookupSpan;

use crate::platform::config::Service;
use crate::platform::config::otlp::Otlp;
use crate::platform::config::secret::ExposeSecret;
use crate::platform::telemetry::request_context;
use crate::platform::telemetry::trace_context::TraceContext;

/// Maximum number of queued spans: about 2 MiB.
const QUEUE_SPANS: usize = 2048;
/// Maximum number of spans in one request to the collector.
const BATCH_SPANS: usize = 512;
/// Interval between batches that are not full.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout for one request to the collector.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends spans until [`Exporter::flush`].
pub struct Exporter {
    provider: SdkTracerProvider,
    flush_timeout: Duration,
}

impl Exporter {
    /// Starts the thread that sends spans. The collector need not be available yet.
    pub fn start(config: &Otlp, service: &Service) -> anyhow::Result<Self> {
        // reqwest has no crypto provider of its own here; an error means that one is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Bypass HTTP_PROXY: it is usually set for internet egress.
        let client = reqwest::blocking::Client::builder().timeout(SEND_TIMEOUT).no_proxy();
        let client = client.redirect(reqwest::redirect::Policy::none()).build()?;
        let authorization = config.authorization.as_ref().map(|value| value.expose_secret().to_owned());
        let headers: HashMap<_, _> =
            authorization.map(|value| ("authorization".to_owned(), value)).into_iter().collect();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{}/v1/traces", config.endpoint.as_str().trim_end_matches('/')))
            .with_timeout(SEND_TIMEOUT)
            .with_headers(headers)
            .build()
            .context("failed to build the span exporter")?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SPANS)
            .with_max_export_batch_size(BATCH_SPANS)
            .with_scheduled_delay(BATCH_INTERVAL)
            .build();
        let resource = Resource::builder_empty().with_attributes([
            KeyValue::new("service.name", service.name.clone()),
            KeyValue::new("service.version", service.version),
            KeyValue::new("service.instance.id", service.instance.clone()),
            KeyValue::new("deployment.environment.name", service.environment.clone()),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource.build())
            .build();
        Ok(Self { provider, flush_timeout: config.flush_timeout })
    }

    /// Returns the layer that turns `tracing` spans into OpenTelemetry's. Events are only logged; the log has the same
    /// ids.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("app"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(
                DynFilterFn::new(|metadata, _| {
                    is_exported(metadata) && request_context::is_sampled() != Some(false)
                })
                .with_callsite_filter(|metadata| {
                    if is_exported(metadata) { Interest::sometimes() } else { Interest::never() }
                })
                .with_max_level_hint(LevelFilter::INFO),
            )
    }

    /// Sends the queued spans within the flush timeout, and stops.
    pub fn flush(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(self.flush_timeout) {
            tracing::warn!(error = %error, "failed to send all spans");
        }
    }
}

fn is_exported(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() <= Level::INFO
}

/// Makes `span` a child of the caller's span, if there is one, and returns the ids of `span`; `None` if the span is
/// disabled.
pub fn join(span: &Span, caller: Option<TraceContext>, state: Option<&str>) -> Option<TraceContext> {
    if span.is_disabled() {
        return None;
    }
    if let Some(caller) = caller {
        let parent = SpanContext::new(
            TraceId::from_bytes(caller.trace_id.to_be_bytes()),
            SpanId::from_bytes(caller.span_id.to_be_bytes()),
            TraceFlags::new(caller.flags),
            true,
            state.and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default(),
        );
        span.set_parent(Context::new().with_remote_span_context(parent)).ok()?;
    }
    let context = span.context();
    let joined = context.span().span_context().clone();
    joined.is_valid().then(|| TraceContext {
        trace_id: u128::from_be_bytes(joined.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(joined.span_id().to_bytes()),
        flags: joined.trace_flags().to_u8(),
    })
}
