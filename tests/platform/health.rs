//! Health and management endpoints.

use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

use serde_json::json;

use crate::support::http::Client;
use crate::support::setup::Setup;
use crate::support::{eventually, free_port};

#[test]
fn all_endpoints_are_on_the_public_port_by_default() {
    let app = Setup::shared().start();

    assert_eq!(app.get("/health/live").json(), json!({"status": "alive"}));
    assert_eq!(app.get("/health/startup").json(), json!({"status": "started"}));
    assert!(app.get("/metrics").body.contains("build_info{"));
    let ready = app.get("/health/ready").json();
    assert_eq!(ready["status"], "ready");
    assert_eq!(ready["version"], env!("CARGO_PKG_VERSION"));
    assert!(ready["uptime_seconds"].as_f64().unwrap() > 0.0);
    for (name, criticality) in [("postgres", "required"), ("redis", "degraded")] {
        let dependency = &ready["dependencies"][name];
        assert_eq!((&dependency["status"], &dependency["criticality"]), (&json!("up"), &json!(criticality)));
        assert!(dependency["latency_ms"].as_f64().unwrap() > 0.0);
        assert!(dependency["age_ms"].as_u64().unwrap() < 10_000);
        assert_eq!(dependency["error"], json!(null));
    }
}

#[test]
fn with_a_management_port_the_public_port_hides_details() {
    let port = free_port();
    let setup = Setup::shared().workload().set("MANAGEMENT__PORT", port);
    let app = setup.set("MANAGEMENT__ADDRESS", "127.0.0.1").start();
    let mut management = Client::connect(SocketAddr::from(([127, 0, 0, 1], port)));

    assert_eq!(app.get("/health/ready").json(), json!({"status": "ready"}));
    assert_eq!(app.get("/health/live").status, 200);
    assert_eq!(app.get("/health/startup").status, 200);
    assert_eq!(app.get("/metrics").status, 404);
    assert_eq!(app.get("/v1/notes").status, 200);
    assert_eq!(management.get("/health/ready").json()["dependencies"]["postgres"]["status"], "up");
    assert_eq!(management.get("/health/live").status, 200);
    assert!(management.get("/metrics").body.contains("route=\"/health/startup\""));
    assert_eq!(management.get("/v1/notes").status, 404);
}

#[test]
fn the_healthcheck_command_reports_by_its_exit_code() {
    let port = free_port();
    let setup = || Setup::shared().set("HTTP__PORT", port);
    let check = |arguments: &[&str]| -> Output { setup().command(arguments).output().unwrap() };

    let absent = check(&["healthcheck"]);
    let _app = setup().start();

    assert_eq!(absent.status.code(), Some(1), "{absent:?}");
    for arguments in [&["healthcheck"] as &[&str], &["healthcheck", "live"], &["healthcheck", "startup"]] {
        let output = check(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
fn an_outdated_schema_is_not_served_until_it_is_migrated() {
    // With PostgreSQL as required and as optional dependency.
    for criticality in ["required", "degraded"] {
        let setup = Setup::shared().workload().set("HEALTH__POSTGRES", criticality);
        let mut migrate = setup.command(&["migrate"]);
        let app = setup.start_unready();
        app.logged("the outdated schema", |line| line["error"] == "schema_outdated");

        assert_eq!(app.get("/health/live").status, 200);
        assert_eq!(app.get("/health/startup").status, 503);
        let ready = app.get("/health/ready");
        assert_eq!((ready.status, &ready.json()["status"]), (503, &json!("starting")), "{criticality}");
        let answer = app.get("/v1/notes");
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{criticality}");

        assert!(migrate.output().unwrap().status.success());
        eventually(Duration::from_secs(5), "ready", || {
            (app.get("/health/ready").json()["status"] == "ready").then_some(())
        });
        assert_eq!(app.get("/v1/notes").status, 200);
    }
}
