//! From the sources to a registry and to production: each command of docs/operations.md, in order.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::docker::{Checkout, docker, inspect, look_into, root, run};
use crate::stack::Stack;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The image of the registry, which also contains cosign, with the major version of release.yml.
const REGISTRY: &str = "app-test-registry";
const REGISTRY_BASE: &str = "debian:forky-slim";

/// A registry on a loopback port, where the engine uses plain HTTP.
struct Registry {
    container: String,
    address: String,
}

impl Registry {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let settings =
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /registry\nhttp:\n  addr: :5000\n";
        let dockerfile = format!(
            "FROM {REGISTRY_BASE}\n\
             RUN apt-get update && apt-get install --yes --no-install-recommends cosign docker-registry\n\
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

/// Creates a program `name` in `folder` and returns a PATH that finds it first.
fn program(folder: &Path, name: &str, script: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", folder.display(), run(Command::new("printenv").arg("PATH")).trim())
}

/// Returns a PATH with a fake engine that replaces grype. The fake prints its input; the test checks that its verdict is
/// respected.
fn with_a_scanner(folder: &Path) -> String {
    let engine = run(Command::new("which").arg("docker"));
    let scan = "cat >&2; echo \"$@\" >&2; exit \"${VERDICT:-0}\"";
    let script = format!("case \"$*\" in *anchore/grype*) {scan};; esac\nexec {} \"$@\"", engine.trim());
    program(folder, "docker", &script)
}

/// A committed checkout, the image `name` built from it, and a registry.
struct Release {
    registry: Registry,
    checkout: Checkout,
    name: String,
    revision: String,
}

impl Release {
    fn build(name: &str) -> Self {
        let checkout = Checkout::new();
        checkout.edit("CHANGELOG.md", "## Unreleased\n", &format!("## {VERSION} - 2001-09-09\n"));
        let name = format!("test-{name}-{}", std::process::id());
        let mut release = Self { registry: Registry::start(), checkout, name, revision: String::new() };
        release.git(&["init", "--quiet"]);
        release.git(&["add", "--all"]);
        release.git(&["commit", "--quiet", "--message", "Release"]);
        release.revision = release.git(&["rev-parse", "--short=12", "HEAD"]).trim().to_owned();
        run(&mut release.image("build"));
        release
    }

    /// Uses a fixed time, so that each test builds the same commit.
    fn git(&self, arguments: &[&str]) -> String {
        run(Command::new("git").current_dir(self.checkout.path()).args(arguments).envs([
            ("GIT_AUTHOR_NAME", "test"),
            ("GIT_AUTHOR_EMAIL", "test@localhost"),
            ("GIT_AUTHOR_DATE", "1000000000 +0000"),
            ("GIT_COMMITTER_NAME", "test"),
            ("GIT_COMMITTER_EMAIL", "test@localhost"),
            ("GIT_COMMITTER_DATE", "1000000000 +0000"),
        ]))
    }

    /// Returns a command of the checkout's scripts/image.
    fn image(&self, command: &str) -> Command {
        let mut script = Command::new(self.checkout.path().join("scripts/image"));
        script.arg(command).env("IMAGE", &self.name);
        script
    }

    fn tags(&self, repository: &str) -> String {
        let url = format!("{}/v2/{repository}/tags/list", self.registry.address);
        run(Command::new("curl").args(["--silent", &url]))
    }
}

#[track_caller]
fn assert_refused(command: &mut Command, why: &str) {
    let output = command.output().unwrap();
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && says.contains(why), "{command:?}: {says}");
}

#[test]
fn from_the_sources_into_service() {
    let release = Release::build("workflow");
    let Release { registry, checkout, name, revision } = &release;
    let built = inspect("image", &format!("{name}:{VERSION}"));
    let committed = &built["Config"]["Labels"]["org.opencontainers.image.created"];
    assert_eq!(&built["Created"], committed, "the image has to have the time of the commit");

    let scanner = TempDir::new().unwrap();
    let mut scan = release.image("scan");
    scan.env("PATH", with_a_scanner(scanner.path())).env("CARGO_TARGET_DIR", root().join("target"));
    let asked = scan.output().unwrap();
    let says = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success() && says.contains("--fail-on high"), "{says}");
    assert!(says.contains("pkg:cargo/axum@"), "the scanner has to get the list of crates");
    assert_refused(scan.env("VERDICT", "1"), "image.sarif");

