//! What the Dockerfile, the compose files, nginx and the settings have to agree on.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use app::settings::KEYS;

fn read(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

const COMPOSE: [&str; 4] =
    ["docker-compose.yml", "docker-compose.prod.yml", "deploy/compose/staging.yml", "deploy/compose/tls.yml"];

/// The word after the first `name` in a file, without what ends a directive.
#[track_caller]
fn value(path: &str, name: &str) -> String {
    let text = read(path);
    let rest = text.split(name).nth(1).unwrap_or_else(|| panic!("{path} has no {name}"));
    rest.split_whitespace().next().unwrap().trim_end_matches(';').to_owned()
}

#[track_caller]
fn duration(path: &str, name: &str) -> Duration {
    humantime::parse_duration(&value(path, name)).unwrap()
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
    let mut count = 0;
    for path in COMPOSE {
        for line in read(path).lines() {
            // Names of ours come from a variable or from the build beside them.
            let Some(image) = line.trim().strip_prefix("image: ") else { continue };
            if !image.starts_with("${") && image != "drydock-dev" {
                let version = image.split_once(':').map(|(_, tag)| tag.split('-').next().unwrap());
                assert!(version.is_some_and(|version| version.contains('.')), "{path}: {image}");
                count += 1;
            }
        }
    }
    assert_eq!(count, 5);
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
fn limits_keep_their_order_from_the_service_outwards() {
    let nginx = "deploy/nginx/nginx.conf";
    let service = "deploy/nginx/service.conf";
    let upstream = read(nginx);
    let upstream = upstream.split("upstream app {").nth(1).unwrap();
    let keepalive = upstream.split("keepalive_timeout ").nth(1).unwrap().split(';').next().unwrap();
    let keepalive = humantime::parse_duration(keepalive).unwrap();

    // The one that closes first must be the one that sends requests.
    assert!(keepalive < setting("http.header_timeout"));
    assert!(setting("http.request_timeout") < duration(service, "proxy_read_timeout "));
    assert!(duration(service, "proxy_connect_timeout ") < duration(service, "proxy_next_upstream_timeout "));
    assert_eq!(value(nginx, "client_max_body_size "), "1m");
    assert_eq!(KEYS["http.max_body_bytes"], (1 << 20).to_string());
    assert_eq!(value(nginx, "large_client_header_buffers 4 "), "8k");
    assert_eq!(KEYS["http.max_uri_bytes"], (8 << 10).to_string());

    let production = read("docker-compose.prod.yml");
    let app = production.split("x-app: ").nth(1).unwrap();
    let grace = app.split("stop_grace_period: ").nth(1).unwrap().split_whitespace().next().unwrap();
    assert_eq!(humantime::parse_duration(grace).unwrap(), setting("shutdown.grace"));
    let proxy = production.split("  nginx:").nth(1).unwrap();
    let grace = proxy.split("stop_grace_period: ").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!(duration(nginx, "worker_shutdown_timeout ") < humantime::parse_duration(grace).unwrap());
}
