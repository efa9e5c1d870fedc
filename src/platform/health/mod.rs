//! Is the service able to serve? One background prober per dependency, on a connection of its own; the
//! endpoints only read what it found, so that a probe costs the same whoever calls it how often.
//!
//! Not through the request pool: a pool that is busy is not a database that is broken.

pub mod probe;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::platform::config::{self, Criticality};
use crate::platform::health::probe::{PostgresProbe, Probe, RedisProbe};
use crate::platform::shutdown::Stages;
use crate::platform::telemetry::metrics::Metrics;

/// Handle to what is known. Cloning is cheap and shares it.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    config: config::Health,
    postgres: Dependency,
    redis: Dependency,
    started: AtomicBool,
    stages: Stages,
    since: Instant,
    metrics: Arc<Metrics>,
}

struct Dependency {
    name: &'static str,
    criticality: Criticality,
    state: Mutex<State>,
}

/// Success and failure counts are in a row; the other one is 0.
#[derive(Clone, Default)]
struct State {
    up: bool,
    successes: usize,
    failures: usize,
    latency: Duration,
    checked: Option<Instant>,
    error: Option<&'static str>,
}

/// The answer to "should this instance get requests?".
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ready,
    /// Ready, without a dependency that it can do without.
    Degraded,
    /// A required dependency is down.
    Unavailable,
    /// The schema has not been verified yet.
    Starting,
    Draining,
}

impl Status {
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded)
    }
}

/// Everything that is known, without names of hosts or users.
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
    /// Time since the last check; `null` before the first.
    pub age_ms: Option<u128>,
    /// Class of the last error, if the last check failed.
    pub error: Option<&'static str>,
}

impl Health {
    pub fn new(config: config::Health, stages: Stages, metrics: Arc<Metrics>) -> Self {
        let dependency = |name, criticality| Dependency { name, criticality, state: Mutex::default() };
        Self(Arc::new(Inner {
            postgres: dependency("postgres", config.postgres),
            redis: dependency("redis", config.redis),
            started: AtomicBool::new(config.postgres != Criticality::Required),
            config,
            stages,
            since: Instant::now(),
            metrics,
        }))
    }

    /// Whether the schema has been verified once: from then on it stays true.
    pub fn is_started(&self) -> bool {
        self.0.started.load(Ordering::Relaxed)
    }

    pub fn is_draining(&self) -> bool {
        self.0.stages.draining.is_cancelled()
    }

    pub fn status(&self) -> Status {
        let inner = &self.0;
        let down = |criticality| {
            let dependencies = [&inner.postgres, &inner.redis].into_iter();
            dependencies.filter(move |d| d.criticality == criticality).any(|d| !self.is_up(d))
        };
        if self.is_draining() {
            Status::Draining
        } else if !self.is_started() {
            Status::Starting
        } else if down(Criticality::Required) {
            Status::Unavailable
        } else if down(Criticality::Degraded) {
            Status::Degraded
        } else {
            Status::Ready
        }
    }

    pub fn report(&self) -> Report {
        let inner = &self.0;
        let dependencies = [&inner.postgres, &inner.redis].into_iter().map(|dependency| {
            let state = dependency.state();
            let report = DependencyReport {
                status: if self.is_up(dependency) { "up" } else { "down" },
                criticality: dependency.criticality,
                latency_ms: state.latency.as_secs_f64() * 1e3,
                age_ms: state.checked.map(|at| at.elapsed().as_millis()),
                error: state.error,
            };
            (dependency.name, report)
        });
        Report {
            status: self.status(),
            version: crate::platform::VERSION,
            uptime_seconds: inner.since.elapsed().as_secs_f64(),
            dependencies: dependencies.collect(),
        }
    }

    /// Up as of a check that is not too old: when the prober itself is stuck, nothing is known.
    fn is_up(&self, dependency: &Dependency) -> bool {
        let state = dependency.state();
        state.up && state.checked.is_some_and(|at| at.elapsed() < self.0.config.stale_after)
    }

    /// Checks PostgreSQL until the process ends.
    pub async fn watch_postgres(self, mut probe: PostgresProbe) {
        self.watch(&self.0.postgres, &mut probe).await;
    }

    /// Checks Redis until the process ends.
    pub async fn watch_redis(self, mut probe: RedisProbe) {
        self.watch(&self.0.redis, &mut probe).await;
    }

