//! One request, found again wherever it was: nginx's log, the service's log, its spans, and PostgreSQL's log.

use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::docker::{docker, inspect, run};
use crate::stack::Stack;
use crate::support::collector::{Collector, hex, text};
use crate::support::eventually;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const REQUEST: &str = "from-the-caller";
/// Holds the row for longer than log_min_duration_statement (1 s), and for less than lock_timeout (2 s).
const HOLD: &str =
    "begin; select from links where slug = 'followed' for update; select pg_sleep(1.7); commit";

#[test]
fn a_request_is_followed_from_the_edge_to_the_statement() {
    let mut stack = Stack::new("drydock-followed");
    let collector = Collector::start();
    // The address of this machine in a network of the service, which exists from here on.
    stack.project.compose(&["create", "--quiet-pull", "postgres"]);
    let network = inspect("network", &stack.project.network("back"));
    let gateway = network["IPAM"]["Config"][0]["Gateway"].as_str().unwrap();
    stack.project.set("OTLP_ENDPOINT", &format!("http://{gateway}:{}", collector.address.port()));
    stack.start();
    let mut client = stack.client();
    let body = json!({"url": "https://example.com/", "slug": "followed"});
    let etag = client.send("POST", "/v1/links", &[], &body).header("etag").unwrap().to_owned();

    let postgres = stack.project.containers("postgres").remove(0);
    let psql = |sql: &str| {
        let mut command = Command::new("docker");
        let superuser = ["psql", "--username=postgres", "--dbname=app", "--tuples-only", "--command"];
        command.args(["exec", &postgres]).args(superuser).arg(sql);
        command
    };
    let answer = thread::scope(|scope| {
        scope.spawn(|| run(&mut psql(HOLD)));
        eventually(Duration::from_secs(10), "the lock", || {
            let held = "select 'held' from pg_stat_activity where wait_event = 'PgSleep'";
            run(&mut psql(held)).contains("held").then_some(())
        });
        let traceparent = format!("00-{TRACE}-{PARENT}-01");
        let headers = [("x-request-id", REQUEST), ("traceparent", &*traceparent), ("if-match", &*etag)];
        client.send("PATCH", "/v1/links/followed", &headers, &json!({"url": "https://example.org/"}))
    });

    assert_eq!((answer.status, answer.header("x-request-id")), (200, Some(REQUEST)));
    let spans = collector.trace(TRACE, 4);
    let request = spans.iter().find(|span| hex(&span.parent_span_id) == PARENT).unwrap();
    let span_id = hex(&request.span_id);
    assert_eq!(text(&request.attributes, "request_id").as_deref(), Some(REQUEST));
    assert!(
        spans.iter().any(|span| text(&span.attributes, "db.system.name").as_deref() == Some("postgresql"))
    );
    let ours = format!("00-{TRACE}-{span_id}-01");
    assert_eq!(answer.header("traceparent"), Some(&*ours));

    let find = |service: &str| -> Value {
        eventually(Duration::from_secs(5), service, || {
            stack.project.log(service).into_iter().find(|line| line["request_id"] == REQUEST)
        })
    };
    let (edge, inner) = (find("nginx"), find("blue"));
    assert_eq!((&edge["traceparent"], &edge["status"]), (&json!(ours), &json!(200)), "{edge}");
    assert_eq!((&inner["trace_id"], &inner["span_id"]), (&json!(TRACE), &json!(span_id)), "{inner}");
    let statement = eventually(Duration::from_secs(5), "the statement in the log", || {
        // The server's log is on standard error, which is not what `docker` returns.
        let log = Command::new("docker").args(["logs", &postgres]).output().unwrap();
        let log = String::from_utf8_lossy(&log.stderr).into_owned();
        let is_ours =
            |line: &&str| [TRACE, "duration: ", "update links"].iter().all(|part| line.contains(part));
        log.lines().find(is_ours).map(ToOwned::to_owned)
    });
    println!("{statement}");

    // What does not look like an id is replaced, and the caller is told.
    let answer = client.request("GET", "/v1/links", &[("x-request-id", "a b\"c")], "");
    assert_eq!(answer.header("x-request-id").unwrap().len(), 32);
    assert_eq!(docker(&["inspect", "--format", "{{.RestartCount}}", &stack.app()]).trim(), "0");
}
