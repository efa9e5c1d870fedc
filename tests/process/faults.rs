//! Dependencies that are gone, frozen, slow or wrong (G4-G8, G34, G40).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::app::{App, Setup};
use crate::support::eventually;
use crate::support::http::{Client, Response};
use crate::support::servers::{self, PASSWORD, Server};

/// Answers to requests sent one after the other by four clients, with the time each took.
struct Load(Vec<(Duration, Option<Response>)>);

impl Load {
    /// Sends GET `path` while `during` runs.
    fn run(app: &App, path: &str, during: impl FnOnce()) -> Self {
        let stop = AtomicBool::new(false);
        let send = || {
            let mut answers = Vec::new();
            let mut client = app.client();
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                let answer = client.try_request("GET", path, &[], "");
                if answer.is_none() {
                    client = app.client();
                }
                answers.push((start.elapsed(), answer));
            }
            answers
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
            let stopped = StopOnDrop(&stop);
            during();
            drop(stopped);
            Self(threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect())
        })
    }

    fn with_status(&self, status: u16) -> usize {
        self.0
            .iter()
            .filter(|(_, answer)| answer.as_ref().is_some_and(|answer| answer.status == status))
            .count()
    }

    fn slowest(&self) -> Duration {
        self.0.iter().map(|(time, _)| *time).max().unwrap()
    }
}

/// Ends the load also when an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn add_link(postgres: &Server, app: &App, slug: &str) {
    let statement = format!("insert into links (slug, url) values ('{slug}', 'https://example.com/{slug}')");
    postgres.sql(&app.database, &statement);
}

