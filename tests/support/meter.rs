//! The loss meter: clients write and read notes through the public entry point at a fixed rate, and know which responses
//! to expect.
//!
//! One of five requests is a POST. Half of the requests share sixteen keep-alive connections; each other request has a
//! connection of its own. No request is retried, so every missing response was lost.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::eventually;
use super::http::{Client, Response};
use super::load::{LIMIT, exchange, is_open, stop_after};
use super::report::Fate;
use super::servers::block_on;

/// Number of keep-alive connections.
const KEPT: usize = 16;

/// Results of the meter.
#[derive(Default)]
pub struct Findings {
    pub requests: usize,
    /// Requests without a response or with a wrong one: time, request and reason.
    pub failed: Vec<String>,
    /// Notes whose write was acknowledged.
    pub written: Vec<Written>,
    /// Number of acknowledged notes that are missing.
    pub missing: usize,
    /// Number of duplicates.
    pub duplicated: usize,
    pub slowest: Duration,
    pub time: Duration,
}

/// A note, and the time of its acknowledgement.
#[derive(Clone)]
pub struct Written {
    id: i64,
    pub text: String,
    pub acknowledged: Instant,
}

impl Findings {
    /// Returns the number of requests without the expected response.
    pub fn losses(&self) -> usize {
        self.failed.len() + self.missing + self.duplicated
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} requests in {} s, {} notes written: {} failed, {} missing, {} duplicated, slowest {} ms",
            self.requests,
            self.time.as_secs(),
            self.written.len(),
            self.failed.len(),
            self.missing,
            self.duplicated,
            self.slowest.as_millis()
        )?;
        self.failed.iter().take(5).try_for_each(|failure| write!(formatter, "\n  {failure}"))
    }
}

/// Load on one entry point.
pub struct Meter {
    address: SocketAddr,
    per_second: u32,
    /// Prefix of the text of each note of this run.
    run: String,
    answered: Arc<AtomicUsize>,
}

/// State shared by the clients.
#[derive(Default)]
struct Clients {
    answered: Arc<AtomicUsize>,
    idle: RefCell<VecDeque<TcpStream>>,
    written: RefCell<Vec<Written>>,
    slowest: Cell<Duration>,
}

impl Meter {
    pub fn new(address: SocketAddr, per_second: u32) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let run = format!("{now}/");
        Self { address, per_second, run, answered: Arc::default() }
    }

    /// Returns the number of correct responses so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for `count` more correct responses.
    #[track_caller]
    pub fn await_more(&self, count: usize, limit: Duration) {
        let enough = self.answered() + count;
        eventually(limit, "answers", || (self.answered() >= enough).then_some(()));
    }

    /// Sends requests while `during` runs, whether or not earlier ones have a response, then looks up all written notes.
    pub fn run<T>(&self, during: impl FnOnce() -> T) -> (T, Findings) {
        let (stop, mut result) = (AtomicBool::new(false), None);
        let mut findings = thread::scope(|scope| {
            let sender = scope.spawn(|| block_on(LocalSet::new().run_until(self.send(&stop))));
            stop_after(&stop, || result = Some(during()));
            sender.join().unwrap()
        });
        match self.notes() {
            Err(reason) => findings.failed.push(format!("the list of all notes: {reason}")),
            Ok(there) => {
                let is_there =
                    |note: &Written| there.get(&note.text).is_some_and(|ids| ids.contains(&note.id));
                findings.missing = findings.written.iter().filter(|note| !is_there(note)).count();
                findings.duplicated = there.values().map(|ids| ids.len() - 1).sum();
            }
        }
        (result.unwrap(), findings)
    }

    async fn send(&self, stop: &AtomicBool) -> Findings {
        let start = Instant::now();
        let clients = Rc::new(Clients { answered: Arc::clone(&self.answered), ..Clients::default() });
        let mut requests = Vec::new();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / self.per_second);
        while !stop.load(Ordering::Relaxed) {
            let due = ticks.tick().await;
            let turn = requests.len();
            let (address, text, clients) = (self.address, format!("{}{turn}", self.run), Rc::clone(&clients));
            let request = async move {
                let kept = turn.is_multiple_of(2);
                let note = if turn.is_multiple_of(5) { None } else { clients.note(turn) };
                let done = match &note {
                    None => clients.write(address, kept, text).await,
                    Some(note) => clients.read(address, kept, note).await,
                };
                clients.slowest.set(clients.slowest.get().max(due.elapsed()));
                clients.answered.fetch_add(done.is_ok().into(), Ordering::Relaxed);
                let at = start.elapsed().as_secs_f64();
                let what = if note.is_none() { "POST" } else { "GET" };
                let on = if kept { "a kept" } else { "its own" };
                done.map_err(|reason| format!("{at:.1} s: {what} on {on} connection: {reason}"))
            };
            requests.push(tokio::task::spawn_local(request));
        }
        let mut findings = Findings { requests: requests.len(), ..Findings::default() };
        for request in requests {
            findings.failed.extend(request.await.unwrap().err());
        }
        (findings.time, findings.slowest) = (start.elapsed(), clients.slowest.get());
        findings.written = clients.written.take();
        findings
    }

    /// Returns the notes of this run in the list of all notes: the IDs for each text.
    pub fn notes(&self) -> Result<HashMap<String, Vec<i64>>, String> {
        let first = "/v1/notes?limit=100";
        let mut client = Client::try_connect(self.address).ok_or("no connection")?;
        let (mut notes, mut path) = (HashMap::<_, Vec<_>>::new(), first.to_owned());
        loop {
            let answer = client.try_request("GET", &path, &[], "").ok_or("no answer")?;
            let page: Page = serde_json::from_str(&answer.body).map_err(|_| answer.body)?;
            for Note { id, text } in page.items {
                if text.starts_with(&self.run) {
                    notes.entry(text).or_default().push(id);
                }
            }
            let Some(cursor) = page.next_cursor else { return Ok(notes) };
            path = format!("{first}&cursor={cursor}");
        }
    }
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Note>,
    next_cursor: Option<i64>,
}

