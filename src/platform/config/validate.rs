//! The rules between settings. Each inner time ends before the outer one, so that the error is the precise one and
//! nothing works on for a caller that has left.

use std::time::Duration;

use crate::platform::config::sources::Settings;

/// Shorter, longer.
const ORDER: [(&str, &str); 8] = [
    ("redis.operation_timeout", "database.acquire_timeout"),
    ("database.lock_timeout", "database.statement_timeout"),
    ("database.statement_timeout", "http.request_timeout"),
    ("database.acquire_timeout", "http.request_timeout"),
    ("http.queue_timeout", "http.request_timeout"),
    ("http.request_timeout", "shutdown.drain_timeout"),
    ("health.timeout", "health.interval"),
    ("health.recovery_interval", "health.interval"),
];

/// Shortest times of what comes again and again.
const FLOORS: [(&str, Duration); 2] = [
    ("database.session_lifetime", Duration::from_secs(1)),
    ("secrets.reload_interval", Duration::from_millis(100)),
];

/// Lowest and highest number: what hyper takes, what is allocated at once.
const RANGES: [(&str, usize, usize); 3] = [
    ("http.max_head_bytes", 8192, 1 << 30),
    ("http.max_headers", 1, 100),
    ("log.buffer_lines", 256, 1 << 20),
];

/// Notes a problem for each rule that does not hold.
pub fn check(s: &mut Settings) {
    for (shorter, longer) in ORDER {
        if s.pause(shorter) >= s.pause(longer) {
            s.problem(s.name(shorter), format!("must be shorter than {}", s.name(longer)));
        }
    }
    for (key, floor) in FLOORS {
        if s.pause(key) < floor {
            s.problem(s.name(key), format!("must be at least {floor:?}"));
        }
    }
    for (key, least, most) in RANGES {
        if !(least..=most).contains(&s.count(key)) {
            s.problem(s.name(key), format!("must be {least} to {most}"));
        }
    }
    let [interval, timeout] = ["health.interval", "health.timeout"].map(|key| s.pause(key));
    if interval + timeout >= s.pause("health.stale_after") {
        s.problem(s.name("health.stale_after"), "must be longer than interval and timeout together");
    }
    let mut stages = vec!["shutdown.ready_delay", "shutdown.drain_timeout", "shutdown.pool_close_timeout"];
    if s.get_optional::<String>("otlp.endpoint").is_some() {
        stages.push("otlp.flush_timeout");
    }
    let stop = stages.into_iter().map(|key| s.pause(key)).fold(Duration::ZERO, |a, b| a.saturating_add(b));
    if stop >= s.pause("shutdown.grace") {
        let parts = "ready_delay, drain_timeout, pool_close_timeout and otlp.flush_timeout together";
        s.problem(s.name("shutdown.grace"), format!("must be longer than {parts} ({stop:?})"));
    }
}
