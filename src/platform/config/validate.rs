//! Rules between settings. Each inner timeout ends before the outer one, so that the error names the exact cause and no
//! work continues for a caller that has left.

use std::time::Duration;

use crate::platform::config::sources::Settings;

/// Pairs of a shorter and a longer time.
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

/// Minimum of each interval that repeats work.
const MINIMUMS: [(&str, Duration); 2] = [
    ("database.session_lifetime", Duration::from_secs(1)),
    ("secrets.reload_interval", Duration::from_millis(100)),
];

/// Minimum and maximum of each number that hyper limits or that is allocated at startup.
const RANGES: [(&str, usize, usize); 3] = [
    ("http.max_head_bytes", 8192, 1 << 30),
    ("http.max_headers", 1, 100),
    ("log.buffer_lines", 256, 1 << 20),
];

/// Reports a problem for each rule that does not hold.
pub fn check(settings: &mut Settings) {
    for (shorter, longer) in ORDER {
        if settings.duration_or_zero(shorter) >= settings.duration_or_zero(longer) {
            settings.problem(shorter, format!("must be shorter than {}", settings.name(longer)));
        }
    }
    for (key, minimum) in MINIMUMS {
        if settings.duration_or_zero(key) < minimum {
            settings.problem(key, format!("must be at least {minimum:?}"));
        }
    }
    for (key, minimum, maximum) in RANGES {
        if !(minimum..=maximum).contains(&settings.size(key)) {
            settings.problem(key, format!("must be {minimum} to {maximum}"));
        }
    }
    check_staleness(settings);
    check_grace(settings);
}

fn check_staleness(settings: &mut Settings) {
    let interval = settings.duration_or_zero("health.interval");
    let timeout = settings.duration_or_zero("health.timeout");
    if interval.saturating_add(timeout) >= settings.duration_or_zero("health.stale_after") {
        settings.problem("health.stale_after", "must be longer than interval and timeout together");
    }
}

fn check_grace(settings: &mut Settings) {
    let mut stages = vec!["shutdown.ready_delay", "shutdown.drain_timeout", "shutdown.pool_close_timeout"];
    if settings.get_optional::<String>("otlp.endpoint").is_some() {
        stages.push("otlp.flush_timeout");
    }
    let total = stages
        .into_iter()
        .map(|key| settings.duration_or_zero(key))
        .fold(Duration::ZERO, Duration::saturating_add);
    if total >= settings.duration_or_zero("shutdown.grace") {
        let parts = "ready_delay, drain_timeout, pool_close_timeout and otlp.flush_timeout together";
        settings.problem("shutdown.grace", format!("must be longer than {parts} ({total:?})"));
    }
}
