//! kill -9 at random points (G41): what was acknowledged is there, what was not can be sent again, nothing is there
//! twice.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::app::App;
use crate::support::http::Client;
use crate::support::servers;
use crate::support::setup::Setup;
use crate::support::{Random, repeatedly};

const CRASHES: usize = 100;
const WRITERS: usize = 4;

/// Sends one link after the other, each with a key; keeps one until it is acknowledged, over crashes too.
#[derive(Default)]
struct Writer {
    acknowledged: usize,
}

impl Writer {
    fn write(&mut self, name: usize, app: &App, stop: &AtomicBool) {
        while let Some(mut client) = Client::try_connect(app.address) {
            loop {
                let slug = format!("w{name}-{}", self.acknowledged);
                let body = json!({"slug": slug, "url": "https://example.com/"}).to_string();
                let headers = [("content-type", "application/json"), ("idempotency-key", slug.as_str())];
                let Some(answer) = client.try_request("POST", "/v1/links", &headers, &body) else { break };
                assert_eq!(answer.status, 201, "{answer:?}");
                self.acknowledged += 1;
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }
}

#[test]
fn after_100_crashes_every_acknowledged_write_is_there_once() {
    let seed = 41_u64;
    let mut random = Random(seed);
    let setup = Setup::shared();
    setup.migrate();
    let writers: Vec<_> = (0..WRITERS).map(|_| Mutex::<Writer>::default()).collect();
    let mut restarts = Vec::new();

    for crash in 0..=CRASHES {
        let launched = Instant::now();
        let app = setup.clone().start_migrated();
        restarts.push(launched.elapsed());
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (name, writer) in writers.iter().enumerate() {
                let (app, stop) = (&app, &stop);
                scope.spawn(move || writer.lock().unwrap().write(name, app, stop));
            }
            repeatedly(Duration::from_millis(20 + random.below_power(8)), || {});
            // The last time everything is finished.
            if crash < CRASHES {
                app.signal(Signal::KILL);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    let writers: Vec<_> = writers.into_iter().map(|writer| writer.into_inner().unwrap()).collect();
    let acknowledged: usize = writers.iter().map(|writer| writer.acknowledged).sum();
    let rows = servers::postgres().sql(setup.database(), "select slug from links order by slug");
    let mut expected: Vec<_> = (0..WRITERS)
        .flat_map(|name| (0..writers[name].acknowledged).map(move |number| format!("w{name}-{number}")))
        .collect();
    expected.sort_unstable();
    restarts.sort_unstable();
    println!(
        "seed {seed}: {CRASHES} crashes, {acknowledged} writes acknowledged, {} rows; from start to ready {:?} (median), \
         {:?} (slowest)",
        rows.len(),
        restarts[restarts.len() / 2],
        restarts.last().unwrap(),
    );
    assert_eq!(rows, expected);
    assert!(acknowledged > 3 * CRASHES, "{acknowledged}");
    assert!(restarts[restarts.len() / 2] < Duration::from_secs(1));
}
