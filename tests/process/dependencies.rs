//! Dependencies that are unavailable, frozen, silent or slow (G5-G8, G33-G35).

use std::thread;
use std::time::{Duration, Instant};

use crate::support::app::App;
use crate::support::load::Load;
use crate::support::proxy::{Fault, Proxy};
use crate::support::report::Report;
use crate::support::servers::{self, Server};
use crate::support::setup::Setup;
use crate::support::{eventually, repeatedly};

const CLIENTS: usize = 4;

/// Ways to lose a server: a fault of the server or of the connection to it, and its repair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    Killed,
    Stopped,
    Frozen,
    BlackHole,
}

impl Loss {
    const ALL: [Self; 4] = [Self::Killed, Self::Stopped, Self::Frozen, Self::BlackHole];

    pub fn begin(self, server: &Server, way: &Proxy) {
        match self {
            Self::Killed | Self::Stopped => {
                // Behind a proxy the server would still accept connections.
                way.set(Fault::Refuse);
                server.command(if self == Self::Killed { "kill" } else { "stop" });
                way.cut();
            }
            Self::Frozen => server.command("pause"),
            Self::BlackHole => way.set(Fault::BlackHole),
        }
    }

    pub fn end(self, server: &Server, way: &Proxy) {
        match self {
            Self::Killed | Self::Stopped => server.command("start"),
            Self::Frozen => server.command("resume"),
            Self::BlackHole => {}
        }
        way.set(Fault::None);
    }
}

/// Adds a note that is not cached yet, and returns its path.
pub fn add_note(postgres: &Server, app: &App) -> String {
    let id = postgres.sql(&app.database, "insert into notes (text) values ('hot') returning id::text");
    format!("/v1/notes/{}", id[0])
}

