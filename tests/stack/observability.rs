//! Prometheus in the production stack: its targets, its rules, and that no panel of the dashboards is empty. Grafana is not
//! started; only its compose configuration is checked. Also follows one request through nginx's log, the service's log, its
//! spans, and PostgreSQL's log.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::docker::{docker, inspect, is_full, probe, root, run};
use crate::production::assert_hardened;
use crate::stack::Stack;
use crate::support::collector::{Collector, hex, text};
use crate::support::eventually;
use crate::support::http::Client;
use crate::support::load::stop_after;

const LIMIT: Duration = Duration::from_secs(90);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const REQUEST: &str = "from-the-caller";
/// Locks the row for longer than log_min_duration_statement (1 s) and shorter than lock_timeout (2 s).
const HOLD: &str =
    "begin; select from notes where text = 'followed' for update; select pg_sleep(1.7); commit";

/// The API of the stack's Prometheus, which has no published port.
pub struct Prometheus {
    url: String,
}

impl Prometheus {
    /// Starts the stack with these colors and finds the address of Prometheus.
    pub fn start(stack: &Stack, colors: &[&str]) -> Self {
        let up =
            ["--profile", "*", "up", "--detach", "--wait", "--wait-timeout", "120", "nginx", "prometheus"];
        stack.project.compose(&[&up, colors].concat());
        let container = stack.project.containers("prometheus").remove(0);
        let networks = inspect("container", &container)["NetworkSettings"]["Networks"].take();
        assert_eq!(networks.as_object().unwrap().len(), 1);
        let address = networks[stack.project.network("observe")]["IPAddress"].as_str().unwrap().to_owned();
        Self { url: format!("http://{address}:9090/api/v1") }
    }

    pub fn get(&self, path: &str) -> Value {
        answer(Command::new("curl").args(["--silent", &format!("{}/{path}", self.url)]))
    }

    /// Returns the current samples of an expression with their labels, except NaN.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let query = format!("query={expression}");
        let url = format!("{}/query", self.url);
        let data = answer(Command::new("curl").args(["--silent", "--get", "--data-urlencode", &query, &url]));
        let samples = data["result"].as_array().unwrap().iter().map(|sample| {
            (sample["metric"].clone(), sample["value"][1].as_str().unwrap().parse::<f64>().unwrap())
        });
        samples.filter(|(_, value)| !value.is_nan()).collect()
    }
}

#[track_caller]
fn answer(command: &mut Command) -> Value {
    let mut answer: Value = serde_json::from_str(&run(command)).unwrap();
    assert_eq!(answer["status"], "success", "{answer}");
    answer["data"].take()
}

/// Returns the title and expression of every query of a dashboard.
fn queries(dashboard: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("deploy/grafana/dashboards").join(dashboard)).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((panel["title"].to_string(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    assert!(queries.len() > 20);
    // Four scrapes, the minimum that Grafana uses.
    let asked = |(title, expression): (String, String)| {
        let expression = expression.replace("$__rate_interval", "20s");
        // Removes the fallback of a panel, which would hide missing data.
        let real = expression.strip_suffix(" or vector(0)").unwrap_or(&expression);
        (title, real.to_owned())
    };
    queries.into_iter().map(asked).collect()
}

#[test]
fn the_dashboards_and_rules_on_the_production_stack() {
    let stack = Stack::monitored("observability");
    let start = Instant::now();
    let prometheus = Prometheus::start(&stack, &["blue", "green"]);
    println!("up and healthy after {:.1?}", start.elapsed());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| ask_for_everything(&stack, &stop));
        stop_after(&stop, || {
            finds_every_replica(&prometheus);
            if is_full() {
                loses_its_dependencies(&stack);
            }
            evaluates_every_rule(&prometheus);
            if is_full() {
                fills_every_panel(&prometheus);
            }
        });
    });
    if is_full() {
        reports_aborted_work(&stack, &prometheus);
        forgets_what_was_stopped(&prometheus);
    }
    is_hardened(&stack);
    grafana_is_hardened(&stack);
    println!("{:.1?} in total", start.elapsed());
}

