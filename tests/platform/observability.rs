//! Consistency of rules, dashboards, alert tests and runbook with the service and with each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::setup::Setup;

const RULES: [&str; 2] = ["deploy/prometheus/recording.yml", "deploy/prometheus/alerts.yml"];
const DASHBOARDS: [&str; 2] =
    ["deploy/grafana/dashboards/service.json", "deploy/grafana/dashboards/machine-room.json"];

fn read(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the values of `key` in a rule file. A value may continue on the next lines with deeper indentation.
fn values(text: &str, key: &str) -> Vec<String> {
    let mut values = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((before, value)) = line.split_once(&format!("{key}: ")) else { continue };
        let mut value = value.to_owned();
        let column = before.len() - before.trim_start().len();
        while value.starts_with(">-")
            && let Some(more) = lines.next_if(|line| line.len() - line.trim_start().len() > column)
        {
            value += more;
        }
        values.push(value.trim_start_matches(">-").trim().to_owned());
    }
    values
}

/// Collects every string with the key `expr`.
fn collect_expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("expr").map(|text| text.as_str().unwrap().to_owned()));
            map.values().for_each(|value| collect_expressions(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| collect_expressions(value, found)),
        _ => {}
    }
}

/// Removes the text between `open` and `close`.
fn without(text: &str, open: char, close: char) -> String {
    let parts = text.split(open).enumerate();
    parts.map(|(n, part)| if n == 0 { part } else { part.split_once(close).unwrap().1 }).collect()
}

/// Returns the metric names in an expression: everything except numbers, keywords and functions.
fn metrics(expression: &str) -> BTreeSet<String> {
    const WORDS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "ignoring"];
    let mut text = without(&without(expression, '{', '}'), '[', ']');
    for list in ["by (", "on (", "ignoring (", "group_left ("] {
        text = text.split(list).enumerate().fold(String::new(), |text, (n, part)| {
            text + if n == 0 { part } else { part.split_once(')').unwrap().1 }
        });
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut names = BTreeSet::new();
    while let Some(start) = text.find(is_part) {
        let rest = &text[start..];
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        let is_function =
            behind.trim_start().starts_with('(') || ["sum", "min", "max", "count"].contains(&name);
        if !name.starts_with(|c: char| c.is_ascii_digit()) && !WORDS.contains(&name) && !is_function {
            names.insert(name.to_owned());
        }
        text = behind.to_owned();
    }
    names
}

#[test]
fn rules_and_dashboards_ask_for_metrics_that_exist() {
    let app = Setup::shared().workload().start();
    let mut client = app.client();
    client.send("POST", "/v1/notes", &[], &serde_json::json!({"text": "hello"}));
    client.get("/v1/notes/1");
    app.client().write(b"NONSENSE\r\n\r\n");
    let malformed = || (app.metric("http_connection_errors_total{kind=\"malformed\"}") == 1.0).then_some(());
    crate::support::eventually(std::time::Duration::from_secs(5), "the error", malformed);
    let scrape = app.get("/metrics").body;
    let lines = scrape.lines().filter(|line| !line.starts_with('#'));
    let mut known: BTreeSet<_> =
        lines.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect();
    let rules = RULES.map(read).concat();
    known.extend(values(&rules, "record"));
    // Metrics of Prometheus itself.
    let own = ["up", "scrape_duration_seconds", "ALERTS", "prometheus_rule_evaluation_failures_total"];
    known.extend(own.map(ToOwned::to_owned));

    let mut expressions = values(&rules, "expr");
    for dashboard in DASHBOARDS {
        collect_expressions(&serde_json::from_str(&read(dashboard)).unwrap(), &mut expressions);
    }
    let asked: BTreeSet<_> = expressions.iter().flat_map(|expression| metrics(expression)).collect();

    println!("{} expressions use {} metrics", expressions.len(), asked.len());
    assert!(expressions.len() > 80 && asked.len() > 40, "{asked:?}");
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_objective_of_latency_is_a_bucket() {
    let metrics = read("src/platform/telemetry/metrics.rs");
    let buckets = metrics.split_once("REQUEST_BUCKETS").unwrap().1.split_once("];").unwrap().0;
    let rules = read("deploy/prometheus/recording.yml");
    let bound = rules.split_once("le=\"").unwrap().1.split_once('"').unwrap().0;
    assert!(buckets.contains(&format!(" {bound},")), "{bound} {buckets}");
}

#[test]
fn the_rules_expect_what_compose_starts() {
    let (compose, rules) = (read("docker-compose.prod.yml"), read("deploy/prometheus/recording.yml"));
    let default = |name: &str| {
        let rest = compose.split_once(&format!("${{{name}:-")).unwrap().1;
        rest.split_once('}').unwrap().0.to_owned()
    };
    let expected = |name: &str| {
        let rest = rules.split_once(&format!("record: expected:{name}\n")).unwrap().1;
        let rest = rest.split_once("vector(").unwrap().1;
        rest.split_once(')').unwrap().0.parse::<u64>().unwrap()
    };
    assert_eq!(expected("replicas").to_string(), default("APP_REPLICAS"));
    assert_eq!(format!("{}M", expected("memory_bytes") >> 20), default("APP_MEMORY"));
    let interval = read("deploy/prometheus/prometheus.yml");
    assert!(interval.contains("evaluation_interval: 15s"));
    assert!(rules.contains("15 * sum_over_time"));
}

#[test]
fn every_alert_is_fired_kept_quiet_and_explained() {
    let (tests, runbook) = (read("deploy/prometheus/alerts_test.yml"), read("docs/runbook.md"));
    let alerts = values(&read("deploy/prometheus/alerts.yml"), "alert");
    assert!(alerts.len() > 10, "{alerts:?}");
    let cases: Vec<_> = tests.split("\n  - name: ").skip(1).collect();
    for alert in &alerts {
        let (fires, quiet) = (format!("{alert} fires"), format!("{alert} is quiet"));
        let asks = |case: &str| case.contains(&format!("alertname: {alert}"));
        let fired = cases.iter().find(|case| case.starts_with(&fires)).expect(&fires);
        assert!(asks(fired) && fired.contains("exp_labels") && fired.contains("exp_annotations"), "{fires}");
        let kept = cases.iter().find(|case| case.starts_with(&quiet)).expect(&quiet);
        assert!(asks(kept) && kept.contains("input_series") && kept.contains("exp_alerts: []"), "{quiet}");
        let anchor = format!("runbook: docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(read("deploy/prometheus/alerts.yml").contains(&anchor), "{anchor}");
        let section = runbook.split_once(&format!("\n## {alert}\n")).expect(alert).1;
        let section = section.split("\n## ").next().unwrap();
        assert!(section.len() > 200, "{alert}");
    }
    // The runbook has no sections for alerts that do not exist.
    let sections = runbook.lines().filter_map(|line| line.strip_prefix("## "));
    for section in sections.filter(|section| !section.contains(' ')) {
        assert!(alerts.iter().any(|alert| alert == section), "{section}");
    }
}
