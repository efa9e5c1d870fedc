//! For any `x-request-id` and `traceparent`: the IDs of the request are well formed, and a well-formed trace is
//! continued.
#![no_main]

use app::platform::telemetry::request_context::RequestContext;
use app::platform::telemetry::trace_context::TraceContext;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Trace<'a> {
    Any(&'a str),
    Parts { version: u8, trace_id: u128, parent: u64, flags: u8, rest: &'a str },
}

fuzz_target!(|headers: (&str, Trace<'_>)| {
    let (request_id, trace) = headers;
    let traceparent = match &trace {
        Trace::Any(text) => (*text).to_owned(),
        Trace::Parts { version, trace_id, parent, flags, rest } => {
            format!("{version:02x}-{trace_id:032x}-{parent:016x}-{flags:02x}{rest}")
        }
    };

    let continued = |traceparent: &str| TraceContext::within(TraceContext::parse(traceparent));
    let context = RequestContext::new(Some(request_id), continued(&traceparent));

    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let well_formed = |id: &str| (1..=64).contains(&id.len()) && id.bytes().all(allowed);
    assert!(well_formed(&context.request_id));
    assert_eq!(context.request_id == request_id, well_formed(request_id));

    let ours = context.trace.traceparent();
    let next = continued(&ours);
    assert_eq!((next.trace_id, next.flags), (context.trace.trace_id, context.trace.flags), "{ours}");

    if let Trace::Parts { version, trace_id, parent, flags, rest } = trace {
        let complete = rest.is_empty() || (version != 0 && rest.starts_with('-'));
        let valid = complete && version != 0xff && trace_id != 0 && parent != 0;
        let kept = (context.trace.trace_id, context.trace.flags) == (trace_id, flags);
        assert_eq!(kept, valid, "{traceparent}");
    }
});