/// Requests every route, with all kinds of responses.
fn ask_for_everything(stack: &Stack, stop: &AtomicBool) {
    let replica = address(stack, &stack.app());
    let mut made: u32 = 0;
    while !stop.load(Ordering::Relaxed) {
        made += 1;
        // Stops at the first missing response.
        let _ = (|| {
            let mut client = Client::try_connect(stack.address)?;
            let json = ("content-type", "application/json");
            let body = json!({"text": format!("note {made}")}).to_string();
            let note = client.try_request("POST", "/v1/notes", &[json], &body)?;
            client.try_request("POST", "/v1/notes", &[json], "{}")?;
            // Errors of nginx itself have another format.
            let note: Value = serde_json::from_str(&note.body).ok()?;
            let path = format!("/v1/notes/{}", note["id"]);
            for _ in 0..5 {
                client.try_request("GET", &path, &[], "")?;
            }
            client.try_request("DELETE", &path, &[], "")?;
            client.try_request("DELETE", &path, &[], "")?;
            client.try_request("GET", "/v1/notes", &[], "")?;
            client.try_request("GET", "/nothing", &[], "")?;
            client.try_request("GET", "/health/ready", &[], "")
        })();
        // Directly, because nginx would reject this head.
        Client::try_connect(replica).and_then(|mut client| client.write(b"NONSENSE\r\n\r\n"));
        thread::park_timeout(Duration::from_millis(20));
    }
}

fn finds_every_replica(prometheus: &Prometheus) {
    let start = Instant::now();
    eventually(LIMIT, "two replicas of each color", || {
        let up = |color: &str| prometheus.query(&format!("up{{job=\"app\", color=\"{color}\"}} == 1")).len();
        (up("blue") == 2 && up("green") == 2).then_some(())
    });
    println!("-- finds every replica: {:.1?}", start.elapsed());
}

fn loses_its_dependencies(stack: &Stack) {
    let start = Instant::now();
    for service in ["redis", "postgres"] {
        stack.project.compose(&["stop", "--timeout", "5", service]);
        let code = if service == "redis" { 200 } else { 503 };
        let answers = || Some(Client::try_connect(stack.address)?.get("/v1/notes").status);
        eventually(LIMIT, service, || (answers() == Some(code)).then_some(()));
        stack.project.compose(&["up", "--detach", "--wait", "--no-deps", service]);
    }
    println!("-- loses its dependencies: {:.1?}", start.elapsed());
}