    let mut push = release.image("push");
    run(push.env("REGISTRY", &registry.address));
    let remote = format!("{}/{name}", registry.address);
    let tags = release.tags(name);
    assert!(tags.contains(&format!("\"{VERSION}\"")), "{tags}");
    assert!(tags.contains(&format!("\"{VERSION}-{revision}\"")), "{tags}");
    assert_refused(&mut push, "already exists");

    // The target machine has only the image of the registry.
    for tag in
        [format!("{name}:{VERSION}"), format!("{remote}:{VERSION}"), format!("{remote}:{VERSION}-{revision}")]
    {
        docker(&["rmi", &tag]);
    }
    let stack = Stack::of(checkout, "workflow");
    run(stack.command("release", &[VERSION]).env("APP_IMAGE", &remote).env("WATCH", "2"));
    assert_eq!(stack.client().get("/health/ready").status, 200);
    let status = run(&mut stack.command("release", &["--status"]));
    assert!(status.contains(&format!("{remote}:{VERSION}")), "{status}");
    let label = docker(&["inspect", "--format", "{{json .Config.Labels}}", &stack.app()]);
    assert!(label.contains(revision.as_str()), "{label}");
    stack.project.remove();
    docker(&["rmi", &format!("{remote}:{VERSION}")]);
    assert_eq!(stack.project.remains(), "");

    // An image of uncommitted changes cannot be pushed.
    fs::write(checkout.path().join("src/added.rs"), "").unwrap();
    run(release.image("build").env("TAG", "dirty"));
    assert_refused(push.env("TAG", "dirty"), "uncommitted");
    docker(&["rmi", &format!("{name}:dirty")]);
}

/// The steps of .github/workflows/release.yml after the build, with a test key instead of a certificate from the public
/// authority: real signatures in a real registry.
struct Publisher<'a> {
    release: &'a Release,
    folder: TempDir,
    path: String,
}

impl<'a> Publisher<'a> {
    fn new(release: &'a Release) -> Self {
        let folder = TempDir::new().unwrap();
        let shared = [&std::env::temp_dir(), root()].map(|path| format!("--volume {0}:{0}", path.display()));
        let cosign = format!(
            "exec docker run --rm --network host --env COSIGN_PASSWORD= {} --workdir \"${{KEYS:-$PWD}}\" {REGISTRY} cosign \"$@\"",
            shared.join(" ")
        );
        program(folder.path(), "cosign", &cosign);
        let path = with_a_scanner(folder.path());
        let publisher = Self { release, folder, path };
        for name in ["ours", "theirs"] {
            let keys = publisher.folder.path().join(name);
            fs::create_dir(&keys).unwrap();
            let mut generate = Command::new(publisher.folder.path().join("cosign"));
            run(generate.arg("generate-key-pair").env("KEYS", keys));
        }
        publisher
    }

    fn repository(&self) -> String {
        format!("{}/published", self.release.registry.address)
    }

    /// Runs a step of scripts/publish with the environment of the workflow.
    fn step(&self, arguments: &[&str]) -> Command {
        let mut script = Command::new(self.release.checkout.path().join("scripts/publish"));
        let workflow = format!("owner/name/.github/workflows/release.yml@refs/tags/v{VERSION}");
        script.args(arguments).env("PATH", &self.path).env("IMAGE", self.repository()).envs([
            ("SIGNING_KEY", self.folder.path().join("ours/cosign.key").display().to_string()),
            ("CARGO_TARGET_DIR", root().join("target").display().to_string()),
            ("GITHUB_SERVER_URL", "https://github.com".to_owned()),
            ("GITHUB_REPOSITORY", "owner/name".to_owned()),
            ("GITHUB_REF", format!("refs/tags/v{VERSION}")),
            ("GITHUB_WORKFLOW_REF", workflow),
            ("GITHUB_RUN_ID", "1".to_owned()),
            ("GITHUB_RUN_ATTEMPT", "1".to_owned()),
        ]);
        script
    }

    fn digest(&self, tag: &str) -> String {
        let image = format!("{}:{tag}", self.repository());
        let format = "{{with .Manifest}}{{.Digest}}{{end}}";
        docker(&["buildx", "imagetools", "inspect", &image, "--format", format]).trim().to_owned()
    }

