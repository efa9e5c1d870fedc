//! Nothing is lost, duplicated or wrong: writes whose client disconnects (G4) or whose service is killed (G41), and
//! responses from the cache (G40).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::dependencies::add_note;
use crate::support::app::App;
use crate::support::http::{Client, Response};
use crate::support::proxy::{Fault, Proxy};
use crate::support::servers::{self, Server};
use crate::support::setup::Setup;
use crate::support::{Random, eventually, repeatedly};

/// Size of the pool while clients disconnect.
const CONNECTIONS: u32 = 16;
const SEED: u64 = 1;

/// The fate of writes without a transaction, after other clients disconnected during their transactions.
pub struct Writes {
    pub answered: usize,
    pub seen: usize,
    pub app: App,
}

/// 100 clients disconnect from `path` at random points; then 50 rows are written one by one. A session left in a
/// transaction would never commit these rows, unless a later transaction ends it: hence a pool of 16.
///
/// `has_ended` returns whether the service has finished the work of these clients.
pub fn leave_and_write(setup: Setup, path: &str, has_ended: impl Fn(&App) -> bool) -> Writes {
    // Each message is delayed, so that clients disconnect during each of them, above all during `begin`.
    let proxy = Proxy::to(servers::postgres().port);
    let app = setup.set("DATABASE__MAX_CONNECTIONS", CONNECTIONS).set("DATABASE__PORT", proxy.port).start();
    proxy.set(Fault::Delay(Duration::from_millis(10)));
    let mut random = Random(SEED);
    for _ in 0..100 {
        let mut client = app.client();
        client.write(format!("POST {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
        let leaves = Instant::now() + Duration::from_micros(random.below_power(15));
        while Instant::now() < leaves {
            std::hint::spin_loop();
        }
    }
    proxy.set(Fault::None);
    eventually(Duration::from_secs(5), "the end of the work", || has_ended(&app).then_some(()));

    let before = rows(&app);
    let answered = (0..50).filter(|_| app.client().request("POST", "/row", &[], "").status == 200).count();
    Writes { answered, seen: rows(&app) - before, app }
}

/// Returns whether the service has accepted the clients of [`leave_and_write`], and every connection but that of the scrape
/// is closed or back in the pool.
fn is_idle(app: &App) -> bool {
    app.metric("http_connections_accepted_total") > 100.0
        && app.metric("http_connections_open") == 1.0
        && app.metric("database_connections{state=\"idle\"}") == f64::from(CONNECTIONS)
}

fn rows(app: &App) -> usize {
    servers::postgres().sql(&app.database, "select count(*)::text from rows")[0].parse().unwrap()
}

#[test]
fn a_client_that_leaves_does_not_break_a_later_request() {
    let mut writes = leave_and_write(Setup::shared().workload(), "/naive/3", is_idle);

    println!("seed {SEED}: after 100 clients disconnected, {} of 50 writes exist", writes.seen);
    assert_eq!((writes.answered, writes.seen), (50, 50));
    assert!(writes.app.is_running());
}

#[test]
fn a_transaction_survives_its_client() {
    let mut writes = leave_and_write(Setup::shared().workload(), "/transaction/3", is_idle);

    // A client may disconnect before the service has read its request.
    let committed = rows(&writes.app) - writes.seen;
    println!("seed {SEED}: 100 clients disconnected, {committed} transactions committed");
    assert_eq!((writes.answered, writes.seen), (50, 50));
    assert!((90..=100).contains(&committed), "{committed}");
    assert!(writes.app.is_running());
}

const CRASHES: usize = 100;
const WRITERS: usize = 4;

/// A client that keeps writing across crashes.
#[derive(Default)]
pub struct Writer {
    pub sent: usize,
    pub acknowledged: Vec<String>,
}

impl Writer {
    fn write(&mut self, app: &App, stop: &AtomicBool, text: impl Fn(&Self) -> String, send: Send) {
        while let Some(mut client) = Client::try_connect(app.address) {
            loop {
                let text = text(self);
                self.sent += 1;
                let Some(answer) = send(&mut client, &text) else { break };
                assert_eq!(answer.status, 201, "{answer:?}");
                self.acknowledged.push(text);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }
}

type Send = fn(&mut Client, &str) -> Option<Response>;

/// Sends kill -9 100 times at random points while four clients `send` one write after the other; `text` returns the text of
/// a client's next write. Returns the acknowledged texts in order.
pub fn crash(setup: &Setup, text: impl Fn(usize, &Writer) -> String + Sync, send: Send) -> Vec<String> {
    let seed = 41_u64;
    let mut random = Random(seed);
    setup.migrate();
    let writers: Vec<_> = (0..WRITERS).map(|_| Mutex::<Writer>::default()).collect();
    let mut restarts = Vec::new();

    for crash in 0..=CRASHES {
        let launched = Instant::now();
        let app = setup.clone().start_migrated();
        restarts.push(launched.elapsed());
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (name, writer) in writers.iter().enumerate() {
                let (app, stop, text) = (&app, &stop, &text);
                let text = move |writer: &Writer| text(name, writer);
                scope.spawn(move || writer.lock().unwrap().write(app, stop, text, send));
            }
            repeatedly(Duration::from_millis(20 + random.below_power(8)), || {});
            // In the last round all writes finish.
            if crash < CRASHES {
                app.signal(Signal::KILL);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    let mut acknowledged: Vec<_> =
        writers.into_iter().flat_map(|writer| writer.into_inner().unwrap().acknowledged).collect();
    acknowledged.sort_unstable();
    restarts.sort_unstable();
    println!(
        "seed {seed}: {CRASHES} crashes, {} writes acknowledged; start to ready {:?} (median), {:?} (slowest)",
        acknowledged.len(),
        restarts[restarts.len() / 2],
        restarts.last().unwrap(),
    );
    assert!(acknowledged.len() > 3 * CRASHES, "{}", acknowledged.len());
    assert!(restarts[restarts.len() / 2] < Duration::from_secs(1));
    acknowledged
}

#[test]
fn after_100_crashes_every_acknowledged_write_is_there_once() {
    let setup = Setup::shared().workload();

    let acknowledged = crash(
        &setup,
        |name, writer| format!("w{name}-{}", writer.sent),
        |client, text| {
            let body = json!({"text": text}).to_string();
            client.try_request("POST", "/v1/notes", &[("content-type", "application/json")], &body)
        },
    );

    let mut rows = servers::postgres().sql(setup.database(), "select text from notes");
    println!("{} rows", rows.len());
    rows.sort_unstable();
    assert!(rows.windows(2).all(|two| two[0] != two[1]), "duplicate row");
    assert!(acknowledged.iter().all(|text| rows.binary_search(text).is_ok()), "missing row");
    // Each crash can hide the response of one write of each client.
    assert!(rows.len() - acknowledged.len() <= CRASHES * WRITERS, "{}", rows.len());
}

#[test]
fn the_cache_never_causes_a_wrong_answer() {
    let redis = Server::start("redis", "cache-truth");
    let way = Proxy::to(redis.port);
    let setup = Setup::on(servers::postgres(), &redis).workload();
    let mut app = setup.set("REDIS__PORT", way.port).start();
    let mut direct = redis.redis();
    let mut client = app.client();

    let path = add_note(servers::postgres(), &app);
    let key = format!("{}:note:1", app.database);
    let expected = json!({"id": 1, "text": "hot"});
    let other = json!({"id": 2, "text": "other"}).to_string();
    let incomplete = json!({"id": 1}).to_string();
    let mut poisons = vec![vec!["SET".into(), key.clone(), "\u{0}garbage{".into()]];
    poisons.push(vec!["SET".into(), key.clone(), "42".into()]);
    poisons.push(vec!["SET".into(), key.clone(), other]);
    poisons.push(vec!["SET".into(), key.clone(), incomplete]);
    poisons.push(vec!["RPUSH".into(), key.clone(), "list".into()]);
    poisons.push(vec!["HSET".into(), key.clone(), "field".into(), "value".into()]);
    for poison in poisons {
        redis::cmd("DEL").arg(&key).query::<()>(&mut direct).unwrap();
        let mut command = redis::cmd(&poison[0]);
        command.arg(&poison[1..]).query::<redis::Value>(&mut direct).unwrap();
        assert_eq!(client.get(&path).json(), expected, "{poison:?}");
        assert_eq!(client.get(&path).json(), expected, "{poison:?}");
    }

    // A change must not leave the old value in the cache while Redis is unreachable or does not respond.
    for silent in [false, true] {
        let path = add_note(servers::postgres(), &app);
        let key = format!("{}:note:{}", app.database, path.rsplit('/').next().unwrap());
        let before = client.get(&path);
        let cached: String = redis::cmd("GET").arg(&key).query(&mut direct).unwrap();
        assert_eq!((before.status, &cached), (200, &before.body));
        if silent {
            redis.command("pause");
        } else {
            way.set(Fault::Refuse);
            way.cut();
        }
        assert_eq!(client.request("DELETE", &path, &[], "").status, 204);
        if silent {
            redis.command("resume");
        }
        way.set(Fault::None);
        for _ in 0..200 {
            assert_eq!(client.get(&path).status, 404);
        }
        eventually(Duration::from_secs(5), "the tombstone", || {
            let value: String = redis::cmd("GET").arg(&key).query(&mut direct).unwrap();
            value.is_empty().then_some(())
        });
    }
    assert!(app.is_running());
}
