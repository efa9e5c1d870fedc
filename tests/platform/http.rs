//! Limits, rejected requests and the format of errors.

use crate::support::http::Response;
use crate::support::setup::Setup;

/// Sends raw bytes and returns the response and whether the connection was closed afterwards.
fn raw(app: &crate::support::app::App, bytes: &[u8]) -> (Option<Response>, bool) {
    let mut client = app.client();
    client.write(bytes).unwrap();
    let response = client.read_response(false);
    client.stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    (response, client.is_closed())
}

#[test]
fn malformed_and_ambiguous_requests_are_refused_and_their_connection_closed() {
    let app = Setup::shared().workload().start();
    let many = "x: 1\r\n".repeat(70);
    let too_many = "x: 1\r\n".repeat(110);
    let large = format!("x: {}\r\n", "y".repeat(70_000));
    let long = "u".repeat(9_000);
    for (name, request, status) in [
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".into(), 400),
        ("another authority", "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n".into(), 400),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx".into(),
            400,
        ),
        (
            "chunked not last",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n".into(),
            400,
        ),
        ("folded header", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n".into(), 400),
        ("control character", "GET / HTTP/1.1\r\nhost: a\r\nx: \u{1b}[31m\r\n\r\n".into(), 400),
        ("space before colon", "GET / HTTP/1.1\r\nhost: a\r\nx : 1\r\n\r\n".into(), 400),
        ("more headers than the service accepts", format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431),
        ("more headers than hyper accepts", format!("GET / HTTP/1.1\r\nhost: a\r\n{too_many}\r\n"), 431),
        ("a large head", format!("GET / HTTP/1.1\r\nhost: a\r\n{large}\r\n"), 431),
        ("a long target", format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"), 414),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400),
    ] {
        let (response, closed) = raw(&app, request.as_bytes());
        // For the HTTP/2 preface hyper closes the connection without a response.
        let status = if name == "HTTP/2" { None } else { Some(status) };
        assert_eq!(response.as_ref().map(|response| response.status), status, "{name}: {response:?}");
        assert!(closed, "{name}");
    }
    assert_eq!(app.get("/health/live").status, 200);
}

/// RFC 9112 6.1: bytes after such a request are never parsed as another request.
#[test]
fn a_request_with_length_and_encoding_is_read_as_chunked_and_its_connection_closed() {
    let app = Setup::shared().workload().start();
    let length = "content-length: 5\r\n";
    let encoding = "transfer-encoding: chunked\r\n";
    for (first, second) in [(length, encoding), (encoding, length)] {
        let request = format!(
            "POST /v1/notes HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{first}{second}\r\n\
             10\r\n{{\"text\": \"one\"}} \r\n0\r\n\r\n\
             GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        );

        let (response, closed) = raw(&app, request.as_bytes());

        let response = response.unwrap();
        assert_eq!((response.status, response.json()["text"].as_str()), (201, Some("one")), "{response:?}");
        assert!(closed, "{first}{second}");
    }
    assert_eq!(app.logged("the notes", |line| line["route"] == "/v1/notes")["status"], 201);
    assert!(!app.log().iter().any(|line| line["path"] == "/smuggled"), "a smuggled request was served");
}

#[test]
fn chunked_bodies_and_bare_http_1_0_are_served() {
    let app = Setup::shared().workload().start();
    let body = "11\r\n{\"text\": \"hello\"}\r\n0\r\n\r\n";
    let chunked = format!(
        "POST /v1/notes HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{body}"
    );

    assert_eq!(raw(&app, chunked.as_bytes()).0.unwrap().status, 201);
    assert_eq!(raw(&app, b"GET /health/live HTTP/1.0\r\n\r\n").0.unwrap().status, 200);
}

#[test]
fn bodies_are_limited_whatever_their_framing() {
    let app = Setup::shared().workload().start();
    let head = "POST /v1/notes HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
    let known = format!("{head}content-length: 2000000\r\n\r\n");
    let chunk = "a".repeat(65_536);
    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..20 {
        chunked.extend_from_slice(format!("10000\r\n{chunk}\r\n").as_bytes());
    }

    assert_eq!(raw(&app, known.as_bytes()).0.unwrap().status, 413);
    assert_eq!(raw(&app, &chunked).0.unwrap().status, 413);
}

#[test]
fn each_class_of_error_is_a_problem_document_with_security_headers() {
    let app = Setup::shared().workload().start();
    let mut client = app.client();
    let json = [("content-type", "application/json")];
    let deep = "[".repeat(100_000);
    for (status, response) in [
        (404, client.get("/nowhere")),
        (404, client.get("/v1/notes/1")),
        (405, client.request("DELETE", "/v1/notes", &[], "")),
        (405, client.request("ZZZTOP", "/v1/notes", &[], "")),
        (405, client.request("TRACE", "/v1/notes", &[], "")),
        (400, client.get("/v1/notes?limit=x")),
        (400, client.request("POST", "/v1/notes", &json, "{")),
        (422, client.request("POST", "/v1/notes", &json, &deep)),
        (422, client.request("POST", "/v1/notes", &json, "{\"text\": 1}")),
        (422, client.request("POST", "/v1/notes", &json, "{\"text\": \"\"}")),
        (415, client.request("POST", "/v1/notes", &[], "{}")),
    ] {
        assert_eq!(response.status, status, "{response:?}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"), "{response:?}");
        let document = response.json();
        assert_eq!(document["status"], status);
        assert_eq!(document["type"], "about:blank");
        assert!(
            !document["title"].as_str().unwrap().is_empty()
                && !document["detail"].as_str().unwrap().is_empty()
        );
        assert_eq!(document["request_id"].as_str(), response.header("x-request-id"));
        assert_security_headers(&response);
        assert_eq!(response.header("allow").is_some(), status == 405, "{response:?}");
    }
    assert_security_headers(&client.get("/health/ready"));
}

#[track_caller]
fn assert_security_headers(response: &Response) {
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(response.header(name), Some(value), "{response:?}");
    }
    assert_eq!(response.header("server"), None);
}

