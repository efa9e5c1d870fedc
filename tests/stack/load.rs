//! Clients that go on until they are told to stop, and count what happened.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::json;

use crate::support::http::Client;

#[derive(Default)]
pub struct Tally {
    pub answered: AtomicU64,
    /// Another status than the expected one.
    pub failed: AtomicU64,
    /// The connection ended without a complete response.
    pub lost: AtomicU64,
    slowest_ms: AtomicU64,
}

impl Tally {
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub fn slowest_ms(&self) -> u64 {
        self.slowest_ms.load(Ordering::Relaxed)
    }

    /// Requests that did not get what they asked for.
    pub fn bad(&self) -> u64 {
        self.failed.load(Ordering::Relaxed) + self.lost.load(Ordering::Relaxed)
    }
}

/// Ends the clients, also when what was done under load has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests answered, {} not, slowest {} ms",
            self.answered(),
            self.bad(),
            self.slowest_ms()
        )
    }
}

/// Runs `during` while `count` clients follow a link, and make one with each tenth request. Half of them keep their
/// connection.
pub fn clients<T>(address: SocketAddr, count: usize, during: impl FnOnce(&Tally) -> T) -> (T, Tally) {
    let (stop, tally) = (AtomicBool::new(false), Tally::default());
    let result = thread::scope(|scope| {
        for number in 0..count {
            let (stop, tally) = (&stop, &tally);
            scope.spawn(move || {
                let mut kept: Option<Client> = None;
                let mut turn = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    let Some(mut client) = kept.take().or_else(|| Client::try_connect(address)) else {
                        tally.lost.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    turn += 1;
                    let start = Instant::now();
                    let (answer, expected) = if turn.is_multiple_of(10) {
                        let body = json!({"url": "https://example.com/"}).to_string();
                        let headers = [("content-type", "application/json")];
                        (client.try_request("POST", "/v1/links", &headers, &body), 201)
                    } else {
                        (client.try_request("GET", "/r/load", &[], ""), 307)
                    };
                    let counter = match &answer {
                        Some(answer) if answer.status == expected => &tally.answered,
                        Some(_) => &tally.failed,
                        None => &tally.lost,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    let time = u64::try_from(start.elapsed().as_millis()).unwrap();
                    tally.slowest_ms.fetch_max(time, Ordering::Relaxed);
                    let closed = answer.is_none_or(|answer| answer.header("connection") == Some("close"));
                    if number % 2 == 0 && !closed {
                        kept = Some(client);
                    }
                }
            });
        }
        let _stop = Stop(&stop);
        during(&tally)
    });
    (result, tally)
}
