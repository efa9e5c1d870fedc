//! Every metric of the service, as a documented field, in a registry of its own.
//!
//! Labels have a fixed set of values: the route is a template from the router or a constant, the method one
//! of the known ones, a status code a number. Nothing that a client sends becomes a label.

use std::time::Duration;

use axum::http::Method;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Counter, Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use tokio::runtime::RuntimeMetrics;

use crate::platform::REVISION;
use crate::platform::VERSION;

/// Seconds, from a cache hit to the request timeout.
const REQUEST_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Seconds, from a free connection to the acquire timeout.
const ACQUIRE_BUCKETS: [f64; 8] = [0.0001, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0];

/// The metrics and the registry that renders them.
pub struct Metrics {
    registry: Registry,
    /// Request to last byte of the response handed over, by method, route and status code.
    /// Code `cancelled`: the client left before there was a response.
    pub http_request_duration_seconds: HistogramVec,
    /// Requests whose response is not finished.
    pub http_requests_in_flight: IntGauge,
    /// The most business requests at one time.
    pub http_requests_limit: IntGauge,
    /// Business requests answered 503 because all places were taken.
    pub http_requests_shed: IntCounter,
    /// Open public connections.
    pub http_connections_open: IntGauge,
    /// The most public connections at one time.
    pub http_connections_limit: IntGauge,
    /// Public connections accepted.
    pub http_connections_accepted: IntCounter,
    /// Connections that ended with an error, by kind.
    pub http_connection_errors: IntCounterVec,
    /// Failed calls of accept, such as for want of descriptors.
    pub http_accept_errors: IntCounter,
    /// Connections cut at the shutdown deadline with a request in progress.
    pub http_connections_cut: IntCounter,
    /// 1 from the first termination signal on.
    pub shutdown_draining: IntGauge,
    /// 1 while this instance should get requests.
    pub service_ready: IntGauge,
    /// 1 while it does so without a dependency.
    pub service_degraded: IntGauge,
    /// Threads that run requests.
    pub runtime_workers: IntGauge,
    /// Tasks that have not ended.
    pub runtime_tasks: IntGauge,
    /// Tasks that wait for any of the threads.
    pub runtime_queue_depth: IntGauge,
    /// Time that the threads have worked, of all together.
    pub runtime_busy_seconds: Counter,
    /// Connections of the PostgreSQL pool by state: idle, used.
    pub database_connections: IntGaugeVec,
    /// The most connections that the pool opens.
    pub database_connections_limit: IntGauge,
    /// Wait for a connection of the pool.
    pub database_acquire_seconds: Histogram,
    /// Waits that ended without a connection.
    pub database_acquire_errors: IntCounter,
    /// Cache operations by operation and outcome.
    pub cache_operations: IntCounterVec,
    /// 1 while the cache is left alone after failures.
    pub cache_breaker_open: IntGauge,
    /// 1 while a dependency is up.
    pub dependency_up: IntGaugeVec,
    /// 0 while a dependency refuses the newest credentials.
    pub credentials_valid: IntGaugeVec,
    /// Duration of the health checks of a dependency.
    pub dependency_check_seconds: HistogramVec,
}

