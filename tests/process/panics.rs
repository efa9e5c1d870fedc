//! Panics (G21): answered, counted, logged without what they say, and survived.

use std::time::Duration;

use crate::support::eventually;
use crate::support::setup::Setup;

#[test]
fn a_panic_anywhere_is_answered_counted_and_logged() {
    let mut app = Setup::shared().workload().start();

    for path in ["/panic", "/panic/secret-of-a-client", "/panic-in-task"] {
        let answer = app.get(path);
        assert_eq!(answer.status, 500, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!(answer.json()["request_id"].as_str(), answer.header("x-request-id"));
        assert!(!answer.body.contains("secret") && !answer.body.contains("literal"), "{answer:?}");
    }
    // The response has begun: all that is left is to cut it.
    let mut client = app.client();
    client.write(b"GET /panic-in-body HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert!(client.is_closed());

    assert_eq!(app.get("/health/live").status, 200);
    assert!(app.is_running());
    assert_eq!(app.metric("panics_total"), 4.0);
    let lines = eventually(Duration::from_secs(5), "four lines", || {
        let lines: Vec<_> = app.log().into_iter().filter(|line| line["target"] == "panic").collect();
        (lines.len() >= 4).then_some(lines)
    });
    assert_eq!(lines[0]["panic"], "a literal message");
    assert!(lines[0]["location"].as_str().unwrap().contains("workload/main.rs"));
    assert_eq!(lines[1]["panic"], "formatted message withheld");
}
