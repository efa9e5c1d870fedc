//! A production stack for one test: secrets, a free port, and the files of a checkout.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::docker::{Checkout, IMAGE, Project, docker, image, run};
use crate::support::http::Client;
use crate::support::{eventually, free_port};

pub struct Stack {
    pub project: Project,
    pub address: SocketAddr,
    /// Folder of the checkout.
    folder: PathBuf,
    secrets: TempDir,
}

impl Stack {
    /// Creates a stack of the shared image without starting it.
    pub fn new(name: &str) -> Self {
        Self::of(image(), name)
    }

    /// The same with Prometheus, Grafana and the log collector, which `start` does not start.
    pub fn monitored(name: &str) -> Self {
        Self::with_overrides(image(), name, &["deploy/compose/observability.yml"])
    }

    pub fn of(checkout: &Checkout, name: &str) -> Self {
        Self::with_overrides(checkout, name, &[])
    }

    fn with_overrides(checkout: &Checkout, name: &str, overrides: &[&str]) -> Self {
        let checkout = checkout.path();
        let secrets = TempDir::new().unwrap();
        let folder = secrets.path().to_str().unwrap().to_owned();
        run(Command::new(checkout.join("deploy/make-secrets")).env("SECRETS_DIR", &folder));
        let port = free_port();
        let variables = [
            ("APP_NAME", "test".to_owned()),
            ("APP_IMAGE", IMAGE.to_owned()),
            ("APP_TAG", "clean".to_owned()),
            ("HTTP_BIND", "127.0.0.1".to_owned()),
            ("HTTP_PORT", port.to_string()),
            ("SECRETS_DIR", folder),
        ];
        let files = ["docker-compose.prod.yml"].iter().chain(overrides).map(|file| checkout.join(file));
        let project = Project::new(name, &files.collect::<Vec<_>>(), &variables);
        Self { project, address: ([127, 0, 0, 1], port).into(), folder: checkout.to_owned(), secrets }
    }

    /// Starts the stack with compose alone, without deploy/release.
    pub fn start(&self) {
        self.start_only(&[]);
    }

    /// Starts these services and their dependencies; without services, all of the enabled profiles.
    pub fn start_only(&self, services: &[&str]) {
        let up = ["up", "--detach", "--wait", "--wait-timeout", "120"];
        self.project.compose(&[&up, services].concat());
        // nginx resolves the names of the replicas every 3 s.
        eventually(Duration::from_secs(10), "a replica that nginx knows", || {
            (self.client().get("/health/ready").status == 200).then_some(())
        });
    }

    /// Returns a command of deploy/ for this stack.
    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.folder.join("deploy").join(name));
        command.args(arguments).envs(self.project.environment());
        command
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Returns the container of the first blue replica.
    pub fn app(&self) -> String {
        self.project.containers("blue").remove(0)
    }

    /// Returns the number of running containers of a service.
    pub fn running(&self, service: &str) -> usize {
        let project = format!("label=com.docker.compose.project={}", self.project.name);
        let service = format!("label=com.docker.compose.service={service}");
        docker(&["ps", "--quiet", "--filter", &project, "--filter", &service]).lines().count()
    }

    pub fn secrets(&self) -> &Path {
        self.secrets.path()
    }

    pub fn secret(&self, name: &str) -> String {
        fs::read_to_string(self.secrets().join(name)).unwrap()
    }
}