    /// Pushes the image, and the same binary for the other architecture, where it is never run.
    fn push_platforms(&self) -> [String; 2] {
        let folder = self.folder.path();
        look_into(
            &format!("{}:{VERSION}", self.release.name),
            &format!("docker cp \"$1:/app\" {}", folder.display()),
        );
        fs::write(folder.join("Dockerfile"), "FROM scratch\nCOPY app /app\n").unwrap();
        let [amd64, arm64] = ["amd64", "arm64"].map(|name| format!("{}:{name}", self.repository()));
        docker(&["tag", &format!("{}:{VERSION}", self.release.name), &amd64]);
        let platform =
            ["build", "--quiet", "--platform", "linux/arm64", "--tag", &arm64, folder.to_str().unwrap()];
        docker(&platform);
        for image in [&amd64, &arm64] {
            docker(&["push", "--quiet", image]);
            docker(&["rmi", image]);
        }
        ["amd64", "arm64"].map(|tag| self.digest(tag))
    }
}

#[test]
fn a_release_is_signed_and_verified_before_it_gets_its_names() {
    let release = Release::build("publish");
    let publisher = Publisher::new(&release);
    let tag = format!("v{VERSION}");
    release.git(&["tag", &tag]);

    let notes = run(&mut publisher.step(&["check", &tag]));
    assert!(notes.contains("### Added") && !notes.contains(&format!("## {VERSION}")), "{notes}");
    assert_refused(&mut publisher.step(&["check", "v99.0.0"]), "is not the version");

    let [amd64, arm64] = publisher.push_platforms();
    let materials = publisher.folder.path().join("materials");
    for (architecture, digest) in [("amd64", &amd64), ("arm64", &arm64)] {
        let mut scan = release.image("scan");
        scan.arg(format!("registry:{}@{digest}", publisher.repository())).env("PATH", &publisher.path);
        run(scan.env("CARGO_TARGET_DIR", root().join("target")));
        let folder = materials.join(architecture);
        fs::create_dir_all(&folder).unwrap();
        for name in ["image.spdx.json", "image.cyclonedx.json"] {
            fs::copy(root().join("target/sbom").join(name), folder.join(name)).unwrap();
        }
    }
    let join = |parts: &[&str]| run(&mut publisher.step(&[&["join"], parts].concat())).trim().to_owned();
    let another = join(&[&arm64, &amd64]);
    let image = join(&[&amd64, &arm64]);
    assert_eq!(image, publisher.digest(&format!("{VERSION}-{}", release.revision)));
    assert_refused(&mut publisher.step(&["join", &amd64]), "not for amd64 and arm64");

    let verify = || publisher.step(&["verify", &image]);
    assert_refused(&mut verify(), "no signatures found");
    run(&mut publisher.step(&["sign", &image, materials.to_str().unwrap()]));
    assert!(run(&mut verify()).contains(&release.revision));
    let their_key = publisher.folder.path().join("theirs/cosign.key");
    assert_refused(verify().env("SIGNING_KEY", their_key), "accepted signatures do not match");
    assert_refused(&mut publisher.step(&["verify", &amd64]), "can't evaluate field Manifests");

    // A version of an older line, then the newest one, in the presence of a prerelease of a newer version.
    let names = || {
        let tags = release.tags("published");
        let (minor, _) = VERSION.rsplit_once('.').unwrap();
        ["latest", env!("CARGO_PKG_VERSION_MAJOR"), minor, VERSION]
            .map(|name| tags.contains(&format!("\"{name}\"")))
    };
    assert_eq!(names(), [false; 4]);
    for tag in ["v99.0.0", "v99.0.0-rc.1"] {
        release.git(&["tag", tag]);
    }
    run(&mut publisher.step(&["promote", &image]));
    assert_eq!(names(), [false, true, true, true]);
    release.git(&["tag", "--delete", "v99.0.0"]);
    run(&mut publisher.step(&["promote", &image]));
    assert_eq!(names(), [true; 4]);
    assert_eq!(publisher.digest("latest"), image);
    assert_refused(&mut publisher.step(&["promote", &another]), "already names another image");

    // The image has to be built from its commit.
    release.git(&["commit", "--quiet", "--allow-empty", "--message", "Later"]);
    assert_refused(&mut verify(), "was not built from");
    docker(&["rmi", &format!("{}@{image}", publisher.repository()), &format!("{}:{VERSION}", release.name)]);
}
