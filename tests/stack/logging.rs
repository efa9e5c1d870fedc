//! The log collector: which lines reach the log store, and what happens while the collector or the store is down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::docker::{await_health, docker, is_full};
use crate::production::assert_hardened;
use crate::stack::Stack;
use crate::support::contract;
use crate::support::eventually;
use crate::support::http::read_request;
use crate::support::meter::Meter;

const AUTHORIZATION: &str = "Basic bG9nczpzZWNyZXQ=";

#[test]
fn the_log_collector() {
    let store = LogStore::start();
    let mut stack = Stack::monitored("logging");
    fs::write(stack.secrets().join("log_store_authorization"), format!("{AUTHORIZATION}\n")).unwrap();
    stack.project.set("LOG_STORE_URL", &store.url());
    stack.project.set("LOG_BUFFER_BYTES", "4194304"); // fills up quickly
    stack.start_only(&["nginx", "blue", "logs"]);
    type Check = (&'static str, fn(&Stack, &LogStore));
    let checks: &[Check] = &[
        ("forwards a request's lines", forwards_a_requests_lines),
        ("is hardened", is_hardened),
        ("brings all lines into one format", brings_all_lines_into_one_format),
        ("follows rotated files", follows_rotated_files),
        ("continues where it stopped", continues_where_it_stopped),
        ("shows no secret", shows_no_secret),
    ];
    let slow_checks: &[Check] = &[
        ("survives an outage of the store", survives_an_outage_of_the_store),
        ("blocks no service when it is stuck", blocks_no_service_when_it_is_stuck),
    ];
    for (name, check) in checks.iter().chain(if is_full() { slow_checks } else { &[] }) {
        let start = Instant::now();
        check(&stack, &store);
        println!("-- {name}: {:.1?}", start.elapsed());
    }
    writes_to_its_own_output_without_a_store(&mut stack);
    stack.project.remove();
    assert_eq!(stack.project.remains(), "");
}

/// Received lines by the service of the stack that wrote them.
type Lines = BTreeMap<String, Vec<Value>>;

/// An HTTP server that keeps the lines of each POST, and can simulate an outage.
#[derive(Clone)]
struct LogStore {
    address: SocketAddr,
    /// The status of its responses; 0 closes the connection.
    status: Arc<AtomicU16>,
    received: Arc<Mutex<Lines>>,
    head: Arc<Mutex<String>>,
}

impl LogStore {
    /// Listens on the engine's bridge, which containers of all networks can reach.
    fn start() -> Self {
        let gateway = "{{(index .IPAM.Config 0).Gateway}}";
        let gateway = docker(&["network", "inspect", "bridge", "--format", gateway]);
        let listener = TcpListener::bind((gateway.trim(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(200.into());
        let store = Self { address, status, received: Arc::default(), head: Arc::default() };
        let server = store.clone();
        // The thread ends with the tests.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                thread::spawn(move || server.serve(&stream.unwrap()));
            }
        });
        store
    }

    fn url(&self) -> String {
        format!("http://{}/insert", self.address)
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn received(&self) -> MutexGuard<'_, Lines> {
        self.received.lock().unwrap()
    }

    /// Returns the lines of a service of the stack.
    fn lines(&self, service: &str) -> Vec<Value> {
        self.received().get(service).cloned().unwrap_or_default()
    }

    /// Returns the head of the last request that was answered with 200.
    fn head(&self) -> String {
        self.head.lock().unwrap().clone()
    }

    /// Serves the requests of one connection until the connection ends.
    fn serve(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let (head, body) = read_request(&mut reader)?;
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

fn collector(stack: &Stack) -> String {
    stack.project.containers("logs").remove(0)
}

/// Runs a shell script in a container that belongs to the project, and removes the container on drop.
struct Speaker(String);

impl Speaker {
    fn start(stack: &Stack, service: &str, more: &[&str], script: &str) -> Self {
        let project = format!("com.docker.compose.project={}", stack.project.name);
        let labels = [project, format!("com.docker.compose.service={service}")];
        let options = ["--detach", "--label", &labels[0], "--label", &labels[1]];
        let engine = ["--log-opt", "labels=com.docker.compose.project,com.docker.compose.service"];
        // The container and its log file stay until they are removed.
        let script = format!("{script}\nsleep 600");
        let run = [&["run"], &options[..], &engine, more, &["busybox:1.37", "sh", "-c", &script]].concat();
        Self(docker(&run).trim().to_owned())
    }

    /// Prints `count` numbered lines, some 100 every 40 ms.
    fn counting(stack: &Stack, service: &str, max_size: &str, count: usize) -> Self {
        let script = format!(
            r#"i=0; while [ $i -lt {count} ]; do i=$((i + 1))
            echo "{{\"number\":$i,\"message\":\"some hundred bytes, as many as a line has, or hardly fewer\"}}"
            if [ $((i % 100)) = 0 ]; then usleep 40000; fi; done"#
        );
        let size = format!("max-size={max_size}");
        Self::start(stack, service, &["--log-opt", &size, "--log-opt", "max-file=5"], &script)
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        docker(&["rm", "--force", &self.0]);
    }
}

/// Waits until the store has each number of a speaker. Returns how many arrived more than once.
fn await_numbers(store: &LogStore, service: &str, count: usize) -> usize {
    eventually(Duration::from_secs(40), service, || {
        let received = store.received();
        let lines = received.get(service)?;
        if lines.len() < count {
            return None;
        }
        let distinct: BTreeSet<_> = lines.iter().map(|line| line["number"].as_u64()).collect();
        (distinct.len() == count).then(|| lines.len() - count)
    })
}

/// Sends requests with generated IDs.
fn request(stack: &Stack, name: &str, count: usize) {
    let mut client = stack.client();
    for number in 0..count {
        let id = format!("{name}-{number}");
        assert_eq!(client.request("GET", "/v1/notes", &[("x-request-id", &id)], "").status, 200);
    }
}

/// Waits until the store has the lines of nginx and of the service for each request. Returns how many arrived more than
/// once.
fn await_requests(store: &LogStore, name: &str, count: usize) -> usize {
    let prefix = format!("{name}-");
    let twice = |service: &str| {
        eventually(Duration::from_secs(30), name, || {
            let received = store.received();
            let ids = received.get(service)?.iter().filter_map(|line| line["request_id"].as_str());
            let ids: Vec<_> = ids.filter(|id| id.starts_with(&prefix)).collect();
            let distinct: BTreeSet<_> = ids.iter().collect();
            (distinct.len() == count).then(|| ids.len() - count)
        })
    };
    twice("nginx") + twice("blue")
}

fn forwards_a_requests_lines(stack: &Stack, store: &LogStore) {
    let start = Instant::now();
    request(stack, "first", 1);
    assert_eq!(await_requests(store, "first", 1), 0);
    println!("stored {:.1?} after the request", start.elapsed());
    let find = |service: &str| {
        let line = store.lines(service).into_iter().find(|line| line["request_id"] == "first-0").unwrap();
        assert_eq!(line["project"], stack.project.name.as_str());
        let container = line["container"].as_str().unwrap().to_owned();
        assert!(docker(&["inspect", "--format", "{{.Name}}", &container]).contains(service));
        (line, container)
    };
    let (edge, _) = find("nginx");
    contract::nginx_line(&edge.to_string());
    let (inner, container) = find("blue");
    contract::service_line(&inner.to_string());
    assert_eq!(inner["instance"], container);
    assert!(inner["duration_ms"].is_f64() && edge["duration_seconds"].is_f64(), "{inner} {edge}");
    assert!(store.head().contains(&format!("Authorization: {AUTHORIZATION}\r\n")), "{}", store.head());
    let services: Vec<_> = store.received().keys().cloned().collect();
    assert_eq!(services, ["blue", "migrate", "nginx", "postgres", "redis"]);
}

fn is_hardened(stack: &Stack, _: &LogStore) {
    assert_hardened(stack, "logs", "0");
    await_health(&collector(stack), "healthy", Duration::from_secs(30));
    let write = ["exec", "--no-TTY", "logs", "sh", "-c", "touch /etc/x || touch /containers/x"];
    assert!(!stack.project.command(&write).output().unwrap().status.success());
}

fn brings_all_lines_into_one_format(stack: &Stack, store: &LogStore) {
    for service in ["postgres", "redis", "migrate"] {
        eventually(Duration::from_secs(10), service, || store.lines(service).pop());
    }
    let ready = store
        .lines("postgres")
        .into_iter()
        .find(|line| line["message"].as_str().unwrap().contains("ready to"));
    let ready = ready.unwrap();
    assert_eq!((&ready["level"], &ready["service"]), (&"INFO".into(), &"postgres".into()));
    assert!(ready["time"].as_str().unwrap().ends_with('Z'));

    // Objects are forwarded unchanged. Text that is no object, or forges a reserved name, becomes the message of an object.
    let objects = [
        r#"{"number":0.003,"big":18446744073709551615,"text":"\u0000\\ \"}{","flag":true}"#,
        r#"{ "nested" : {"list":[1,"2",null]} }"#,
    ];
    let texts = [
        r#"{"project":"forged"}"#,
        r#"{"a":1}{"b":2}"#,
        r#"{"a":NaN}"#,
        r#"{"a":"#,
        "{}",
        "[1]",
        "",
        r#"no "quotes" \n"#,
        &"[".repeat(60_000),
    ];
    let long = |bytes: usize| format!(r#"{{"message":"{}"}}"#, "x".repeat(bytes));
    let script = TempDir::new().unwrap();
    let (cut, lost) = (long(65_536), long(3_000_000));
    let all = [&objects[..], &texts, &[&cut, &lost, r#"{"message":"last"}"#]].concat();
    fs::write(script.path().join("lines"), all.join("\n") + "\n").unwrap();
    let error = "2026-01-02 03:04:05.678 UTC [9] ERROR:  wrong";
    let mount = format!("{}:/said:ro", script.path().display());
    let _speaker =
        Speaker::start(stack, "speaker", &["--volume", &mount], &format!("echo '{error}'; cat /said/lines"));
    let lines = || store.lines("speaker");
    eventually(Duration::from_secs(20), "the last line", || {
        lines().into_iter().find(|line| line["message"] == "last")
    });
    let lines = lines();
    assert_eq!((&lines[0]["message"], &lines[0]["level"]), (&error.into(), &"ERROR".into()));
    for (line, said) in lines[1..3].iter().zip(objects) {
        let said: Value = serde_json::from_str(said).unwrap();
        for (name, value) in said.as_object().unwrap() {
            assert_eq!(&line[name], value, "{line}");
        }
    }
    for (line, said) in lines[3..].iter().zip(texts) {
        assert_eq!((&line["message"], &line["service"]), (&said.into(), &"speaker".into()));
    }
    assert!(lines.iter().all(|line| line["project"] == stack.project.name.as_str()));
    // The engine split this line into five. The line of 3,000,000 bytes exceeds the limit of 1 MiB.
    assert_eq!(lines[12]["message"].as_str().unwrap().len(), 65_536);
    assert_eq!(lines.len(), 14);
}

fn follows_rotated_files(stack: &Stack, store: &LogStore) {
    const COUNT: usize = 16_000;
    let start = Instant::now();
    let _speaker = Speaker::counting(stack, "rotated", "1m", COUNT);
    let twice = await_numbers(store, "rotated", COUNT);
    println!("{COUNT} lines in {:.1?}, rotated at 1 MB: none missing, {twice} duplicated", start.elapsed());
    assert_eq!(twice, 0);
}

fn continues_where_it_stopped(stack: &Stack, store: &LogStore) {
    const COUNT: usize = 20_000;
    let _speaker = Speaker::counting(stack, "restarted", "10m", COUNT);
    request(stack, "before", 100);
    docker(&["stop", &collector(stack)]);
    request(stack, "meanwhile", 100);
    docker(&["start", &collector(stack)]);
    request(stack, "after", 100);
    for name in ["before", "meanwhile", "after"] {
        assert_eq!(await_requests(store, name, 100), 0, "{name}");
    }
    // The position is saved with each buffered batch; a kill may come before that.
    docker(&["kill", &collector(stack)]);
    docker(&["start", &collector(stack)]);
    let twice = await_numbers(store, "restarted", COUNT);
    println!("{COUNT} lines across a stop and a kill: none missing, {twice} duplicated");
    assert!(twice <= 1000, "more duplicates than one batch");
}

fn survives_an_outage_of_the_store(stack: &Stack, store: &LogStore) {
    const COUNT: usize = 20_000;
    store.answer(503);
    let _speaker = Speaker::counting(stack, "unheard", "10m", COUNT);
    request(stack, "down", 100);
    let stats = || {
        stack.project.compose(&[
            "exec",
            "--no-TTY",
            "logs",
            "syslog-ng-ctl",
            "--control=/run/syslog-ng.ctl",
            "stats",
        ])
    };
    let count = |name: &str| {
        let text = stats();
        let line =
            text.lines().find(|line| line.starts_with("dst.http;") && line.contains(&format!(";a;{name};")));
        line.unwrap().rsplit(';').next().unwrap().parse::<usize>().unwrap()
    };
    // Full: the queue does not grow for two seconds. A retry takes lines out of the queue briefly.
    let (mut queued, mut since) = (0, Instant::now());
    eventually(Duration::from_secs(30), "a full buffer", || {
        let now = count("queued");
        if now > queued {
            (queued, since) = (now, Instant::now());
        }
        (queued > 1000 && since.elapsed() > Duration::from_secs(2)).then_some(())
    });
    println!("a buffer of 4 MiB holds {queued} lines");
    assert!(queued < COUNT);
    store.answer(0);
    docker(&["restart", &collector(stack)]);
    request(stack, "down-still", 100);
    store.answer(200);
    let twice = await_requests(store, "down", 200) + await_numbers(store, "unheard", COUNT);
    println!("{COUNT} lines while the store was down: none missing, {twice} duplicated");
    assert!(twice <= 1000, "more duplicates than one batch");
    assert_eq!(count("dropped"), 0);
}

fn blocks_no_service_when_it_is_stuck(stack: &Stack, store: &LogStore) {
    let collector = collector(stack);
    let meter = Meter::new(stack.address, 200);
    let (unhealthy, findings) = meter.run(|| {
        docker(&["kill", "--signal", "STOP", &collector]);
        request(stack, "stuck", 100);
        await_health(&collector, "unhealthy", Duration::from_secs(60))
    });
    docker(&["kill", "--signal", "CONT", &collector]);
    println!("unhealthy {unhealthy:.1?} after the stop; {findings}");
    assert_eq!(findings.losses(), 0);
    assert!(findings.slowest < Duration::from_secs(1), "{:?}", findings.slowest);
    assert_eq!(await_requests(store, "stuck", 100), 0);
    await_health(&collector, "healthy", Duration::from_secs(30));
}

fn shows_no_secret(stack: &Stack, _: &LogStore) {
    let collector = collector(stack);
    for text in
        [docker(&["inspect", &collector]), docker(&["top", &collector]), docker(&["logs", &collector])]
    {
        assert!(!text.contains(AUTHORIZATION), "{text}");
    }
}

fn writes_to_its_own_output_without_a_store(stack: &mut Stack) {
    stack.project.set("LOG_STORE_URL", "");
    stack.project.compose(&["up", "--detach", "--wait", "--no-deps", "logs"]);
    request(stack, "shown", 1);
    eventually(Duration::from_secs(10), "the line", || {
        let lines = docker(&["logs", &collector(stack)]);
        let mut lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
        lines.find(|line| line["request_id"] == "shown-0" && line["compose_service"] == "blue")
    });
}
