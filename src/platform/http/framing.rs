//! Finds the one framing conflict that hyper resolves without telling: a request with both Content-Length and
//! Transfer-Encoding, the tool of request smuggling (RFC 9112 6.1).
//!
//! hyper drops the Content-Length and closes the connection after the response, which is all that safety
//! needs. Seeing it, to answer 400, takes a look at the bytes: [`Tap`] keeps the last of them. Where in them the head
//! is, between bodies and other requests, is told by its fields: those of the request, and Content-Length.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper::Request;
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is kept of one read, and of those before it. Where a longer head, or one further on in a read, has both headers,
/// it is not refused, only closed after.
const KEPT_BYTES: usize = 8 * 1024;

/// Request extension: the head has both headers.
#[derive(Clone, Copy)]
pub struct Conflict;

/// The last bytes read.
#[derive(Clone, Default)]
pub struct Recent(Arc<Mutex<Vec<u8>>>);

impl Recent {
    /// Marks `request`, whose head was just read, when it has the conflict.
    pub fn mark_conflict<B>(&self, request: &mut Request<B>) {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if request.headers().contains_key(TRANSFER_ENCODING) && has_length(&bytes, request.headers()) {
            request.extensions_mut().insert(Conflict);
        }
    }

    fn add(&self, read: &[u8]) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = &read[..read.len().min(KEPT_BYTES)];
        if bytes.len() + read.len() > 2 * KEPT_BYTES {
            let excess = bytes.len() - KEPT_BYTES;
            bytes.drain(..excess);
        }
        bytes.extend_from_slice(read);
    }
}

/// Whether the head in `bytes` that `headers` come from has a Content-Length, which hyper has left out of them.
///
/// Any text that looks like that head counts, so that a copy without Content-Length cannot hide the head itself.
fn has_length(bytes: &[u8], headers: &HeaderMap) -> bool {
    let lines = bytes.split(|byte| *byte == b'\n');
    let lines: Vec<_> = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    lines.split(|line| line.is_empty()).any(|head| {
        let fields = head.iter().rev().map_while(|line| field(line)).take_while(|(name, value)| {
            name == CONTENT_LENGTH || headers.get_all(name).iter().any(|known| known == *value)
        });
        let (lengths, others): (Vec<_>, Vec<_>) = fields.partition(|(name, _)| name == CONTENT_LENGTH);
        !lengths.is_empty() && others.len() >= headers.len()
    })
}

/// Name and value, where `line` is a field.
fn field(line: &[u8]) -> Option<(HeaderName, &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    Some((name, line[colon + 1..].trim_ascii()))
}

/// A stream that remembers what was read from it.
pub struct Tap<S> {
    stream: Pin<Box<S>>,
    recent: Recent,
}

impl<S> Tap<S> {
    pub fn new(stream: S, recent: Recent) -> Self {
        Self { stream: Box::pin(stream), recent }
    }
}

impl<S: AsyncRead> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = self.stream.as_mut().poll_read(cx, buffer);
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            self.recent.add(read);
        }
        result
    }
}

impl<S: AsyncWrite> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    /// Reads `bytes` through a tap, then marks the request that hyper makes of a head with `fields`.
    fn is_marked(bytes: &str, at_once: usize, fields: &[(&str, &str)]) -> bool {
        let recent = Recent::default();
        let mut tap = Tap::new(bytes.as_bytes(), recent.clone());
        let mut buffer = vec![0; at_once];
        for _ in 0..bytes.len().div_ceil(at_once) {
            let mut context = Context::from_waker(Waker::noop());
            let read = Pin::new(&mut tap).poll_read(&mut context, &mut ReadBuf::new(&mut buffer));
            assert!(read.is_ready());
        }
        let mut request = Request::new(());
        for (name, value) in fields.iter().filter(|(name, _)| *name != "Content-Length") {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, value.trim().parse().unwrap());
        }
        recent.mark_conflict(&mut request);
        request.extensions().get::<Conflict>().is_some()
    }

    fn head(line: &str, fields: &[(&str, &str)]) -> String {
        let lines = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        format!("{line}\r\n{}\r\n", lines.collect::<String>())
    }

    const LENGTH: (&str, &str) = ("Content-Length", "3");
    const ENCODING: (&str, &str) = ("Transfer-Encoding", "chunked");

    #[test]
    fn nothing_around_a_head_or_in_it_hides_the_conflict() {
        let both = [LENGTH, ENCODING];
        let plain = head("POST /x HTTP/1.1", &both);
        let copy = head("POST /x HTTP/1.1", &[ENCODING]);
        let telling = [LENGTH, ENCODING, ("A", "POST /x HTTP/1.1")];
        let long = "x".repeat(3 * KEPT_BYTES);
        for (at_once, bytes, fields) in [
            (1, plain.clone(), &both[..]),
            (99, head("POST /x#fragment HTTP/1.1", &both), &both),
            (99, head("POST HTTP://host HTTP/1.1", &both), &both),
            (99, plain.replace('\r', ""), &both),
            (99, head("POST /x HTTP/1.1", &telling), &telling),
            (99, format!("A:{}", head("POST /x HTTP/1.1", &telling)), &telling),
            (99, format!("{copy}{plain}"), &both),
            (99, format!("{plain}{copy}"), &both),
            (KEPT_BYTES - 1, format!("{long}{plain}"), &both),
            (4 * KEPT_BYTES, format!("{plain}{long}"), &both),
        ] {
            assert!(is_marked(&bytes, at_once, fields), "{}", &bytes[..bytes.len().min(99)]);
        }
    }

    #[test]
    fn one_of_the_headers_alone_is_no_conflict() {
        let length = head("POST /x HTTP/1.1", &[LENGTH]);
        let encoding = head("POST /x HTTP/1.1", &[ENCODING]);
        assert!(!is_marked(&length, 6000, &[LENGTH]));
        assert!(!is_marked(&format!("{length}{encoding}Content-Length: 3\r\n\r\n"), 6000, &[ENCODING]));
        let repeated = head("Transfer-Encoding: chunked", &[ENCODING]);
        assert!(!is_marked(&format!("{encoding}{repeated}"), 6000, &[ENCODING]));
    }

    proptest! {
        #[test]
        fn a_head_is_marked_for_its_own_fields(
            before in "(?s).{0,99}",
            mut fields in prop::collection::vec(("[A-Za-z]{1,3}", "[ -~]{0,9}"), 0..5),
            after in "(?s).{0,99}",
            length: Option<usize>,
            encoding: usize,
            at_once in 1..300_usize,
        ) {
            let mut insert = |at, (name, value): (&str, &str)| {
                fields.insert(at % (fields.len() + 1), (name.to_owned(), value.to_owned()));
            };
            insert(encoding, ENCODING);
            if let Some(at) = length {
                insert(at, LENGTH);
            }
            let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let bytes = format!("{before}{}{after}", head("POST /x HTTP/1.1", &fields));

            prop_assert_eq!(is_marked(&bytes, at_once, &fields), length.is_some());
        }
    }
}
