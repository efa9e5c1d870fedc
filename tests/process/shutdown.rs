//! Shutdown (G1-G3, G22-G24): nothing is lost, the deadline holds, and aborted work is reported.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::app::App;
use crate::support::http::Client;
use crate::support::load::Load;
use crate::support::setup::Setup;
use crate::support::{eventually, servers};

/// Short timeouts in the same order as the defaults: about 1 s from the signal to the deadline.
fn quick() -> Setup {
    Setup::shared()
        .set("DATABASE__LOCK_TIMEOUT", "300ms")
        .set("DATABASE__STATEMENT_TIMEOUT", "500ms")
        .set("DATABASE__ACQUIRE_TIMEOUT", "500ms")
        .set("HTTP__REQUEST_TIMEOUT", "1500ms")
        .set("SHUTDOWN__DRAIN_TIMEOUT", "2s")
}

/// Totals over terminations, each under 32 clients that open a connection per request.
pub struct Terminations {
    pub answered: usize,
    pub failed: usize,
    pub lost: usize,
    pub slowest: Duration,
    pub codes: Vec<Option<i32>>,
}

pub fn terminate(count: usize, start: impl Fn() -> App) -> Terminations {
    let mut sums = Terminations { answered: 0, failed: 0, lost: 0, slowest: Duration::ZERO, codes: vec![] };
    for _ in 0..count {
        let mut app = start();
        let load = Load::get(app.address, "/v1/notes").on_fresh_connections();
        let report = load.closed(32, || {
            eventually(Duration::from_secs(20), "500 answers", || (load.answered() >= 500).then_some(()));
            app.terminate();
            let (status, time) = app.wait(Duration::from_secs(20));
            sums.codes.push(status.code());
            sums.slowest = sums.slowest.max(time);
        });
        assert!(report.refused() > 0, "the clients have to continue after the exit");
        for refusal in report.answers().filter(|answer| answer.status != 200) {
            println!("{} {}", refusal.status, refusal.body);
        }
        sums.answered += report.with_status(200);
        sums.lost += report.lost();
        sums.failed += report.answers().count() - report.with_status(200);
    }
    sums
}

impl Terminations {
    pub fn print(&self) {
        println!(
            "{} terminations: {} requests answered, {} failed, {} lost, slowest exit {:?}",
            self.codes.len(),
            self.answered,
            self.failed,
            self.lost,
            self.slowest,
        );
    }
}

#[test]
fn no_accepted_request_is_lost_in_12_terminations_under_32_clients() {
    let sums = terminate(12, || Setup::shared().workload().start());

    sums.print();
    assert!(sums.codes.iter().all(|code| *code == Some(0)), "{:?}", sums.codes);
    assert_eq!((sums.failed, sums.lost), (0, 0));
}

#[test]
#[ignore = "minutes: make guarantees"]
fn no_accepted_request_is_lost_in_100_terminations_under_32_clients() {
    let sums = terminate(100, || Setup::shared().workload().start());

    sums.print();
    assert!(sums.codes.iter().all(|code| *code == Some(0)), "{:?}", sums.codes);
    assert_eq!((sums.failed, sums.lost), (0, 0));
}

/// Brings a connection into a state before the shutdown.
type State = fn(&App) -> Client;

pub fn sent(app: &App, bytes: &[u8]) -> Client {
    let mut client = app.client();
    client.write(bytes).unwrap();
    client
}

