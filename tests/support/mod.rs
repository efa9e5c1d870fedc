//! Shared by the tests: private servers that can be broken, a proxy that breaks connections to them, the service as a
//! process, the contract of its log, a raw HTTP client, load that records the fate of each request, and the loss meter.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

pub mod app;
pub mod collector;
pub mod contract;
pub mod http;
pub mod load;
pub mod meter;
pub mod proxy;
pub mod report;
pub mod servers;
pub mod setup;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Polls until `check` returns a value. Panics after `limit`.
#[track_caller]
pub fn eventually<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// Repeats `work` for `time`.
pub fn repeatedly(time: Duration, mut work: impl FnMut()) {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        work();
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// A linear congruential generator: the same numbers in each run.
pub struct Random(pub u64);

impl Random {
    /// Returns a number below 2^`bits`.
    pub fn below_power(&mut self, bits: u32) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> (64 - bits)
    }
}

/// Returns a free port below the range from which the system allocates ports of outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = std::process::id() as u16 % 1000 * 17;
        let port = 10_000 + offset + NEXT.fetch_add(1, Ordering::Relaxed) % 4_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
