//! More work than there is room for (G13): the surplus is refused soon, the rest is answered as always.

use std::time::{Duration, Instant};

use crate::abuse::busy;
use crate::support::app::App;
use crate::support::load::Load;
use crate::support::report::Report;
use crate::support::servers;
use crate::support::setup::Setup;
use crate::support::{eventually, repeatedly};

const PLACES: usize = 4;

/// Ten times the capacity, offered for 15 seconds, of which the first is left out: it is a burst to the service.
pub struct Overload {
    pub unloaded: Duration,
    pub capacity: f64,
    pub goodput: f64,
    pub report: Report,
    pub slowest_probe: Duration,
    pub failed_probes: usize,
    pub more_memory_kib: u64,
    pub recovery: Duration,
}

/// Each request holds a connection to PostgreSQL for 50 ms, and there are four: what is beyond the capacity is not the
/// processor, which the clients share, but the service's own limit.
pub fn overload(app: &App) -> Overload {
    const TIME: Duration = Duration::from_secs(15);
    servers::postgres().sql(&app.database, "create table rows (id bigint generated always as identity)");
    let load = Load::post(app.address, "/naive/50");
    let unloaded = load.closed(1, || repeatedly(Duration::from_secs(2), || {})).p99(200);
    let start = Instant::now();
    let full = load.closed(PLACES, || repeatedly(Duration::from_secs(3), || {}));
    let capacity = full.with_status(200) as f64 / start.elapsed().as_secs_f64();
    let (memory, mut slowest_probe, mut failed_probes) = (app.resident_kib(), Duration::ZERO, 0);

    let start = Instant::now();
    let mut highest = memory;
    let report = load.open((10.0 * capacity) as u32, || {
        repeatedly(TIME, || {
            let probe = Instant::now();
            for path in ["/health/live", "/health/ready"] {
                failed_probes += usize::from(app.probe(path).is_none_or(|answer| answer.status != 200));
            }
            slowest_probe = slowest_probe.max(probe.elapsed());
            highest = highest.max(app.resident_kib());
        });
    });
    let (end, steady) = (Instant::now(), start + Duration::from_secs(1));
    let report = report.from(steady);
    let goodput = report.with_status(200) as f64 / (end - steady).as_secs_f64();
    eventually(Duration::from_secs(120), "recovery", || {
        let start = Instant::now();
        let answer = app.client().request("POST", "/naive/50", &[], "");
        (answer.status == 200 && start.elapsed() < 2 * unloaded).then_some(())
    });
    let (recovery, more_memory_kib) = (end.elapsed(), highest - memory);
    Overload { unloaded, capacity, goodput, report, slowest_probe, failed_probes, more_memory_kib, recovery }
}

pub fn setup() -> Setup {
    Setup::shared().set("DATABASE__MAX_CONNECTIONS", PLACES)
}

impl Overload {
    pub fn print(&self) {
        println!(
            "capacity {:.0}/s, p99 {:?} unloaded; offered ten times that: {} requests, goodput {:.0} %, p99 of the \
             answered {:?}, p99 of the refused {:?}, {} lost; {} probes failed, slowest {:?}, {} KiB more memory, normal after {:?}",
            self.capacity,
            self.unloaded,
            self.report.0.len(),
            100.0 * self.goodput / self.capacity,
            self.report.p99(200),
            self.report.p99(503),
            self.report.lost() + self.report.refused(),
            self.failed_probes,
            self.slowest_probe,
            self.more_memory_kib,
            self.recovery,
        );
    }
}

#[test]
fn at_ten_times_its_capacity_the_service_does_nine_tenths_of_its_work_as_quickly_as_ever() {
    let mut app = setup().workload().set("HTTP__MAX_IN_FLIGHT", PLACES).start();

    let overload = overload(&app);

    overload.print();
    let report = &overload.report;
    assert_eq!(report.with_status(200) + report.with_status(503), report.0.len());
    assert!(overload.goodput >= 0.9 * overload.capacity);
    assert!(report.p99(200) <= 2 * overload.unloaded, "{:?}", report.p99(200));
    assert!(report.p99(503) <= Duration::from_millis(300), "{:?}", report.p99(503));
    assert_eq!(overload.failed_probes, 0);
    assert!(overload.slowest_probe < Duration::from_millis(500));
    assert!(overload.more_memory_kib < 16 * 1024);
    assert!(overload.recovery < Duration::from_secs(1));
    assert!(app.is_running());
}

#[test]
fn a_full_service_refuses_soon_and_stays_healthy() {
    let app = Setup::shared().workload().set("HTTP__MAX_IN_FLIGHT", 4).start();
    let mut inside: Vec<_> = (0..4).map(|_| busy(&app, "/sleep/3000")).collect();
    eventually(Duration::from_secs(2), "a full house", || {
        (app.metric("http_requests_in_flight") == 5.0).then_some(())
    });

    let start = Instant::now();
    let refused = app.get("/sleep/0");
    let time = start.elapsed();

    println!("refused after {time:?}");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert!(time < Duration::from_millis(300), "{time:?}");
    assert_eq!(app.get("/health/live").status, 200);
    assert_eq!(app.get("/health/ready").status, 200);
    assert_eq!(app.metric("http_requests_shed_total"), 1.0);
    assert!(inside.iter_mut().all(|client| client.read_response(false).unwrap().status == 200));
    assert_eq!(app.get("/sleep/0").status, 200);
}

#[test]
fn a_burst_waits_for_its_turn() {
    let app =
        Setup::shared().workload().set("HTTP__MAX_IN_FLIGHT", 4).set("HTTP__QUEUE_TIMEOUT", "1s").start();

    let mut burst: Vec<_> = (0..16).map(|_| busy(&app, "/sleep/100")).collect();

    // Four at a time: the last ones wait for 300 ms.
    assert!(burst.iter_mut().all(|client| client.read_response(false).unwrap().status == 200));
    assert_eq!(app.metric("http_requests_shed_total"), 0.0);
}
