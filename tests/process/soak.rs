//! `make soak` (G44): ten minutes of mixed faults under load, after which no resource has grown.

use std::time::{Duration, Instant};

use crate::dependencies::{add_note, ready_becomes};
use crate::overload::busy;
use crate::support::app::App;
use crate::support::load::Load;
use crate::support::proxy::{Fault, Proxy};
use crate::support::repeatedly;
use crate::support::servers::Server;
use crate::support::setup::Setup;

/// Resources that must not grow.
#[derive(Clone, Copy, Debug)]
struct Size {
    resident_kib: u64,
    /// Excludes public connections, which the clients close.
    descriptors: usize,
    threads: usize,
    series: usize,
}

impl Size {
    fn of(app: &App) -> Self {
        let count =
            |folder: &str| std::fs::read_dir(format!("/proc/{}/{folder}", app.pid())).unwrap().count();
        let text = app.get("/metrics").body;
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        let connections = app.metric("http_connections_open") as usize;
        let descriptors = count("fd").saturating_sub(connections);
        Self { resident_kib: app.resident_kib(), descriptors, threads: count("task"), series }
    }
}

/// One round of faults.
fn round(number: usize, app: &App, postgres: &Server, redis: &Server, way: &Proxy) {
    let pause = || repeatedly(Duration::from_secs(1), || {});
    match number % 8 {
        0 => redis.command("kill"),
        1 => way.set(Fault::Delay(Duration::from_millis(20))),
        2 => way.cut(),
        3 => way.set(Fault::BlackHole),
        4 => postgres.command("pause"),
        5 => {
            let terminate =
                "select pg_terminate_backend(pid)::text from pg_stat_activity where pid <> pg_backend_pid()";
            postgres.sql(&app.database, terminate);
        }
        6 => {
            // Clients that connect and send nothing, stop half-way, or disconnect.
            let _silent: Vec<_> = (0..50).map(|_| app.client()).collect();
            let mut half: Vec<_> = (0..50).map(|_| app.client()).collect();
            for client in &mut half {
                client.write(b"POST /v1/notes HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{").unwrap();
            }
            let _leaving: Vec<_> = (0..50).map(|_| busy(app, "/v1/notes?limit=100")).collect();
            pause();
        }
        _ => {
            for path in 0..500 {
                app.get(&format!("/nowhere/{path}"));
            }
        }
    }
    pause();
    way.set(Fault::None);
    match number % 8 {
        0 => redis.command("start"),
        4 => postgres.command("resume"),
        _ => {}
    }
}

#[test]
#[ignore = "ten minutes: make soak"]
fn ten_minutes_of_faults_leave_nothing_behind() {
    const TIME: Duration = Duration::from_secs(600);
    let (postgres, redis) = (Server::start("postgres", "soak"), Server::start("redis", "soak"));
    let way = Proxy::to(postgres.port);
    let setup = Setup::on(&postgres, &redis).workload().set("DATABASE__PORT", way.port);
    let mut app = setup.set("DATABASE__SESSION_LIFETIME", "30s").start();
    let note = add_note(&postgres, &app);
    let (start, mut sizes, mut rounds) = (Instant::now(), Vec::new(), 0);

    let mut cached = None;
    let report = Load::get(app.address, "/v1/notes").open(100, || {
        cached = Some(Load::get(app.address, &note).open(200, || {
            while start.elapsed() < TIME {
                (0..8).for_each(|number| round(number, &app, &postgres, &redis, &way));
                rounds += 1;
                ready_becomes(&app, 200, "ready");
                sizes.push(Size::of(&app));
            }
        }));
    });

    let cached = cached.unwrap();
    println!(
        "{rounds} rounds of 8 faults in {:?}: {} requests to PostgreSQL ({} answered 200, {} 503), {} through the \
         cache ({} answered 200, {} 503); {} lost",
        start.elapsed(),
        report.0.len(),
        report.with_status(200),
        report.with_status(503),
        cached.0.len(),
        cached.with_status(200),
        cached.with_status(503),
        report.lost() + cached.lost(),
    );
    let quarter = sizes.len() / 4;
    let median = |sizes: &[Size]| {
        let mut sizes = sizes.to_vec();
        sizes.sort_unstable_by_key(|size| size.resident_kib);
        sizes[sizes.len() / 2]
    };
    // The first quarter fills caches and opens long-lived connections.
    let (early, late) = (median(&sizes[quarter..2 * quarter]), median(&sizes[3 * quarter..]));
    println!("second quarter {early:?}, last quarter {late:?}");
    assert!(app.is_running());
    assert_eq!(report.lost() + cached.lost(), 0);
    assert_eq!(report.with_status(200) + report.with_status(503), report.0.len());
    // Reads of expired cache entries are answered with 503 while PostgreSQL is down.
    assert_eq!(cached.with_status(200) + cached.with_status(503), cached.0.len());
    assert!(cached.with_status(503) < cached.0.len() / 20);
    assert!(late.resident_kib < early.resident_kib + early.resident_kib / 10, "{early:?} {late:?}");
    assert!(late.descriptors <= early.descriptors + 16, "{early:?} {late:?}");
    assert!(late.threads <= early.threads + 4, "{early:?} {late:?}");
    assert_eq!(late.series, early.series);
}
