//! What the Dockerfile, the compose files, nginx and the settings have to agree on.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use app::settings::KEYS;

fn read(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A project may do without the folders for Kubernetes and for a Swarm.
fn is_kept(folder: &str) -> bool {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder).is_dir()
}

const COMPOSE: [&str; 4] =
    ["docker-compose.yml", "docker-compose.prod.yml", "deploy/compose/staging.yml", "deploy/compose/tls.yml"];

/// The word after the first `name` behind the first `section` of a file, without what ends a directive.
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

/// A number without a unit is seconds.
#[track_caller]
fn duration(path: &str, section: &str, name: &str) -> Duration {
    let value = value_in(path, section, name);
    let seconds = value.parse().map(Duration::from_secs);
    seconds.unwrap_or_else(|_| humantime::parse_duration(&value).unwrap())
}

#[track_caller]
fn setting(key: &str) -> Duration {
    humantime::parse_duration(&KEYS[key]).unwrap()
}

#[test]
fn the_image_has_the_toolchain_of_the_checkout() {
    let channel = value("rust-toolchain.toml", "channel = ");
    let tag = value("Dockerfile", "ARG RUST_IMAGE=rust:");
    assert!(tag.starts_with(&format!("{}-", channel.trim_matches('"'))), "{tag} {channel}");
}

#[test]
fn images_are_pinned() {
    let dockerfile = read("Dockerfile");
    let bases: Vec<_> =
        dockerfile.lines().filter(|line| line.starts_with("ARG") && line.contains("_IMAGE=")).collect();
    assert_eq!(bases.len(), 2);
    assert!(bases.iter().all(|base| base.contains("@sha256:")), "{bases:?}");
    for line in dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")) {
        let stages = ["toolchain", "dependencies", "build"];
        assert!(line.starts_with("${") || stages.contains(&line.split(' ').next().unwrap()), "{line}");
    }
    let count = |paths: &[&str]| {
        let mut count = 0;
        for path in paths {
            for line in read(path).lines() {
                // Names of ours come from a variable.
                let image = line.trim().strip_prefix("image: ").filter(|image| !image.starts_with('$'));
                let Some(image) = image else { continue };
                let version = image.split_once(':').map(|(_, tag)| tag.split('-').next().unwrap());
                assert!(version.is_some_and(|version| version.contains('.')), "{path}: {image}");
                count += 1;
            }
        }
        count
    };
    assert_eq!(count(&COMPOSE), 7);
    if is_kept("deploy/swarm") {
        assert_eq!(count(&["deploy/swarm/stack.yml", "deploy/swarm/migrate.yml"]), 3);
    }
}

#[test]
fn the_example_environment_has_each_variable_with_its_default() {
    let mut used = BTreeMap::new();
    for path in COMPOSE {
        for part in read(path).split("${").skip(1) {
            let expression = part.split('}').next().unwrap();
            let end = expression.find([':', '-', '?']).unwrap_or(expression.len());
            let (name, rest) = expression.split_at(end);
            // Required variables have none.
            let default = rest.strip_prefix(":-").unwrap_or_default();
            let known = used.entry(name.to_owned()).or_insert_with(|| default.to_owned());
            assert_eq!(known, default, "{name} in {path}");
        }
    }
    let example: BTreeMap<_, _> = read(".env.example")
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| !name.starts_with('#'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(used, example);
}

#[test]
fn sizes_are_the_same_in_nginx_and_in_the_service() {
    let nginx = "deploy/nginx/nginx.conf";
    assert_eq!(value(nginx, "client_max_body_size "), "1m");
    assert_eq!(KEYS["http.max_body_bytes"], (1 << 20).to_string());
    assert_eq!(value(nginx, "large_client_header_buffers 4 "), "8k");
    assert_eq!(KEYS["http.max_uri_bytes"], (8 << 10).to_string());
}

/// G39: each inner time ends before the outer one, in whatever file they stand.
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
        // A request: the innermost wait gives up first, so that the error is the precise one.
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
        // G18: who sends the requests closes an idle connection first.
        &[upstream, named("http.header_timeout")],
        // A reload: a client's last request, then old workers, then who waits for them.
        &[
            in_nginx("keepalive_min_timeout "),
            workers,
            ("nginx stop_grace_period", duration(compose, "  nginx:", "stop_grace_period: ")),
            ("SETTLE_TIMEOUT", duration(release, "", "SETTLE_TIMEOUT=")),
        ],
        // A stop: nginx has noticed before the listener closes, and a request ends within the drain.
        &[in_nginx("valid="), named("shutdown.ready_delay")],
        &[named("http.request_timeout"), named("shutdown.drain_timeout"), ("stages", stages), grace],
        // Health: a check, then who asks for its result.
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

/// While a release is made both colours run.
#[test]
fn both_colours_fit_into_the_database() {
    let compose = "docker-compose.prod.yml";
    let number = |name: &str| value(compose, name).parse::<f64>().unwrap();
    // Pool by the CPUs, and up to three sessions besides.
    let sessions = 2.0 * number("APP_REPLICAS:-") * (4.0 * number("cpus: \"${APP_CPUS:-") + 3.0);
    // The migration, the backup, and what PostgreSQL keeps for its superuser.
    assert!(sessions + 5.0 <= number("POSTGRES_MAX_CONNECTIONS:-"), "{sessions}");
}
