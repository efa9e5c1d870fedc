//! The check of one dependency: a loop, and the hysteresis that keeps a lost check from changing anything.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::platform::config;
use crate::platform::error_class::ErrorClass;
use crate::platform::health::{Dependency, Health};

/// A check of one dependency.
pub trait Probe: Send {
    /// Checks once. A caller may cancel the check; the next one then starts with a new connection.
    fn check(&mut self) -> impl Future<Output = Result<(), ErrorClass>> + Send;
}

/// What the checks of one dependency have found. Successes and failures are consecutive; one of the two is 0.
#[derive(Clone, Default)]
pub(super) struct State {
    pub up: bool,
    pub has_been_up: bool,
    pub latency: Duration,
    pub checked: Option<Instant>,
    pub error: Option<ErrorClass>,
    successes: usize,
    failures: usize,
}

/// A change that is worth a log line.
#[derive(Debug, PartialEq)]
enum Transition {
    Up,
    Down(ErrorClass),
    /// Still down, for another reason than before.
    NotUpYet(ErrorClass),
}

impl State {
    /// Applies the result of one check.
    fn apply(
        &mut self,
        result: Result<(), ErrorClass>,
        latency: Duration,
        config: &config::Health,
    ) -> Option<Transition> {
        let was_up = self.up;
        let last_error = self.error;
        if result.is_ok() {
            self.failures = 0;
            self.successes += 1;
            // The first contact needs no confirmation; a return does.
            self.up |= self.checked.is_none() || self.successes >= config.successes;
        } else {
            self.successes = 0;
            self.failures += 1;
            self.up &= self.failures < config.failures;
        }
        self.has_been_up |= self.up;
        self.latency = latency;
        self.checked = Some(Instant::now());
        self.error = result.err();
        match (was_up, self.up, result) {
            (false, true, _) => Some(Transition::Up),
            (true, false, Err(error)) => Some(Transition::Down(error)),
            (false, false, Err(error)) if last_error != Some(error) => Some(Transition::NotUpYet(error)),
            _ => None,
        }
    }
}

impl Health {
    /// Checks `dependency` until the process ends.
    pub async fn monitor(self, dependency: &'static str, mut probe: impl Probe) {
        let config = self.0.config.clone();
        loop {
            let start = Instant::now();
            let check = tokio::time::timeout(config.timeout, probe.check());
            let result = check.await.unwrap_or(Err(ErrorClass::Timeout));
            let is_up = self.record(dependency, result, start.elapsed());
            let interval = if is_up { config.interval } else { config.recovery_interval };
            tokio::time::sleep(interval.saturating_sub(start.elapsed())).await;
        }
    }

    /// Records the result of one check and returns whether the dependency is up.
    pub(super) fn record(
        &self,
        dependency: &'static str,
        result: Result<(), ErrorClass>,
        latency: Duration,
    ) -> bool {
        let (transition, is_up) = {
            let mut dependencies = self.dependencies();
            let state = dependencies.get_mut(dependency).map(|dependency| &mut dependency.state);
            let state = state.expect("a dependency that `Health::new` lists");
            let transition = state.apply(result, latency, &self.0.config);
            let is_up = state.up;
            let started = dependencies.values().all(Dependency::allows_start);
            self.0.started.store(started, Ordering::Relaxed);
            (transition, is_up)
        };
        let metrics = &self.0.metrics;
        metrics.dependency_check_seconds.with_label_values(&[dependency]).observe(latency.as_secs_f64());
        metrics.dependency_up.with_label_values(&[dependency]).set(is_up.into());
        match transition {
            Some(Transition::Up) => tracing::info!(dependency, "dependency is up"),
            Some(Transition::Down(error)) => {
                tracing::warn!(dependency, error = error.as_str(), "dependency is down");
            }
            Some(Transition::NotUpYet(error)) => {
                tracing::warn!(dependency, error = error.as_str(), "dependency is not up yet");
            }
            None => {}
        }
        is_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::config::Criticality;

    const DOWN: Result<(), ErrorClass> = Err(ErrorClass::Refused);

    const CONFIG: config::Health = config::Health {
        interval: Duration::from_secs(2),
        recovery_interval: Duration::from_millis(250),
        timeout: Duration::from_secs(1),
        failures: 3,
        successes: 2,
        stale_after: Duration::from_secs(10),
        postgres: Criticality::Required,
        redis: Criticality::Degraded,
    };

    #[test]
    fn three_failures_take_it_down_and_two_successes_bring_it_back() {
        let mut state = State::default();
        let transitions: Vec<_> = [Ok(()), DOWN, DOWN, DOWN, DOWN, Ok(()), DOWN, Ok(()), Ok(())]
            .map(|result| state.apply(result, Duration::ZERO, &CONFIG))
            .into_iter()
            .collect();

        let down = Some(Transition::Down(ErrorClass::Refused));
        let again = || Some(Transition::NotUpYet(ErrorClass::Refused));
        let expected =
            [Some(Transition::Up), None, None, down, None, None, again(), None, Some(Transition::Up)];
        assert_eq!(transitions, expected);
    }

    #[test]
    fn two_lost_checks_in_three_change_nothing() {
        let mut state = State::default();
        state.apply(Ok(()), Duration::ZERO, &CONFIG);

        for number in 0..300 {
            let result = if number % 3 == 2 { Ok(()) } else { DOWN };
            assert_eq!(state.apply(result, Duration::ZERO, &CONFIG), None);
            assert!(state.up);
        }
    }
}