impl Metrics {
    /// Registers everything, with the counters of telemetry. An error is a mistake in the names below.
    pub fn new(counters: &[IntCounter]) -> prometheus::Result<Self> {
        let registry = registry(counters)?;
        let r = &registry;
        let request = HistogramOpts::new("http_request_duration_seconds", "Request to end of response.")
            .buckets(REQUEST_BUCKETS.to_vec());
        let acquire = HistogramOpts::new("database_acquire_seconds", "Wait for a pooled connection.")
            .buckets(ACQUIRE_BUCKETS.to_vec());
        let check = HistogramOpts::new("dependency_check_seconds", "Duration of health checks.")
            .buckets(ACQUIRE_BUCKETS.to_vec());
        let errors = Opts::new("http_connection_errors_total", "Connections that ended with an error.");
        let pool = Opts::new("database_connections", "Connections of the pool by state.");
        let cache = Opts::new("cache_operations_total", "Cache operations by outcome.");
        let credentials = Opts::new("credentials_valid", "0 while the newest credentials are refused.");
        let credentials = add(r, IntGaugeVec::new(credentials, &["dependency"]))?;
        // Nothing has refused them yet. A series that is there from the start can be waited for.
        for dependency in ["postgres", "redis"] {
            credentials.with_label_values(&[dependency]).set(1);
        }
        let up = Opts::new("dependency_up", "1 while the dependency is up.");
        Ok(Self {
            http_request_duration_seconds: add(
                r,
                HistogramVec::new(request, &["method", "route", "status_code"]),
            )?,
            http_requests_in_flight: gauge(r, "http_requests_in_flight", "Unfinished requests.")?,
            http_requests_limit: gauge(r, "http_requests_limit", "Most business requests at once.")?,
            http_requests_shed: counter(r, "http_requests_shed_total", "Requests refused when full.")?,
            http_connections_open: gauge(r, "http_connections_open", "Open connections.")?,
            http_connections_limit: gauge(r, "http_connections_limit", "Most connections at once.")?,
            http_connections_accepted: counter(
                r,
                "http_connections_accepted_total",
                "Connections accepted.",
            )?,
            http_connection_errors: add(r, IntCounterVec::new(errors, &["kind"]))?,
            http_accept_errors: counter(r, "http_accept_errors_total", "Failed calls of accept.")?,
            http_connections_cut: counter(
                r,
                "http_connections_cut_total",
                "Connections cut at the shutdown deadline with a request in progress.",
            )?,
            shutdown_draining: gauge(r, "shutdown_draining", "1 after a termination signal.")?,
            service_ready: gauge(r, "service_ready", "1 while it should get requests.")?,
            service_degraded: gauge(r, "service_degraded", "1 while ready without a dependency.")?,
            runtime_workers: gauge(r, "runtime_workers", "Threads that run requests.")?,
            runtime_tasks: gauge(r, "runtime_tasks", "Tasks that have not ended.")?,
            runtime_queue_depth: gauge(r, "runtime_queue_depth", "Tasks that wait for any thread.")?,
            runtime_busy_seconds: add(
                r,
                Counter::new("runtime_busy_seconds_total", "Time that the threads have worked."),
            )?,
            database_connections: add(r, IntGaugeVec::new(pool, &["state"]))?,
            database_connections_limit: gauge(r, "database_connections_limit", "Most at once.")?,
            database_acquire_seconds: add(r, Histogram::with_opts(acquire))?,
            database_acquire_errors: counter(
                r,
                "database_acquire_errors_total",
                "Waits that ended without a connection.",
            )?,
            cache_operations: add(r, IntCounterVec::new(cache, &["operation", "outcome"]))?,
            cache_breaker_open: gauge(r, "cache_breaker_open", "1 while the cache is left alone.")?,
            credentials_valid: credentials,
            dependency_up: add(r, IntGaugeVec::new(up, &["dependency"]))?,
            dependency_check_seconds: add(r, HistogramVec::new(check, &["dependency"]))?,
            registry,
        })
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// Sets what is read from the runtime at the time of a scrape.
    pub fn runtime(&self, runtime: &RuntimeMetrics) {
        let workers = runtime.num_workers();
        self.runtime_workers.set(workers as i64);
        self.runtime_tasks.set(runtime.num_alive_tasks() as i64);
        self.runtime_queue_depth.set(runtime.global_queue_depth() as i64);
        let busy = (0..workers).map(|worker| runtime.worker_total_busy_duration(worker)).sum::<Duration>();
        let more = busy.as_secs_f64() - self.runtime_busy_seconds.get();
        self.runtime_busy_seconds.inc_by(more.max(0.0));
    }

    /// Notes how a try of the newest credentials ended: `Err` is the class of the error.
    pub fn credentials(&self, dependency: &str, result: Result<(), &str>) {
        let valid = match result {
            Ok(()) => true,
            Err("authentication") => false,
            // Nobody was there to tell.
            Err(_) => return,
        };
        self.credentials_valid.with_label_values(&[dependency]).set(valid.into());
    }

    /// Counts one request; `route` is a template or a constant.
    pub fn request(&self, method: &Method, route: &str, status_code: &str, time: Duration) {
        let labels = [method_label(method), route, status_code];
        let histogram = self.http_request_duration_seconds.with_label_values(&labels);
        histogram.observe(time.as_secs_f64());
    }
}

/// A registry with what is told of each process.
fn registry(counters: &[IntCounter]) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    for counter in counters {
        registry.register(Box::new(counter.clone()))?;
    }
    registry.register(Box::new(ProcessCollector::for_self()))?;
    let build = Opts::new("build_info", "Version and revision of the service.");
    let build = add(&registry, IntGaugeVec::new(build, &["version", "revision"]))?;
    build.with_label_values(&[VERSION, REVISION]).set(1);
    Ok(registry)
}

/// Any token is a valid method (CVE-2022-21698 was this label without a bound).
pub fn method_label(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| method.as_str() == *known).unwrap_or("OTHER")
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    add(registry, IntCounter::new(name, help))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    add(registry, IntGauge::new(name, help))
}

fn add<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> prometheus::Result<M> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(&[]).unwrap()
    }

    #[test]
    fn labels_are_bounded_whatever_the_method() {
        let metrics = metrics();
        for number in 0..1000 {
            let method = Method::from_bytes(format!("M{number}").as_bytes()).unwrap();
            metrics.request(&method, "unmatched", "404", Duration::from_millis(1));
        }

        let text = String::from_utf8(metrics.render().unwrap()).unwrap();

        let series = text.lines().filter(|line| line.starts_with("http_request_duration_seconds_count"));
        assert_eq!(series.count(), 1);
        assert!(text.contains(r#"method="OTHER",route="unmatched",status_code="404"} 1000"#), "{text}");
    }

    #[test]
    fn every_metric_of_the_process_and_build_is_there() {
        let text = String::from_utf8(metrics().render().unwrap()).unwrap();

        for name in ["build_info{", "process_open_fds ", "process_resident_memory_bytes "] {
            assert!(text.contains(name), "{name} is missing");
        }
    }
}
