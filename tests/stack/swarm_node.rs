//! Two nodes, and one of them is lost. The second is an engine of its own, in a network namespace of this machine: it
//! needs root, and the program of the engine that runs here.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::docker::{IMAGE, docker, run};
use crate::support::eventually;
use crate::swarm_stack::{Stack, Swarm};

// Of this machine, of the second node, and of its own bridge: from the ranges for examples, which nobody has.
const MANAGER: &str = "198.51.100.1";
const WORKER: &str = "198.51.100.2";
const BRIDGE: &str = "203.0.113.1/24";

/// An engine in a network of its own, which one cable joins to this machine.
struct Node {
    namespace: String,
    cable: String,
    engine: Option<Child>,
    folder: TempDir,
}

impl Node {
    fn start() -> Self {
        let number = std::process::id() % 100_000;
        let (namespace, cable) = (format!("drydock-{number}"), format!("drydock{number}"));
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
        // The program that runs as this machine's engine, which need not be in the path; its helpers are beside it.
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

    /// From now on nothing from it arrives and nobody is told: what a machine without power looks like. An engine that
    /// is killed would leave its containers and their network at work.
    fn unplug(&self) {
        run(Command::new("ip").args(["link", "set", &self.cable, "down"]));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            // Ends its containers too, and takes its mounts away.
            let _ = kill_process(Pid::from_child(&engine), Signal::TERM);
            let _ = engine.wait();
        }
        let _ = Command::new("ip").args(["link", "delete", &self.cable]).output();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).output();
    }
}

#[test]
fn a_node_of_the_swarm_is_lost() {
    let node = Node::start();
    let _swarm = Swarm::start(MANAGER);
    let stack = Stack::new();
    node.join();
    stack.deployed("clean");
    stack.await_a_way_in();
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
    // What is sent on a connection that is open cannot be told from what is slow: nginx has 64 of them at most, 32 in each
    // of its two processes. Who needs a new one is handed on after proxy_connect_timeout.
    assert!(findings.losses() <= 64, "{findings}");
    assert!(again < Duration::from_secs(40), "{again:?}");
    stack.remove();
}
