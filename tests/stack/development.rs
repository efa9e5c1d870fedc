//! The development stack from a fresh checkout: it serves, and edits are reloaded automatically.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::docker::{Checkout, Project, docker};
use crate::support::http::Client;
use crate::support::{eventually, free_port};

#[test]
fn the_development_stack_reloads_an_edit() {
    let checkout = Checkout::with_notes();
    // Like a new project, whose lock file has the name of the template.
    let own = format!("name = \"{}\"\n", env!("CARGO_PKG_NAME"));
    checkout.edit("Cargo.lock", &own, "name = \"template\"\n");
    let port = free_port();
    let variables = [
        ("DEV_PORT", port.to_string()),
        ("DEV_POSTGRES_PORT", free_port().to_string()),
        ("DEV_REDIS_PORT", free_port().to_string()),
    ];
    let project = Project::new("development", &[checkout.path().join("docker-compose.yml")], &variables);
    let start = Instant::now();
    project.compose(&["up", "--detach", "--build", "--wait", "--wait-timeout", "600"]);
    println!("healthy after {:.1?}, including compilation", start.elapsed());
    let lock = std::fs::read_to_string(checkout.path().join("Cargo.lock")).unwrap();
    assert!(lock.contains(&own) && !lock.contains("name = \"template\"\n"), "{lock}");

    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let note = Client::connect(address).send("POST", "/v1/notes", &[], &json!({"text": "hello"})).json();
    let path = format!("/v1/notes/{}", note["id"]);
    assert_eq!(Client::connect(address).get(&path).json(), note);
    let published = docker(&["ps", "--format", "{{.Ports}}", "--filter", &format!("publish={port}")]);
    assert!(published.contains(&format!("127.0.0.1:{port}->")), "{published}");

    let start = Instant::now();
    checkout.edit("src/platform/http/management.rs", "\"alive\"", "\"edited\"");
    let live = eventually(Duration::from_secs(180), "the edit", || {
        let answer = Client::try_connect(address)?.try_request("GET", "/health/live", &[], "")?;
        (answer.json() == json!({"status": "edited"})).then(|| start.elapsed())
    });
    println!("edit live after {live:.1?}");
    // The data from before the edit, read by a file that did not exist when the watch started.
    std::fs::write(checkout.path().join("src/added.rs"), "").unwrap();
    checkout.edit("src/lib.rs", "pub mod platform;", "pub mod added;\npub mod platform;");
    checkout.edit("src/platform/http/management.rs", "\"edited\"", "\"twice\"");
    eventually(Duration::from_secs(180), "the second edit", || {
        let answer = Client::try_connect(address)?.try_request("GET", "/health/live", &[], "")?;
        (answer.json() == json!({"status": "twice"})).then_some(())
    });
    let answer = eventually(Duration::from_secs(20), "the note", || {
        Some(Client::try_connect(address)?.get(&path)).filter(|answer| answer.status == 200)
    });
    assert_eq!(answer.json(), note);

    let start = Instant::now();
    project.compose(&["stop"]);
    println!("stopped after {:.1?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(10));
    project.remove();
    assert_eq!(project.remains(), "");
}
