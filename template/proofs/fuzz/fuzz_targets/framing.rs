//! Whatever comes over a connection, in whatever pieces: hyper behind the `Tap` does not panic, and a request whose head
//! has both Content-Length and Transfer-Encoding is marked and is the last, whatever is before it, in it and behind it.
#![no_main]

use std::cell::RefCell;
use std::sync::LazyLock;

use app::platform::http::framing::{Conflict, Recent, Tap};
use arbitrary::Arbitrary;
use axum::body::{Body, to_bytes};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncReadExt, empty, join, sink};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().unwrap());

#[derive(Arbitrary, Debug)]
struct Sent<'a> {
    /// Body of an earlier request on the same connection.
    before: Option<&'a [u8]>,
    method: u8,
    target: &'a str,
    fields: Vec<Field<'a>>,
    after: &'a [u8],
    bare_line_ends: bool,
    /// Where the pieces end, in parts of 256.
    cuts: [u8; 4],
}

#[derive(Arbitrary, Debug)]
enum Field<'a> {
    Length(u8),
    Chunked,
    RequestLine,
    Any(&'a str, &'a str),
}

impl Sent<'_> {
    fn head(&self) -> String {
        let method = ["GET", "POST", "CONNECT"][usize::from(self.method % 3)];
        let line = format!("{method} /{} HTTP/1.1", self.target);
        let fields = self.fields.iter().map(|field| match field {
            Field::Length(length) => format!("Content-Length: {length}\r\n"),
            Field::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
            Field::RequestLine => format!("a: {line}\r\n"),
            Field::Any(name, value) => format!("{name}:{value}\r\n"),
        });
        let head = format!("{line}\r\n{}\r\n", fields.collect::<String>());
        if self.bare_line_ends { head.replace('\r', "") } else { head }
    }
}

/// Up to and with the first empty line.
fn first_head(bytes: &[u8]) -> &[u8] {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let fields: usize = lines.clone().take_while(|line| !line.trim_ascii().is_empty()).map(<[u8]>::len).sum();
    let end = bytes[fields..].split_inclusive(|byte| *byte == b'\n').next().map_or(0, <[u8]>::len);
    &bytes[..fields + end]
}

/// Whether a head that hyper has found well formed has a field called `name`.
fn has_field(head: &[u8], name: &str) -> bool {
    let mut names =
        head.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b':').next());
    names.any(|n| n.eq_ignore_ascii_case(name.as_bytes()))
}

fn tells_a_length(bytes: &[u8]) -> bool {
    bytes.to_ascii_lowercase().windows(14).any(|window| window == b"content-length")
}

fn in_pieces<'a>(mut bytes: &'a [u8], cuts: &[u8]) -> Box<dyn AsyncRead + Unpin + 'a> {
    let mut pieces: Box<dyn AsyncRead + Unpin> = Box::new(empty());
    for cut in cuts {
        let (piece, rest) = bytes.split_at(bytes.len() * usize::from(*cut) / 256);
        pieces = Box::new(pieces.chain(piece));
        bytes = rest;
    }
    Box::new(pieces.chain(bytes))
}

fuzz_target!(|sent: Sent<'_>| {
    let before = sent.before.map_or_else(Vec::new, |body| {
        let head = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    });
    let under_test = [sent.head().as_bytes(), sent.after].concat();
    let bytes = [&before[..], &under_test].concat();
    if bytes.len() > 8 * 1024 {
        return; // Farther than a head is looked for.
    }

    let marked = RefCell::new(Vec::new());
    let recent = Recent::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        recent.mark_conflict(&mut request);
        marked.borrow_mut().push(request.extensions().get::<Conflict>().is_some());
        async {
            to_bytes(Body::new(request.into_body()), usize::MAX).await.map(|_| Response::new(Body::empty()))
        }
    });
    let io = TokioIo::new(Tap::new(join(in_pieces(&bytes, &sent.cuts), sink()), recent.clone()));
    let _ = RUNTIME.block_on(http1::Builder::new().serve_connection(io, service));

    let marked = marked.into_inner();
    let index = usize::from(sent.before.is_some());
    if let Some(is_marked) = marked.get(index) {
        let head = first_head(&under_test);
        let both = has_field(head, "content-length") && has_field(head, "transfer-encoding");
        let shown = bytes.escape_ascii();
        assert!(*is_marked || !both, "hidden in {shown}");
        assert!(!both || marked.len() == index + 1, "served on after {shown}");
        let around = [sent.before.unwrap_or_default(), &under_test[head.len()..]];
        assert!(both || !is_marked || around.into_iter().any(tells_a_length), "marked {shown}");
    } else {
        assert!(marked.len() == index, "the earlier request was not served");
    }
});
