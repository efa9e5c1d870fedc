//! EXAMPLE DOMAIN: belongs to src/links.

use serde_json::json;

use crate::support::app::App;
use crate::support::http::{Client, Response};
use crate::support::setup::Setup;

fn create(client: &mut Client, slug: &str) -> Response {
    let link = json!({"url": format!("https://example.com/{slug}"), "slug": slug});
    client.send("POST", "/v1/links", &[], &link)
}

fn follow(client: &mut Client, slug: &str) -> (u16, Option<String>) {
    let answer = client.get(&format!("/r/{slug}"));
    (answer.status, answer.header("location").map(ToOwned::to_owned))
}

fn start() -> (App, Client) {
    let app = Setup::shared().start();
    let client = app.client();
    (app, client)
}

#[test]
fn a_created_link_is_returned_followed_and_listed() {
    let (_app, mut client) = start();

    let created = create(&mut client, "hello");

    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(created.header("location"), Some("/v1/links/hello"));
    assert_eq!(created.header("etag"), Some("\"1\""));
    assert_eq!(created.json()["url"], "https://example.com/hello");
    assert_eq!(client.get("/v1/links/hello").json(), created.json());
    assert_eq!(follow(&mut client, "hello"), (307, Some("https://example.com/hello".to_owned())));
    assert_eq!(client.get("/v1/links").json()["items"], json!([created.json()]));
}

#[test]
fn without_a_slug_one_is_generated() {
    let (_app, mut client) = start();

    let created = client.send("POST", "/v1/links", &[], &json!({"url": "https://example.com/"}));

    let slug = created.json()["slug"].as_str().unwrap().to_owned();
    assert_eq!(slug.len(), 7);
    assert_eq!(follow(&mut client, &slug).0, 307);
}

#[test]
fn a_taken_slug_is_a_conflict() {
    let (_app, mut client) = start();
    create(&mut client, "taken");

    let answer = create(&mut client, "taken");

    assert_eq!(answer.status, 409);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
}

#[test]
fn every_unacceptable_field_is_named() {
    let (_app, mut client) = start();

    let answer = client.send("POST", "/v1/links", &[], &json!({"url": "javascript:x", "slug": "a b"}));

    assert_eq!(answer.status, 422);
    let fields: Vec<_> =
        answer.json()["errors"].as_array().unwrap().iter().map(|e| e["field"].clone()).collect();
    assert_eq!(fields, ["slug", "url"]);
}

#[test]
fn an_idempotency_key_replays_the_answer_and_refuses_another_body() {
    let (_app, mut client) = start();
    let key = [("idempotency-key", "order-1")];
    let body = json!({"url": "https://example.com/", "slug": null});
    let first = client.send("POST", "/v1/links", &key, &body);

    let again = client.send("POST", "/v1/links", &key, &body);
    let other = client.send("POST", "/v1/links", &key, &json!({"url": "https://example.com/other"}));

    assert_eq!((again.status, &again.body), (201, &first.body));
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(other.status, 422);
    assert_eq!(client.get("/v1/links").json()["items"].as_array().unwrap().len(), 1);
}

#[test]
fn one_of_many_simultaneous_requests_with_a_key_creates() {
    let (app, mut client) = start();
    let body = json!({"url": "https://example.com/"});

    let answers: Vec<_> = std::thread::scope(|scope| {
        let send = || app.client().send("POST", "/v1/links", &[("idempotency-key", "same")], &body);
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(send)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    assert!(
        answers.iter().all(|answer| answer.status == 201 && answer.body == answers[0].body),
        "{answers:?}"
    );
    assert_eq!(client.get("/v1/links").json()["items"].as_array().unwrap().len(), 1);
}

#[test]
fn pages_follow_each_other_newest_first() {
    let (_app, mut client) = start();
    for number in 0..5 {
        create(&mut client, &format!("n{number}"));
    }

    let mut path = "/v1/links?limit=2".to_owned();
    let mut pages = Vec::new();
    loop {
        let page = client.get(&path).json();
        let slugs: Vec<_> =
            page["items"].as_array().unwrap().iter().map(|link| link["slug"].clone()).collect();
        pages.push(slugs);
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/links?limit=2&cursor={cursor}");
    }

    assert_eq!(json!(pages), json!([["n4", "n3"], ["n2", "n1"], ["n0"]]));
}

#[test]
fn page_parameters_are_checked() {
    let (_app, mut client) = start();

    for (query, status) in
        [("limit=0", 422), ("limit=101", 422), ("limit=x", 400), ("cursor=x", 422), ("x=1", 400)]
    {
        assert_eq!(client.get(&format!("/v1/links?{query}")).status, status, "{query}");
    }
}

#[test]
fn a_change_needs_the_current_version() {
    let (_app, mut client) = start();
    create(&mut client, "moving");
    let body = json!({"url": "https://example.com/new"});
    let mut patch = |tags: &[(&str, &str)]| client.send("PATCH", "/v1/links/moving", tags, &body);

    let unconditional = patch(&[]);
    assert_eq!(unconditional.status, 428);
    assert_eq!(unconditional.header("content-type"), Some("application/problem+json"));
    assert_eq!(unconditional.json()["request_id"].as_str(), unconditional.header("x-request-id"));
    assert_eq!(patch(&[("if-match", "\"2\"")]).status, 412);
    assert_eq!(patch(&[("if-match", "W/\"1\"")]).status, 412);
    let changed = patch(&[("if-match", "\"7\", \"1\"")]);
    assert_eq!((changed.status, changed.header("etag")), (200, Some("\"2\"")));
    assert_eq!(patch(&[("if-match", "\"1\"")]).status, 412);
    assert_eq!(patch(&[("if-match", "*")]).status, 200);
}

#[test]
fn an_unchanged_link_is_not_sent_again() {
    let (_app, mut client) = start();
    create(&mut client, "same");

    for (tag, status) in [("\"1\"", 304), ("W/\"1\"", 304), ("*", 304), ("\"2\"", 200)] {
        assert_eq!(
            client.request("GET", "/v1/links/same", &[("if-none-match", tag)], "").status,
            status,
            "{tag}"
        );
    }
}

#[test]
fn the_cache_never_shows_an_earlier_state() {
    let (_app, mut client) = start();

    assert_eq!(follow(&mut client, "state"), (404, None));
    create(&mut client, "state");
    assert_eq!(follow(&mut client, "state").1.as_deref(), Some("https://example.com/state"));
    let body = json!({"url": "https://example.com/2"});
    client.send("PATCH", "/v1/links/state", &[("if-match", "\"1\"")], &body);
    assert_eq!(follow(&mut client, "state").1.as_deref(), Some("https://example.com/2"));
    assert_eq!(client.request("DELETE", "/v1/links/state", &[], "").status, 204);
    assert_eq!(follow(&mut client, "state"), (404, None));
    assert_eq!(client.request("DELETE", "/v1/links/state", &[], "").status, 404);
}

#[test]
fn a_second_read_comes_from_the_cache() {
    let (app, mut client) = start();
    crate::support::servers::postgres()
        .sql(&app.database, "insert into links (slug, url) values ('warm', 'https://example.com/')");

    follow(&mut client, "warm");
    follow(&mut client, "warm");
    follow(&mut client, "absent");
    follow(&mut client, "absent");

    assert_eq!(app.metric("cache_operations_total{operation=\"get\",outcome=\"hit\"}"), 2.0);
    assert_eq!(app.metric("cache_operations_total{operation=\"get\",outcome=\"miss\"}"), 2.0);
}
