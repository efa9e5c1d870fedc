//! A log store: an HTTP server that keeps the lines that are posted to it, and is down when told to be.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::Value;

use crate::docker::docker;

/// Lines that have arrived, by the service of the stack that wrote them.
type Lines = BTreeMap<String, Vec<Value>>;

#[derive(Clone)]
pub struct LogStore {
    address: SocketAddr,
    /// What it answers; 0: it hangs up.
    status: Arc<AtomicU16>,
    received: Arc<Mutex<Lines>>,
    head: Arc<Mutex<String>>,
}

impl LogStore {
    /// On the engine's own bridge, which containers of all networks reach.
    pub fn start() -> Self {
        let gateway = "{{(index .IPAM.Config 0).Gateway}}";
        let gateway = docker(&["network", "inspect", "bridge", "--format", gateway]);
        let listener = TcpListener::bind((gateway.trim(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(200.into());
        let store = Self { address, status, received: Arc::default(), head: Arc::default() };
        let server = store.clone();
        // Ends with the tests.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                thread::spawn(move || server.serve(&stream.unwrap()));
            }
        });
        store
    }

    pub fn url(&self) -> String {
        format!("http://{}/insert", self.address)
    }

    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    pub fn received(&self) -> MutexGuard<'_, Lines> {
        self.received.lock().unwrap()
    }

    /// Lines of a service of the stack.
    pub fn lines(&self, service: &str) -> Vec<Value> {
        self.received().get(service).cloned().unwrap_or_default()
    }

    /// The head of the last request that it answered with 200.
    pub fn head(&self) -> String {
        self.head.lock().unwrap().clone()
    }

    /// Answers the requests of one connection until it ends.
    fn serve(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let start = head.len();
                reader.read_line(&mut head).ok().filter(|bytes| *bytes > 0)?;
                if let Some(value) = head[start..].to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            let status = self.status.load(Ordering::SeqCst);
            if status == 0 {
                return None;
            }
            if status == 200 {
                let mut received = self.received();
                for line in String::from_utf8(body).unwrap().lines() {
                    let line: Value = serde_json::from_str(line).expect(line);
                    let service = line["compose_service"].as_str().unwrap().to_owned();
                    received.entry(service).or_default().push(line);
                }
                *self.head.lock().unwrap() = head;
            }
            let answer = format!("HTTP/1.1 {status} Answer\r\nContent-Length: 0\r\n\r\n");
            let mut writer = stream;
            writer.write_all(answer.as_bytes()).ok()?;
        }
    }
}
