//! Spans for a test collector, and collectors that are slow or unavailable (G45).

use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;

use crate::support::app::App;
use crate::support::collector::{Collector, hex, text};
use crate::support::load::Load;
use crate::support::proxy::{Fault, Proxy};
use crate::support::setup::Setup;
use crate::support::{eventually, free_port, servers};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const ERROR: i32 = 2;

fn sampled() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

fn traced(collector: &Collector) -> Setup {
    Setup::shared().set("OTLP__ENDPOINT", collector.endpoint())
}

#[test]
fn a_request_is_a_span_with_those_of_postgresql_and_redis_inside() {
    let collector = Collector::start();
    let app = traced(&collector).workload().set("OTLP__AUTHORIZATION", "Bearer of the test").start();
    app.client().send("POST", "/v1/notes", &[], &json!({"text": "hello"}));

    let traceparent = sampled();
    let headers = [("traceparent", &*traceparent), ("tracestate", "vendor=1"), ("x-request-id", "mine")];
    let answer = app.client().request("GET", "/v1/notes/1", &headers, "");
    assert_eq!(answer.status, 200);
    let line = app.logged("the request", |line| line["request_id"] == "mine");
    // GET, the row, SET, and the request itself.
    let spans = collector.trace(TRACE, 4);

    assert_eq!(spans.len(), 4, "{spans:#?}");
    let request = spans.iter().find(|span| span.kind == SERVER).unwrap();
    assert_eq!(request.name, "GET /v1/notes/{id}");
    assert_eq!(hex(&request.parent_span_id), PARENT);
    assert_eq!(request.trace_state, "vendor=1");
    let attribute = |key| text(&request.attributes, key);
    assert_eq!(attribute("http.request.method").as_deref(), Some("GET"));
    assert_eq!(attribute("http.route").as_deref(), Some("/v1/notes/{id}"));
    assert_eq!(attribute("url.path").as_deref(), Some("/v1/notes/1"));
    assert_eq!(attribute("http.response.status_code").as_deref(), Some("200"));
    assert_eq!(attribute("client.address").as_deref(), Some("127.0.0.1"));
    assert_eq!(attribute("request_id").as_deref(), Some("mine"));
    let span_id = hex(&request.span_id);
    assert_eq!(answer.header("traceparent"), Some(&*format!("00-{TRACE}-{span_id}-01")));
    assert_eq!((&line["trace_id"], &line["span_id"]), (&json!(TRACE), &json!(span_id)));

    let mut inner: Vec<_> = spans.iter().filter(|span| span.kind == CLIENT).collect();
    inner.sort_by_key(|span| span.start_time_unix_nano);
    let what = |key| inner.iter().map(|span| text(&span.attributes, key)).collect::<Vec<_>>();
    let systems = what("db.system.name");
    assert_eq!(systems, ["redis", "postgresql", "redis"].map(|name| Some(name.to_owned())));
    let operations = what("db.operation.name");
    assert_eq!(operations, [Some("GET"), None, Some("SET")].map(|name| name.map(ToOwned::to_owned)));
    assert!(text(&inner[1].attributes, "pool.wait_ms").is_some());
    for span in &inner {
        assert_eq!(span.parent_span_id, request.span_id);
        assert!(span.start_time_unix_nano >= request.start_time_unix_nano);
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= request.end_time_unix_nano);
    }
    assert_eq!(collector.resource("service.name").as_deref(), Some(&*app.database));
    assert_eq!(collector.resource("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert!(collector.resource("service.instance.id").is_some());
    assert!(collector.heads().iter().all(|head| head.contains("authorization: bearer of the test\r\n")));
}

/// The transaction runs in a task of its own.
#[test]
fn a_transaction_belongs_to_its_request() {
    let collector = Collector::start();
    let app = traced(&collector).workload().start();

    let body = json!({"text": "hello"});
    let answer = app.client().send("POST", "/v1/notes", &[("traceparent", &sampled())], &body);

    assert_eq!(answer.status, 201);
    let spans = collector.trace(TRACE, 4);
    let request = spans.iter().find(|span| span.kind == SERVER).unwrap();
    let inner = spans.iter().filter(|span| span.kind == CLIENT);
    assert_eq!(inner.map(|span| &*span.parent_span_id).collect::<Vec<_>>(), [&*request.span_id; 3]);
}

#[test]
fn what_fails_is_marked_and_probes_are_left_out() {
    let collector = Collector::start();
    let app = traced(&collector).workload().start();

    for path in ["/health/live", "/metrics", "/panic"] {
        app.client().request("GET", path, &[("traceparent", &sampled())], "");
    }

    let spans = collector.trace(TRACE, 1);
    assert_eq!(spans.len(), 1, "{spans:#?}");
    assert_eq!(spans[0].status.as_ref().unwrap().code, ERROR);
    assert_eq!(text(&spans[0].attributes, "http.response.status_code").as_deref(), Some("500"));
}

#[test]
fn the_flag_of_the_caller_decides_and_else_the_ratio() {
    let collector = Collector::start();
    let app = traced(&collector).workload().set("OTLP__SAMPLE_RATIO", 0).start();
    let unsampled = format!("00-{}-{PARENT}-00", TRACE.replace('4', "5"));

    let alone = app.get("/v1/notes").header("traceparent").unwrap().to_owned();
    app.client().request("GET", "/v1/notes", &[("traceparent", &unsampled)], "");
    app.client().request("GET", "/v1/notes", &[("traceparent", &sampled())], "");

    assert!(alone.ends_with("-00"), "{alone}");
    collector.trace(TRACE, 2);
    assert_eq!(collector.spans().len(), 2, "{:#?}", collector.spans());
}

#[test]
fn the_last_spans_are_sent_before_the_end() {
    let collector = Collector::start();
    let mut app = traced(&collector).start();
    let mut client = app.client();
    for _ in 0..300 {
        assert_eq!(client.get("/nowhere").status, 404);
    }

    app.terminate();
    let (status, time) = app.wait(Duration::from_secs(10));

    let names = collector.spans();
    println!("{} of 300 spans arrived, exit {status} after {time:?}", names.len());
    assert_eq!(names.len(), 300);
    assert_eq!(status.code(), Some(0));
}

/// Applies load to a service whose collector is at `port`. Returns the running service.
fn loaded(port: u16) -> App {
    let app = Setup::shared()
        .workload()
        .set("OTLP__ENDPOINT", format!("http://127.0.0.1:{port}"))
        .set("OTLP__FLUSH_TIMEOUT", "500ms")
        .set("LOG__LEVEL", "warn,app::platform::server=info")
        .start();
    app.client().send("POST", "/v1/notes", &[], &json!({"text": "hello"}));
    let load = Load::get(app.address, "/v1/notes/1");
    // Far more spans than the queue holds.
    let fill = load.closed(4, || {
        eventually(Duration::from_secs(60), "5,000 answers", || (load.answered() > 5_000).then_some(()));
    });
    let before = app.resident_kib();
    let more = load.closed(4, || {
        eventually(Duration::from_secs(60), "10,000 answers", || (load.answered() > 15_000).then_some(()));
    });

    let grown = app.resident_kib().saturating_sub(before);
    let answered = fill.with_status(200) + more.with_status(200);
    let slowest = fill.slowest().max(more.slowest());
    println!("{answered} answered, slowest {slowest:?}, {grown} KiB more after the last two thirds");
    assert_eq!(answered, fill.0.len() + more.0.len());
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(grown < 2048, "{grown} KiB");
    app
}

#[track_caller]
fn stop(mut app: App) {
    app.terminate();
    let (status, time) = app.wait(Duration::from_secs(10));
    println!("exit {status} after {time:?}");
    assert_eq!(status.code(), Some(0));
    assert!(time < Duration::from_millis(1500), "{time:?}");
}

#[test]
fn an_unavailable_collector_costs_no_request() {
    stop(loaded(free_port()));
}

#[test]
fn a_collector_that_never_answers_costs_no_request() {
    // The kernel accepts the connection, but no process reads from it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();

    let app = loaded(silent.local_addr().unwrap().port());

    app.logged("the full queue", |line| line["name"] == "BatchSpanProcessor.SpanDroppingStarted");
    stop(app);
}

#[test]
fn a_second_signal_does_not_wait_for_the_collector() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let setup = Setup::shared().set("OTLP__ENDPOINT", endpoint).set("OTLP__FLUSH_TIMEOUT", "5s");
    let mut app = setup.set("SHUTDOWN__READY_DELAY", "5s").start();
    app.get("/nowhere");

    app.terminate();
    app.logged("the first signal", |line| line["message"] == "shutting down");
    app.terminate();
    let (status, time) = app.wait(Duration::from_secs(10));

    println!("exit {status} after {time:?}");
    assert_eq!(status.code(), Some(128 + 15));
    assert!(time < Duration::from_secs(1), "{time:?}");
}

