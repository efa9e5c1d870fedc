//! For any input of a client of the links: accepted input has the form that the rest of the service relies on.
#![no_main]

use app::links::model::{CreateLink, Cursor, IdempotencyKey, Slug, Target, UpdateLink};
use app::platform::http::conditional::{Versions, etag, lists};
use app::platform::http::extract;
use arbitrary::Arbitrary;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Sent<'a> {
    Create(&'a [u8]),
    Update(&'a [u8]),
    Slug(&'a str),
    Target(&'a str),
    Cursor(&'a str),
    Key(&'a [u8]),
    Tags(i32, &'a [u8]),
}

fuzz_target!(|sent: Sent<'_>| match sent {
    Sent::Create(body) => {
        let Ok(body) = serde_json::from_slice::<CreateLink>(body) else { return };
        match body.validate() {
            Ok(new) => {
                new.slug.iter().for_each(check_slug);
                check_target(&new.target);
            }
            Err(errors) => assert!((1..=2).contains(&errors.len())),
        }
    }
    Sent::Update(body) => {
        if let Ok(Ok(target)) = serde_json::from_slice(body).map(|body: UpdateLink| body.validate()) {
            check_target(&target);
        }
    }
    Sent::Slug(text) => {
        if let Ok(slug) = text.parse::<Slug>() {
            assert_eq!(slug.as_str(), text);
            check_slug(&slug);
        }
    }
    Sent::Target(text) => {
        if let Ok(target) = text.parse() {
            check_target(&target);
        }
    }
    Sent::Cursor(text) => {
        if let Ok(cursor) = text.parse::<Cursor>() {
            assert!(cursor.0 > 0);
            assert_eq!(cursor.to_string().parse().ok(), Some(cursor));
        }
    }
    Sent::Key(bytes) => {
        let name = HeaderName::from_static("idempotency-key");
        let headers = headers(&name, bytes);
        let Ok(Some(text)) = extract::header(&headers, &name) else { return };
        if let Ok(key) = text.parse::<IdempotencyKey>() {
            assert_eq!(key.as_str().as_bytes(), bytes);
            assert!((1..=255).contains(&bytes.len()));
            assert!(bytes.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')));
        }
    }
    Sent::Tags(version, bytes) => {
        let headers = headers(&header::IF_MATCH, bytes);
        let Ok(Some(tags)) = extract::list(&headers, &header::IF_MATCH) else { return };
        let versions = Versions::parse(&tags);
        let listed = versions.list().is_none_or(|listed| listed.contains(&version));
        assert!(!listed || lists(&tags, version), "a strong match is a weak one too");
        assert!(versions.list().unwrap_or_default().iter().all(|version| tags.contains(&etag(*version))));
    }
});

/// A slug is part of paths and of keys in Redis.
fn check_slug(slug: &Slug) {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    assert!((1..=64).contains(&slug.as_str().len()) && slug.as_str().bytes().all(allowed));
}

/// A target is a header value, points to another site, and does not change in a round trip through Redis.
fn check_target(target: &Target) {
    let text = target.as_str();
    assert!(text.len() <= 2048 && text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
    assert!(text.starts_with("http://") || text.starts_with("https://"), "{text}");
    assert_eq!(text.parse().ok().as_ref(), Some(target));
}

fn headers(name: &HeaderName, bytes: &[u8]) -> HeaderMap {
    HeaderValue::from_bytes(bytes).map(|value| (name.clone(), value)).into_iter().collect()
}
