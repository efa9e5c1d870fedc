//! Spans for an OpenTelemetry collector: OTLP by HTTP (<https://opentelemetry.io/docs/specs/otlp/>).
//!
//! Any `tracing` span of level INFO is one, such as that of a function with `#[tracing::instrument]`, but in requests
//! that are not sampled: whether one is, is decided before any span is made. Spans that are made for the collector only
//! have the target `otlp`, which keeps their fields out of the log.
//!
//! A finished span goes into a bounded queue, or nowhere when that is full. One thread takes them out in batches and
//! sends them, for three seconds each: a collector that is slow or gone costs spans, and never a request its time.

use std::collections::HashMap;
use std::sync::OnceLock;
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
use uuid::Uuid;

use crate::platform::VERSION;
use crate::platform::config::Service;
use crate::platform::config::otlp::Collector;
use crate::platform::config::secret::ExposeSecret;
use crate::platform::telemetry::request_context::{self, TraceContext};

/// Spans that wait to be sent: some 2 MiB.
const QUEUE_SPANS: usize = 2048;
/// Spans of one request to the collector.
const BATCH_SPANS: usize = 512;
/// Longest stay in the queue while a batch is not full.
const BATCH_PAUSE: Duration = Duration::from_secs(1);
/// Longest request to the collector.
const SEND_LIMIT: Duration = Duration::from_secs(3);

/// Share of the requests to sample; not set without an exporter, of which there is one in a process.
static RATIO: OnceLock<f64> = OnceLock::new();

/// Sends spans until [`Exporter::finish`].
pub struct Exporter {
    provider: SdkTracerProvider,
    flush_timeout: Duration,
}

impl Exporter {
    /// Starts the thread that sends; whether there is a collector does not matter yet.
    pub fn start(config: &Collector, service: &Service) -> anyhow::Result<Self> {
        // reqwest brings no cryptography of its own; an error means that there is some already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Straight to the collector: HTTP_PROXY is often set for the way to the world.
        let client = reqwest::blocking::Client::builder().timeout(SEND_LIMIT).no_proxy();
        let client = client.redirect(reqwest::redirect::Policy::none()).build()?;
        let authorization = config.authorization.as_ref().map(|value| value.expose_secret().to_owned());
        let headers: HashMap<_, _> =
            authorization.map(|value| ("authorization".to_owned(), value)).into_iter().collect();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{}/v1/traces", config.endpoint.as_str().trim_end_matches('/')))
            .with_timeout(SEND_LIMIT)
            .with_headers(headers)
            .build()
            .context("cannot make the exporter of spans")?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SPANS)
            .with_max_export_batch_size(BATCH_SPANS)
            .with_scheduled_delay(BATCH_PAUSE)
            .build();
        let resource = Resource::builder_empty().with_attributes([
            KeyValue::new("service.name", service.name.clone()),
            KeyValue::new("service.version", VERSION),
            KeyValue::new("service.instance.id", service.instance.clone()),
            KeyValue::new("deployment.environment.name", service.environment.clone()),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource.build())
            .build();
        let _ = RATIO.set(config.sample_ratio);
        Ok(Self { provider, flush_timeout: config.flush_timeout })
    }

    /// Makes spans of OpenTelemetry out of those of `tracing`. Events stay in the log, which has the same ids.
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
                    is_wanted(metadata) && request_context::is_sampled() != Some(false)
                })
                .with_callsite_filter(|metadata| match is_wanted(metadata) {
                    true => Interest::sometimes(),
                    false => Interest::never(),
                })
                .with_max_level_hint(LevelFilter::INFO),
            )
    }

    /// Sends what is queued, within the flush timeout.
    pub fn finish(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(self.flush_timeout) {
            tracing::warn!(error = %error, "the last spans may be lost");
        }
    }
}

fn is_wanted(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() <= Level::INFO
}

/// Whether a request is to have spans: its caller says so, or else chance.
pub fn samples(caller: Option<TraceContext>) -> bool {
    let Some(ratio) = RATIO.get() else { return false };
    // The first half of a version 4 UUID begins with 48 random bits.
    let chance = || (Uuid::new_v4().as_u64_pair().0 >> 32) as u32;
    caller.map_or_else(|| f64::from(chance()) < ratio * 2f64.powi(32), |caller| caller.is_sampled())
}

/// Makes `span` a part of the caller's trace, if there is one, and returns the ids that it goes by; `None` where it
/// is no span of OpenTelemetry, which is to say without an exporter.
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
    let ours = context.span().span_context().clone();
    ours.is_valid().then(|| TraceContext {
        trace_id: u128::from_be_bytes(ours.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(ours.span_id().to_bytes()),
        flags: ours.trace_flags().to_u8(),
    })
}
