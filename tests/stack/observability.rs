//! Prometheus in the production stack: what it finds, what its rules make of it, and that no panel of the dashboards is
//! empty. Grafana is not started: what the compose file says of it is looked at.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::docker::{inspect, probe, root, run};
use crate::production::assert_hardened;
use crate::stack::Stack;
use crate::support::eventually;
use crate::support::http::Client;
use crate::support::load::stop_after;

const LIMIT: Duration = Duration::from_secs(90);

/// The API of the stack's Prometheus, which has no published port.
pub struct Prometheus {
    url: String,
}

impl Prometheus {
    /// Starts the stack with these colours, and finds it.
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

    /// The samples of an expression at this moment, with their labels; not those that are NaN.
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

/// Title and expression of everything that a dashboard asks for.
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
    // Four scrapes, which is the least that Grafana takes.
    let asked = |(title, expression): (String, String)| {
        let expression = expression.replace("$__rate_interval", "20s");
        // What a panel shows instead of nothing would hide that there is nothing.
        let real = expression.strip_suffix(" or vector(0)").unwrap_or(&expression);
        (title, real.to_owned())
    };
    queries.into_iter().map(asked).collect()
}

#[test]
fn the_dashboards_and_rules_on_the_production_stack() {
    let stack = Stack::new("drydock-observability");
    let start = Instant::now();
    let prometheus = Prometheus::start(&stack, &["blue", "green"]);
    println!("up and healthy after {:.1?}", start.elapsed());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| ask_for_everything(&stack, &stop));
        stop_after(&stop, || {
            finds_every_replica(&prometheus);
            loses_its_dependencies(&stack);
            evaluates_every_rule(&prometheus);
            fills_every_panel(&prometheus);
        });
    });
    tells_what_was_cut_off(&stack, &prometheus);
    forgets_what_was_stopped(&prometheus);
    is_hardened(&stack);
    grafana_is_hardened(&stack);
    println!("{:.1?} in all", start.elapsed());
}

/// Every route, with answers of every kind.
fn ask_for_everything(stack: &Stack, stop: &AtomicBool) {
    let replica = address(stack, &stack.app());
    let mut made: u32 = 0;
    while !stop.load(Ordering::Relaxed) {
        made += 1;
        // Until an answer is missing.
        let _ = (|| {
            let mut client = Client::try_connect(stack.address)?;
            let slug = format!("slug{made}");
            let body = json!({"url": "https://example.com/", "slug": slug}).to_string();
            let json = ("content-type", "application/json");
            client.try_request("POST", "/v1/links", &[json], &body)?;
            client.try_request("POST", "/v1/links", &[json], &body)?;
            for _ in 0..5 {
                client.try_request("GET", &format!("/r/{slug}"), &[], "")?;
            }
            let path = format!("/v1/links/{slug}");
            let link = client.try_request("GET", &path, &[], "")?;
            let matching = ("if-match", link.header("etag").unwrap_or("\"\""));
            let change = json!({"url": "https://example.org/"}).to_string();
            client.try_request("PATCH", &path, &[json, matching], &change)?;
            client.try_request("DELETE", &path, &[], "")?;
            client.try_request("GET", "/v1/links", &[], "")?;
            client.try_request("GET", "/nothing", &[], "")?;
            client.try_request("GET", "/health/ready", &[], "")
        })();
        // nginx would let no such head through.
        Client::try_connect(replica).and_then(|mut client| client.write(b"NONSENSE\r\n\r\n"));
        thread::park_timeout(Duration::from_millis(20));
    }
}

fn finds_every_replica(prometheus: &Prometheus) {
    let start = Instant::now();
    eventually(LIMIT, "two replicas of each colour", || {
        let up =
            |color: &str| prometheus.query(&format!("up{{job=\"app\", color=\"{color}\"}} == 1")).len();
        (up("blue") == 2 && up("green") == 2).then_some(())
    });
    println!("-- finds every replica: {:.1?}", start.elapsed());
}

fn loses_its_dependencies(stack: &Stack) {
    let start = Instant::now();
    for service in ["redis", "postgres"] {
        stack.project.compose(&["stop", "--timeout", "5", service]);
        let code = if service == "redis" { 200 } else { 503 };
        let answers = || Some(Client::try_connect(stack.address)?.get("/v1/links").status);
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

/// A client that reads none of its answers holds a drain up until its deadline.
fn tells_what_was_cut_off(stack: &Stack, prometheus: &Prometheus) {
    let body = json!({"url": format!("https://example.com/{}", "x".repeat(1900))});
    for _ in 0..100 {
        assert_eq!(stack.client().send("POST", "/v1/links", &[], &body).status, 201);
    }
    let mut client = Client::connect(address(stack, &stack.project.containers("green")[0]));
    // 20 MB, more than the kernel keeps for it.
    client.write(&b"GET /v1/links?limit=100 HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100)).unwrap();
    stack.project.compose(&["--profile", "green", "stop", "green"]);
    let start = Instant::now();
    let alert = "ALERTS{alertname=\"WorkCutOff\", alertstate=\"firing\", color=\"green\"}";
    eventually(LIMIT, "the alert", || (prometheus.query(alert).len() == 1).then_some(()));
    println!("-- tells what was cut off: {:.1?}", start.elapsed());
}

/// The engine's name server has to say that a colour has no address, rather than that it failed.
fn forgets_what_was_stopped(prometheus: &Prometheus) {
    let start = Instant::now();
    eventually(LIMIT, "forgotten", || prometheus.query("up{color=\"green\"}").is_empty().then_some(()));
    println!("-- forgets what was stopped: {:.1?}", start.elapsed());
    assert_eq!(prometheus.query("up{color=\"blue\"} == 1").len(), 2);
}

/// Of a replica, past nginx.
fn address(stack: &Stack, container: &str) -> SocketAddr {
    let networks = inspect("container", container)["NetworkSettings"]["Networks"].take();
    let address = networks[stack.project.network("front")]["IPAddress"].as_str().unwrap().to_owned();
    format!("{address}:8080").parse().unwrap()
}

fn is_hardened(stack: &Stack) {
    assert_hardened(stack, "prometheus", "65534");
    // It sees the service, and neither what is behind nor what is before it.
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
