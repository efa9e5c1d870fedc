//! Consistency of the Dockerfile, the compose files, nginx and the settings.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use app::platform::config::definitions::KEYS;

fn read(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns whether the folder exists: a project can delete those for Kubernetes and Swarm.
fn is_kept(folder: &str) -> bool {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder).is_dir()
}

const COMPOSE: [&str; 5] = [
    "docker-compose.yml",
    "docker-compose.prod.yml",
    "deploy/compose/observability.yml",
    "deploy/compose/staging.yml",
    "deploy/compose/tls.yml",
];

/// Returns the word after the first `name` behind the first `section` of a file, without the end of the directive.
#[track_caller]
fn value_in(path: &str, section: &str, name: &str) -> String {
    let text = read(path);
    let rest = text.split_once(section).and_then(|(_, rest)| rest.split_once(name));
    let rest = rest.unwrap_or_else(|| panic!("{path} has no {section} {name}")).1;
    rest.split_whitespace().next().unwrap().trim_matches([';', '"', '}', ')', ',']).to_owned()
}

#[track_caller]
fn value(path: &str, name: &str) -> String {
    value_in(path, "", name)
}

/// Parses a duration. A number without a unit means seconds.
#[track_caller]
fn duration(path: &str, section: &str, name: &str) -> Duration {
    let value = value_in(path, section, name);
    let seconds = value.parse().map(Duration::from_secs);
    seconds.unwrap_or_else(|_| humantime::parse_duration(&value).unwrap())
}

#[track_caller]
fn setting(key: &str) -> Duration {
    humantime::parse_duration(&KEYS[key].default).unwrap()
}

#[test]
fn the_image_has_the_toolchain_of_the_checkout() {
    let channel = value("rust-toolchain.toml", "channel = ");
    let tag = value("Dockerfile", "ARG RUST_IMAGE=rust:");
    assert!(tag.starts_with(&format!("{}-", channel.trim_matches('"'))), "{tag} {channel}");
}

/// Returns the path of every Dockerfile and YAML file of the root and of `deploy/`.
fn deployed_files() -> Vec<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.clone(), root.join("deploy")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && folder != root {
                folders.push(path);
            } else if name == "Dockerfile" || name.ends_with(".yml") || name.ends_with(".yaml") {
                files.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files
}

/// Returns the images that a file names, except its own stages and the image of the service.
fn images(path: &str) -> Vec<String> {
    let text = read(path);
    let stages: Vec<_> =
        text.lines().filter_map(|line| line.split_once(" AS ")).map(|(_, name)| name).collect();
    let named = |line: &str| {
        let base = line.strip_prefix("ARG ").and_then(|argument| argument.split_once("_IMAGE="));
        let image = line.strip_prefix("FROM ").or_else(|| line.trim_start().strip_prefix("image: "));
        let image = image.or(base.map(|(_, image)| image))?.split_whitespace().next()?;
        let is_ours = image.starts_with('$') || image.starts_with("app:") || stages.contains(&image);
        (!is_ours).then(|| image.to_owned())
    };
    text.lines().filter_map(named).collect()
}

