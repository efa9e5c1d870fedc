//! The Docker command, copies of the build context, and compose projects that are removed with the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{contract, eventually};

/// A secret, planted where a careless build would pick it up.
pub const CANARY: &str = "canary-5c1b9e0d7f";
pub const REVISION: &str = "0123456789ab";
/// Time of the commit of the image: in seconds since 1970, and in the engine's format.
pub const COMMITTED: (u64, &str) = (1_000_000_000, "2001-09-09T01:46:40Z");
pub const IMAGE: &str = "app-test";
/// Image for commands that inspect other containers and networks.
const PROBE: &str = "busybox:1.37";

/// Returns whether this is `scripts/test-stack --full`, rather than the tests for every change.
pub fn is_full() -> bool {
    std::env::var_os("STACK_TESTS").is_some_and(|tests| tests == "full")
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `command` and returns its output. Panics if it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments))
}

#[track_caller]
pub fn inspect(kind: &str, name: &str) -> Value {
    serde_json::from_str::<Value>(&docker(&[kind, "inspect", name])).unwrap()[0].take()
}

pub fn is_stored(image: &str) -> bool {
    Command::new("docker").args(["image", "inspect", image]).output().unwrap().status.success()
}

/// Returns the name by which this engine knows an image that is pinned by tag and digest: the tag alone if only that is
/// stored, for example without a registry. Otherwise the engine pulls the image by its digest.
pub fn known(pinned: &str) -> &str {
    let tag = pinned.split('@').next().unwrap();
    if !is_stored(pinned) && is_stored(tag) { tag } else { pinned }
}

/// Returns a compose file with the image names that this engine knows.
fn with_known_images(file: &str) -> String {
    let images = file.lines().filter_map(|line| line.trim_start().strip_prefix("image: "));
    let pinned = images.filter(|image| image.contains('@'));
    pinned.fold(file.to_owned(), |text, image| text.replace(image, known(image)))
}

/// Runs a shell script on a container of `image` that was created but never started, `$1` in the script.
pub fn look_into(image: &str, script: &str) -> String {
    let container = docker(&["create", image]);
    let output = run(Command::new("sh").args(["-c", script, "sh", container.trim()]));
    docker(&["rm", container.trim()]);
    output
}

/// A copy of the checkout's files in git, with planted secrets. It also builds on an engine that knows the images only by
/// their tags.
pub struct Checkout(TempDir);

impl Checkout {
    pub fn new() -> Self {
        let copy = TempDir::new().unwrap();
        let list = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().unwrap();
        for name in String::from_utf8(list.stdout).unwrap().split_terminator('\0') {
            let to = copy.path().join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(root().join(name), &to).unwrap();
            if name.ends_with(".yml") {
                let text = fs::read_to_string(&to).unwrap();
                fs::write(to, with_known_images(&text)).unwrap();
            }
        }
        for name in [".env", "src/.env", "migrations/server.key", "src/keys/server.pem", "secrets/password"] {
            fs::create_dir_all(copy.path().join(name).parent().unwrap()).unwrap();
            fs::write(copy.path().join(name), format!("SECRET={CANARY}\n")).unwrap();
        }
        Self(copy)
    }

    /// Adds the notes as an additional domain.
    pub fn with_notes() -> Self {
        let checkout = Self::new();
        let copy = |from: &str, to: &str| {
            fs::copy(checkout.path().join(from), checkout.path().join(to)).unwrap();
        };
        copy("tests/workload/notes.rs", "src/notes.rs");
        // After all migrations of the service.
        copy("tests/workload/notes.sql", "migrations/29990101000000_create_notes.sql");
        let modules = "extern crate self as app;\npub mod notes;\npub mod platform;";
        checkout.edit("src/lib.rs", "pub mod platform;", modules);
        let routes = "|_setup| Router::new()";
        checkout.edit("src/main.rs", routes, &format!("{routes}.merge(app::notes::router())"));
        let checks = fs::read_to_string(checkout.path().join("deploy/checks")).unwrap();
        let checks = checks + "GET /v1/notes?limit=1 200\nGET /v1/notes/0 404\n";
        fs::write(checkout.path().join("deploy/checks"), checks).unwrap();
        checkout
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Replaces `from`, which has to exist, in one of its files.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let path = self.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{name}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Builds an image. Returns the output and the duration.
    pub fn build(&self, arguments: &[&str]) -> (Output, Duration) {
        let start = Instant::now();
        let mut build = Command::new("docker");
        build.args(["build", "--progress=plain"]).args(arguments).arg(self.path());
        (build.output().unwrap(), start.elapsed())
    }
}

/// Builds `IMAGE:tag` as a release does.
#[track_caller]
pub fn build_image(checkout: &Checkout, tag: &str, more: &[&str]) -> Duration {
    let labels = [
        concat!("NAME=", env!("CARGO_PKG_NAME")).to_owned(),
        concat!("VERSION=", env!("CARGO_PKG_VERSION")).to_owned(),
        format!("REVISION={REVISION}"),
        format!("SOURCE_DATE_EPOCH={}", COMMITTED.0),
    ];
    let name = format!("{IMAGE}:{tag}");
    let labels = labels.iter().flat_map(|label| ["--build-arg", label]);
    let arguments: Vec<_> = ["--tag", &name].into_iter().chain(labels).chain(more.iter().copied()).collect();
    let (output, time) = checkout.build(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    time
}

/// Returns the checkout from which the image of all tests was built.
pub fn image() -> &'static Checkout {
    static BUILT: OnceLock<Checkout> = OnceLock::new();
    BUILT.get_or_init(|| {
        let checkout = Checkout::with_notes();
        build_image(&checkout, "clean", &[]);
        checkout
    })
}

/// Builds `IMAGE:tag` from the image with one additional Dockerfile line.
pub fn variant(tag: &str, line: &str) {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("Dockerfile"), format!("FROM {IMAGE}:clean\n{line}\n")).unwrap();
    docker(&["build", "--quiet", "--tag", &format!("{IMAGE}:{tag}"), folder.path().to_str().unwrap()]);
}

