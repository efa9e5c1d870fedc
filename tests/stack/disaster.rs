//! The production stack is destroyed while it serves, and comes back from a backup that was made under load.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::backup::{Backups, LIMIT};
use crate::docker::run;
use crate::support::eventually;
use crate::support::http::{Client, Response};
use crate::support::load::stop_after;

fn url(slug: &str) -> String {
    format!("https://example.com/{slug}?a=%C3%A4&b=1+2#%20")
}

fn make(client: &mut Client, slug: &str) -> Option<Response> {
    let body = json!({"url": url(slug), "slug": slug}).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", slug)];
    client.try_request("POST", "/v1/links", &headers, &body)
}

/// While `during` runs, which may ask how many there are, clients make links. Returns when each was acknowledged.
fn make_links<T>(
    address: SocketAddr,
    during: impl FnOnce(&AtomicUsize) -> T,
) -> (T, BTreeMap<String, Instant>) {
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|number| {
                let (stop, count) = (&stop, &count);
                scope.spawn(move || {
                    let (mut client, mut made) = (Client::connect(address), BTreeMap::new());
                    while !stop.load(Ordering::Relaxed) {
                        let slug = format!("w{number}-{}", made.len());
                        let answer = make(&mut client, &slug);
                        assert_eq!(answer.as_ref().map(|answer| answer.status), Some(201), "{answer:?}");
                        if answer.unwrap().header("connection") == Some("close") {
                            client = Client::connect(address);
                        }
                        made.insert(slug, Instant::now());
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    made
                })
            })
            .collect();
        let mut result = None;
        stop_after(&stop, || result = Some(during(&count)));
        (result.unwrap(), writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect())
    })
}

/// All links, page by page: slugs and URLs.
fn list(client: &mut Client) -> Vec<(String, String)> {
    let (mut links, mut path) = (Vec::new(), "/v1/links?limit=100".to_owned());
    loop {
        let page = client.get(&path).json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        links.extend(
            page["items"].as_array().unwrap().iter().map(|link| (text(&link["slug"]), text(&link["url"]))),
        );
        let Some(cursor) = page["next_cursor"].as_str() else { return links };
        path = format!("/v1/links?limit=100&cursor={cursor}");
    }
}

#[test]
fn a_lost_stack_comes_back_with_all_that_was_before_its_backup() {
    let backups = Backups::new("drydock-backup");
    let stack = &backups.stack;
    stack.start();
    let ((begun, took), made) = make_links(stack.address, |count| {
        let more = |links: usize| {
            let enough = count.load(Ordering::Relaxed) + links;
            eventually(LIMIT, "links", || (count.load(Ordering::Relaxed) >= enough).then_some(()));
        };
        more(1000);
        let begun = Instant::now();
        print!("{}", run(&mut backups.backup()));
        let took = begun.elapsed();
        more(500);
        (begun, took)
    });
    let during = made.values().filter(|&&time| time >= begun && time < begun + took).count();
    println!("{during} links were made in the {took:.1?} of the backup, no request failed");
    assert!(during > 0);

    let disaster = Instant::now();
    backups.start_empty();
    let ready = disaster.elapsed();
    print!("{}", run(&mut backups.restore(&backups.newest())));
    let restored = disaster.elapsed();
    stack.start();
    let first = stack.client().get("/r/w0-0");
    assert_eq!((first.status, first.header("location")), (307, Some(url("w0-0").as_str())));
    println!("serving again {:.1?} after the disaster", disaster.elapsed());
    println!("destroyed and PostgreSQL anew after {ready:.1?}, restored after {restored:.1?}");

    let mut client = stack.client();
    let links = list(&mut client);
    let slugs: BTreeSet<_> = links.iter().map(|(slug, _)| slug.as_str()).collect();
    assert_eq!(slugs.len(), links.len(), "twice");
    assert!(links.iter().all(|(slug, address)| *address == url(slug)));
    let lost: Vec<_> = made.iter().filter(|(slug, _)| !slugs.contains(slug.as_str())).collect();
    assert!(lost.iter().all(|(_, acknowledged)| **acknowledged >= begun), "{lost:?}");
    println!("{} links, {} lost, those of {:.1?}", made.len(), lost.len(), disaster - begun);
    assert!(!lost.is_empty() && slugs.len() >= 1000);
    // The answers to repeated requests are there too, and new links get new numbers.
    assert_eq!(make(&mut client, "w0-0").unwrap().status, 201);
    assert_eq!(list(&mut client).len(), links.len());
    assert_eq!(make(&mut client, "new").unwrap().status, 201);
    assert_eq!(list(&mut client)[0].0, "new");
}
