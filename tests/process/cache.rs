//! What the cache may never do: change an answer (G40).

use std::time::Duration;

use serde_json::json;

use crate::dependencies::add_link;
use crate::support::eventually;
use crate::support::http::Client;
use crate::support::proxy::{Fault, Proxy};
use crate::support::servers::{self, PASSWORD, Server};
use crate::support::setup::Setup;

#[test]
fn the_cache_never_causes_a_wrong_answer() {
    let redis = Server::start("redis", "cache-truth");
    let way = Proxy::to(redis.port);
    let mut app = Setup::on(servers::postgres(), &redis).set("REDIS__PORT", way.port).start();
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

    // A change while Redis cannot be reached, or does not answer, must not leave the old value behind.
    for (version, silent) in [(1, false), (2, true)] {
        redis::cmd("DEL").arg(&key).query::<()>(&mut direct).unwrap();
        let before = follow(&mut client).unwrap();
        let cached: String = redis::cmd("GET").arg(&key).query(&mut direct).unwrap();
        assert!(cached.contains(&before), "{cached}");
        if silent {
            redis.command("pause");
        } else {
            way.set(Fault::Refuse);
            way.cut();
        }
        let after = format!("https://example.com/changed/{version}");
        let tag = format!("\"{version}\"");
        let changed = client.send("PATCH", "/v1/links/true", &[("if-match", &tag)], &json!({"url": after}));
        assert_eq!(changed.status, 200);
        if silent {
            redis.command("resume");
        }
        way.set(Fault::None);
        for _ in 0..200 {
            assert_eq!(follow(&mut client).as_ref(), Some(&after));
        }
        eventually(Duration::from_secs(5), "the tombstone", || {
            let value: String = redis::cmd("GET").arg(&key).query(&mut direct).unwrap();
            value.is_empty().then_some(())
        });
    }
    assert!(app.is_running());
}