#[test]
fn spans_arrive_again_once_the_collector_is_back() {
    let port = free_port();
    let app = Setup::shared().set("OTLP__ENDPOINT", format!("http://127.0.0.1:{port}")).start();
    app.get("/nowhere");
    app.logged("a failure", |line| line["name"] == "BatchSpanProcessor.ExportError");

    let collector = Collector::on(port);
    app.client().request("GET", "/nowhere", &[("traceparent", &sampled())], "");

    collector.trace(TRACE, 1);
}

#[test]
fn a_session_that_is_slow_to_be_named_fails_no_request() {
    let collector = Collector::start();
    let proxy = Proxy::to(servers::postgres().port);
    let setup =
        traced(&collector).workload().set("DATABASE__PORT", proxy.port).set("DATABASE__MAX_CONNECTIONS", 2);
    let app = setup.start();
    let mut client = app.client();
    let both_are_idle = || {
        eventually(Duration::from_secs(5), "both sessions in the pool", || {
            (app.metric("database_connections{state=\"idle\"}") == 2.0).then_some(())
        });
    };
    both_are_idle();
    // Both sessions are fresh, so they are not checked before their next use.
    for _ in 0..4 {
        assert_eq!(client.get("/v1/notes").status, 200);
    }
    both_are_idle();

    // Longer than the timeout for the name, shorter than the timeout for a statement.
    proxy.set(Fault::Delay(Duration::from_millis(300)));
    let answer = client.request("GET", "/v1/notes", &[("traceparent", &sampled())], "");

    assert_eq!(answer.status, 200, "{answer:?}");
}

/// PostgreSQL shows the trace in the name of the session during a request.
#[test]
fn postgresql_knows_the_trace_while_it_works_for_it() {
    let collector = Collector::start();
    let app = traced(&collector).workload().start();
    let postgres = servers::postgres();
    let labeled = format!("{:.30} {TRACE}", app.database);
    let of_app = format!(
        "select distinct application_name from pg_stat_activity
         where datname = current_database() and application_name like '{:.30}%'",
        app.database
    );
    let names = || postgres.sql(&app.database, &of_app);

    let mut client = app.client();
    let request = format!("POST /transaction/1000 HTTP/1.1\r\nhost: a\r\ntraceparent: {}\r\n\r\n", sampled());
    client.write(request.as_bytes()).unwrap();
    eventually(Duration::from_secs(5), "the session", || names().contains(&labeled).then_some(()));
    assert_eq!(client.read_response(false).unwrap().status, 200);

    eventually(Duration::from_secs(5), "the name from before", || {
        (!names().contains(&labeled)).then_some(())
    });
    assert_eq!(names(), [&*app.database]);
}
