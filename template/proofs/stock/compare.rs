//! The measurements of `docs/guarantees.md` on the stock service of `main.rs`, run by `make guarantees`. They print
//! results and assert nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]

#[path = "../../../tests/support/mod.rs"]
#[expect(dead_code, reason = "part of the module is for the other test binaries")]
mod support;

// These modules contain the measurements, and tests of the service, which `--skip ::` excludes.
#[path = "../../../tests/process/consistency.rs"]
mod consistency;
#[path = "../../../tests/process/dependencies.rs"]
mod dependencies;
#[path = "../../../tests/process/overload.rs"]
mod overload;
#[path = "../../../tests/process/shutdown.rs"]
mod shutdown;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use consistency::leave_and_write;
use dependencies::{Loss, add_note};
use overload::{busy, overload, setup};
use shutdown::{sent, terminate};
use support::app::App;
use support::http::Client;
use support::load::Load;
use support::proxy::Proxy;
use support::repeatedly;
use support::servers::{self, Server};
use support::setup::Setup;

/// Longer than any timeout of the service.
const PATIENCE: Duration = Duration::from_secs(12);

fn stock() -> Setup {
    Setup::shared().served_by("stock")
}

fn start() -> App {
    stock().start()
}

/// Reports whether `check` succeeds within `PATIENCE`, and when.
fn in_time(mut check: impl FnMut() -> bool) -> String {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if check() {
            return format!("after {:?}", start.elapsed());
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    format!("not within {PATIENCE:?}")
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g1_terminations() {
    terminate(12, start).print();
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g2_states_of_clients_at_shutdown() {
    let states: [(&str, &[u8]); 5] = [
        ("connected, nothing sent", b""),
        ("part of a request line", b"GET /heal"),
        ("part of a head", b"GET / HTTP/1.1\r\nhost: a\r\n"),
        ("half a body", b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf"),
        ("not reading a large response", b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n"),
    ];
    for (name, bytes) in states {
        let mut app = start();
        let _client = sent(&app, bytes);
        app.get("/health/live");
        app.terminate();
        println!("{name}: exit {}", in_time(|| !app.is_running()));
    }
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g4_cancelled_transactions() {
    // Sessions that it leaves in a transaction stay there.
    let has_ended = |app: &App| {
        let busy = "select 1::text from pg_stat_activity
                    where datname = current_database() and state = 'active' and pid <> pg_backend_pid()";
        servers::postgres().sql(&app.database, busy).is_empty()
    };
    let writes = leave_and_write(stock(), "/naive/3", has_ended);
    println!(
        "after 100 clients disconnected: 50 writes, {} answered 200, {} committed",
        writes.answered, writes.seen
    );
}

fn outage(kind: &str, loss: Loss, path: &str) {
    let server = Server::start(kind, &format!("stock-{kind}"));
    let proxy = Proxy::to(server.port);
    let setup = match kind {
        "redis" => Setup::on(servers::postgres(), &server).set("REDIS__PORT", proxy.port),
        _ => Setup::on(&server, servers::redis()).set("DATABASE__PORT", proxy.port),
    };
    let app = setup.served_by("stock").start();
    add_note(if kind == "redis" { servers::postgres() } else { &server }, &app);
    let mut back = String::new();
    let report = Load::get(app.address, path).closed(4, || {
        repeatedly(Duration::from_millis(500), || {});
        loss.begin(&server, &proxy);
        repeatedly(Duration::from_secs(6), || {});
        loss.end(&server, &proxy);
        back = in_time(|| app.probe(path).is_some_and(|answer| answer.status == 200));
    });
    println!(
        "{kind} {loss:?}: {} requests, {} failed, slowest {:?}; recovered {back} its return",
        report.0.len(),
        report.0.len() - report.with_status(200),
        report.slowest(),
    );
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g5_without_redis() {
    for loss in [Loss::Killed, Loss::Frozen] {
        outage("redis", loss, "/v1/notes/1");
    }
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g6_without_postgres() {
    for loss in [Loss::Killed, Loss::BlackHole] {
        outage("postgres", loss, "/v1/notes");
    }
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g7_readiness_of_a_busy_pool() {
    let app = start();
    let _holders: Vec<_> =
        (0..10).map(|_| sent(&app, b"POST /naive/4500 HTTP/1.1\r\nhost: a\r\n\r\n")).collect();
    repeatedly(Duration::from_millis(500), || {});
    let start = Instant::now();
    let answer = app.probe("/health/ready");
    println!("readiness probe: {:?} after {:?}", answer.map(|answer| answer.status), start.elapsed());
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g9_slow_clients() {
    let app = start();
    let before = app.resident_kib();
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(400_000));
    let clients: Vec<_> = (0..300).map(|_| sent(&app, head.as_bytes())).collect();
    repeatedly(Duration::from_secs(1), || {});
    let open = |clients: &[Client]| clients.iter().filter(|client| is_open(client)).count();
    println!(
        "300 unfinished heads of 400 KB: {} KiB of additional memory, {} open",
        app.resident_kib() - before,
        open(&clients)
    );
    let shapes = [b"".as_slice(), b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\n"];
    let clients: Vec<_> = shapes.iter().map(|bytes| sent(&app, bytes)).collect();
    println!("three slow clients: cut {}", in_time(|| open(&clients) == 0));
}

fn is_open(client: &Client) -> bool {
    client.stream.set_nonblocking(true).unwrap();
    let peeked = client.stream.peek(&mut [0]);
    peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g13_overload() {
    overload(&setup().served_by("stock").start()).print();
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g21_panic() {
    let app = start();
    let answer = app.client().try_request("GET", "/panic", &[], "");
    println!("a panic: {:?}", answer.map(|answer| answer.status));
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g22_second_signal() {
    let mut app = start();
    let _client = busy(&app, "/sleep/3000");
    app.get("/health/live");
    app.terminate();
    app.terminate();
    println!("two signals: exit {}", in_time(|| !app.is_running()));
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g25_descriptors() {
    let app = stock().with_descriptors(64).start();
    let _clients: Vec<_> = (0..200)
        .map_while(|_| TcpStream::connect_timeout(&app.address, Duration::from_secs(1)).ok())
        .collect();
    let live = in_time(|| {
        let client = TcpStream::connect_timeout(&app.address, Duration::from_secs(1));
        client.is_ok() && app.probe("/health/live").is_some()
    });
    println!("200 clients, 64 descriptors: a probe is answered {live}");
}

#[test]
#[ignore = "a comparison: make guarantees"]
fn g28_half_bodies_slow_readers_and_slow_handlers() {
    let app = start();
    let clients = [
        ("half a body", sent(&app, b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf")),
        ("a slow handler", busy(&app, "/sleep/60000")),
    ];
    for (name, client) in &clients {
        println!("{name}: ended {}", in_time(|| !is_open(client)));
    }
}
