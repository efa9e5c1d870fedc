//! Clients that leave in the middle of a transaction (G4).

use std::time::{Duration, Instant};

use crate::support::app::App;
use crate::support::proxy::{Fault, Proxy};
use crate::support::servers;
use crate::support::setup::Setup;
use crate::support::{Random, eventually};

const SEED: u64 = 1;

/// What became of writes without a transaction of their own, after other clients had left in the middle of theirs.
pub struct Writes {
    pub answered: usize,
    pub seen: usize,
    pub app: App,
}

/// 100 clients leave `path` at random points, then 50 rows are written one by one. A session that was left in a
/// transaction would take them in and never commit, unless a later transaction has ended it: hence 16 of them.
pub fn leave_and_write(setup: Setup, path: &str) -> Writes {
    let postgres = servers::postgres();
    // Each message takes its time, so that clients leave during each of them, `begin` above all.
    let proxy = Proxy::to(postgres.port);
    let app = setup.set("DATABASE__MAX_CONNECTIONS", 16).set("DATABASE__PORT", proxy.port).start();
    postgres.sql(&app.database, "create table rows (id bigint generated always as identity)");
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
    eventually(Duration::from_secs(5), "the end of the work", || {
        let busy = "select 1::text from pg_stat_activity
                    where datname = current_database() and state = 'active' and pid <> pg_backend_pid()";
        postgres.sql(&app.database, busy).is_empty().then_some(())
    });

    let before = rows(&app);
    let answered = (0..50).filter(|_| app.client().request("POST", "/row", &[], "").status == 200).count();
    Writes { answered, seen: rows(&app) - before, app }
}

fn rows(app: &App) -> usize {
    servers::postgres().sql(&app.database, "select count(*)::text from rows")[0].parse().unwrap()
}

#[test]
fn a_client_that_leaves_does_not_break_a_later_request() {
    let mut writes = leave_and_write(Setup::shared().workload(), "/naive/3");

    println!("seed {SEED}: after 100 clients left, {} of 50 writes are there", writes.seen);
    assert_eq!((writes.answered, writes.seen), (50, 50));
    assert!(writes.app.is_running());
}

#[test]
fn a_transaction_survives_its_client() {
    let mut writes = leave_and_write(Setup::shared().workload(), "/transaction/3");

    // A client may leave before its request has been read.
    let committed = rows(&writes.app) - writes.seen;
    println!("seed {SEED}: 100 clients left, {committed} transactions committed");
    assert_eq!((writes.answered, writes.seen), (50, 50));
    assert!((90..=100).contains(&committed), "{committed}");
    assert!(writes.app.is_running());
}
