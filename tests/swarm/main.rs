//! The stack of deploy/swarm on one node: hardening, and successful and failing updates under load. And on two nodes, of
//! which one is lost: the second node is an engine of its own in a network namespace of this machine. That test needs root
//! and the program of the running engine.
//!
//! The override in `stack` avoids kernel features of Swarm that the node may lack.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]

#[path = "../stack/docker.rs"]
#[expect(dead_code, reason = "part of the module is for compose")]
mod docker;
mod stack;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "part of the module is for the other test binaries")]
mod support;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::docker::{IMAGE, docker, inspect, is_full, run, variant};
use crate::stack::{Stack, Swarm};
use crate::support::{eventually, repeatedly};

// This machine, the second node, and the second node's bridge: addresses from the documentation ranges.
const MANAGER: &str = "198.51.100.1";
const WORKER: &str = "198.51.100.2";
const BRIDGE: &str = "203.0.113.1/24";

type Check = (&'static str, fn(&Stack));

#[test]
fn the_swarm_stack() {
    let _swarm = Swarm::start("127.0.0.1");
    let stack = Stack::new();
    let (_, time) = stack.deployed("clean");
    println!("up and migrated after {time:.1?}");
    stack.await_nginx();
    let checks: &[Check] = &[
        ("is hardened while it runs", is_hardened),
        ("shows no secret", shows_no_secret),
        ("changes nothing when it is deployed again", changes_nothing),
        ("updates without losing a request", updates),
        ("rolls back on command", rolls_back_on_command),
        ("stops at a migration that fails", stops_at_a_failed_migration),
    ];
    let slow_checks: &[Check] = &[
        ("rolls back what is never ready", rolls_back_what_is_never_ready),
        ("keeps its replicas while the database is down", keeps_its_replicas),
    ];
    for (name, check) in checks.iter().chain(if is_full() { slow_checks } else { &[] }) {
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
        // A service that has used up its attempts within the window stays down forever.
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

fn rolls_back_on_command(stack: &Stack) {
    let ((said, time), findings) = stack.under_load(|| stack.deployed("--rollback"));
    assert!(said.contains("rolled back: app"), "{said}");
    assert!(stack.running().ends_with(":clean"));
    println!("rolled back in {time:.1?}: {findings}");
    assert_eq!(findings.losses(), 0);
    stack.deployed("clean");
    let (said, _) = stack.refused("--rollback");
    assert!(said.contains("nothing to roll back to"), "{said}");
}

fn stops_at_a_failed_migration(stack: &Stack) {
    variant("swarm-unmigrated", "ENV APP__DATABASE__PORT=1");
    let before = stack.tasks("app");
    let (said, time) = stack.refused("swarm-unmigrated");
    println!("a failed migration was reported after {time:.1?}");
    assert!(
        said.contains("the migration is Failed") && said.contains("exiting after a fatal error"),
        "{said}"
    );
    assert_eq!(before, stack.tasks("app"), "{said}");
}

fn rolls_back_what_is_never_ready(stack: &Stack) {
    // No login to PostgreSQL is this fast, so the schema is never verified.
    variant("swarm-unready", "ENV APP__HEALTH__TIMEOUT=1ms");
    let ((said, time), findings) = stack.under_load(|| stack.refused("swarm-unready"));
    assert!(said.contains("rollback_completed") && said.contains("dependency is not up yet"), "{said}");
    assert!(stack.running().ends_with(":clean"));
    println!("rolled back after {time:.1?}: {findings}");
    assert_eq!(findings.losses(), 0);
}

/// Swarm replaces unhealthy tasks, but a database outage must not make replicas unhealthy.
fn keeps_its_replicas(stack: &Stack) {
    let (before, postgres) = (stack.tasks("app"), format!("{}_postgres", stack.name));
    docker(&["service", "scale", "--detach", &format!("{postgres}=0")]);
    repeatedly(Duration::from_secs(25), || assert_eq!(stack.tasks("app"), before));
    run(Command::new("docker").args(["service", "scale", &format!("{postgres}=1")]));
    assert_eq!(stack.tasks("app"), before);
}

/// An engine in a network namespace, connected to this machine by a veth pair.
struct Node {
    namespace: String,
    cable: String,
    engine: Option<Child>,
    folder: TempDir,
}

impl Node {
    fn start() -> Self {
        let number = std::process::id() % 100_000;
        let (namespace, cable) = (format!("app-{number}"), format!("app{number}"));
        let mut node = Self { namespace, cable, engine: None, folder: TempDir::new().unwrap() };
        let (namespace, cable) = (&node.namespace, &node.cable);
        for command in [
            format!("netns add {namespace}"),
            format!("link add {cable} type veth peer name eth0 netns {namespace}"),
            format!("address add {MANAGER}/24 dev {cable}"),
            format!("link set {cable} up"),
            format!("-netns {namespace} address add {WORKER}/24 dev eth0"),
            format!("-netns {namespace} link set eth0 up"),
            format!("-netns {namespace} link set lo up"),
            format!("-netns {namespace} route add default via {MANAGER}"),
        ] {
            run(Command::new("ip").args(command.split(' ')));
        }
        // The program of this machine's engine, which need not be in PATH; its helpers are in the same folder.
        let pid = fs::read_to_string("/var/run/docker.pid").unwrap();
        let program = fs::read_link(format!("/proc/{}/exe", pid.trim())).unwrap();
        let mut path = program.parent().unwrap().as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let file = |name: &str| node.folder.path().join(name);
        // Not `ip netns exec`, which hides the control groups.
        let engine = Command::new("nsenter")
            .arg(format!("--net=/var/run/netns/{namespace}"))
            .arg(program)
            .args(["--config-file", "/dev/null", "--bip", BRIDGE, "--host", &node.host()])
            .arg("--data-root")
            .arg(file("data"))
            .arg("--exec-root")
            .arg(file("run"))
            .arg("--pidfile")
            .arg(file("pid"))
            .env("PATH", path)
            .stdout(Stdio::null())
            .stderr(fs::File::create(file("log")).unwrap())
            .spawn()
            .unwrap();
        node.engine = Some(engine);
        eventually(Duration::from_secs(60), "a second engine", || {
            let info = Command::new("docker").args(["--host", &node.host(), "info"]).output().unwrap();
            info.status.success().then_some(())
        });
        node
    }

    fn host(&self) -> String {
        format!("unix://{}", self.folder.path().join("socket").display())
    }

    fn docker(&self, arguments: &[&str]) -> String {
        docker(&[&["--host", &self.host()], arguments].concat())
    }

    fn join(&self) {
        let archive = self.folder.path().join("image.tar");
        let archive = archive.to_str().unwrap();
        docker(&["save", "--output", archive, &format!("{IMAGE}:clean")]);
        self.docker(&["load", "--quiet", "--input", archive]);
        let token = docker(&["swarm", "join-token", "--quiet", "worker"]);
        self.docker(&["swarm", "join", "--token", token.trim(), &format!("{MANAGER}:2377")]);
    }

    /// Drops all traffic without notice, like a machine that loses power. A killed engine would leave its containers and
    /// their network running.
    fn unplug(&self) {
        run(Command::new("ip").args(["link", "set", &self.cable, "down"]));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            // Stops its containers too, and removes its mounts.
            let _ = kill_process(Pid::from_child(&engine), Signal::TERM);
            let _ = engine.wait();
        }
        let _ = Command::new("ip").args(["link", "delete", &self.cable]).output();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).output();
    }
}

#[test]
#[ignore = "starts a second engine: scripts/test-stack --full"]
fn a_node_of_the_swarm_is_lost() {
    let node = Node::start();
    let _swarm = Swarm::start(MANAGER);
    let stack = Stack::new();
    node.join();
    stack.deployed("clean");
    stack.await_nginx();
    let there = |state: &str| {
        let label = format!("label=com.docker.swarm.service.name={}_app", stack.name);
        node.docker(&["ps", "--quiet", "--filter", &label, "--filter", state]).lines().count()
    };
    assert_eq!((stack.containers("app").len(), there("health=healthy")), (1, 1), "replicas are spread");

    let ((detected, again), findings) = stack.under_load(|| {
        node.unplug();
        let start = Instant::now();
        let down = || docker(&["node", "ls", "--format", "{{.Status}}"]).contains("Down");
        eventually(Duration::from_secs(60), "a lost node", || down().then_some(()));
        let detected = start.elapsed();
        let healthy = || {
            let health = |id: &String| docker(&["inspect", "--format", "{{.State.Health.Status}}", id]);
            stack.containers("app").iter().filter(|id| health(id).trim() == "healthy").count()
        };
        eventually(Duration::from_secs(60), "both replicas here", || (healthy() == 2).then_some(()));
        (detected, start.elapsed())
    });
    println!(
        "a lost node was noticed after {detected:.1?}, its replica replaced after {again:.1?}: {findings}"
    );
    // nginx cannot distinguish a lost open connection from a slow one. It keeps at most 64 of them, 32 in each of its two
    // processes. Requests that need a new connection are retried elsewhere after proxy_connect_timeout.
    assert!(findings.losses() <= 64, "{findings}");
    assert!(again < Duration::from_secs(40), "{again:?}");
    stack.remove();
}
