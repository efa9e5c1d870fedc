//! What belongs to the request in progress: its ids, and the time it spends in PostgreSQL and Redis.
//!
//! Task-local rather than an argument, so that `postgres` and `cache` can add their time and an error can
//! name its request without every function between passing it on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;

tokio::task_local! {
    static CURRENT: Option<Arc<RequestContext>>;
}

/// Ids and clocks of one request. Each line that is logged meanwhile carries the ids.
pub struct RequestContext {
    pub request_id: String,
    pub trace: TraceContext,
    pub database: Clock,
    pub cache: Clock,
}

/// Time added up from several tasks.
#[derive(Default)]
pub struct Clock(AtomicU64);

impl Clock {
    pub fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }

    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

impl RequestContext {
    /// Keeps the caller's request id where it is well formed, and makes a new one where not.
    pub fn new(request_id: Option<&str>, trace: TraceContext) -> Self {
        Self {
            request_id: request_id
                .filter(|id| is_request_id(id))
                .map_or_else(|| Uuid::now_v7().to_string(), ToOwned::to_owned),
            trace,
            database: Clock::default(),
            cache: Clock::default(),
        }
    }
}

/// The request that the calling task works for.
pub fn current() -> Option<Arc<RequestContext>> {
    CURRENT.try_with(Option::clone).ok().flatten()
}

/// Whether somebody records the request that the calling task works for, if it works for one.
pub fn is_sampled() -> Option<bool> {
    let of_request =
        |context: &Option<Arc<RequestContext>>| context.as_ref().map(|context| context.trace.is_sampled());
    CURRENT.try_with(of_request).ok().flatten()
}

/// Runs `work` for the request that `context` describes, if there is one.
pub async fn scope<T>(context: Option<Arc<RequestContext>>, work: impl Future<Output = T>) -> T {
    CURRENT.scope(context, work).await
}

/// The same for what does not wait: the end of a response body comes after the scope of its request.
pub fn sync_scope<T>(context: Arc<RequestContext>, work: impl FnOnce() -> T) -> T {
    CURRENT.sync_scope(Some(context), work)
}

/// At most 64 characters that need no escaping anywhere.
fn is_request_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=64).contains(&id.len()) && id.bytes().all(allowed)
}

/// W3C trace context (<https://www.w3.org/TR/trace-context/>): a span, and the trace that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceContext {
    /// Written as 32 lower-case hexadecimal digits.
    pub trace_id: u128,
    /// Written as 16 lower-case hexadecimal digits.
    pub span_id: u64,
    pub flags: u8,
}

impl TraceContext {
    /// The caller's span, as the header `traceparent` names it.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let version = parts.next().and_then(|part| hex(part, 2)).filter(|version| *version != 0xff)?;
        let trace_id = parts.next().and_then(|part| hex(part, 32)).filter(|id| *id != 0)?;
        let span_id = parts.next().and_then(|part| hex(part, 16)).filter(|id| *id != 0)?;
        let flags = parts.next().and_then(|part| hex(part, 2))?;
        // Version 00 ends here; a later one may go on, and is read as far as we know it.
        if version == 0 && parts.next().is_some() {
            return None;
        }
        Some(Self { trace_id, span_id: span_id as u64, flags: flags as u8 })
    }

    /// A span of our own in the caller's trace, or else in a new one that nobody records.
    pub fn within(caller: Option<Self>) -> Self {
        let new = || Self { trace_id: Uuid::new_v4().as_u128(), span_id: 0, flags: 0 };
        // The second half of a version 4 UUID has 62 random bits and is never zero.
        Self { span_id: Uuid::new_v4().as_u64_pair().1, ..caller.unwrap_or_else(new) }
    }

    /// Whether somebody records this trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The header that names our span as the parent of what the receiver does.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// Exactly `length` lower-case hexadecimal digits.
fn hex(text: &str, length: usize) -> Option<u128> {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == length && digits).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_well_formed_trace_is_continued_with_a_span_of_our_own() {
        for (version, rest) in [("00", ""), ("01", "-later")] {
            let header = format!("{version}-{TRACE}-00f067aa0ba902b7-01{rest}");

            let trace = TraceContext::within(TraceContext::parse(&header));

            assert_eq!(format!("{:x}", trace.trace_id), TRACE);
            assert!(trace.is_sampled());
            assert_ne!(trace.span_id, 0x00f0_67aa_0ba9_02b7);
            assert_eq!(TraceContext::parse(&trace.traceparent()).unwrap().trace_id, trace.trace_id);
        }
    }

    #[test]
    fn a_malformed_trace_is_replaced() {
        let zero = "0".repeat(32);
        for header in [
            "".to_owned(),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{zero}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-x"),
        ] {
            assert_eq!(TraceContext::parse(&header), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_the_ids_are_well_formed(id in ".{0,80}", traceparent in ".{0,80}") {
            let trace = TraceContext::within(TraceContext::parse(&traceparent));
            let context = RequestContext::new(Some(&id), trace);

            prop_assert!(is_request_id(&context.request_id));
            prop_assert!(TraceContext::parse(&context.trace.traceparent()).is_some());
        }
    }
}
