//! Clients that leave in the middle of a transaction (G4).

use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::support::proxy::{Fault, Proxy};
use crate::support::servers;
use crate::support::setup::Setup;

#[test]
fn a_client_that_leaves_does_not_break_a_later_request() {
    // Each message takes its time, so that clients leave during each of them, `begin` above all.
    let postgres = servers::postgres();
    let proxy = Proxy::to(postgres.port);
    let setup =
        Setup::shared().faulty().set("DATABASE__MAX_CONNECTIONS", 4).set("DATABASE__PORT", proxy.port);
    let mut app = setup.start();
    proxy.set(Fault::Delay(Duration::from_millis(3)));
    postgres.sql(&app.database, "create table rows (id bigint generated always as identity)");
    let seed = 1_u64;
    let mut random = seed;
    for attempt in 0..200 {
        // A linear congruential generator: the same points in time in each run.
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let path = if attempt % 2 == 0 { "naive" } else { "transaction" };
        let mut client = app.client();
        client.write(format!("POST /{path}/3 HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
        let leaves = Instant::now() + Duration::from_micros(random >> 49);
        while Instant::now() < leaves {
            std::hint::spin_loop();
        }
        drop(client);
    }
    proxy.set(Fault::None);

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
        "seed {seed}: 200 clients left, {before} transactions committed, then 50 of 50 writes seen by another session"
    );
    // Those that survive their client all commit; of the others, those that were quick.
    assert!((100..=200).contains(&before), "{before}");
    assert!(app.is_running());
}