#[test]
fn whatever_the_clients_do_the_service_exits_by_the_deadline_and_reports_cut_connections() {
    let states: [(&str, State, i32, u64); 8] = [
        ("connected, nothing sent", |app| app.client(), 0, 1000),
        ("part of a request line", |app| sent(app, b"GET /heal"), 0, 2500),
        ("part of a head", |app| sent(app, b"GET / HTTP/1.1\r\nhost: a\r\n"), 0, 2500),
        (
            "idle after a response",
            |app| {
                let mut client = app.client();
                client.get("/health/live");
                client
            },
            0,
            1000,
        ),
        ("waiting for a response", |app| sent(app, b"GET /sleep/1000 HTTP/1.1\r\nhost: a\r\n\r\n"), 0, 2000),
        (
            "half a body",
            |app| sent(app, b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf"),
            0,
            2000,
        ),
        (
            "reading a response without an end",
            |app| sent(app, b"GET /drip HTTP/1.1\r\nhost: a\r\n\r\n"),
            3,
            2500,
        ),
        ("not reading a large response", |app| sent(app, b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n"), 3, 2500),
    ];
    for (name, bring, code, limit_ms) in states {
        let mut app = quick().workload().start();
        let client = bring(&app);
        eventually(Duration::from_secs(5), name, || {
            (app.metric("http_connections_accepted_total") >= 2.0).then_some(())
        });
        app.terminate();

        let (status, time) = app.wait(Duration::from_secs(10));

        println!("{name}: exit {:?} after {time:?}", status.code());
        assert_eq!(status.code(), Some(code), "{name}: {:?}", app.lines().last());
        assert!(time < Duration::from_millis(limit_ms), "{name}: {time:?}");
        let last = app.log().pop().unwrap();
        assert_eq!(last["connections_cut"].as_u64(), (code == 3).then_some(1), "{name}: {last}");
        drop(client);
    }
}

#[test]
fn readiness_fails_immediately_while_new_connections_are_served_for_the_delay() {
    let delay = Duration::from_secs(2);
    let mut app = Setup::shared().workload().set("SHUTDOWN__READY_DELAY", "2s").start();
    let mut kept = app.client();
    kept.get("/health/live");

    let signalled = Instant::now();
    app.terminate();
    eventually(Duration::from_millis(100), "not ready", || {
        let answer = app.ready()?;
        (answer.status == 503 && answer.json()["status"] == "draining").then_some(())
    });
    println!("not ready {:?} after the signal", signalled.elapsed());

    let answer = kept.get("/v1/notes");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(kept.is_closed());
    let mut served = 0;
    while signalled.elapsed() < delay - Duration::from_millis(200) {
        assert!(app.is_running());
        assert_eq!(app.get("/health/live").status, 200);
        assert_eq!(app.get("/health/ready").status, 503);
        assert_eq!(app.get("/v1/notes").status, 200);
        served += 3;
    }
    let (status, _) = app.wait(Duration::from_secs(5));
    println!("{served} requests on new connections served while draining");
    assert_eq!(status.code(), Some(0));
    assert!(signalled.elapsed() >= delay && served > 30, "{served}");
}

#[test]
fn a_request_in_progress_is_finished_and_its_row_written() {
    let mut app = Setup::shared().workload().start();
    let mut client = sent(&app, b"POST /transaction/1000 HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(Duration::from_secs(5), "the statement", || {
        let running = "select 1 from pg_stat_activity where query like 'select pg_sleep%' and datname = current_database()";
        (!servers::postgres().sql(&app.database, running).is_empty()).then_some(())
    });

    app.terminate();
    let answer = client.read_response(false).unwrap();
    let (status, _) = app.wait(Duration::from_secs(10));

    assert_eq!((answer.status, answer.body.as_str()), (200, "written"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(status.code(), Some(0));
    assert_eq!(servers::postgres().sql(&app.database, "select count(*)::text from rows"), ["1"]);
}

#[test]
fn a_second_signal_ends_the_drain_immediately() {
    let mut app = Setup::shared().set("SHUTDOWN__READY_DELAY", "5s").start();

    app.terminate();
    app.logged("the first signal", |line| line["message"] == "shutting down");
    app.signal(Signal::INT);
    let (status, time) = app.wait(Duration::from_secs(5));

    println!("exit {:?} {time:?} after the second signal", status.code());
    assert_eq!(status.code(), Some(128 + 2));
    assert!(time < Duration::from_millis(200));
}

#[test]
fn a_signal_during_startup_ends_the_service() {
    // A server that accepts connections and sends nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let setup = || Setup::shared().set("DATABASE__PORT", port).set("REDIS__PORT", port);
    let mut app = setup().start_unready();
    assert_eq!(app.get("/health/live").status, 200);
    assert_eq!(app.get("/health/ready").status, 503);

    app.terminate();
    let (status, time) = app.wait(Duration::from_secs(5));

    println!("exit {:?} {time:?} after a signal during startup", status.code());
    assert_eq!(status.code(), Some(0));
    assert!(time < Duration::from_secs(1));

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut migrate = setup().set("DATABASE__PORT", port).command(&["migrate"]).spawn().unwrap();
    let _connection = silent.accept().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&migrate), Signal::TERM).unwrap();
    let status = eventually(Duration::from_secs(1), "exit of migrate", || migrate.try_wait().unwrap());
    assert_eq!(status.code(), Some(128 + 15));
}
