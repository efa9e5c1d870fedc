//! `make faults`: breaks the production stack in several ways under load. Prints after how many seconds which alert fires, and
//! when the alerts about the cause resolve. docs/runbook.md has these seconds.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tempfile::TempDir;

use crate::docker::run;
use crate::observability::Prometheus;
use crate::release::build_late;
use crate::stack::Stack;
use crate::support::eventually;
use crate::support::load::Load;

/// Requests per second of each kind: one kind needs PostgreSQL, the other is answered from the cache.
const RATE: u32 = 25;
const LIMIT: Duration = Duration::from_secs(240);
/// The windows of these alerts are longer than a fault of this test.
const REMEMBER: [&str; 3] = ["ErrorBudgetBurnsFast", "ErrorBudgetBurnsSlowly", "Panics"];

type Act = fn(&Stack);

/// Name, start, end, and alerts that have to fire.
type Fault = (&'static str, Act, Act, &'static [&'static str]);

#[test]
#[ignore = "takes a quarter of an hour: `make faults`"]
fn faults() {
    build_late();
    let faults: [Fault; 5] = [
        ("Redis is stopped", |stack| stop(stack, "redis"), |stack| start(stack, "redis"), &["Degraded"]),
        (
            "PostgreSQL is stopped",
            |stack| stop(stack, "postgres"),
            |stack| start(stack, "postgres"),
            &["NoReplicaReady", "ReplicaNotReady", "ErrorBudgetBurnsFast"],
        ),
        ("a table is locked again and again", lock, unlock, &["PoolSaturated", "ErrorBudgetBurnsFast"]),
        ("400 clients never pause", overload, |_| {}, &["Shedding", "ErrorBudgetBurnsFast"]),
        ("a release panics and answers 500", release, roll_back, &["Panics", "ErrorBudgetBurnsFast"]),
    ];
    for fault in faults {
        measure(fault);
    }
}

fn measure((name, begin, end, expected): Fault) {
    let stack = Stack::monitored("faults");
    remember_six_hours(&stack);
    let prometheus = Prometheus::start(&stack, &["blue"]);
    // nginx resolves the names of the replicas every two seconds.
    let note = eventually(LIMIT, "a note", || {
        let answer = stack.client().send("POST", "/v1/notes", &[], &json!({"text": "faults"}));
        (answer.status == 201).then(|| answer.json()["id"].to_string())
    });
    let (list, note) = ("/v1/notes", format!("/v1/notes/{note}"));
    let (list, note) = (Load::get(stack.address, list), Load::get(stack.address, &note));
    list.open(RATE, || {
        note.open(RATE, || {
            let a_minute = "count_over_time(version:requests:rate1m[5m]) >= 4";
            eventually(LIMIT, "load", || (!prometheus.query(a_minute).is_empty()).then_some(()));
            let before = firing(&prometheus);
            assert!(before.is_empty(), "{before:?}");
            let (start, mut fired) = (Instant::now(), BTreeMap::new());
            thread::scope(|scope| {
                scope.spawn(|| begin(&stack));
                eventually(LIMIT, "the expected alerts", || {
                    for alert in firing(&prometheus) {
                        fired.entry(alert).or_insert_with(|| start.elapsed());
                    }
                    expected.iter().all(|alert| fired.contains_key(*alert)).then_some(())
                });
            });
            let repaired = Instant::now();
            end(&stack);
            eventually(LIMIT, "resolved", || {
                firing(&prometheus).iter().all(|alert| REMEMBER.contains(&alert.as_str())).then_some(())
            });
            println!("{name}: {fired:.0?}; resolved after {:.0?}", repaired.elapsed());
        });
    });
}

/// Backfills six hours of metrics without errors.
fn remember_six_hours(stack: &Stack) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut history = String::new();
    for (name, value) in [("slo:requests:rate1m", 2 * RATE), ("slo:bad:rate1m", 0)] {
        let _ = writeln!(history, "# TYPE {name} gauge");
        for slo in ["availability", "latency"] {
            for time in (now - 6 * 3600..now - 60).step_by(15) {
                let _ = writeln!(history, "{name}{{slo=\"{slo}\"}} {value} {time}");
            }
        }
    }
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("history");
    fs::write(&file, history + "# EOF\n").unwrap();
    let volume = format!("{}:/history:ro", file.display());
    let run = [
        "--profile",
        "*",
        "run",
        "--rm",
        "--no-deps",
        "--env",
        "TMPDIR=/prometheus",
        "--volume",
        &volume,
        "--entrypoint",
        "promtool",
    ];
    let command = ["prometheus", "tsdb", "create-blocks-from", "openmetrics", "/history", "/prometheus"];
    stack.project.compose(&[&run[..], &command].concat());
}

fn firing(prometheus: &Prometheus) -> Vec<String> {
    let alerts = prometheus.query("count by (alertname) (ALERTS{alertstate=\"firing\"})");
    alerts.into_iter().map(|(labels, _)| labels["alertname"].as_str().unwrap().to_owned()).collect()
}

fn stop(stack: &Stack, service: &str) {
    stack.project.compose(&["stop", "--timeout", "5", service]);
}

fn start(stack: &Stack, service: &str) {
    stack.project.compose(&["start", service]);
}

/// Locks for 5 s at a time until the file is removed; requests time out after 2 s.
fn lock(stack: &Stack) {
    let script = "touch /tmp/lock; while [ -e /tmp/lock ]; do
        psql --username=postgres --dbname=app --quiet --command='begin' --command='lock table notes' \
            --command='select pg_sleep(5)' --command='commit' >/dev/null; sleep 0.1; done";
    stack.project.compose(&["exec", "--no-TTY", "--detach", "postgres", "sh", "-c", script]);
}

fn unlock(stack: &Stack) {
    stack.project.compose(&["exec", "--no-TTY", "postgres", "rm", "/tmp/lock"]);
}

/// Ends by itself after its alerts have had time to fire.
fn overload(stack: &Stack) {
    let report = Load::get(stack.address, "/v1/notes?limit=100").closed(400, || {
        thread::park_timeout(Duration::from_secs(150));
    });
    println!("{} answered, {} refused", report.with_status(200), report.with_status(503));
}

fn release(stack: &Stack) {
    run(stack.command("release", &["late"]).env("WATCH", "1").env("MAX_ERROR_PERCENT", "100"));
}

fn roll_back(stack: &Stack) {
    run(&mut stack.command("release", &["--rollback"]));
}