    async fn watch(&self, dependency: &Dependency, probe: &mut impl Probe) {
        let config = &self.0.config;
        loop {
            let start = Instant::now();
            let check = tokio::time::timeout(config.timeout, probe.check());
            let result = check.await.unwrap_or(Err("timeout"));
            let up = self.record(dependency, result, start.elapsed());
            let pause = if up { config.interval } else { config.recovery_interval };
            tokio::time::sleep(pause.saturating_sub(start.elapsed())).await;
        }
    }

    /// The schema has been verified.
    pub fn set_started(&self) {
        self.0.started.store(true, Ordering::Relaxed);
    }

    /// Takes in the result of one check; whether the dependency is up now.
    fn record(&self, dependency: &Dependency, result: Result<(), &'static str>, latency: Duration) -> bool {
        let (config, metrics) = (&self.0.config, &self.0.metrics);
        let mut state = dependency.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (was_up, first, last_error) = (state.up, state.checked.is_none(), state.error);
        state.latency = latency;
        state.checked = Some(Instant::now());
        state.error = result.err();
        if result.is_ok() {
            state.failures = 0;
            state.successes += 1;
            // The first contact needs no confirmation; a return does.
            state.up |= first || state.successes >= config.successes;
        } else {
            state.successes = 0;
            state.failures += 1;
            state.up &= state.failures < config.failures;
        }
        let labels = [dependency.name];
        metrics.dependency_check_seconds.with_label_values(&labels).observe(latency.as_secs_f64());
        metrics.dependency_up.with_label_values(&labels).set(state.up.into());
        match (was_up, state.up, result) {
            (false, true, _) => tracing::info!(dependency = dependency.name, "dependency is up"),
            (true, false, Err(error)) => {
                tracing::warn!(dependency = dependency.name, error, "dependency is down");
            }
            (false, false, Err(error)) if last_error != Some(error) => {
                tracing::warn!(dependency = dependency.name, error, "dependency is not up yet");
            }
            _ => {}
        }
        state.up
    }
}

impl Dependency {
    fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: Result<(), &str> = Err("refused");

    fn health() -> Health {
        trusting_for(Duration::from_secs(10))
    }

    fn trusting_for(stale_after: Duration) -> Health {
        let config = config::Health {
            interval: Duration::from_secs(2),
            recovery_interval: Duration::from_millis(250),
            timeout: Duration::from_secs(1),
            failures: 3,
            successes: 2,
            stale_after,
            postgres: Criticality::Required,
            redis: Criticality::Degraded,
        };
        let health = Health::new(config, Stages::default(), Arc::new(Metrics::new(&[]).unwrap()));
        health.set_started();
        health
    }

    /// The states after each of `results`.
    fn states(health: &Health, results: &[Result<(), &'static str>]) -> Vec<bool> {
        let record = |result: &Result<(), _>| health.record(&health.0.postgres, *result, Duration::ZERO);
        results.iter().map(record).collect()
    }

    #[test]
    fn three_failures_take_it_down_and_two_successes_bring_it_back() {
        let results = [Ok(()), DOWN, DOWN, DOWN, Ok(()), DOWN, Ok(()), Ok(())];

        assert_eq!(states(&health(), &results), [true, true, true, false, false, false, false, true]);
    }

    #[test]
    fn a_check_lost_now_and_then_changes_nothing() {
        let results: Vec<_> = (1..=300).map(|number| if number % 3 == 0 { DOWN } else { Ok(()) }).collect();

        assert!(states(&health(), &results).iter().all(|up| *up));
    }

    #[test]
    fn criticality_decides_what_a_loss_means() {
        let health = health();
        let mut told = Vec::new();
        for (postgres, redis) in [(Ok(()), Ok(())), (Ok(()), DOWN), (DOWN, Ok(())), (DOWN, DOWN)] {
            for _ in 0..3 {
                health.record(&health.0.postgres, postgres, Duration::ZERO);
                health.record(&health.0.redis, redis, Duration::ZERO);
            }
            told.push(health.status());
        }
        health.0.stages.draining.cancel();

        assert_eq!(told, [Status::Ready, Status::Degraded, Status::Unavailable, Status::Unavailable]);
        assert_eq!(health.status(), Status::Draining);
    }

    #[test]
    fn a_prober_that_is_stuck_is_not_trusted() {
        for (stale_after, status) in [(10, Status::Ready), (0, Status::Unavailable)] {
            let health = trusting_for(Duration::from_secs(stale_after));
            health.record(&health.0.postgres, Ok(()), Duration::ZERO);
            health.record(&health.0.redis, Ok(()), Duration::ZERO);
            assert_eq!(health.status(), status);
        }
    }
}
