//! From the sources to a registry and into service: each command of docs/operations.md, in its order.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tempfile::TempDir;

use crate::docker::{Checkout, docker, inspect, root, run};
use crate::stack::Stack;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The image of the registry.
const REGISTRY: &str = "app-test-registry";

/// A registry on a loopback port, where the engine speaks plain HTTP.
struct Registry {
    container: String,
    address: String,
}

impl Registry {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let settings =
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /registry\nhttp:\n  addr: :5000\n";
        // On the base that the stack's own image is built on.
        let logging = fs::read_to_string(root().join("deploy/logging/Dockerfile")).unwrap();
        let base = logging.lines().find(|line| line.starts_with("FROM ")).unwrap();
        let dockerfile = format!(
            "{base}\n\
             RUN apt-get update && apt-get install --yes --no-install-recommends docker-registry\n\
             COPY settings.yml /\n\
             CMD [\"docker-registry\", \"serve\", \"/settings.yml\"]\n"
        );
        fs::write(folder.path().join("settings.yml"), settings).unwrap();
        fs::write(folder.path().join("Dockerfile"), dockerfile).unwrap();
        docker(&["build", "--quiet", "--tag", REGISTRY, folder.path().to_str().unwrap()]);
        let container = docker(&["run", "--detach", "--publish", "127.0.0.1::5000", REGISTRY]);
        let container = container.trim().to_owned();
        let port = docker(&["port", &container, "5000/tcp"]);
        let address = port.lines().next().unwrap().replace("127.0.0.1", "localhost");
        Self { container, address }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &self.container]).output();
    }
}

/// A command of the checkout's own scripts/image, about the image `name`.
fn image(checkout: &Checkout, command: &str, name: &str) -> Command {
    let mut script = Command::new(checkout.path().join("scripts/image"));
    script.arg(command).env("IMAGE", name);
    script
}

#[test]
fn from_the_sources_into_service() {
    let registry = Registry::start();
    let checkout = Checkout::new();
    let git = |arguments: &[&str]| {
        run(Command::new("git").current_dir(checkout.path()).args(arguments).envs([
            ("GIT_AUTHOR_NAME", "test"),
            ("GIT_AUTHOR_EMAIL", "test@localhost"),
            ("GIT_COMMITTER_NAME", "test"),
            ("GIT_COMMITTER_EMAIL", "test@localhost"),
        ]))
    };
    git(&["init", "--quiet"]);
    git(&["add", "--all"]);
    git(&["commit", "--quiet", "--message", "Release"]);
    let revision = git(&["rev-parse", "--short=12", "HEAD"]).trim().to_owned();

    let name = format!("test-workflow-{}", std::process::id());
    run(&mut image(&checkout, "build", &name));
    let built = inspect("image", &format!("{name}:{VERSION}"));
    let committed = &built["Config"]["Labels"]["org.opencontainers.image.created"];
    assert_eq!(&built["Created"], committed, "the time of the commit");

    // A scanner of the test's own: what counts is what it is asked, and that its verdict is kept.
    let scanner = TempDir::new().unwrap();
    let trivy = scanner.path().join("trivy");
    fs::write(&trivy, "#!/bin/sh\necho \"$@\"\nexit \"${VERDICT:-0}\"\n").unwrap();
    fs::set_permissions(&trivy, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", scanner.path().display(), run(Command::new("printenv").arg("PATH")).trim());
    let mut scan = image(&checkout, "scan", &name);
    let asked = run(scan.env("PATH", &path));
    assert!(asked.contains("HIGH,CRITICAL") && asked.contains(&format!("{name}:{VERSION}")), "{asked}");
    assert!(!scan.env("VERDICT", "1").status().unwrap().success());

    let mut push = image(&checkout, "push", &name);
    run(push.env("REGISTRY", &registry.address));
    let remote = format!("{}/{name}", registry.address);
    let tags =
        run(Command::new("curl").args(["--silent", &format!("{}/v2/{name}/tags/list", registry.address)]));
    assert!(tags.contains(&format!("\"{VERSION}\"")), "{tags}");
    assert!(tags.contains(&format!("\"{VERSION}-{revision}\"")), "{tags}");
    let again = push.output().unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"), "{again:?}");

    // The machine that deploys has only the registry's.
    for tag in
        [format!("{name}:{VERSION}"), format!("{remote}:{VERSION}"), format!("{remote}:{VERSION}-{revision}")]
    {
        docker(&["rmi", &tag]);
    }
    let stack = Stack::of(&checkout, "workflow");
    run(stack.command("release", &[VERSION]).env("APP_IMAGE", &remote).env("WATCH", "2"));
    assert_eq!(stack.client().get("/health/ready").status, 200);
    let status = run(&mut stack.command("release", &["--status"]));
    assert!(status.contains(&format!("{remote}:{VERSION}")), "{status}");
    let label = docker(&["inspect", "--format", "{{json .Config.Labels}}", &stack.app()]);
    assert!(label.contains(&revision), "{label}");
    stack.project.remove();
    docker(&["rmi", &format!("{remote}:{VERSION}")]);
    assert_eq!(stack.project.remains(), "");

    // What is not committed cannot be pushed.
    fs::write(checkout.path().join("src/added.rs"), "").unwrap();
    run(image(&checkout, "build", &name).env("TAG", "dirty"));
    let refused = push.env("TAG", "dirty").output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not committed"), "{refused:?}");
    docker(&["rmi", &format!("{name}:dirty")]);
}
