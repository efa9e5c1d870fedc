//! Readiness and liveness. One monitor per dependency checks it in the background, on a connection of its own.
//! Endpoints read the last result, so the cost does not depend on how often probes are called.
//!
//! Checks do not use the request pool: a saturated pool is not an unavailable database.

pub mod heartbeat;
pub mod monitor;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::platform::config::{self, Criticality};
use crate::platform::error_class::ErrorClass;
use crate::platform::stages::Stages;
use crate::platform::telemetry::metrics::Metrics;
use monitor::State;

/// Handle to the health of the service. Cloning is cheap and shares it.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    config: config::Health,
    version: &'static str,
    dependencies: Mutex<BTreeMap<&'static str, Dependency>>,
    /// Derived from `dependencies` at each change, for readers that must not wait.
    started: AtomicBool,
    stages: Stages,
    start: Instant,
    metrics: Arc<Metrics>,
}

struct Dependency {
    criticality: Criticality,
    state: State,
}

/// Whether this instance should get requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ready,
    /// Ready, without a dependency that it can do without.
    Degraded,
    /// A required dependency is down.
    Unavailable,
    /// A required dependency has not been up yet, or the schema is outdated.
    Starting,
    Draining,
}

impl Status {
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded)
    }
}

/// The health of the service and its dependencies, without names of hosts or users.
#[derive(Serialize)]
pub struct Report {
    pub status: Status,
    pub version: &'static str,
    pub uptime_seconds: f64,
    pub dependencies: BTreeMap<&'static str, DependencyReport>,
}

#[derive(Serialize)]
pub struct DependencyReport {
    pub status: &'static str,
    pub criticality: Criticality,
    pub latency_ms: f64,
    /// Milliseconds since the last check; `null` before the first.
    pub age_ms: Option<u128>,
    /// Class of the error, if the last check failed.
    pub error: Option<ErrorClass>,
}

impl Health {
    pub fn new(config: config::Health, version: &'static str, stages: Stages, metrics: Arc<Metrics>) -> Self {
        let dependencies = [("postgres", config.postgres), ("redis", config.redis)];
        let dependencies = dependencies
            .map(|(name, criticality)| (name, Dependency { criticality, state: State::default() }));
        Self(Arc::new(Inner {
            config,
            version,
            dependencies: Mutex::new(dependencies.into()),
            started: AtomicBool::new(false),
            stages,
            start: Instant::now(),
            metrics,
        }))
    }

    /// Returns whether requests can be served: each dependency has been checked, each required one has been up, and
    /// none has an outdated schema.
    pub fn is_started(&self) -> bool {
        self.0.started.load(Ordering::Relaxed)
    }

    pub fn status(&self) -> Status {
        self.status_of(&self.dependencies())
    }

    fn status_of(&self, dependencies: &BTreeMap<&'static str, Dependency>) -> Status {
        let is_down = |criticality| {
            let mut dependencies = dependencies.values();
            dependencies.any(|dependency| dependency.criticality == criticality && !self.is_up(dependency))
        };
        if self.0.stages.draining.is_cancelled() {
            Status::Draining
        } else if !self.is_started() {
            Status::Starting
        } else if is_down(Criticality::Required) {
            Status::Unavailable
        } else if is_down(Criticality::Degraded) {
            Status::Degraded
        } else {
            Status::Ready
        }
    }

    pub fn report(&self) -> Report {
        let dependencies = self.dependencies();
        let reports = dependencies.iter().map(|(name, dependency)| {
            let state = &dependency.state;
            let report = DependencyReport {
                status: if self.is_up(dependency) { "up" } else { "down" },
                criticality: dependency.criticality,
                latency_ms: state.latency.as_secs_f64() * 1e3,
                age_ms: state.checked.map(|at| at.elapsed().as_millis()),
                error: state.error,
            };
            (*name, report)
        });
        Report {
            status: self.status_of(&dependencies),
            version: self.0.version,
            uptime_seconds: self.0.start.elapsed().as_secs_f64(),
            dependencies: reports.collect(),
        }
    }

    /// Returns whether the last check found the dependency up and is recent. An old result means that the monitor
    /// itself is stuck.
    fn is_up(&self, dependency: &Dependency) -> bool {
        let State { up, checked, .. } = dependency.state;
        up && checked.is_some_and(|at| at.elapsed() < self.0.config.stale_after)
    }

    fn dependencies(&self) -> MutexGuard<'_, BTreeMap<&'static str, Dependency>> {
        self.0.dependencies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dependency {
    fn allows_start(&self) -> bool {
        match self.criticality {
            _ if self.state.error == Some(ErrorClass::SchemaOutdated) => false,
            Criticality::Required => self.state.has_been_up,
            Criticality::Degraded => self.state.checked.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const UP: Result<(), ErrorClass> = Ok(());
    const DOWN: Result<(), ErrorClass> = Err(ErrorClass::Refused);
    const OUTDATED: Result<(), ErrorClass> = Err(ErrorClass::SchemaOutdated);

    fn health(postgres: Criticality, stale_after: Duration) -> Health {
        let config = config::Health {
            interval: Duration::from_secs(2),
            recovery_interval: Duration::from_millis(250),
            timeout: Duration::from_secs(1),
            failures: 3,
            successes: 2,
            stale_after,
            postgres,
            redis: Criticality::Degraded,
        };
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new(), &[], "1.2.3", "abc").unwrap());
        Health::new(config, "1.2.3", Stages::default(), metrics)
    }

    fn record(health: &Health, postgres: Result<(), ErrorClass>, redis: Result<(), ErrorClass>) {
        health.record("postgres", postgres, Duration::ZERO);
        health.record("redis", redis, Duration::ZERO);
    }

    #[test]
    fn criticality_decides_what_a_loss_means() {
        let health = health(Criticality::Required, Duration::from_secs(10));
        let mut seen = Vec::new();
        for (postgres, redis) in [(UP, UP), (UP, DOWN), (DOWN, UP), (DOWN, DOWN)] {
            for _ in 0..3 {
                record(&health, postgres, redis);
            }
            seen.push(health.status());
        }
        health.0.stages.draining.cancel();

        assert_eq!(seen, [Status::Ready, Status::Degraded, Status::Unavailable, Status::Unavailable]);
        assert_eq!(health.status(), Status::Draining);
    }

    #[test]
    fn a_stale_result_counts_as_down() {
        for (stale_after, status) in [(10, Status::Ready), (0, Status::Unavailable)] {
            let health = health(Criticality::Required, Duration::from_secs(stale_after));
            record(&health, UP, UP);
            assert_eq!(health.status(), status);
        }
    }

    #[test]
    fn the_service_starts_when_each_dependency_allows_it() {
        for (postgres, first, started) in [
            (Criticality::Required, UP, true),
            (Criticality::Required, DOWN, false),
            (Criticality::Required, OUTDATED, false),
            (Criticality::Degraded, UP, true),
            (Criticality::Degraded, DOWN, true),
            (Criticality::Degraded, OUTDATED, false),
        ] {
            let health = health(postgres, Duration::from_secs(10));
            health.record("redis", DOWN, Duration::ZERO);
            assert!(!health.is_started(), "before the first check of PostgreSQL");
            health.record("postgres", first, Duration::ZERO);
            assert_eq!(health.is_started(), started, "{postgres:?} {first:?}");
            for _ in 0..2 {
                health.record("postgres", UP, Duration::ZERO);
            }
            assert_eq!(health.status(), Status::Degraded);
        }
    }
}
