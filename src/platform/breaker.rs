//! A circuit breaker: what fails again and again is left alone for a while.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Failures in a row that open the breaker.
const FAILURES: u32 = 5;

/// Opens after failures in a row, and then admits one operation per pause until one succeeds.
pub struct Breaker {
    start: Instant,
    pause: Duration,
    failures: AtomicU32,
    /// Milliseconds after `start` at which the next operation is admitted.
    next_try: AtomicU64,
}

impl Breaker {
    pub fn new(pause: Duration) -> Self {
        Self { start: Instant::now(), pause, failures: AtomicU32::new(0), next_try: AtomicU64::new(0) }
    }

    pub fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES
    }

    /// Whether an operation may be tried now; its result is to be recorded.
    pub fn admits(&self) -> bool {
        if !self.is_open() {
            return true;
        }
        let next_try = self.next_try.load(Ordering::Relaxed);
        let now = self.start.elapsed().as_millis() as u64;
        // Whoever moves the time of the next try is the one that tries.
        now >= next_try
            && self
                .next_try
                .compare_exchange(next_try, self.later(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    pub fn record(&self, success: bool) {
        if success {
            self.failures.store(0, Ordering::Relaxed);
        } else if self.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES {
            self.next_try.store(self.later(), Ordering::Relaxed);
        }
    }

    fn later(&self) -> u64 {
        (self.start.elapsed() + self.pause).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_admits_one_operation_per_pause() {
        let breaker = Breaker::new(Duration::from_secs(1));
        for _ in 0..FAILURES {
            assert!(breaker.admits());
            breaker.record(false);
        }
        assert!(!breaker.admits());

        while !breaker.admits() {
            assert!(breaker.start.elapsed() < Duration::from_secs(10));
        }
        assert!(!breaker.admits());

        breaker.record(true);
        assert!(breaker.admits() && breaker.admits());
    }
}
