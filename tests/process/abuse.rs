//! Clients that misbehave (G9, G13, G26-G28), and more of them than there is room for.

use std::time::{Duration, Instant};

use crate::support::app::App;
use crate::support::eventually;
use crate::support::http::Client;
use crate::support::setup::Setup;

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
    println!("dribbled {sent} bytes until it was cut after {dribbled:?}");
    assert!(dribbled < limit, "{dribbled:?}");
    for client in [&mut silent, &mut partial, &mut idle] {
        // All were cut in the meantime.
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
            // The service may close before it has all of it, which is the point.
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
    let mut app = Setup::shared().start();
    let (before, mut highest) = (app.resident_kib(), 0);
    let mut client = app.client();
    client
        .write(b"POST /v1/links HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
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

    // 200 MB of zeros in 200 KB, as a decompressor would see it; here it is only bytes that are not JSON.
    let mut bomb = vec![0x78, 0x9c];
    bomb.resize(200_000, 0);
    let mut client = app.client();
    let head =
        format!("content-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: {}", bomb.len());
    client.write(format!("POST /v1/links HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n").as_bytes()).unwrap();
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
    eventually(Duration::from_secs(1), "a place", || {
        clients[0].try_request("GET", "/health/live", &[], "").map(|answer| assert_eq!(answer.status, 200))
    });
    assert!(app.is_running());
}

pub fn busy(app: &App, path: &str) -> Client {
    let mut client = app.client();
    client.write(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
    client
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
    // Besides the connection that asks.
    let others = |count: f64| (app.metric("http_connections_open") == count + 1.0).then_some(());
    eventually(Duration::from_secs(3), "no other connection", || others(0.0));

    let _unread = busy(&app, "/large");
    eventually(Duration::from_secs(3), "the unread response", || others(1.0));
    let start = Instant::now();
    eventually(Duration::from_secs(3), "the end of the unread response", || others(0.0));
    println!("a response that nobody reads ended after {:?}", start.elapsed());
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
