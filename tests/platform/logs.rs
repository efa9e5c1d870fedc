//! The log: one JSON object per line, for any input.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::support::contract::{nginx_line, service_line};
use crate::support::setup::Setup;

#[test]
fn every_line_is_an_object_whatever_is_sent() {
    let mut app =
        Setup::shared().workload().set("LOG__LEVEL", "debug").set("SERVICE__INSTANCE", "pod \"1\"\n").start();
    let mut client = app.client();
    for path in ["/%0a%22", "/\"quoted\"", "/{}", "/<script>", "/a%00b", "/v1/notes/%ff%fe"] {
        let headers = [("user-agent", "\"\\u0000\t\\"), ("x-request-id", "\"}{")];
        app.client().try_request("GET", path, &headers, "");
    }
    client.send("POST", "/v1/notes", &[("accept", "\"\\")], &json!({"\u{0}\n\u{1b}[31m": "text"}));
    app.client().write(b"\xff\xfe\r\n\r\n");

    app.terminate();
    let (status, _) = app.wait(Duration::from_secs(10));

    assert_eq!(status.code(), Some(0));
    let lines = app.lines();
    let objects: Vec<_> = lines.iter().map(|line| service_line(line)).collect();
    assert_eq!(objects.first().unwrap()["message"], "listening");
    assert_eq!(objects.last().unwrap()["message"], "shutdown complete");
    assert_eq!(app.errors(), "");
}

#[test]
fn a_request_is_one_line_with_its_ids_and_times() {
    let app = Setup::shared().workload().start();
    let created = app.client().send("POST", "/v1/notes", &[], &json!({"text": "hello"}));

    let line = app.logged("the request", |line| line["target"] == "access");

    assert_eq!(line["method"], "POST");
    assert_eq!(line["route"], "/v1/notes");
    assert_eq!(line["status"], 201);
    assert_eq!(line["bytes"], created.body.len());
    assert_eq!(line["request_id"].as_str(), created.header("x-request-id"));
    assert_eq!(line["trace_id"].as_str().unwrap().len(), 32);
    assert_eq!(line["client"], "127.0.0.1");
    let (total, database) = (line["duration_ms"].as_f64().unwrap(), line["database_ms"].as_f64().unwrap());
    assert!(database > 0.0 && database <= total, "{line}");
    assert!(line["cache_ms"].as_f64().unwrap() > 0.0, "{line}");
}

#[test]
fn probes_and_scrapes_are_not_logged_at_info() {
    let app = Setup::shared().start();
    for path in ["/health/live", "/health/ready", "/health/startup", "/metrics", "/nowhere"] {
        app.get(path);
    }

    app.logged("the last request", |line| line["path"] == "/nowhere");

    let routes: Vec<_> = app.log().iter().filter(|line| line["target"] == "access").cloned().collect();
    assert_eq!(routes.len(), 1, "{routes:?}");
}

#[test]
fn an_unread_pipe_does_not_stop_the_service() {
    let mut app = Setup::shared().set("LOG__BUFFER_LINES", 256).with_unread_output().start();
    let mut client = app.client();

    for number in 0..10_000 {
        assert_eq!(client.get("/nowhere").status, 404, "request {number}");
    }

    let dropped = app.metric("log_lines_dropped_total");
    println!("10,000 requests answered, {dropped} lines dropped");
    assert!(dropped > 5_000.0);
    assert!(app.is_running());
    app.signal(Signal::TERM);
    let (status, time) = app.wait(Duration::from_secs(10));
    println!("exit {status} after {time:?}");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_line_that_violates_the_schema_is_rejected() {
    let id = "0af7651916cd43dd8448eb211c80319c";
    let mut line = json!({
        "time": "2026-01-02T03:04:05.678Z", "level": "INFO", "message": "request", "target": "access",
        "service": "app", "version": "0.1.0", "environment": "test", "instance": "local",
        "request_id": "a-1", "trace_id": id, "span_id": &id[..16], "method": "GET", "route": "unmatched",
        "path": "/", "status": 404, "duration_ms": 0.1, "database_ms": 0, "cache_ms": 0, "bytes": 12, "more": true,
    });
    service_line(&line.to_string());
    let is_rejected = |line: String| std::panic::catch_unwind(|| service_line(&line)).is_err();
    for name in
        ["time", "level", "message", "target", "service", "version", "environment", "instance", "span_id"]
    {
        let mut short = line.clone();
        short.as_object_mut().unwrap().remove(name);
        assert!(is_rejected(short.to_string()), "without {name}");
    }
    for (name, value) in [
        ("time", json!("2026-01-02 03:04:05")),
        ("level", json!("info")),
        ("trace_id", json!("0AF7651916CD43DD8448EB211C80319C")),
        ("span_id", json!(7)),
        ("request_id", json!("a b")),
        ("status", json!("404")),
        ("duration_ms", json!(-1)),
        ("bytes", json!(1.5)),
        ("more", json!(["nested"])),
        ("more", json!({"nested": 1})),
        ("more", json!(null)),
    ] {
        let valid = std::mem::replace(&mut line[name], value);
        assert!(is_rejected(line.to_string()), "{name}: {}", line[name]);
        line[name] = valid;
    }
    line["field_version"] = json!(1);
    assert!(is_rejected(line.to_string()), "reserved name");
    line.as_object_mut().unwrap().remove("field_version");
    let text = line.to_string();
    assert!(is_rejected(text.replacen('{', "{\"bytes\":12,", 1)), "duplicate name");
    assert!(is_rejected(text.replacen('}', "", 1)), "truncated");
    assert!(
        std::panic::catch_unwind(|| nginx_line(&text)).is_err(),
        "a line of the service must not pass as a line of nginx"
    );
}
