//! EXAMPLE DOMAIN: belongs to src/links.

use std::time::Duration;

use serde_json::json;

use crate::consistency::crash;
use crate::support::eventually;
use crate::support::http::Client;
use crate::support::proxy::{Fault, Proxy};
use crate::support::servers;
use crate::support::setup::Setup;

/// A client repeats unacknowledged requests with the same key (G41).
#[test]
fn after_100_crashes_every_link_that_was_sent_with_a_key_is_there_once() {
    let setup = Setup::shared();

    let acknowledged = crash(
        &setup,
        |name, writer| format!("w{name}-{}", writer.acknowledged.len()),
        |client, slug| {
            let body = json!({"slug": slug, "url": "https://example.com/"}).to_string();
            let headers = [("content-type", "application/json"), ("idempotency-key", slug)];
            client.try_request("POST", "/v1/links", &headers, &body)
        },
    );

    let mut rows = servers::postgres().sql(setup.database(), "select slug from links");
    rows.sort_unstable();
    assert_eq!(rows, acknowledged);
}

/// A poisoned cache cannot redirect a link (G40).
#[test]
fn whatever_the_cache_holds_a_link_leads_where_it_should() {
    let way = Proxy::to(servers::redis().port);
    let app = Setup::shared().set("REDIS__PORT", way.port).start();
    servers::postgres()
        .sql(&app.database, "insert into links (slug, url) values ('true', 'https://example.com/true')");
    let key = format!("{}:link:true", app.database);
    let mut direct = servers::redis().redis();
    let mut client = app.client();
    let follow = |client: &mut Client| client.get("/r/true").header("location").map(ToOwned::to_owned);

    for (slug, url) in [("other", "https://evil.example/"), ("true", "javascript:alert(1)")] {
        let poison = json!({"slug": slug, "url": url}).to_string();
        redis::cmd("SET").arg(&key).arg(&poison).query::<()>(&mut direct).unwrap();
        for _ in 0..2 {
            assert_eq!(follow(&mut client).as_deref(), Some("https://example.com/true"), "{poison}");
        }
    }

    // A change must not leave the old target in the cache while Redis is unreachable.
    redis::cmd("DEL").arg(&key).query::<()>(&mut direct).unwrap();
    follow(&mut client);
    let cached: String = redis::cmd("GET").arg(&key).query(&mut direct).unwrap();
    assert!(cached.contains("https://example.com/true"), "{cached}");
    way.set(Fault::Refuse);
    way.cut();
    let changed = json!({"url": "https://example.com/changed"});
    assert_eq!(client.send("PATCH", "/v1/links/true", &[("if-match", "*")], &changed).status, 200);
    way.set(Fault::None);
    for _ in 0..200 {
        assert_eq!(follow(&mut client).as_deref(), Some("https://example.com/changed"));
    }
    eventually(Duration::from_secs(5), "the tombstone", || {
        let value: String = redis::cmd("GET").arg(&key).query(&mut direct).unwrap();
        value.is_empty().then_some(())
    });
}
