//! The service as a process: starts it with settings, signals it, and keeps its complete output.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::http::{Client, Response};
use super::setup::Setup;
use super::{contract, eventually};

/// A running service. Killed on drop; its log is then validated against the contract.
pub struct App {
    pub address: SocketAddr,
    pub database: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    keeps_contract: bool,
}

impl App {
    /// Starts the service and waits until it listens.
    pub fn spawn(setup: &Setup) -> Self {
        let mut child = setup.command(&[]).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let (log, errors) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<String>>::default());
        let address = loop {
            let mut line = String::new();
            assert!(output.read_line(&mut line).unwrap() > 0, "the service ended: {:?}", child.wait());
            log.lock().unwrap().push(line.trim_end().to_owned());
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"] == "listening" {
                break line["address"].as_str().unwrap().parse().unwrap();
            }
        };
        let mut readers = Vec::new();
        if setup.reads_output() {
            let log = Arc::clone(&log);
            readers.push(thread::spawn(move || {
                let mut line = String::new();
                // A line truncated by SIGKILL is ignored.
                while output.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
                    log.lock().unwrap().push(line.trim_end().to_owned());
                    line.clear();
                }
            }));
        } else {
            // Stays open and unread until the process ends.
            readers.push(thread::spawn(move || drop((thread::park(), output))));
        }
        let text = Arc::clone(&errors);
        readers.push(thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            *text.lock().unwrap() = String::from_utf8_lossy(&bytes).into_owned();
        }));
        let database = setup.database().to_owned();
        Self { address, database, child, log, errors, readers, keeps_contract: setup.keeps_contract() }
    }

    pub fn get(&self, path: &str) -> Response {
        self.client().get(path)
    }

    /// Sends GET `path` with a timeout of one second, like a probe.
    pub fn probe(&self, path: &str) -> Option<Response> {
        let mut client = Client::try_connect(self.address)?;
        client.stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        client.try_request("GET", path, &[], "")
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Returns the response of `/health/ready`, or `None` while there is no listener.
    pub fn ready(&self) -> Option<Response> {
        Client::try_connect(self.address)?.try_request("GET", "/health/ready", &[], "")
    }

    /// Returns the value of a metric, given with its labels; 0 if the metric does not exist.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the exit. Panics after `limit`.
    pub fn wait(&mut self, limit: Duration) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let status = eventually(limit, "exit", || self.child.try_wait().unwrap());
        let time = start.elapsed();
        self.readers.drain(..).for_each(|reader| {
            reader.thread().unpark();
            reader.join().unwrap();
        });
        (status, time)
    }

    /// Returns the log lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Returns the parsed log lines so far.
    pub fn log(&self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// Waits for a log line that matches `check`.
    pub fn logged(&self, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        eventually(Duration::from_secs(5), what, || self.log().into_iter().find(&check))
    }

    /// Returns standard error. Call it after the exit.
    pub fn errors(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    /// Returns resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.readers.iter().for_each(|reader| reader.thread().unpark());
        if !thread::panicking() {
            self.readers.drain(..).for_each(|reader| reader.join().unwrap());
            if self.keeps_contract {
                for line in self.lines() {
                    contract::service_line(&line);
                }
            }
        }
    }
}
