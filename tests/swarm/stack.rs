//! A Swarm for the duration of a test, and the stack of deploy/swarm in it.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use crate::docker::{Checkout, IMAGE, docker, image, run};
use crate::support::http::Client;
use crate::support::meter::{Findings, Meter};
use crate::support::{eventually, free_port};

/// Replaces features that the test's kernel may lack, or that one machine cannot provide twice.
const OVERRIDE: &str = r#"
services:
  nginx:
    # No IPVS: neither virtual IPs nor the routing mesh. A port of the host can be used once.
    ports:
      - { target: 8080, published: "${HTTP_PORT:-80}", protocol: tcp, mode: host }
    deploy:
      endpoint_mode: dnsrr
      placement:
        constraints: ["node.labels.postgres == true"]
      update_config: { order: stop-first }
  redis:
    deploy:
      placement:
        constraints: ["node.labels.postgres == true"]

# No ESP: encrypted packets would not reach another node.
networks:
  front:
    driver: overlay
    internal: true
  back:
    driver: overlay
    internal: true
"#;

/// The engine as a manager. It leaves the Swarm on drop.
pub struct Swarm {
    /// Whether this network existed: the engine creates it for its first Swarm and never removes it.
    had_gateway: bool,
}

impl Swarm {
    pub fn start(address: &str) -> Self {
        let state = docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]);
        assert_eq!(
            state.trim(),
            "inactive",
            "this engine is already in a Swarm, which a test must not change"
        );
        let had_gateway =
            !docker(&["network", "ls", "--quiet", "--filter", "name=docker_gwbridge"]).is_empty();
        docker(&["swarm", "init", "--advertise-addr", address]);
        let swarm = Self { had_gateway };
        let node = docker(&["node", "ls", "--quiet"]);
        docker(&["node", "update", "--label-add", "postgres=true", node.trim()]);
        swarm
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["swarm", "leave", "--force"]).output();
        if !self.had_gateway {
            let _ = Command::new("docker").args(["network", "rm", "docker_gwbridge"]).output();
        }
    }
}

/// The stack. Removed with its data on drop.
pub struct Stack {
    pub name: String,
    pub address: SocketAddr,
    checkout: &'static Checkout,
    secrets: TempDir,
    overrides: NamedTempFile,
}

impl Stack {
    pub fn new() -> Self {
        let checkout = image();
        let secrets = TempDir::new().unwrap();
        run(Command::new(checkout.path().join("deploy/make-secrets")).env("SECRETS_DIR", secrets.path()));
        let overrides = NamedTempFile::new().unwrap();
        fs::write(overrides.path(), OVERRIDE).unwrap();
        let name = format!("test-swarm-{}", std::process::id());
        Self { name, address: ([127, 0, 0, 1], free_port()).into(), checkout, secrets, overrides }
    }

    /// Runs `deploy/swarm/deploy`. Returns its output and duration.
    pub fn deploy(&self, argument: &str) -> (Output, Duration) {
        let start = Instant::now();
        let output = Command::new(self.checkout.path().join("deploy/swarm/deploy"))
            .arg(argument)
            .env("STACK", &self.name)
            .env("STACK_OVERRIDE", self.overrides.path())
            .env("SECRETS_DIR", self.secrets.path())
            .env("RESOLVE_IMAGE", "never")
            .env("WAIT", "240")
            .env("APP_IMAGE", IMAGE)
            .env("HTTP_PORT", self.address.port().to_string())
            .env("NGINX_REPLICAS", "1")
            .output()
            .unwrap();
        (output, start.elapsed())
    }

    /// Runs a deploy that has to succeed. Returns its output.
    #[track_caller]
    pub fn deployed(&self, argument: &str) -> (String, Duration) {
        let (output, time) = self.deploy(argument);
        assert!(output.status.success(), "{}", text(&output));
        (text(&output), time)
    }

    /// Runs a deploy that has to fail. Returns its output.
    #[track_caller]
    pub fn refused(&self, argument: &str) -> (String, Duration) {
        let (output, time) = self.deploy(argument);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        (text(&output), time)
    }

    /// Waits until nginx has resolved the first replicas.
    pub fn await_nginx(&self) {
        eventually(Duration::from_secs(10), "a way to the service", || {
            (Client::connect(self.address).get("/health/ready").status == 200).then_some(())
        });
    }

    /// Runs `during` under load, which continues until nginx would have noticed the last change.
    pub fn under_load<T>(&self, during: impl FnOnce() -> T) -> (T, Findings) {
        let meter = Meter::new(self.address, 200);
        meter.run(|| {
            let limit = Duration::from_secs(60);
            meter.await_more(300, limit);
            let result = during();
            meter.await_more(1600, limit);
            result
        })
    }

    /// Returns the IDs of the tasks that should run.
    pub fn tasks(&self, service: &str) -> Vec<String> {
        let service = format!("{}_{service}", self.name);
        let list = docker(&["service", "ps", "--quiet", "--filter", "desired-state=running", &service]);
        let mut tasks: Vec<_> = list.lines().map(ToOwned::to_owned).collect();
        tasks.sort();
        tasks
    }

    /// Returns the containers of `service` on this engine.
    pub fn containers(&self, service: &str) -> Vec<String> {
        let label = format!("label=com.docker.swarm.service.name={}_{service}", self.name);
        docker(&["ps", "--quiet", "--filter", &label]).lines().map(ToOwned::to_owned).collect()
    }

    /// Returns the image of the service's replicas, which have to share one image.
    #[track_caller]
    pub fn running(&self) -> String {
        let mut images: Vec<_> = self.tasks("app").iter().map(|task| image_of(task)).collect();
        images.dedup();
        assert_eq!(images.len(), 1, "{images:?}");
        images.remove(0)
    }

    pub fn secret(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.secrets.path().join(name)
    }

    /// Returns leftovers of the stack, by label.
    fn remains(&self) -> String {
        let label = format!("label=com.docker.stack.namespace={}", self.name);
        ["service", "container", "network", "secret", "config", "volume"]
            .map(|kind| docker(&[kind, "ls", "--quiet", "--filter", &label]))
            .concat()
    }

    /// Removes the stack with its data, and waits until nothing is left.
    pub fn remove(&self) {
        docker(&["stack", "rm", &self.name]);
        // The command returns before containers and networks are removed.
        let volume = format!("{}_postgres", self.name);
        eventually(Duration::from_secs(90), "an empty engine", || {
            // Fails while the volume is in use, and if it does not exist.
            let _ = Command::new("docker").args(["volume", "rm", &volume]).output();
            self.remains().is_empty().then_some(())
        });
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", docker(&["stack", "ps", "--no-trunc", &self.name]));
        }
        if !self.remains().is_empty() {
            self.remove();
        }
    }
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn image_of(task: &str) -> String {
    let task: Value = serde_json::from_str(&docker(&["inspect", "--type", "task", task])).unwrap();
    task[0]["Spec"]["ContainerSpec"]["Image"].as_str().unwrap().to_owned()
}
