//! Every metric of the service, declared once: the doc comment is the HELP, the field's name is the metric's name.
//!
//! Labels have a fixed set of values: the route is a template from the router or a constant, the method one
//! of the known ones, a status code a number. Nothing that a client sends becomes a label.

use std::time::Duration;

use axum::http::Method;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Counter, Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use tokio::runtime::RuntimeMetrics;

/// Seconds, from a cache hit to the request timeout.
const REQUEST_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Seconds, from an idle connection to the acquire timeout.
const ACQUIRE_BUCKETS: [f64; 8] = [0.0001, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0];

/// Declares [`Metrics`]: a type of `prometheus`, its labels, the buckets of a histogram.
macro_rules! metrics {
    ($(
        $(#[doc = $help:literal])+
        $name:ident: $type:ident $([$($label:literal),+])? $(buckets($buckets:expr))?,
    )+) => {
        /// The metrics, and the registry that renders them.
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $name: $type,)+
        }

        impl Metrics {
            fn register(registry: Registry) -> prometheus::Result<Self> {
                $(
                    let help = concat!($($help),+).trim_start();
                    let options = options!(name!($name $type), help $(, $buckets)?);
                    let $name = metric!($type, options $(, $($label),+)?)?;
                    registry.register(Box::new($name.clone()))?;
                )+
                Ok(Self { registry, $($name),+ })
            }
        }
    };
}

/// The name of a counter ends in `_total`.
macro_rules! name {
    ($name:ident Counter) => {
        concat!(stringify!($name), "_total")
    };
    ($name:ident IntCounter) => {
        concat!(stringify!($name), "_total")
    };
    ($name:ident IntCounterVec) => {
        concat!(stringify!($name), "_total")
    };
    ($name:ident $type:ident) => {
        stringify!($name)
    };
}

macro_rules! options {
    ($name:expr, $help:expr) => {
        Opts::new($name, $help)
    };
    ($name:expr, $help:expr, $buckets:expr) => {
        HistogramOpts::new($name, $help).buckets($buckets.to_vec())
    };
}

macro_rules! metric {
    ($type:ident, $options:expr) => { $type::with_opts($options) };
    ($type:ident, $options:expr, $($label:literal),+) => { $type::new($options, &[$($label),+]) };
}

metrics! {
    /// Version and revision of the service. Always 1.
    build_info: IntGaugeVec["version", "revision"],
    /// Duration of requests in seconds, until the last byte of the response is handed to the connection.
    /// The status code is cancelled if the client disconnected before there was a response.
    http_request_duration_seconds: HistogramVec["method", "route", "status_code"] buckets(REQUEST_BUCKETS),
    /// Number of requests whose response is not finished.
    http_requests_in_flight: IntGauge,
    /// Maximum number of business requests in progress.
    http_requests_limit: IntGauge,
    /// Total number of business requests answered 503 because the limit was reached.
    http_requests_shed: IntCounter,
    /// Number of open public connections.
    http_connections_open: IntGauge,
    /// Maximum number of open public connections.
    http_connections_limit: IntGauge,
    /// Total number of public connections accepted.
    http_connections_accepted: IntCounter,
    /// Total number of connections that ended with an error, by kind.
    http_connection_errors: IntCounterVec["kind"],
    /// Total number of accept() errors, such as EMFILE.
    http_accept_errors: IntCounter,
    /// Total number of connections aborted at the shutdown deadline with a request in progress.
    http_connections_cut: IntCounter,
    /// Whether the service is draining after a termination signal (1) or not (0).
    shutdown_draining: IntGauge,
    /// Whether this instance should receive requests (1) or not (0).
    service_ready: IntGauge,
    /// Whether this instance is ready while a dependency is unavailable (1) or not (0).
    service_degraded: IntGauge,
    /// Number of worker threads of the runtime.
    runtime_workers: IntGauge,
    /// Number of tasks that have not finished.
    runtime_tasks: IntGauge,
    /// Number of tasks that wait for a worker thread.
    runtime_queue_depth: IntGauge,
    /// Total time that all worker threads together were busy, in seconds.
    runtime_busy_seconds: Counter,
    /// Number of connections of the PostgreSQL pool by state: idle, used.
    database_connections: IntGaugeVec["state"],
    /// Maximum number of connections of the PostgreSQL pool.
    database_connections_limit: IntGauge,
    /// Duration of waits for a connection of the PostgreSQL pool in seconds.
    database_acquire_seconds: Histogram buckets(ACQUIRE_BUCKETS),
    /// Total number of waits for a connection of the PostgreSQL pool that failed.
    database_acquire_errors: IntCounter,
    /// Total number of cache operations, by operation and outcome.
    cache_operations: IntCounterVec["operation", "outcome"],
    /// Whether the circuit breaker of the cache is open (1) or not (0).
    cache_breaker_open: IntGauge,
    /// Whether a dependency is up (1) or not (0).
    dependency_up: IntGaugeVec["dependency"],
    /// Whether the newest credentials of a dependency are valid (1) or not (0).
    credentials_valid: IntGaugeVec["dependency"],
    /// Duration of health checks of a dependency in seconds.
    dependency_check_seconds: HistogramVec["dependency"] buckets(ACQUIRE_BUCKETS),
}