/// Waits until `/health/ready` returns `status` and `word`. Returns the time that this took.
#[track_caller]
pub fn ready_becomes(app: &App, status: u16, word: &str) -> Duration {
    let start = Instant::now();
    loop {
        let answer = app.get("/health/ready");
        if answer.status == status && answer.json()["status"] == word {
            return start.elapsed();
        }
        assert!(start.elapsed() < Duration::from_secs(15), "not {word}: {}", answer.body);
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// A cached route while Redis is unavailable.
#[test]
fn without_redis_every_request_is_answered_and_readiness_says_degraded() {
    let redis = Server::start("redis", "redis-loss");
    let proxy = Proxy::to(redis.port);
    let mut app = Setup::on(servers::postgres(), &redis).workload().set("REDIS__PORT", proxy.port).start();
    let load = Load::get(app.address, &add_note(servers::postgres(), &app));
    let calm = load.closed(CLIENTS, || repeatedly(Duration::from_millis(500), || {}));

    for loss in Loss::ALL {
        let mut times = Vec::new();
        let report = load.closed(CLIENTS, || {
            loss.begin(&redis, &proxy);
            times.push(ready_becomes(&app, 200, "degraded"));
            loss.end(&redis, &proxy);
            times.push(ready_becomes(&app, 200, "ready"));
        });

        let failed = report.0.len() - report.with_status(200);
        println!(
            "Redis {loss:?}: {} requests, {failed} failed, slowest {:?} (p99 {:?}; before {:?}); \
             degraded after {:?}, ready after {:?}",
            report.0.len(),
            report.slowest(),
            report.p99(200),
            calm.p99(200),
            times[0],
            times[1],
        );
        assert_eq!(failed, 0);
        assert!(report.0.len() > 500);
        assert!(report.p99(200) < calm.p99(200) + Duration::from_millis(150), "{:?}", report.p99(200));
        // The load uses the same two cores.
        assert!(report.slowest() < calm.slowest() + Duration::from_millis(250), "{:?}", report.slowest());
    }
    assert!(app.metric("cache_operations_total{operation=\"get\",outcome=\"hit\"}") > 100.0);
    assert!(app.is_running());
}

#[test]
fn without_postgres_answers_are_quick_problem_documents_until_it_returns() {
    let postgres = Server::start("postgres", "postgres-loss");
    let proxy = Proxy::to(postgres.port);
    let mut app = Setup::on(&postgres, servers::redis()).workload().set("DATABASE__PORT", proxy.port).start();
    let size = app.metric("database_connections_limit");
    let load = Load::get(app.address, "/v1/notes");

    for loss in Loss::ALL {
        let (mut times, mut answered) = (Vec::new(), Duration::ZERO);
        let report = load.closed(CLIENTS, || {
            assert_eq!(app.get("/v1/notes").status, 200);
            loss.begin(&postgres, &proxy);
            times.push(ready_becomes(&app, 503, "unavailable"));
            for _ in 0..20 {
                assert_eq!(app.get("/health/live").status, 200);
            }
            loss.end(&postgres, &proxy);
            let back = Instant::now();
            times.push(ready_becomes(&app, 200, "ready"));
            eventually(Duration::from_secs(5), "an answer", || {
                (app.get("/v1/notes").status == 200).then_some(())
            });
            answered = back.elapsed();
        });

        let refused = report.with_status(503);
        println!(
            "PostgreSQL {loss:?}: {} requests, {} answered, {refused} refused, slowest {:?}; unavailable after \
             {:?}, ready {:?} and answering {answered:?} after its return",
            report.0.len(),
            report.with_status(200),
            report.slowest(),
            times[0],
            times[1],
        );
        assert_eq!(report.with_status(200) + refused, report.0.len());
        // A silent server may still respond to pending requests if it resumes in time.
        let silent = matches!(loss, Loss::Frozen | Loss::BlackHole);
        assert!(refused > 0 || silent);
        assert_problems(&report);
        // A silent server blocks a statement until the request timeout; an absent server blocks only the wait for a
        // connection.
        let limit = if silent { 10_500 } else { 2_500 };
        assert!(report.slowest() < Duration::from_millis(limit), "{:?}", report.slowest());
        assert!(
            times[1] < Duration::from_secs(2) && answered < Duration::from_secs(2),
            "{times:?} {answered:?}"
        );
    }
    assert!(app.is_running());
    // Every connection of the pool is usable again.
    let mut holders: Vec<_> = (0..size as usize).map(|_| app.client()).collect();
    eventually(Duration::from_secs(5), "every connection back in the pool", || {
        let answers = holders.iter_mut().map(|client| client.get("/v1/notes").status);
        (answers.filter(|status| *status == 200).count() == size as usize).then_some(())
    });
    eventually(Duration::from_secs(5), "no connection in use", || {
        (app.metric("database_connections{state=\"used\"}") == 0.0).then_some(())
    });
    let statement = "select count(*)::text from pg_stat_activity where state like 'idle in transaction%'";
    assert_eq!(postgres.sql("app", statement), ["0"]);
}

fn assert_problems(report: &Report) {
    for answer in report.answers().filter(|answer| answer.status == 503) {
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
        assert!(!answer.body.contains("127.0.0.1") && !answer.body.contains("app"), "{answer:?}");
    }
}

/// A server is silent for longer than the request timeout: each request ends by its timeout, and the pool then has all its
/// connections.
#[test]
fn a_pool_is_whole_again_after_a_long_silence_and_20_other_faults() {
    let postgres = Server::start("postgres", "pool");
    let proxy = Proxy::to(postgres.port);
    let mut app = Setup::on(&postgres, servers::redis())
        .workload()
        .set("DATABASE__PORT", proxy.port)
        .set("DATABASE__MAX_CONNECTIONS", 4)
        .set("DATABASE__LOCK_TIMEOUT", "300ms")
        .set("DATABASE__STATEMENT_TIMEOUT", "500ms")
        .set("HTTP__REQUEST_TIMEOUT", "1500ms")
        .start();
    let load = Load::post(app.address, "/naive/5");

    let report = load.closed(8, || {
        repeatedly(Duration::from_millis(300), || {});
        proxy.set(Fault::BlackHole);
        ready_becomes(&app, 503, "unavailable");
        repeatedly(Duration::from_secs(4), || assert_eq!(app.get("/health/live").status, 200));
        proxy.set(Fault::None);
        ready_becomes(&app, 200, "ready");
        for fault in 0..20 {
            match fault % 4 {
                0 => proxy.cut(),
                1 => proxy.set(Fault::Refuse),
                2 => proxy.set(Fault::Delay(Duration::from_millis(20))),
                _ => {
                    proxy.set(Fault::BlackHole);
                    proxy.cut();
                }
            }
            repeatedly(Duration::from_millis(100), || {});
            proxy.set(Fault::None);
        }
    });
    ready_becomes(&app, 200, "ready");

    println!(
        "21 faults: {} requests, {} answered, {} refused, slowest {:?}",
        report.0.len(),
        report.with_status(200),
        report.with_status(503),
        report.slowest(),
    );
    assert_eq!(report.with_status(200) + report.with_status(503) + report.with_status(500), report.0.len());
    assert!(report.slowest() < Duration::from_secs(2), "{:?}", report.slowest());
    // Four concurrent requests, each long enough that all four connections are needed.
    eventually(Duration::from_secs(5), "four usable connections", || {
        let mut clients: Vec<_> = (0..4).map(|_| app.client()).collect();
        let start = Instant::now();
        clients.iter_mut().for_each(|client| {
            client.write(b"POST /naive/400 HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        });
        let all = clients.iter_mut().all(|client| client.read_response(false).unwrap().status == 200);
        (all && start.elapsed() < Duration::from_millis(800)).then_some(())
    });
    assert!(app.is_running());
}

#[test]
fn terminated_sessions_are_replaced() {
    let postgres = Server::start("postgres", "terminate");
    let app = Setup::on(&postgres, servers::redis()).workload().start();
    let terminate = "select pg_terminate_backend(pid)::text from pg_stat_activity
                     where datname = current_database() and pid <> pg_backend_pid()";
    let mut terminated = 0;

    let report = Load::get(app.address, "/v1/notes").closed(CLIENTS, || {
        for _ in 0..10 {
            terminated += postgres.sql(&app.database, terminate).len();
            repeatedly(Duration::from_millis(100), || {});
        }
    });

    let failed = report.0.len() - report.with_status(200);
    println!("{terminated} sessions terminated under {} requests: {failed} failed", report.0.len());
    assert!(terminated > 10 && report.0.len() > 200);
    // A connection that was just in use is not checked before its next use.
    assert!(failed <= terminated, "{failed}");
    assert_eq!(app.get("/v1/notes").status, 200);
}

#[test]
fn a_busy_pool_is_not_a_broken_database() {
    // Three checks fail well within this time.
    let mut app = Setup::shared()
        .workload()
        .set("DATABASE__MAX_CONNECTIONS", 2)
        .set("HEALTH__INTERVAL", "400ms")
        .set("HEALTH__TIMEOUT", "300ms")
        .start();
    eventually(Duration::from_secs(5), "an open and idle pool", || {
        (app.metric("database_connections{state=\"idle\"}") == 2.0).then_some(())
    });
    let mut holders: Vec<_> = (0..2).map(|_| app.client()).collect();
    for holder in &mut holders {
        holder.write(b"POST /transaction/4500 HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    }
    eventually(Duration::from_secs(5), "a full pool", || {
        (app.metric("database_connections{state=\"used\"}") == 2.0).then_some(())
    });

    let refused = app.client().request("POST", "/transaction/0", &[], "");
    let mut probes = 0;
    repeatedly(Duration::from_secs(3), || {
        assert_eq!(app.get("/health/ready").status, 200);
        probes += 1;
    });

    println!("{probes} probes ready while every connection was in use");
    assert_eq!(refused.status, 503);
    assert!(app.is_running());
    assert_eq!(app.metric("database_acquire_errors_total"), 1.0);
}

#[test]
fn liveness_checks_no_dependency() {
    let (postgres, redis) = (Server::start("postgres", "live"), Server::start("redis", "live"));
    let app = Setup::on(&postgres, &redis).start();
    postgres.command("pause");
    redis.command("pause");
    ready_becomes(&app, 503, "unavailable");
    let mut client = app.client();

    let mut times: Vec<_> = (0..100)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(client.get("/health/live").status, 200);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();

    println!("100 liveness probes with both dependencies frozen: p99 {:?}", times[98]);
    assert!(times[98] < Duration::from_millis(20));
    postgres.command("resume");
    redis.command("resume");
}

#[test]
fn probes_cost_the_same_however_many_there_are() {
    let app = Setup::shared().start();
    let count = || app.metric("dependency_check_seconds_count{dependency=\"postgres\"}");
    let (before, start) = (count(), Instant::now());

    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let mut client = app.client();
                (0..100).for_each(|_| assert_eq!(client.get("/health/ready").status, 200));
            });
        }
    });

    let (checks, seconds) = (count() - before, start.elapsed().as_secs_f64());
    println!("2,000 probes in {seconds:.1} s: {checks} checks of PostgreSQL");
    assert!(checks <= seconds / 2.0 + 1.0, "{checks}");
}

/// Hysteresis of the real monitor: every third check of PostgreSQL is cut.
#[test]
fn a_check_lost_now_and_then_changes_nothing() {
    let proxy = Proxy::to(servers::postgres().port);
    let app = Setup::shared()
        .set("DATABASE__PORT", proxy.port)
        .set("HEALTH__INTERVAL", "600ms")
        .set("HEALTH__TIMEOUT", "500ms")
        .start();
    let checks = || app.metric("dependency_check_seconds_count{dependency=\"postgres\"}");

    for _ in 0..10 {
        let next = checks() + 3.0;
        eventually(Duration::from_secs(5), "two checks", || (checks() >= next - 1.0).then_some(()));
        proxy.cut();
        eventually(Duration::from_secs(5), "a third", || (checks() >= next).then_some(()));
        assert_eq!(app.get("/health/ready").status, 200);
    }

    let lost = app.log().iter().filter(|line| line["message"] == "dependency is down").count();
    println!("10 of {} checks lost: {lost} times reported down", checks());
    assert_eq!(lost, 0);
}
