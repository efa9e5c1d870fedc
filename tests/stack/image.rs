//! The image: its contents, its metadata, and the cost of its build.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::docker::{
    CANARY, COMMITTED, Checkout, IMAGE, REVISION, build_image, docker, image, inspect, is_full, is_stored,
    known, look_into, root, run,
};

/// For comparison: a Go service on distroless static has 12 MB, by a published figure.
const MAX_BYTES: u64 = 10_000_000;

/// Builds the image again as `again` and returns the duration. With --full no layer is reused, otherwise only layers without
/// the project's sources. The checkout has another path than that of `clean`, and its files have another time.
fn build_again() -> Duration {
    static TIME: OnceLock<Duration> = OnceLock::new();
    *TIME.get_or_init(|| {
        let checkout = Checkout::with_notes();
        let touch = ["-exec", "touch", "--date=1999-01-01", "{}", "+"];
        run(Command::new("find").arg(checkout.path()).args(touch));
        let without = if is_full() { "--no-cache" } else { "--no-cache-filter=build,runtime" };
        build_image(&checkout, "again", &[without])
    })
}

fn clean() -> String {
    image();
    format!("{IMAGE}:clean")
}

/// Returns the SHA-256 of the binary of `tag`.
fn binary_digest(tag: &str) -> String {
    look_into(&format!("{IMAGE}:{tag}"), "docker cp \"$1:/app\" - | tar -xO | sha256sum")
}

#[test]
fn it_is_small() {
    let bytes = inspect("image", &clean())["Size"].as_u64().unwrap();
    println!("image: {:.2} MB", bytes as f64 / 1e6);
    assert!(bytes < MAX_BYTES, "{bytes}");
}

#[test]
fn it_says_what_it_is_and_how_to_run_it() {
    let image = inspect("image", &clean());
    let config = &image["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/app"]));
    assert_eq!(config["Cmd"], json!(["serve"]));
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["ExposedPorts"], json!({"8080/tcp": {}}));
    assert_eq!(config["Volumes"], Value::Null);
    let check = &config["Healthcheck"];
    assert_eq!(check["Test"], json!(["CMD", "/app", "healthcheck"]));
    for setting in ["Interval", "Timeout", "StartPeriod", "Retries"] {
        assert!(check[setting].as_u64().unwrap() > 0, "{setting}");
    }
    let labels = &config["Labels"];
    assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(labels["org.opencontainers.image.revision"], REVISION);
    assert_eq!(labels["org.opencontainers.image.title"], env!("CARGO_PKG_NAME"));
    for label in ["description", "licenses", "created", "source"] {
        assert!(labels[format!("org.opencontainers.image.{label}")].is_string(), "{label}");
    }
    let version = docker(&["run", "--rm", &clean(), "--version"]);
    assert!(version.contains(REVISION), "{version}");
}

#[test]
fn it_holds_the_binary_and_the_base_and_no_tool() {
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let base = dockerfile.lines().find_map(|line| line.strip_prefix("ARG RUNTIME_IMAGE=")).unwrap();
    let base = known(base);
    if !is_stored(base) {
        // A build keeps base images in its own cache.
        docker(&["pull", "--quiet", base]);
    }
    let layers = |name: &str| inspect("image", name)["RootFS"]["Layers"].as_array().unwrap().clone();
    let (ours, theirs) = (layers(&clean()), layers(base));
    assert_eq!(ours[..theirs.len()], theirs[..]);

    let list = look_into(&clean(), "docker export \"$1\" | tar -tv --numeric-owner");
    // The section in which `cargo auditable` lists the crates.
    look_into(&clean(), "docker cp \"$1:/app\" - | tar -xO | grep --text --count --fixed-strings .dep-v0");
    let tools = [
        "sh", "bash", "dash", "busybox", "apt", "apt-get", "dpkg", "rpm", "apk", "curl", "wget", "cargo",
        "rustc",
    ];
    let mut binaries = 0;
    for line in list.lines() {
        // Mode, owner, size, date, time, path.
        let fields: Vec<_> = line.split_whitespace().collect();
        let (mode, path) = (fields[0], fields[5]);
        let name = path.rsplit('/').next().unwrap();
        assert!(!mode.contains(['s', 'S']), "set-user-id: {line}");
        assert!(mode.starts_with('d') || !tools.contains(&name), "{line}");
        assert!(!path.starts_with("src") && !path.contains(".cargo"), "{line}");
        if path == "app" {
            assert!(line.starts_with("-r-xr-xr-x 0/0 "), "{line}");
            binaries += 1;
        }
    }
    assert_eq!(binaries, 1);
    println!("{} files, {} layers above the base", list.lines().count(), ours.len() - theirs.len());
}

