//! A circuit breaker: skips operations on a dependency that keeps failing.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Consecutive failures that open the breaker.
const FAILURES: u32 = 5;

/// Opens after consecutive failures, and then admits one operation per pause until one succeeds.
pub struct Breaker {
    start: Instant,
    pause: Duration,
    failures: AtomicU32,
    /// Milliseconds after `start` at which the next operation is admitted.
    next_attempt: AtomicU64,
}

impl Breaker {
    pub fn new(pause: Duration) -> Self {
        Self { start: Instant::now(), pause, failures: AtomicU32::new(0), next_attempt: AtomicU64::new(0) }
    }

    pub fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES
    }

    /// Returns whether an operation may be attempted at `now`. The caller records its result.
    pub fn admits(&self, now: Instant) -> bool {
        if !self.is_open() {
            return true;
        }
        let next_attempt = self.next_attempt.load(Ordering::Relaxed);
        if self.milliseconds(now) < next_attempt {
            return false;
        }
        // Of several callers, the one that moves the time of the next attempt makes this one.
        let later = self.milliseconds(now + self.pause);
        self.next_attempt.compare_exchange(next_attempt, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Records the result of an operation that ended at `now`.
    pub fn record(&self, success: bool, now: Instant) {
        if success {
            self.failures.store(0, Ordering::Relaxed);
        } else if self.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES {
            self.next_attempt.store(self.milliseconds(now + self.pause), Ordering::Relaxed);
        }
    }

    fn milliseconds(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_admits_one_operation_per_pause() {
        let breaker = Breaker::new(Duration::from_secs(1));
        let opened = Instant::now();
        for _ in 0..FAILURES {
            assert!(breaker.admits(opened));
            breaker.record(false, opened);
        }

        let at = |milliseconds| opened + Duration::from_millis(milliseconds);
        assert!(!breaker.admits(at(998)));
        assert!(breaker.admits(at(1001)));
        assert!(!breaker.admits(at(1002)));
        assert!(breaker.admits(at(2002)));

        breaker.record(true, at(2003));
        assert!(breaker.admits(at(2003)) && breaker.admits(at(2003)));
    }
}