/// Waits until `/health/ready` answers `status` and `word`; how long it took.
#[track_caller]
fn ready_becomes(app: &App, status: u16, word: &str) -> Duration {
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

#[test]
fn without_redis_every_request_is_answered_and_readiness_says_degraded() {
    let redis = Server::start("redis", "redis-loss");
    let mut app = Setup::on(servers::postgres(), &redis).start();
    add_link(servers::postgres(), &app, "hot");
    let calm = Load::run(&app, "/r/hot", || thread::park_timeout(Duration::from_millis(500)));

    for (fault, repair) in [("kill", "start"), ("pause", "resume"), ("stop", "start")] {
        let mut times = Vec::new();
        let load = Load::run(&app, "/r/hot", || {
            redis.command(fault);
            times.push(ready_becomes(&app, 200, "degraded"));
            redis.command(repair);
            times.push(ready_becomes(&app, 200, "ready"));
        });

        println!(
            "Redis {fault}: {} requests, {} redirected, slowest {:?} (before {:?}); degraded after {:?}, ready after {:?}",
            load.0.len(),
            load.with_status(307),
            load.slowest(),
            calm.slowest(),
            times[0],
            times[1],
        );
        assert_eq!(load.with_status(307), load.0.len());
        assert!(load.0.len() > 500);
        assert!(load.slowest() < calm.slowest() + Duration::from_millis(250), "{:?}", load.slowest());
    }
    assert!(app.metric("cache_operations_total{operation=\"get\",outcome=\"hit\"}") > 100.0);
    assert!(app.is_running());
}

#[test]
fn without_postgres_answers_are_quick_problem_documents_until_it_returns() {
    let postgres = Server::start("postgres", "postgres-loss");
    let mut app = Setup::on(&postgres, servers::redis()).start();

    for (fault, repair) in [("kill", "start"), ("stop", "start"), ("pause", "resume")] {
        let mut times = Vec::new();
        let load = Load::run(&app, "/v1/links", || {
            assert_eq!(app.get("/v1/links").status, 200);
            postgres.command(fault);
            times.push(ready_becomes(&app, 503, "unavailable"));
            for _ in 0..20 {
                assert_eq!(app.get("/health/live").status, 200);
            }
            postgres.command(repair);
            times.push(ready_becomes(&app, 200, "ready"));
            // Logins of an unoptimised build on busy cores may outlast an acquire timeout or two.
            eventually(Duration::from_secs(5), "an answer", || {
                (app.get("/v1/links").status == 200).then_some(())
            });
        });

        let refused = load.with_status(503);
        println!(
            "PostgreSQL {fault}: {} requests, {} answered, {refused} refused, slowest {:?}; \
             unavailable after {:?}, ready {:?} after its return",
            load.0.len(),
            load.with_status(200),
            load.slowest(),
            times[0],
            times[1],
        );
        assert_eq!(load.with_status(200) + refused, load.0.len());
        // What a frozen server holds may be answered after all, when it goes on in time.
        assert!(refused > 0 || fault == "pause");
        let problems = load.0.iter().flat_map(|(_, answer)| answer).filter(|answer| answer.status == 503);
        for answer in problems {
            assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
            assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
            assert!(!answer.body.contains("127.0.0.1") && !answer.body.contains("app"), "{answer:?}");
        }
        // A frozen server holds a statement until the request's time is up; an absent one only the wait for a
        // connection.
        let limit = if fault == "pause" { 10_500 } else { 2_500 };
        assert!(load.slowest() < Duration::from_millis(limit), "{:?}", load.slowest());
        assert!(times[1] < Duration::from_secs(2), "{:?}", times[1]);
    }
    assert!(app.is_running());
    eventually(Duration::from_secs(5), "every connection back in the pool", || {
        (app.metric("database_connections{state=\"used\"}") == 0.0).then_some(())
    });
    let statement = "select count(*)::text from pg_stat_activity where state like 'idle in transaction%'";
    assert_eq!(postgres.sql("app", statement), ["0"]);
}

#[test]
fn terminated_sessions_are_replaced() {
    let postgres = Server::start("postgres", "terminate");
    let app = Setup::on(&postgres, servers::redis()).start();
    let terminate = "select pg_terminate_backend(pid)::text from pg_stat_activity
                     where datname = current_database() and pid <> pg_backend_pid()";
    let mut terminated = 0;

    let load = Load::run(&app, "/v1/links", || {
        for _ in 0..10 {
            terminated += postgres.sql(&app.database, terminate).len();
            thread::park_timeout(Duration::from_millis(100));
        }
    });

    let failed = load.0.len() - load.with_status(200);
    println!("{terminated} sessions terminated under {} requests: {failed} failed", load.0.len());
    assert!(terminated > 10 && load.0.len() > 200);
    // Four clients: at most four statements are in progress at each of the ten blows.
    assert!(failed <= 40, "{failed}");
    assert_eq!(app.get("/v1/links").status, 200);
}

#[test]
fn a_busy_pool_is_not_a_broken_database() {
    let mut app = Setup::shared().faulty().set("DATABASE__MAX_CONNECTIONS", 2).start();
    servers::postgres().sql(&app.database, "create table rows (id bigint)");
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
    let until = Instant::now() + Duration::from_secs(3);
    let mut probes = 0;
    while Instant::now() < until {
        assert_eq!(app.get("/health/ready").status, 200);
        probes += 1;
    }

    println!("{probes} probes ready while every connection was in use");
    assert_eq!(refused.status, 503);
    assert!(app.is_running());
    assert_eq!(app.metric("database_acquire_errors_total"), 1.0);
}

#[test]
fn liveness_asks_nobody() {
    let (postgres, redis) = (Server::start("postgres", "live"), Server::start("redis", "live"));
    let app = Setup::on(&postgres, &redis).start();
    postgres.command("pause");
    redis.command("pause");
    let mut client = app.client();

    let mut times: Vec<_> = (0..100)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(client.get("/health/live").status, 200);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();

    println!("100 live probes with both dependencies frozen: p99 {:?}", times[98]);
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

#[test]
fn a_client_that_leaves_does_not_break_a_later_request() {
    let mut app = Setup::shared().faulty().set("DATABASE__MAX_CONNECTIONS", 4).start();
    let postgres = servers::postgres();
    postgres.sql(&app.database, "create table rows (id bigint generated always as identity)");
    let mut random = 1_u64;
    for attempt in 0..200 {
        // A linear congruential generator: the same points in time in each run.
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let path = if attempt % 2 == 0 { "naive" } else { "transaction" };
        let mut client = app.client();
        client.write(format!("POST /{path}/3 HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
        thread::park_timeout(Duration::from_micros(random >> 50));
        drop(client);
    }

    let count =
        || -> u64 { postgres.sql(&app.database, "select count(*)::text from rows")[0].parse().unwrap() };
    let settled = || -> bool {
        let open = "select 1 from pg_stat_activity where datname = current_database() and state like '%transaction%'";
        postgres.sql(&app.database, open).is_empty()
    };
    eventually(Duration::from_secs(5), "no open transaction", || settled().then_some(()));
    let before = count();
    for written in 1..=50 {
        let answer = app.client().request("POST", "/transaction/0", &[], "");
        assert_eq!((answer.status, count()), (200, before + written));
    }
    println!(
        "200 clients left: {before} transactions committed, then 50 of 50 writes seen by another session"
    );
    // Those that survive their client all commit; of the others, those that were quick.
    assert!((100..=200).contains(&before), "{before}");
    assert!(app.is_running());
}

#[test]
fn the_cache_never_causes_a_wrong_answer() {
    let redis = Server::start("redis", "cache-truth");
    let mut app = Setup::on(servers::postgres(), &redis).start();
    add_link(servers::postgres(), &app, "true");
    let key = format!("{}:link:true", app.database);
    let follow = |client: &mut Client| client.get("/r/true").header("location").map(ToOwned::to_owned);
    let expected = Some("https://example.com/true".to_owned());
    let info = redis::RedisConnectionInfo::default().set_password(PASSWORD);
    let address = redis::ConnectionAddr::Tcp("127.0.0.1".to_owned(), redis.port);
    let info = redis::IntoConnectionInfo::into_connection_info(address).unwrap().set_redis_settings(info);
    let mut direct = redis::Client::open(info).unwrap().get_connection().unwrap();
    let mut client = app.client();

    let other = json!({"slug": "other", "url": "https://evil.example/"}).to_string();
    let script = json!({"slug": "true", "url": "javascript:alert(1)"}).to_string();
    let mut poisons = vec![vec!["SET".into(), key.clone(), "\u{0}garbage{".into()]];
    poisons.push(vec!["SET".into(), key.clone(), "42".into()]);
    poisons.push(vec!["SET".into(), key.clone(), other]);
    poisons.push(vec!["SET".into(), key.clone(), script]);
    poisons.push(vec!["RPUSH".into(), key.clone(), "list".into()]);
    poisons.push(vec!["HSET".into(), key.clone(), "field".into(), "value".into()]);
    for poison in poisons {
        redis::cmd("DEL").arg(&key).query::<()>(&mut direct).unwrap();
        let mut command = redis::cmd(&poison[0]);
        command.arg(&poison[1..]).query::<redis::Value>(&mut direct).unwrap();
        assert_eq!(follow(&mut client), expected, "{poison:?}");
        assert_eq!(follow(&mut client), expected, "{poison:?}");
    }

    // A change while Redis does not answer must not leave the old value behind.
    redis::cmd("DEL").arg(&key).query::<()>(&mut direct).unwrap();
    assert_eq!(follow(&mut client), expected);
    let cached: String = redis::cmd("GET").arg(&key).query(&mut direct).unwrap();
    assert!(cached.contains("https://example.com/true"), "{cached}");
    redis.command("pause");
    let body = json!({"url": "https://example.com/changed"});
    let changed = client.send("PATCH", "/v1/links/true", &[("if-match", "\"1\"")], &body);
    assert_eq!(changed.status, 200);
    redis.command("resume");
    for _ in 0..200 {
        assert_eq!(follow(&mut client).as_deref(), Some("https://example.com/changed"));
    }
    eventually(Duration::from_secs(5), "the tombstone", || {
        let value: String = redis::cmd("GET").arg(&key).query(&mut direct).unwrap();
        value.is_empty().then_some(())
    });
    assert!(app.is_running());
}
