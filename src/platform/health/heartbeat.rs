//! Liveness of the main runtime, for readers outside of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A timestamp that a task of the main runtime renews every second.
#[derive(Clone)]
pub struct Heartbeat {
    start: Instant,
    stall_timeout: Duration,
    last_beat_ms: Arc<AtomicU64>,
}

impl Heartbeat {
    pub fn new(stall_timeout: Duration) -> Self {
        Self { start: Instant::now(), stall_timeout, last_beat_ms: Arc::default() }
    }

    /// Renews the timestamp until the process ends.
    pub async fn beat(self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            self.last_beat_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    /// Returns whether the main runtime has made progress within the stall timeout.
    pub fn is_beating(&self) -> bool {
        let silence = self.now_ms().saturating_sub(self.last_beat_ms.load(Ordering::Relaxed));
        u128::from(silence) < self.stall_timeout.as_millis()
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}