#[derive(Deserialize)]
struct Note {
    id: i64,
    text: String,
}

impl Clients {
    /// Returns one of the most recent notes.
    fn note(&self, turn: usize) -> Option<Written> {
        self.written.borrow().iter().rev().nth(turn % 50).cloned()
    }

    async fn write(&self, address: SocketAddr, kept: bool, text: String) -> Result<(), String> {
        let body = json!({"text": text}).to_string();
        let head = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        let answer = self.exchange(address, kept, "POST /v1/notes", &head, &body).await?;
        match serde_json::from_str::<Note>(&answer.body) {
            Ok(note) if answer.status == 201 && note.text == text => {
                let acknowledged = Instant::now();
                self.written.borrow_mut().push(Written { id: note.id, text, acknowledged });
                Ok(())
            }
            _ => Err(format!("{} {}", answer.status, answer.body)),
        }
    }

    async fn read(&self, address: SocketAddr, kept: bool, note: &Written) -> Result<(), String> {
        let answer = self.exchange(address, kept, &format!("GET /v1/notes/{}", note.id), "", "").await?;
        match serde_json::from_str::<Note>(&answer.body) {
            Ok(there) if answer.status == 200 && (there.id, &there.text) == (note.id, &note.text) => Ok(()),
            _ => Err(format!("{} {}", answer.status, answer.body)),
        }
    }

    async fn exchange(
        &self,
        address: SocketAddr,
        kept: bool,
        line: &str,
        head: &str,
        body: &str,
    ) -> Result<Response, String> {
        let stream = if kept { self.kept() } else { None };
        let close = if kept { "" } else { "connection: close\r\n" };
        let request = format!("{line} HTTP/1.1\r\nhost: {address}\r\n{close}{head}\r\n{body}");
        let exchange = tokio::time::timeout(LIMIT, exchange(address, request.as_bytes(), stream)).await;
        let (fate, stream) = exchange.map_err(|_| "no answer in time")?;
        self.idle.borrow_mut().extend(stream);
        match fate {
            Fate::Answered(answer) => Ok(answer),
            Fate::Refused => Err("no connection".to_owned()),
            Fate::Lost => Err("closed without an answer".to_owned()),
        }
    }

    /// Returns the connection that has been idle for longest, once there are enough connections.
    fn kept(&self) -> Option<TcpStream> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(is_open);
        if idle.len() < KEPT { None } else { idle.pop_front() }
    }
}
