//! The stack of deploy/swarm on one node: what it runs, and updates, good and bad, under load.
//!
//! The node may lack what a Swarm takes from its kernel, which tests/stack/swarm-override.yml goes without.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::docker::{docker, inspect, run, variant};
use crate::support::repeatedly;
use crate::swarm_stack::{Stack, Swarm};

type Check = (&'static str, fn(&Stack));

#[test]
fn the_swarm_stack() {
    let _swarm = Swarm::start("127.0.0.1");
    let stack = Stack::new();
    let (_, time) = stack.deployed("clean");
    println!("up and migrated after {time:.1?}");
    stack.await_a_way_in();
    let checks: [Check; 8] = [
        ("is hardened while it runs", is_hardened),
        ("shows no secret", shows_no_secret),
        ("changes nothing when it is deployed again", changes_nothing),
        ("updates without losing a request", updates),
        ("goes back by command", goes_back),
        ("stops at a migration that fails", stops_at_a_failed_migration),
        ("rolls back what is never ready", rolls_back_what_is_never_ready),
        ("keeps its replicas while the database is away", keeps_its_replicas),
    ];
    for (name, check) in checks {
        let start = Instant::now();
        check(&stack);
        println!("-- {name}: {:.1?}", start.elapsed());
    }
    stack.remove();
}

fn is_hardened(stack: &Stack) {
    for (service, user, pids) in [
        ("nginx", "101:101", 64),
        ("app", "65532:65532", 128),
        ("postgres", "999:999", 128),
        ("redis", "999:999", 64),
    ] {
        let container = stack.containers(service).remove(0);
        let details = inspect("container", &container);
        let (host, config) = (&details["HostConfig"], &details["Config"]);
        assert_eq!(host["ReadonlyRootfs"], true, "{service}");
        assert_eq!(host["CapDrop"], json!(["ALL"]), "{service}");
        assert!(host["Memory"].as_u64() > Some(0) && host["NanoCpus"].as_u64() > Some(0), "{service}");
        assert_eq!((&config["User"], &host["PidsLimit"]), (&json!(user), &json!(pids)), "{service}");
        assert_eq!(host["LogConfig"]["Config"]["max-size"], "10m", "{service}");
        assert!(config["Healthcheck"]["StartInterval"].as_u64() > Some(0), "{service}");
        for mount in host["Mounts"].as_array().into_iter().flatten().filter(|mount| mount["Type"] == "tmpfs")
        {
            assert!(mount["TmpfsOptions"]["SizeBytes"].as_u64() > Some(0), "{service}: {mount}");
        }
        let copy = ["cp", "/etc/hostname", &format!("{container}:/written")].map(ToOwned::to_owned);
        let copy = Command::new("docker").args(copy).output().unwrap();
        assert!(String::from_utf8_lossy(&copy.stderr).contains("read-only"), "{service}");
        let service = inspect("service", &format!("{}_{service}", stack.name));
        let task = &service["Spec"]["TaskTemplate"];
        assert!(task["Resources"]["Reservations"]["MemoryBytes"].as_u64() > Some(0), "{task}");
        assert!(task["ContainerSpec"]["StopGracePeriod"].as_u64() > Some(0), "{task}");
        // Attempts that can be used up within their window leave a service down for ever.
        let restart = &task["RestartPolicy"];
        let [delay, attempts, window] =
            ["Delay", "MaxAttempts", "Window"].map(|name| restart[name].as_u64().unwrap());
        assert!(delay * attempts > window, "{restart}");
    }
    let app = &inspect("container", &stack.containers("app")[0])["HostConfig"]["Ulimits"];
    assert_eq!(app[0]["Hard"], 8192);
    for network in ["front", "back"] {
        assert_eq!(inspect("network", &format!("{}_{network}", stack.name))["Internal"], true);
    }
}

fn shows_no_secret(stack: &Stack) {
    for name in ["postgres_password", "database_password", "redis_password"] {
        let secret = stack.secret(name);
        assert_eq!(secret.len(), 64);
        for service in ["nginx", "app", "postgres", "redis"] {
            let service_name = format!("{}_{service}", stack.name);
            assert!(!docker(&["service", "inspect", &service_name]).contains(&secret), "{name} of {service}");
            assert!(!docker(&["service", "logs", &service_name]).contains(&secret), "{name} of {service}");
            for container in stack.containers(service) {
                assert!(!docker(&["inspect", &container]).contains(&secret), "{name} of {service}");
                assert!(
                    !docker(&["top", &container, "-eo", "pid,args"]).contains(&secret),
                    "{name} of {service}"
                );
            }
        }
    }
}

fn changes_nothing(stack: &Stack) {
    let services = ["nginx", "app", "postgres", "redis"];
    let before = services.map(|service| stack.tasks(service));
    let (said, time) = stack.deployed("clean");
    assert_eq!(before, services.map(|service| stack.tasks(service)), "{said}");
    println!("deployed again in {time:.1?}");
}

fn updates(stack: &Stack) {
    variant("swarm-next", "LABEL variant=next");
    let ((said, time), findings) = stack.under_load(|| stack.deployed("swarm-next"));
    assert!(said.contains("completed"), "{said}");
    assert!(stack.running().ends_with(":swarm-next"));
    println!("updated in {time:.1?}: {findings}");
    assert_eq!(findings.losses(), 0);
}

fn goes_back(stack: &Stack) {
    let ((said, time), findings) = stack.under_load(|| stack.deployed("--rollback"));
    assert!(said.contains("rolled back: app"), "{said}");
    assert!(stack.running().ends_with(":clean"));
    println!("went back in {time:.1?}: {findings}");
    assert_eq!(findings.losses(), 0);
    stack.deployed("clean");
    let (said, _) = stack.refused("--rollback");
    assert!(said.contains("nothing to go back to"), "{said}");
}

fn stops_at_a_failed_migration(stack: &Stack) {
    variant("swarm-unmigrated", "ENV APP__DATABASE__PORT=1");
    let before = stack.tasks("app");
    let (said, time) = stack.refused("swarm-unmigrated");
    println!("a failed migration was told after {time:.1?}");
    assert!(said.contains("the migration is Failed") && said.contains("stopped by an error"), "{said}");
    assert_eq!(before, stack.tasks("app"), "{said}");
}

fn rolls_back_what_is_never_ready(stack: &Stack) {
    // No login to PostgreSQL is so quick, so the schema is never verified.
    variant("swarm-unready", "ENV APP__HEALTH__TIMEOUT=1ms");
    let ((said, time), findings) = stack.under_load(|| stack.refused("swarm-unready"));
    assert!(said.contains("rollback_completed") && said.contains("dependency is not up yet"), "{said}");
    assert!(stack.running().ends_with(":clean"));
    println!("rolled back after {time:.1?}: {findings}");
    assert_eq!(findings.losses(), 0);
}

/// A Swarm replaces what is unhealthy. The database's absence is not the replicas' fault.
fn keeps_its_replicas(stack: &Stack) {
    let (before, postgres) = (stack.tasks("app"), format!("{}_postgres", stack.name));
    docker(&["service", "scale", "--detach", &format!("{postgres}=0")]);
    repeatedly(Duration::from_secs(25), || assert_eq!(stack.tasks("app"), before));
    run(Command::new("docker").args(["service", "scale", &format!("{postgres}=1")]));
    assert_eq!(stack.tasks("app"), before);
}