impl Metrics {
    /// Registers every metric, and the `counters` of telemetry, in `registry`, which may hold metrics of domains.
    ///
    /// # Errors
    ///
    /// If two metrics have the same name or a name is invalid.
    pub fn new(
        registry: Registry,
        counters: &[IntCounter],
        version: &str,
        revision: &str,
    ) -> prometheus::Result<Self> {
        let metrics = Self::register(registry)?;
        for counter in counters {
            metrics.registry.register(Box::new(counter.clone()))?;
        }
        metrics.registry.register(Box::new(ProcessCollector::for_self()))?;
        metrics.build_info.with_label_values(&[version, revision]).set(1);
        // Valid until a dependency refuses them. A series that exists from the start can be waited for.
        for dependency in ["postgres", "redis"] {
            metrics.credentials_valid.with_label_values(&[dependency]).set(1);
        }
        Ok(metrics)
    }

    /// Renders the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// Updates the metrics of the runtime; called for each scrape.
    pub fn runtime(&self, runtime: &RuntimeMetrics) {
        let workers = runtime.num_workers();
        self.runtime_workers.set(workers as i64);
        self.runtime_tasks.set(runtime.num_alive_tasks() as i64);
        self.runtime_queue_depth.set(runtime.global_queue_depth() as i64);
        let busy = (0..workers).map(|worker| runtime.worker_total_busy_duration(worker)).sum::<Duration>();
        let more = busy.as_secs_f64() - self.runtime_busy_seconds.get();
        self.runtime_busy_seconds.inc_by(more.max(0.0));
    }

    /// Records one request; `route` is a template or a constant.
    pub fn request(&self, method: &Method, route: &str, status_code: &str, time: Duration) {
        let labels = [method_label(method), route, status_code];
        let histogram = self.http_request_duration_seconds.with_label_values(&labels);
        histogram.observe(time.as_secs_f64());
    }
}

/// Returns the method if it is a known one, because any token is a valid method; otherwise clients could add series
/// (CVE-2022-21698).
pub fn method_label(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| method.as_str() == *known).unwrap_or("OTHER")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(Registry::new(), &[], "1.2.3", "abc").unwrap()
    }

    fn render(metrics: &Metrics) -> String {
        String::from_utf8(metrics.render().unwrap()).unwrap()
    }

    #[test]
    fn unknown_methods_share_one_label() {
        let metrics = metrics();
        for number in 0..1000 {
            let method = Method::from_bytes(format!("M{number}").as_bytes()).unwrap();
            metrics.request(&method, "unmatched", "404", Duration::from_millis(1));
        }

        let text = render(&metrics);

        let series = text.lines().filter(|line| line.starts_with("http_request_duration_seconds_count"));
        assert_eq!(series.count(), 1);
        assert!(text.contains(r#"method="OTHER",route="unmatched",status_code="404"} 1000"#), "{text}");
    }

    #[test]
    fn a_declaration_becomes_help_name_labels_and_buckets() {
        let metrics = metrics();
        metrics.cache_operations.with_label_values(&["get", "hit"]).inc();

        let text = render(&metrics);

        for line in [
            "# HELP cache_operations_total Total number of cache operations, by operation and outcome.",
            "# TYPE cache_operations_total counter",
            r#"cache_operations_total{operation="get",outcome="hit"} 1"#,
            r#"database_acquire_seconds_bucket{le="0.025"} 0"#,
            r#"build_info{revision="abc",version="1.2.3"} 1"#,
            r#"credentials_valid{dependency="redis"} 1"#,
            "process_open_fds ",
            "process_resident_memory_bytes ",
        ] {
            assert!(
                text.contains(&format!("\n{line}")) || text.starts_with(line),
                "{line} is missing: {text}"
            );
        }
    }

    #[test]
    fn the_registry_renders_metrics_of_domains() {
        let registry = Registry::new();
        let links = IntGauge::new("links", "Number of links.").unwrap();
        registry.register(Box::new(links)).unwrap();

        let metrics = Metrics::new(registry, &[], "1.2.3", "abc").unwrap();

        assert!(render(&metrics).contains("\nlinks 0\n"));
    }
}
