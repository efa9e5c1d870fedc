//! When descriptors run out (G25): whoever asks how the service is gets an answer, and it recovers by itself.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::http::Client;
use crate::support::setup::Setup;
use crate::support::{eventually, free_port};

#[test]
fn with_64_descriptors_and_200_clients_probes_are_answered_and_recovery_is_quick() {
    let port = free_port();
    let mut app = Setup::shared()
        .with_descriptors(64)
        .set("MANAGEMENT__PORT", port)
        .set("MANAGEMENT__ADDRESS", "127.0.0.1")
        .start();
    let management = SocketAddr::from(([127, 0, 0, 1], port));
    app.logged("the warning", |line| line["message"] == "the descriptor limit allows fewer connections");

    let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(app.address).unwrap()).collect();
    let mut slowest = Duration::ZERO;
    for path in ["/health/live", "/health/ready", "/metrics"].repeat(10) {
        let start = Instant::now();
        assert_eq!(Client::connect(management).get(path).status, 200, "{path}");
        slowest = slowest.max(start.elapsed());
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", app.pid())).unwrap().count();
    drop(clients);
    let left = Instant::now();
    eventually(Duration::from_secs(1), "an answer", || {
        Client::try_connect(app.address)?
            .try_request("GET", "/v1/links", &[], "")
            .filter(|answer| answer.status == 200)
    });

    println!(
        "200 clients, {open} of 64 descriptors open: slowest probe {slowest:?}, answered {:?} after they left",
        left.elapsed()
    );
    assert!(slowest < Duration::from_secs(1));
    assert!(app.is_running());
}