fn evaluates_every_rule(prometheus: &Prometheus) {
    let start = Instant::now();
    let written: usize = ["recording", "alerts"]
        .iter()
        .map(|name| fs::read_to_string(root().join(format!("deploy/prometheus/{name}.yml"))).unwrap())
        .map(|text| text.matches("alert: ").count() + text.matches("record: ").count())
        .sum();
    let rules = eventually(LIMIT, "every rule evaluated", || {
        let groups = prometheus.get("rules")["groups"].take();
        let rules = groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
        let rules: Vec<_> = rules.cloned().collect();
        let ok = |rule: &Value| {
            let error = rule["lastError"].as_str().unwrap_or_default();
            assert_eq!(error, "", "{rule}");
            rule["health"] == "ok"
        };
        rules.iter().all(ok).then_some(rules)
    });
    assert_eq!(rules.len(), written);
    let of = |kind: &str| {
        let rules = rules.iter().filter(|rule| rule["type"] == kind);
        rules.map(|rule| rule["name"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    for name in of("recording") {
        eventually(LIMIT, &name, || (!prometheus.query(&name).is_empty()).then_some(()));
    }
    println!(
        "-- evaluates {} alerts and {} recorded names: {:.1?}",
        of("alerting").len(),
        of("recording").len(),
        start.elapsed()
    );
}

fn fills_every_panel(prometheus: &Prometheus) {
    let start = Instant::now();
    let queries = [queries("service.json"), queries("machine-room.json")].concat();
    for (title, expression) in &queries {
        eventually(LIMIT, &format!("{title}: {expression}"), || {
            (!prometheus.query(expression).is_empty()).then_some(())
        });
    }
    println!("-- fills every panel: {} queries, {:.1?}", queries.len(), start.elapsed());
}

/// A client that does not read its responses holds a drain until its deadline.
fn reports_aborted_work(stack: &Stack, prometheus: &Prometheus) {
    let body = json!({"text": "x".repeat(1900)});
    for _ in 0..100 {
        assert_eq!(stack.client().send("POST", "/v1/notes", &[], &body).status, 201);
    }
    let mut client = Client::connect(address(stack, &stack.project.containers("green")[0]));
    // 20 MB, more than the kernel buffers.
    client.write(&b"GET /v1/notes?limit=100 HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100)).unwrap();
    stack.project.compose(&["--profile", "green", "stop", "green"]);
    let start = Instant::now();
    let alert = "ALERTS{alertname=\"WorkCutOff\", alertstate=\"firing\", color=\"green\"}";
    eventually(LIMIT, "the alert", || (prometheus.query(alert).len() == 1).then_some(()));
    println!("-- reports aborted work: {:.1?}", start.elapsed());
}

/// The engine's DNS has to return no addresses for a stopped color, instead of an error.
fn forgets_what_was_stopped(prometheus: &Prometheus) {
    let start = Instant::now();
    eventually(LIMIT, "forgotten", || prometheus.query("up{color=\"green\"}").is_empty().then_some(()));
    println!("-- forgets a stopped color: {:.1?}", start.elapsed());
    assert_eq!(prometheus.query("up{color=\"blue\"} == 1").len(), 2);
}

/// Returns the address of a replica, to bypass nginx.
fn address(stack: &Stack, container: &str) -> SocketAddr {
    let networks = inspect("container", container)["NetworkSettings"]["Networks"].take();
    let address = networks[stack.project.network("front")]["IPAddress"].as_str().unwrap().to_owned();
    format!("{address}:8080").parse().unwrap()
}

fn is_hardened(stack: &Stack) {
    assert_hardened(stack, "prometheus", "65534");
    // Prometheus reaches the service, but neither its dependencies nor nginx.
    let network = stack.project.network("observe");
    let reaches = |host: &str, port: &str| probe(&["--network", &network], &["nc", "-w", "2", host, port]).0;
    assert!(reaches("blue", "9090"));
    for (host, port) in [("postgres", "5432"), ("redis", "6379"), ("nginx", "8080")] {
        assert!(!reaches(host, port), "{host}");
    }
    let (_, routes) = probe(&["--network", &network], &["ip", "route"]);
    assert!(!routes.contains("default"), "{routes}");
}

fn grafana_is_hardened(stack: &Stack) {
    let config = stack.project.compose(&["--profile", "*", "config", "--format", "json"]);
    let config: Value = serde_json::from_str(&config).unwrap();
    let grafana = &config["services"]["grafana"];
    assert_eq!((&grafana["read_only"], &grafana["cap_drop"]), (&json!(true), &json!(["ALL"])));
    assert_eq!(grafana["user"], "472:0");
    assert!(grafana["security_opt"].to_string().contains("no-new-privileges"));
    let limits = &grafana["deploy"]["resources"]["limits"];
    assert!(["cpus", "memory", "pids"].iter().all(|limit| !limits[limit].is_null()), "{limits}");
    assert_eq!(grafana["ports"].as_array().unwrap().len(), 1);
    assert_eq!(grafana["ports"][0]["host_ip"], "127.0.0.1");
    assert_eq!(grafana["networks"], json!({"observe": null, "view": null}));
    assert_eq!(grafana["environment"]["GF_ANALYTICS_REPORTING_ENABLED"], "false");
    assert!(
        grafana["environment"].as_object().unwrap().keys().all(|name| name != "GF_SECURITY_ADMIN_PASSWORD")
    );
    assert_eq!(grafana["secrets"][0]["source"], "grafana_password");
}

#[test]
fn a_request_is_followed_from_the_edge_to_the_statement() {
    let mut stack = Stack::new("followed");
    let collector = Collector::start();
    // The address of this machine in a network of the service, which exists from now on.
    stack.project.compose(&["create", "--quiet-pull", "postgres"]);
    let network = inspect("network", &stack.project.network("back"));
    let gateway = network["IPAM"]["Config"][0]["Gateway"].as_str().unwrap();
    stack.project.set("OTLP_ENDPOINT", &format!("http://{gateway}:{}", collector.address.port()));
    stack.start();
    let mut client = stack.client();
    let note = client.send("POST", "/v1/notes", &[], &json!({"text": "followed"})).json();

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
        let headers = [("x-request-id", REQUEST), ("traceparent", &*traceparent)];
        client.request("DELETE", &format!("/v1/notes/{}", note["id"]), &headers, "")
    });

    assert_eq!((answer.status, answer.header("x-request-id")), (204, Some(REQUEST)));
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
    assert_eq!((&edge["traceparent"], &edge["status"]), (&json!(ours), &json!(204)), "{edge}");
    assert_eq!((&inner["trace_id"], &inner["span_id"]), (&json!(TRACE), &json!(span_id)), "{inner}");
    let statement = eventually(Duration::from_secs(5), "the statement in the log", || {
        // The server logs to standard error, which `docker` does not return.
        let log = Command::new("docker").args(["logs", &postgres]).output().unwrap();
        let log = String::from_utf8_lossy(&log.stderr).into_owned();
        let is_ours =
            |line: &&str| [TRACE, "duration: ", "delete from notes"].iter().all(|part| line.contains(part));
        log.lines().find(is_ours).map(ToOwned::to_owned)
    });
    println!("{statement}");

    // An invalid ID is replaced, and the response contains the new ID.
    let answer = client.request("GET", "/v1/notes", &[("x-request-id", "a b\"c")], "");
    assert_eq!(answer.header("x-request-id").unwrap().len(), 32);
    assert_eq!(docker(&["inspect", "--format", "{{.RestartCount}}", &stack.app()]).trim(), "0");
}