#[test]
fn images_are_pinned_the_same_everywhere() {
    let is_exact = |tag: &str| {
        let is_date = |part: &str| part.len() == 8 && part.bytes().all(|byte| byte.is_ascii_digit());
        tag.split('-').any(|part| part.contains('.') || is_date(part))
    };
    let mut pins = BTreeMap::new();
    for path in deployed_files() {
        for image in images(&path) {
            let (tagged, digest) = image.split_once("@sha256:").unwrap_or((&image, ""));
            assert!(
                digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{path}: {image}"
            );
            let (name, tag) = tagged.rsplit_once(':').unwrap_or((tagged, ""));
            // Distroless images have no version tags.
            assert!(is_exact(tag) || name.starts_with("gcr.io/distroless/"), "{path}: {image}");
            let pin = pins.entry(name.to_owned()).or_insert_with(|| image.clone());
            assert_eq!(*pin, image, "{path}");
        }
    }
    let names: Vec<_> = pins.keys().map(String::as_str).collect();
    let expected = [
        "debian",
        "gcr.io/distroless/static-debian13",
        "grafana/grafana",
        "nginxinc/nginx-unprivileged",
        "postgres",
        "prom/prometheus",
        "redis",
        "rust",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_example_environment_has_each_variable_with_its_default() {
    let mut used = BTreeMap::new();
    for path in COMPOSE {
        for part in read(path).split("${").skip(1) {
            let expression = part.split('}').next().unwrap();
            let end = expression.find([':', '-', '?']).unwrap_or(expression.len());
            let (name, rest) = expression.split_at(end);
            let default = rest.strip_prefix(":-").map(ToOwned::to_owned);
            let known = used.entry(name.to_owned()).or_insert_with(|| default.clone());
            assert_eq!(*known, default, "{name} in {path}");
        }
    }
    let mut example: BTreeMap<_, _> = read(".env.example")
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| !name.starts_with('#'))
        .map(|(name, value)| (name.to_owned(), Some(value.to_owned())))
        .collect();
    // Required variables have no default.
    for required in ["APP_IMAGE", "APP_NAME", "APP_TAG"] {
        assert!(example.insert(required.to_owned(), None).is_some(), "{required}");
    }
    assert_eq!(used, example);
}

/// A checkout can run all three stacks. Two stacks with the same name would share containers and volumes.
#[test]
fn stacks_of_one_checkout_have_different_names() {
    let name = |path: &str| {
        let text = read(path);
        text.lines().find_map(|line| line.strip_prefix("name: ")).map(|name| name.replace(' ', ""))
    };
    assert_eq!(name("docker-compose.yml"), None, "named after the folder");
    let [production, staging] =
        ["docker-compose.prod.yml", "deploy/compose/staging.yml"].map(|path| name(path).unwrap());
    assert!(production.starts_with("${APP_NAME:?") && production.ends_with("}-production"), "{production}");
    assert!(staging.starts_with("${APP_NAME:?") && staging.ends_with("}-staging"), "{staging}");
}

#[test]
fn sizes_are_the_same_in_nginx_and_in_the_service() {
    let nginx = "deploy/nginx/nginx.conf";
    assert_eq!(value(nginx, "client_max_body_size "), "1m");
    assert_eq!(KEYS["http.max_body_bytes"].default, (1 << 20).to_string());
    assert_eq!(value(nginx, "large_client_header_buffers 4 "), "8k");
    assert_eq!(KEYS["http.max_uri_bytes"].default, (8 << 10).to_string());
}

/// G39: each inner timeout is shorter than the outer one, across all files.
#[test]
fn timeouts_keep_their_order_over_all_files() {
    let (nginx, service) = ("deploy/nginx/nginx.conf", "deploy/nginx/service.conf");
    let (compose, release) = ("docker-compose.prod.yml", "deploy/release");
    let named = |key: &'static str| (key, setting(key));
    let in_nginx = |name: &'static str| (name, duration(nginx, "http {", name));
    let in_service = |name: &'static str| (name, duration(service, "", name));
    let workers = ("worker_shutdown_timeout ", duration(nginx, "", "worker_shutdown_timeout "));
    let health = ("HEALTHCHECK --timeout", duration("Dockerfile", "HEALTHCHECK", "--timeout="));
    let upstream = ("upstream keepalive_timeout", duration(nginx, "upstream app {", "keepalive_timeout "));
    let grace = ("shutdown.grace", setting("shutdown.grace"));
    let stages = [
        "shutdown.ready_delay",
        "shutdown.drain_timeout",
        "shutdown.pool_close_timeout",
        "otlp.flush_timeout",
    ];
    let stages = stages.map(setting).iter().sum();

    let orders: &[&[(&str, Duration)]] = &[
        // A request: the innermost wait times out first, so that the error is precise.
        &[
            named("redis.operation_timeout"),
            named("database.acquire_timeout"),
            named("database.lock_timeout"),
            named("database.statement_timeout"),
            named("http.request_timeout"),
            in_service("proxy_read_timeout "),
            workers,
        ],
        &[in_service("proxy_connect_timeout "), in_service("proxy_next_upstream_timeout ")],
        // G18: the client of a connection closes it first when it is idle.
        &[upstream, named("http.header_timeout")],
        // A reload: the last request of a client, then old workers, then the scripts that wait for the workers.
        &[
            in_nginx("keepalive_min_timeout "),
            workers,
            ("nginx stop_grace_period", duration(compose, "  nginx:", "stop_grace_period: ")),
            ("SETTLE_TIMEOUT", duration(release, "", "SETTLE_TIMEOUT=")),
        ],
        // A stop: nginx notices before the listener closes, and a request ends within the drain.
        &[in_nginx("valid="), named("shutdown.ready_delay")],
        &[named("http.request_timeout"), named("shutdown.drain_timeout"), ("stages", stages), grace],
        // Health: a check, then the probes that read its result.
        &[named("health.timeout"), named("health.interval"), health],
        &[
            ("HEALTHCHECK --start-period", duration("Dockerfile", "HEALTHCHECK", "--start-period=")),
            ("START_TIMEOUT", duration(release, "", "setting START_TIMEOUT ")),
        ],
    ];
    for order in orders {
        for pair in order.windows(2) {
            assert!(pair[0].1 < pair[1].1, "{pair:?}");
        }
    }
    assert_eq!(duration(compose, "x-app: ", "stop_grace_period: "), grace.1);
    if is_kept("deploy/swarm") {
        let swarm = "deploy/swarm/stack.yml";
        assert_eq!(duration(swarm, "  app:", "stop_grace_period: "), grace.1);
        assert!(workers.1 < duration(swarm, "  nginx:", "stop_grace_period: "));
    }
    if is_kept("deploy/kubernetes") {
        let pod = "deploy/kubernetes/base/app.yaml";
        assert_eq!(duration(pod, "", "terminationGracePeriodSeconds: "), grace.1);
    }
}

/// During a release both colors run.
#[test]
fn connections_of_both_colors_fit_into_the_database() {
    let compose = "docker-compose.prod.yml";
    let number = |name: &str| value(compose, name).parse::<f64>().unwrap();
    // The pool depends on the CPUs; up to three more sessions are outside the pool.
    let sessions = 2.0 * number("APP_REPLICAS:-") * (4.0 * number("cpus: \"${APP_CPUS:-") + 3.0);
    // The migration, the backup, and the connections that PostgreSQL reserves for superusers.
    assert!(sessions + 5.0 <= number("POSTGRES_MAX_CONNECTIONS:-"), "{sessions}");
}