#[test]
fn request_ids_are_kept_when_well_formed_and_generated_otherwise() {
    let app = Setup::shared().start();
    let mut client = app.client();
    let long = "x".repeat(65);

    for id in ["abc-DEF_123", &"x".repeat(64)] {
        let response = client.request("GET", "/nowhere", &[("x-request-id", id)], "");
        assert_eq!(response.header("x-request-id"), Some(id));
    }
    for id in ["", "a b", "a\"b", "{}", &long, "\u{e9}"] {
        let response = client.request("GET", "/nowhere", &[("x-request-id", id)], "");
        let made_up = response.header("x-request-id").unwrap();
        assert_eq!(made_up.len(), 36, "{made_up}");
    }
}

#[test]
fn a_trace_is_continued_in_log_and_response() {
    let app = Setup::shared().start();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let header = format!("00-{trace}-00f067aa0ba902b7-01");

    let response = app.client().request("GET", "/nowhere", &[("traceparent", &header)], "");

    let traceparent = response.header("traceparent").unwrap();
    assert!(traceparent.starts_with(&format!("00-{trace}-")), "{traceparent}");
    assert!(traceparent.ends_with("-01") && traceparent != header, "{traceparent}");
    let line = app.logged("the request", |line| line["path"] == "/nowhere");
    assert_eq!(line["trace_id"], trace);
    assert_eq!(line["span_id"], traceparent.split('-').nth(2).unwrap());
}

#[test]
fn head_is_get_without_a_body() {
    let app = Setup::shared().workload().start();
    let mut client = app.client();

    let head = client.request("HEAD", "/v1/notes", &[], "");
    let get = client.get("/v1/notes");

    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), get.header("content-length"));
}
