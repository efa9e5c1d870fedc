//! Overload, misbehaving clients, exhausted descriptors and panics (G9, G13, G21, G25 to G28): each is rejected, cut or
//! answered soon, and other clients are not affected.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::app::App;
use crate::support::http::Client;
use crate::support::load::Load;
use crate::support::report::Report;
use crate::support::setup::Setup;
use crate::support::{eventually, free_port, repeatedly};

const PLACES: usize = 4;

/// Ten times the capacity for 15 seconds; the first second is excluded, because it is a burst.
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

/// Each request holds one of four connections to PostgreSQL for 50 ms. So the bottleneck is the limit of the service, not the
/// CPU, which the clients share.
pub fn overload(app: &App) -> Overload {
    const TIME: Duration = Duration::from_secs(15);
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

pub fn busy(app: &App, path: &str) -> Client {
    let mut client = app.client();
    client.write(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
    client
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
    eventually(Duration::from_secs(2), "a full service", || {
        (app.metric("http_requests_in_flight") == 5.0).then_some(())
    });

    let start = Instant::now();
    let refused = app.get("/sleep/0");
    let time = start.elapsed();

    println!("rejected after {time:?}");
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

    // Four at a time: the last request waits for 300 ms.
    assert!(burst.iter_mut().all(|client| client.read_response(false).unwrap().status == 200));
    assert_eq!(app.metric("http_requests_shed_total"), 0.0);
}

fn closed_after(client: &mut Client, start: Instant) -> Duration {
    assert!(client.is_closed());
    start.elapsed()
}

#[test]
fn clients_that_send_slowly_or_nothing_are_cut() {
    let app = Setup::shared().set("HTTP__HEADER_TIMEOUT", "1s").start();
    let limit = Duration::from_secs(2);
    let start = Instant::now();
    let mut silent = app.client();
    let mut partial = app.client();
    partial.write(b"GET / HT").unwrap();
    let mut idle = app.client();
    idle.get("/health/live");
    let mut dribbling = app.client();

    let mut sent = 0;
    while dribbling.write(b"x").is_some() && start.elapsed() < 2 * limit {
        sent += 1;
        std::thread::park_timeout(Duration::from_millis(100));
    }

    let dribbled = start.elapsed();
    println!("trickled {sent} bytes, cut after {dribbled:?}");
    assert!(dribbled < limit, "{dribbled:?}");
    for client in [&mut silent, &mut partial, &mut idle] {
        // All of these clients have been cut by now.
        assert!(closed_after(client, Instant::now()) < Duration::from_millis(100));
    }
}

#[test]
fn unfinished_large_heads_cost_little_memory() {
    let mut app = Setup::shared().set("HTTP__HEADER_TIMEOUT", "3s").start();
    let before = app.resident_kib();
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(400_000));

    let mut clients: Vec<_> = (0..300)
        .map(|_| {
            let mut client = app.client();
            // The service may close the connection first, which is the point.
            let _ = client.write(head.as_bytes());
            client
        })
        .collect();

    let growth = app.resident_kib().saturating_sub(before);
    println!("300 clients with 400 KB of an unfinished head: {growth} KiB more resident memory");
    assert!(growth < 30 * 1024, "{growth}");
    assert!(clients.iter_mut().all(Client::is_closed));
    assert!(app.is_running());
}

#[test]
fn a_body_without_an_end_is_cut_and_costs_little_memory() {
    let mut app = Setup::shared().workload().start();
    let (before, mut highest) = (app.resident_kib(), 0);
    let mut client = app.client();
    client
        .write(b"POST /v1/notes HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));

    let mut sent = 0;
    while sent < 1 << 30 && client.write(chunk.as_bytes()).is_some() {
        sent += 0x10000;
        highest = highest.max(app.resident_kib());
    }

    let growth = highest.saturating_sub(before);
    println!("cut after {} KiB of a chunked body: {growth} KiB more resident memory", sent / 1024);
    assert!(sent < 32 << 20, "{sent}");
    assert!(growth < 16 * 1024, "{growth}");

    // 200 MB of zeros in 200 KB of gzip. The service does not decompress: to it these bytes are invalid JSON.
    let mut bomb = vec![0x78, 0x9c];
    bomb.resize(200_000, 0);
    let mut client = app.client();
    let head =
        format!("content-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: {}", bomb.len());
    client.write(format!("POST /v1/notes HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n").as_bytes()).unwrap();
    client.write(&bomb).unwrap();
    assert_eq!(client.read_response(false).unwrap().status, 400);
    assert!(app.resident_kib().saturating_sub(before) < 16 * 1024);
    assert!(app.is_running());
}

#[test]
fn the_number_of_connections_is_limited_and_the_rest_waits() {
    let mut app = Setup::shared().set("HTTP__MAX_CONNECTIONS", 100).start();
    let mut clients: Vec<_> = (0..500).map(|_| app.client()).collect();

    let answered =
        clients[..99].iter_mut().filter_map(|client| client.try_request("GET", "/health/live", &[], ""));
    assert_eq!(answered.count(), 99);
    let open = {
        let mut last = clients.remove(99);
        let metrics = last.get("/metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("http_connections_open ")).unwrap();
        line.parse::<u32>().unwrap()
    };
    println!("{open} connections accepted of 500");
    assert!(open <= 100);
    clients.drain(..99);
    eventually(Duration::from_secs(1), "a free slot", || {
        clients[0].try_request("GET", "/health/live", &[], "").map(|answer| assert_eq!(answer.status, 200))
    });
    assert!(app.is_running());
}

#[test]
fn half_bodies_slow_readers_and_slow_handlers_are_bounded() {
    let app = Setup::shared()
        .workload()
        .set("DATABASE__LOCK_TIMEOUT", "200ms")
        .set("DATABASE__STATEMENT_TIMEOUT", "500ms")
        .set("DATABASE__ACQUIRE_TIMEOUT", "500ms")
        .set("HTTP__REQUEST_TIMEOUT", "1s")
        .set("HTTP__WRITE_TIMEOUT", "1s")
        .start();
    let mut half = app.client();
    half.write(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf").unwrap();
    let mut slow = busy(&app, "/sleep/60000");

    let start = Instant::now();
    for client in [&mut half, &mut slow] {
        let answer = client.read_response(false).unwrap();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    println!("half a body and a slow handler ended after {:?}", start.elapsed());
    drop((half, slow));
    // Excludes the connection of the scrape.
    let others = |count: f64| (app.metric("http_connections_open") == count + 1.0).then_some(());
    eventually(Duration::from_secs(3), "no other connection", || others(0.0));

    let _unread = busy(&app, "/large");
    eventually(Duration::from_secs(3), "the unread response", || others(1.0));
    let start = Instant::now();
    eventually(Duration::from_secs(3), "the end of the unread response", || others(0.0));
    println!("an unread response ended after {:?}", start.elapsed());
}

#[test]
fn a_client_that_leaves_is_counted_and_leaves_nothing() {
    let app = Setup::shared().workload().start();
    let clients: Vec<_> = (0..100).map(|_| busy(&app, "/sleep/5000")).collect();
    eventually(Duration::from_secs(5), "100 requests", || {
        (app.metric("http_requests_in_flight") == 101.0).then_some(())
    });

    drop(clients);

    let labels = r#"{method="GET",route="/sleep/{ms}",status_code="cancelled"}"#;
    let name = format!("http_request_duration_seconds_count{labels}");
    eventually(Duration::from_secs(2), "100 cancelled", || (app.metric(&name) == 100.0).then_some(()));
    assert_eq!(app.metric("http_requests_in_flight"), 1.0);
    app.logged("a cancelled request", |line| line["message"] == "request cancelled");
}

#[test]
fn with_64_descriptors_and_200_clients_probes_are_answered_and_recovery_is_quick() {
    let port = free_port();
    let mut app = Setup::shared()
        .workload()
        .with_descriptors(64)
        .set("MANAGEMENT__PORT", port)
        .set("MANAGEMENT__ADDRESS", "127.0.0.1")
        .start();
    let management = SocketAddr::from(([127, 0, 0, 1], port));
    app.logged("the warning", |line| line["message"] == "the file descriptor limit allows fewer connections");

    let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(app.address).unwrap()).collect();
    let mut slowest = Duration::ZERO;
    for path in ["/health/live", "/health/ready", "/metrics"].repeat(10) {
        let start = Instant::now();
        assert_eq!(Client::connect(management).get(path).status, 200, "{path}");
        slowest = slowest.max(start.elapsed());
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", app.pid())).unwrap().count();
    drop(clients);
    let left = Instant::now();
    eventually(Duration::from_secs(1), "an answer", || {
        Client::try_connect(app.address)?
            .try_request("GET", "/v1/notes", &[], "")
            .filter(|answer| answer.status == 200)
    });

    println!(
        "200 clients, {open} of 64 descriptors open: slowest probe {slowest:?}, recovered {:?} after they disconnected",
        left.elapsed()
    );
    assert!(slowest < Duration::from_secs(1));
    assert!(app.is_running());
}

#[test]
fn a_panic_anywhere_is_answered_counted_and_logged() {
    let mut app = Setup::shared().workload().start();

    for path in ["/panic", "/panic/secret-of-a-client", "/panic-in-task"] {
        let answer = app.get(path);
        assert_eq!(answer.status, 500, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!(answer.json()["request_id"].as_str(), answer.header("x-request-id"));
        assert!(!answer.body.contains("secret") && !answer.body.contains("literal"), "{answer:?}");
    }
    // The response has begun, so the service can only cut the connection.
    let mut client = app.client();
    client.write(b"GET /panic-in-body HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert!(client.is_closed());

    assert_eq!(app.get("/health/live").status, 200);
    assert!(app.is_running());
    assert_eq!(app.metric("panics_total"), 4.0);
    let lines = eventually(Duration::from_secs(5), "four lines", || {
        let lines: Vec<_> = app.log().into_iter().filter(|line| line["target"] == "panic").collect();
        (lines.len() >= 4).then_some(lines)
    });
    assert_eq!(lines[0]["panic"], "a literal message");
    assert!(lines[0]["location"].as_str().unwrap().contains("workload/main.rs"));
    assert_eq!(lines[1]["panic"], "formatted message withheld");
}
