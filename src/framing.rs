//! Finds the one framing conflict that hyper resolves without telling: a request with both Content-Length and
//! Transfer-Encoding, the tool of request smuggling (RFC 9112 6.1).
//!
//! hyper drops the Content-Length and closes the connection after the response, which is all that safety
//! needs. Seeing it, to answer 400, takes a look at the bytes: [`Tap`] keeps those read since the last request.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper::Request;
use hyper::header::TRANSFER_ENCODING;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longer heads with both headers are not refused, only closed after.
const KEPT_BYTES: usize = 8 * 1024;

/// Request extension: the head has both headers.
#[derive(Clone, Copy)]
pub struct Conflict;

/// The last bytes read.
#[derive(Clone, Default)]
pub struct Recent(Arc<Mutex<Vec<u8>>>);

impl Recent {
    /// Marks `request`, whose head was just read, when it has the conflict; forgets the bytes.
    pub fn mark_conflict<B>(&self, request: &mut Request<B>) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if request.headers().contains_key(TRANSFER_ENCODING) {
            // Before the head there may be the rest of an earlier body: the head is the last that fits.
            let line = format!("{} {} ", request.method(), request.uri());
            let mut starts = bytes.windows(line.len());
            let start = starts.rposition(|window| window == line.as_bytes()).unwrap_or(bytes.len());
            let head = &bytes[start..];
            let end = head.windows(4).position(|window| window == b"\r\n\r\n");
            let head = &head[..end.unwrap_or(head.len())];
            let mut lines = head.split(|byte| *byte == b'\n');
            if lines.any(|line| line.to_ascii_lowercase().starts_with(b"content-length:")) {
                request.extensions_mut().insert(Conflict);
            }
        }
        bytes.clear();
    }
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
            let mut bytes = self.recent.0.lock().unwrap_or_else(PoisonError::into_inner);
            let free = KEPT_BYTES.saturating_sub(bytes.len());
            bytes.extend_from_slice(&read[..read.len().min(free)]);
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
