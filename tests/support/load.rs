//! Load from many clients that records the fate of each request.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::http::{Client, Response};
use super::report::{Fate, Report, Sample};
use super::servers::block_on;

/// A response that takes longer counts as lost.
pub const LIMIT: Duration = Duration::from_secs(15);

/// One kind of request.
pub struct Load {
    address: SocketAddr,
    method: &'static str,
    path: String,
    fresh: bool,
    answered: AtomicUsize,
}

impl Load {
    pub fn get(address: SocketAddr, path: &str) -> Self {
        Self { address, method: "GET", path: path.to_owned(), fresh: false, answered: AtomicUsize::new(0) }
    }

    pub fn post(address: SocketAddr, path: &str) -> Self {
        Self { method: "POST", ..Self::get(address, path) }
    }

    /// Uses a new connection for each request.
    pub fn on_fresh_connections(self) -> Self {
        Self { fresh: true, ..self }
    }

    /// Returns the number of responses so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Closed loop: while `during` runs, each of `clients` sends its next request after the last response.
    pub fn closed(&self, clients: usize, during: impl FnOnce()) -> Report {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..clients).map(|_| scope.spawn(|| self.repeat(&stop))).collect();
            stop_after(&stop, during);
            Report(threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect())
        })
    }

    fn repeat(&self, stop: &AtomicBool) -> Vec<Sample> {
        let headers = if self.fresh { &[("connection", "close")] as &[_] } else { &[] };
        let (mut samples, mut kept) = (Vec::new(), None);
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            let fate = match kept.take().or_else(|| Client::try_connect(self.address)) {
                None => Fate::Refused,
                Some(mut client) => match client.try_request(self.method, &self.path, headers, "") {
                    None => Fate::Lost,
                    Some(answer) => {
                        kept = (answer.header("connection") != Some("close")).then_some(client);
                        self.answered.fetch_add(1, Ordering::Relaxed);
                        Fate::Answered(answer)
                    }
                },
            };
            if matches!(fate, Fate::Refused) {
                thread::park_timeout(Duration::from_millis(10));
            }
            samples.push(Sample { due: start, time: start.elapsed(), fate });
        }
        samples
    }

    /// Open loop: while `during` runs, `per_second` requests are sent, whether or not earlier ones have a response. Times
    /// count from the scheduled start of a request; otherwise a stalled service would slow its clients down and look
    /// fast ("coordinated omission").
    pub fn open(&self, per_second: u32, during: impl FnOnce()) -> Report {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = scope.spawn(|| block_on(LocalSet::new().run_until(self.send(per_second, &stop))));
            stop_after(&stop, during);
            Report(sender.join().unwrap())
        })
    }

    async fn send(&self, per_second: u32, stop: &AtomicBool) -> Vec<Sample> {
        let request = format!("{} {} HTTP/1.1\r\nhost: {}\r\n\r\n", self.method, self.path, self.address);
        let request: Rc<[u8]> = Rc::from(request.into_bytes());
        let idle = Rc::new(RefCell::new(Vec::new()));
        let mut requests = Vec::new();
        let mut due = tokio::time::interval(Duration::from_secs(1) / per_second);
        while !stop.load(Ordering::Relaxed) {
            let due = due.tick().await;
            let (address, request, idle) = (self.address, Rc::clone(&request), Rc::clone(&idle));
            requests.push(tokio::task::spawn_local(async move {
                idle.borrow_mut().retain(is_open);
                let kept = idle.borrow_mut().pop();
                let fate = tokio::time::timeout(LIMIT, exchange(address, &request, kept)).await;
                let (fate, kept) = fate.unwrap_or((Fate::Lost, None));
                idle.borrow_mut().extend(kept);
                Sample { due: due.into(), time: due.elapsed(), fate }
            }));
        }
        let mut samples = Vec::new();
        for request in requests {
            samples.push(request.await.unwrap());
        }
        samples
    }
}

/// Returns whether an idle connection is still open: after a close there is an end to read.
pub fn is_open(idle: &TcpStream) -> bool {
    idle.try_read(&mut [0]).is_err()
}

/// Sends a request and returns the connection if it stays open.
pub async fn exchange(
    address: SocketAddr,
    request: &[u8],
    kept: Option<TcpStream>,
) -> (Fate, Option<TcpStream>) {
    let mut stream = match kept {
        Some(stream) => stream,
        None => match TcpStream::connect(address).await {
            Ok(stream) => stream,
            Err(_) => return (Fate::Refused, None),
        },
    };
    if stream.write_all(request).await.is_err() {
        return (Fate::Lost, None);
    }
    let mut received = Vec::new();
    loop {
        match stream.read_buf(&mut received).await {
            Ok(count) if count > 0 => {}
            _ => return (Fate::Lost, None),
        }
        if let Some((answer, length)) = Response::parse(&received, false) {
            if received.len() > length {
                return (Fate::Lost, None); // two responses are as wrong as none
            }
            let kept = (answer.header("connection") != Some("close")).then_some(stream);
            return (Fate::Answered(answer), kept);
        }
    }
}

/// Ends the load even if an assertion fails.
pub fn stop_after(stop: &AtomicBool, during: impl FnOnce()) {
    let result = catch_unwind(AssertUnwindSafe(during));
    stop.store(true, Ordering::Relaxed);
    result.unwrap_or_else(|panic| resume_unwind(panic));
}