/// Arguments that remove a project with its data and the image that compose built for it.
const DOWN: [&str; 8] = ["--profile", "*", "down", "--volumes", "--rmi", "local", "--timeout", "5"];

/// A compose project. Its containers, networks and volumes are removed on drop.
pub struct Project {
    pub name: String,
    files: Vec<PathBuf>,
    variables: Vec<(&'static str, String)>,
}

impl Project {
    pub fn new(name: &str, files: &[PathBuf], variables: &[(&'static str, String)]) -> Self {
        let name = format!("test-{name}-{}", std::process::id());
        Self { name, files: files.to_vec(), variables: variables.to_vec() }
    }

    /// Returns the same project with another file and variable. Either value removes the project on drop.
    pub fn with(&self, file: PathBuf, variable: (&'static str, String)) -> Self {
        let files = [&self.files[..], &[file]].concat();
        let variables = [&self.variables[..], &[variable]].concat();
        Self { name: self.name.clone(), files, variables }
    }

    /// Sets a variable for later commands.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.to_owned()));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("compose").args(arguments).envs(self.environment());
        command
    }

    /// Returns the variables that select this project in any `docker compose` command.
    pub fn environment(&self) -> impl Iterator<Item = (&'static str, String)> {
        let files: Vec<_> = self.files.iter().map(|file| file.to_str().unwrap()).collect();
        let own = [
            ("COMPOSE_PROJECT_NAME", self.name.clone()),
            ("COMPOSE_FILE", files.join(":")),
            // The developer's own file must not have an effect.
            ("COMPOSE_ENV_FILES", "/dev/null".to_owned()),
        ];
        own.into_iter().chain(self.variables.iter().cloned())
    }

    #[track_caller]
    pub fn compose(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    /// Returns the names of the containers of `service`.
    pub fn containers(&self, service: &str) -> Vec<String> {
        let list = self.compose(&["--profile", "*", "ps", "--all", "--format", "{{.Name}}", service]);
        let mut names: Vec<_> = list.lines().map(ToOwned::to_owned).collect();
        names.sort_unstable();
        names
    }

    pub fn network(&self, name: &str) -> String {
        format!("{}_{name}", self.name)
    }

    /// Returns the lines that the containers of `service` wrote to standard output, validated against their contract.
    #[track_caller]
    pub fn log(&self, service: &str) -> Vec<Value> {
        let logs: String =
            self.containers(service).iter().map(|container| docker(&["logs", container])).collect();
        let parse = if service == "nginx" { contract::nginx_line } else { contract::service_line };
        logs.lines().map(parse).collect()
    }

    /// Returns leftovers of the project, by label.
    pub fn remains(&self) -> String {
        let label = format!("label=com.docker.compose.project={}", self.name);
        ["container", "network", "volume"]
            .map(|kind| docker(&[kind, "ls", "--quiet", "--filter", &label]))
            .concat()
    }

    #[track_caller]
    pub fn remove(&self) {
        self.compose(&DOWN);
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.command(&["logs", "--tail", "20"]).output().unwrap();
            println!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        let _ = self.command(&DOWN).output();
    }
}

/// Waits until the health of a container is `expected`.
#[track_caller]
pub fn await_health(container: &str, expected: &str, limit: Duration) -> Duration {
    let start = Instant::now();
    eventually(limit, expected, || {
        let health = docker(&["inspect", "--format", "{{.State.Health.Status}}", container]);
        (health.trim() == expected).then_some(())
    });
    start.elapsed()
}

/// Runs a busybox command in a container of its own. Returns whether it succeeded, and its output.
pub fn probe(options: &[&str], command: &[&str]) -> (bool, String) {
    let mut probe = Command::new("docker");
    probe.args(["run", "--rm"]).args(options).arg(PROBE).args(command);
    let output = probe.output().unwrap();
    // 125: the engine failed to run the container, so there is no result.
    assert_ne!(output.status.code(), Some(125), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}
