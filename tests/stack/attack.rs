//! Hostile clients, all concurrently, from outside of the engine.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::http::Client;

/// Duration of the attack.
const LENGTH: Duration = Duration::from_secs(15);

/// Attacks `address` in seven ways over some hundred connections, and calls `meanwhile` until the attack is over.
pub fn run(address: SocketAddr, mut meanwhile: impl FnMut()) -> usize {
    let end = Instant::now() + LENGTH;
    let large_head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(400_000));
    let large_body = format!(
        "POST /v1/notes HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999\r\n\r\n{}",
        "z".repeat(900_000)
    );
    // A valid request that never completes.
    let held_body = format!(
        "POST /v1/notes HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1048576\r\n\r\n{}",
        "z".repeat(1_000_000)
    );
    let unread = "GET /v1/notes?limit=100 HTTP/1.1\r\nhost: a\r\n\r\n".repeat(200);
    let conflict =
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let attacks: [&[u8]; 7] = [
        b"GET / HT",
        large_head.as_bytes(),
        large_body.as_bytes(),
        held_body.as_bytes(),
        unread.as_bytes(),
        conflict.as_bytes(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not TLS here\r\n\r\n",
    ];
    let mut made = 0;
    thread::scope(|scope| {
        let attackers: Vec<_> = attacks
            .into_iter()
            .map(|bytes| {
                scope.spawn(move || {
                    let mut made = 0;
                    while Instant::now() < end {
                        // As many as one address may have, held until the next round.
                        let held: Vec<_> = (0..150).filter_map(|_| Client::try_connect(address)).collect();
                        for mut client in held {
                            client.stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
                            // A rejection half-way is the expected result.
                            let _ = client.write(bytes);
                            made += 1;
                        }
                    }
                    made
                })
            })
            .collect();
        while Instant::now() < end {
            meanwhile();
        }
        made = attackers.into_iter().map(|attacker| attacker.join().unwrap()).sum();
    });
    made
}