#[test]
fn nothing_else_enters_the_build_and_no_secret_the_image() {
    let checkout = image();
    // The build context, exported by a Dockerfile that copies all of it.
    let seen = TempDir::new().unwrap();
    let everything = seen.path().join("Dockerfile");
    fs::write(&everything, "FROM scratch\nCOPY . /\n").unwrap();
    let context = seen.path().join("context");
    let (output, _) = checkout.build(&[
        "--file",
        everything.to_str().unwrap(),
        "--output",
        &format!("type=local,dest={}", context.display()),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let top = fs::read_dir(&context).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    // A service without queries has no .sqlx.
    let mut top: Vec<_> = top.filter(|name| name != ".sqlx").collect();
    top.sort();
    assert_eq!(top, ["Cargo.lock", "Cargo.toml", "build.rs", "migrations", "src"]);
    let grep = Command::new("grep").args(["-rl", CANARY]).arg(&context).output().unwrap();
    assert_eq!(grep.status.code(), Some(1), "{}", String::from_utf8_lossy(&grep.stdout));

    // Every layer and all metadata of the image. tar detects compressed layers.
    let saved = TempDir::new().unwrap();
    let script = r#"docker save "$1" | tar -x -C "$2"
        find "$2" -type f | while read -r blob; do tar -xOf "$blob" 2>/dev/null || cat "$blob"; done > "$2.all"
        docker history --no-trunc "$1" >> "$2.all"; wc -c < "$2.all"; ! grep -c "$3" "$2.all"; rm "$2.all""#;
    let folder = saved.path().join("image");
    fs::create_dir(&folder).unwrap();
    let mut search = Command::new("sh");
    search.args(["-ec", script, "sh", &clean()]).arg(&folder);
    let output = run(search.arg(CANARY));
    println!(
        "searched {} bytes of layers and history for the planted secret",
        output.lines().next().unwrap()
    );
    assert_eq!(output.lines().nth(1), Some("0"));
}

#[test]
#[ignore = "a complete build: scripts/test-stack --full"]
fn a_change_of_one_line_costs_a_tenth_of_a_clean_build() {
    assert!(is_full(), "scripts/test-stack --full");
    image();
    let clean = build_again();
    // The fastest of three, the one least disturbed by other processes. Each run has another text, because the engine
    // caches builds.
    let rebuild = ["well", "fine", "here"]
        .map(|word| {
            let changed = Checkout::with_notes();
            let word = format!("\"{word} {}\"", std::process::id());
            changed.edit("src/platform/http/management.rs", "\"alive\"", &word);
            // Each commit has another time.
            build_image(&changed, "changed", &["--build-arg", "SOURCE_DATE_EPOCH=1100000000"])
        })
        .into_iter()
        .min()
        .unwrap();
    let percent = 100.0 * rebuild.as_secs_f64() / clean.as_secs_f64();
    println!("clean build {clean:.1?}, after changing one line {rebuild:.1?}: {percent:.1} %");
    // More cores speed up a clean build, but hardly the build of one crate.
    let cores = std::thread::available_parallelism().unwrap().get() as f64;
    assert!(percent <= 10.0 * (cores / 2.0).max(1.0), "{percent}");
    assert_ne!(binary_digest("changed"), binary_digest("clean"), "the change has to be in the binary");
}

#[test]
fn two_builds_give_the_same_image() {
    image();
    println!("built again in {:.1?}", build_again());
    let digests = [binary_digest("clean"), binary_digest("again")];
    println!("{}", digests[0].trim());
    assert_eq!(digests[0], digests[1]);
    let [clean, again] = ["clean", "again"].map(|tag| inspect("image", &format!("{IMAGE}:{tag}")));
    for part in ["RootFS", "Config", "Created", "Architecture", "Os"] {
        assert_eq!(clean[part], again[part], "{part}");
    }
    assert_eq!(clean["Created"], COMMITTED.1);
    let history = |tag: &str| {
        let format = "{{.CreatedAt}} {{.Size}} {{.CreatedBy}}";
        docker(&["history", "--no-trunc", "--human=false", "--format", format, &format!("{IMAGE}:{tag}")])
    };
    assert_eq!(history("clean"), history("again"));
    // With containerd's image store the ID also covers the attestations of each build.
    println!("same layers, configuration and history; same ID: {}", clean["Id"] == again["Id"]);
}

#[test]
#[ignore = "compiles everything with its tests: scripts/test-stack --full"]
fn the_test_stage_fails_with_a_failing_test() {
    let checkout = Checkout::new();
    let (output, time) = checkout.build(&["--target", "test"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = checkout.path().join("src/lib.rs");
    let source = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{source}\n#[test]\nfn a_failing_test() {{ assert!(false) }}\n")).unwrap();
    let (output, again) = checkout.build(&["--target", "test"]);
    println!("test stage {time:.1?}, after a change {again:.1?}");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("a_failing_test ... FAILED"), "{log}");
}

#[test]
fn the_bills_of_materials_name_each_direct_dependency() {
    let names = |edges: &str| {
        let arguments = ["tree", "--locked", "--depth", "1", "--prefix", "none", "--edges", edges];
        let tree = run(Command::new("cargo").args(arguments).current_dir(root()));
        // Name and version, after the package itself.
        let fields = |line: &str| {
            let (name, version) = line.split_once(" v").unwrap();
            (name.to_owned(), version.split(' ').next().unwrap().to_owned())
        };
        tree.lines().skip(1).map(fields).collect::<Vec<_>>()
    };
    let read = |name: String| -> Value {
        serde_json::from_slice(&fs::read(root().join("target/sbom").join(name)).unwrap()).unwrap()
    };
    let image = format!("docker:{}", clean());
    for (what, arguments, edges) in
        [("source", vec!["source"], "normal,build,dev"), ("image", vec!["image", &image], "normal")]
    {
        let mut script = Command::new(root().join("scripts/sbom"));
        run(script.args(arguments).env("CARGO_TARGET_DIR", root().join("target")));
        let (spdx, cyclonedx) = (read(format!("{what}.spdx.json")), read(format!("{what}.cyclonedx.json")));
        assert_eq!(spdx["spdxVersion"], "SPDX-2.3");
        assert_eq!(cyclonedx["bomFormat"], "CycloneDX");
        let wanted = names(edges);
        assert!(wanted.len() > 20, "{wanted:?}");
        for (list, version) in [(&spdx["packages"], "versionInfo"), (&cyclonedx["components"], "version")] {
            let list = list.as_array().unwrap();
            for (name, wanted) in &wanted {
                let found = list.iter().any(|item| item["name"] == *name && item[version] == *wanted);
                assert!(found, "{what}: {name} {wanted}");
            }
        }
        println!("{what}: {} components", cyclonedx["components"].as_array().unwrap().len());
    }
}
