//! The metrics of `/metrics`.

use std::time::Duration;

use crate::support::app::App;
use crate::support::http::Client;
use crate::support::setup::Setup;
use crate::support::{eventually, free_port};

fn series(app: &App) -> usize {
    app.get("/metrics").body.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn clients_cannot_add_series() {
    let app = Setup::shared().workload().set("LOG__LEVEL", "warn,app::platform::server=info").start();
    let mut client = app.client();
    let hammer = |client: &mut Client, numbers: std::ops::Range<u32>| {
        for number in numbers {
            let method = format!("METHOD{}", number % 100);
            let host = format!("host{number}.example");
            let path = format!("/path{number}/{}", number * 7);
            let note = format!("/v1/notes/{number}");
            client.request(&method, &path, &[("x-request-id", &host)], "");
            client.request(&method, &note, &[("user-agent", &host)], "");
        }
    };
    hammer(&mut client, 0..10);
    app.get("/metrics");
    let before = series(&app);

    hammer(&mut client, 10..5_000);

    assert_eq!(series(&app), before);
    let size = app.get("/metrics").body.len();
    println!("{before} series in {size} bytes after 10,000 different requests");
    assert!(size < 64 * 1024, "{size}");
}

#[test]
fn requests_are_counted_by_method_route_and_code() {
    let app = Setup::shared().workload().start();
    let mut client = app.client();

    for id in 1..=3 {
        client.get(&format!("/v1/notes/{id}"));
    }

    let labels = r#"{method="GET",route="/v1/notes/{id}",status_code="404"}"#;
    assert_eq!(app.metric(&format!("http_request_duration_seconds_count{labels}")), 3.0);
    assert_eq!(app.metric("database_acquire_seconds_count"), 3.0);
    assert_eq!(app.metric("dependency_up{dependency=\"postgres\"}"), 1.0);
    assert!(app.metric("http_connections_accepted_total") >= 2.0);
    assert!(app.metric("process_open_fds") > 5.0);
    // The scrape itself is counted too.
    assert_eq!(app.metric("http_requests_in_flight"), 1.0);
}

#[test]
fn a_scrape_of_the_management_port_does_not_count_itself() {
    let port = free_port();
    let _app = Setup::shared().set("MANAGEMENT__PORT", port).set("MANAGEMENT__ADDRESS", "127.0.0.1").start();

    let text = Client::connect(([127, 0, 0, 1], port).into()).get("/metrics").body;

    assert!(text.contains("\nhttp_requests_in_flight 0\n"), "{text}");
    assert!(!text.contains("route=\"/metrics\""), "{text}");
}

#[test]
fn readiness_and_runtime_metrics_follow_the_service() {
    let app = Setup::shared().workload().set("RUNTIME__WORKER_THREADS", 2).start();
    assert_eq!((app.metric("service_ready"), app.metric("service_degraded")), (1.0, 0.0));
    assert_eq!(app.metric("runtime_workers"), 2.0);
    assert!(app.metric("runtime_tasks") > 3.0);
    let busy = app.metric("runtime_busy_seconds_total");
    app.get("/v1/notes");
    assert!(app.metric("runtime_busy_seconds_total") > busy);

    let degraded = Setup::shared().set("REDIS__PORT", 1).start();
    eventually(Duration::from_secs(5), "degraded", || {
        let states = (degraded.metric("service_ready"), degraded.metric("service_degraded"));
        (states == (1.0, 1.0)).then_some(())
    });
}

#[test]
fn the_response_is_in_the_prometheus_text_format() {
    let app = Setup::shared().start();

    let response = app.get("/metrics");

    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4"));
    for line in response.body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(name.starts_with(|c: char| c.is_ascii_lowercase()), "{line}");
    }
    for line in response.body.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        assert!(line.split_once(' ').is_some_and(|(_, help)| help.ends_with('.')), "{line}");
    }
    for line in response.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        if kind == "counter" {
            assert!(name.ends_with("_total"), "{line}");
        }
    }
}
