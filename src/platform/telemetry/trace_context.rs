//! W3C trace context (<https://www.w3.org/TR/trace-context/>): parses and renders the header `traceparent`.

use axum::http::HeaderName;

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A span, and the trace that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceContext {
    /// Rendered as 32 lower-case hexadecimal digits.
    pub trace_id: u128,
    /// Rendered as 16 lower-case hexadecimal digits.
    pub span_id: u64,
    pub flags: u8,
}

impl TraceContext {
    /// Parses the caller's span; `None` if the header is malformed.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let version = parts.next().and_then(|part| hex(part, 2)).filter(|version| *version != 0xff)?;
        let trace_id = parts.next().and_then(|part| hex(part, 32)).filter(|id| *id != 0)?;
        let span_id = parts.next().and_then(|part| hex(part, 16)).filter(|id| *id != 0)?;
        let flags = parts.next().and_then(|part| hex(part, 2))?;
        // Version 00 has exactly these parts; of a later version, the parts of version 00 are read.
        if version == 0 && parts.next().is_some() {
            return None;
        }
        Some(Self { trace_id, span_id: span_id as u64, flags: flags as u8 })
    }

    /// Returns a new span in the caller's trace, or in a new trace that is not sampled.
    pub fn within(caller: Option<Self>) -> Self {
        let new_trace = || Self { trace_id: rand::random_range(1..=u128::MAX), span_id: 0, flags: 0 };
        Self { span_id: rand::random_range(1..=u64::MAX), ..caller.unwrap_or_else(new_trace) }
    }

    /// Returns whether the spans of this trace are recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// Renders the header that names this span as the parent of the receiver's span.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// Parses exactly `length` lower-case hexadecimal digits.
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
    fn a_well_formed_trace_is_continued_with_a_new_span() {
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
    fn a_malformed_trace_is_not_parsed() {
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
        fn the_rendered_header_is_well_formed_for_any_input(traceparent in ".{0,80}") {
            let trace = TraceContext::within(TraceContext::parse(&traceparent));

            prop_assert_eq!(TraceContext::parse(&trace.traceparent()), Some(trace));
        }
    }
}
