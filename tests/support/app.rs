//! The service as a process: started with settings, signalled, and its whole output kept.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::eventually;
use super::http::{Client, Response};
use super::servers::{self, Server};

/// How to start a service.
pub struct Setup {
    program: String,
    settings: BTreeMap<String, String>,
    read_output: bool,
}

/// A running service; killed when dropped.
pub struct App {
    pub address: SocketAddr,
    pub database: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Setup {
    /// The service on `postgres` and `redis`, with a database of its own and short times.
    pub fn on(postgres: &Server, redis: &Server) -> Self {
        let database = postgres.create_database();
        let settings = [
            ("APP__SERVICE__NAME", database.clone()),
            ("APP__SHUTDOWN__READY_DELAY", "0s".to_owned()),
            ("APP__HTTP__PORT", "0".to_owned()),
            ("APP__DATABASE__HOST", "127.0.0.1".to_owned()),
            ("APP__DATABASE__PORT", postgres.port.to_string()),
            ("APP__DATABASE__USER", "app".to_owned()),
            ("APP__DATABASE__NAME", database),
            ("APP__DATABASE__PASSWORD_FILE", postgres.password_file.display().to_string()),
            ("APP__REDIS__HOST", "127.0.0.1".to_owned()),
            ("APP__REDIS__PORT", redis.port.to_string()),
            ("APP__REDIS__PASSWORD_FILE", redis.password_file.display().to_string()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value));
        let program = env!("CARGO_BIN_EXE_app").to_owned();
        Self { program, settings: settings.into(), read_output: true }
    }

    /// On the servers that the tests share.
    pub fn shared() -> Self {
        Self::on(servers::postgres(), servers::redis())
    }

    /// The example `faulty` instead of the service: the same code with ill-behaved handlers.
    pub fn faulty(mut self) -> Self {
        let folder = self.program.strip_suffix("app").unwrap();
        self.program = format!("{folder}examples/faulty");
        self
    }

    pub fn set(mut self, name: &str, value: impl Display) -> Self {
        self.settings.insert(format!("APP__{name}"), value.to_string());
        self
    }

    /// Leaves standard output unread once the service listens.
    pub fn with_unread_output(mut self) -> Self {
        self.read_output = false;
        self
    }

    /// A command of the service with these settings and nothing else from our environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let program = if arguments.is_empty() { &self.program } else { env!("CARGO_BIN_EXE_app") };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&self.settings);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The name of the database that it was given.
    pub fn database(&self) -> &str {
        &self.settings["APP__DATABASE__NAME"]
    }

    pub fn migrate(&self) {
        let mut migrate = self.command(&["migrate"]);
        let output = migrate.env("APP__LOG__FORMAT", "json").output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Migrates, starts and waits until the service is ready.
    pub fn start(self) -> App {
        self.migrate();
        let app = self.start_unready();
        eventually(Duration::from_secs(10), "ready", || {
            app.ready().is_some_and(|answer| answer.status == 200).then_some(())
        });
        app
    }

    /// Starts and waits until the service listens.
    pub fn start_unready(self) -> App {
        let mut child = self.command(&[]).spawn().unwrap();
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
        if self.read_output {
            let log = Arc::clone(&log);
            readers.push(thread::spawn(move || {
                for line in output.lines() {
                    log.lock().unwrap().push(line.unwrap());
                }
            }));
        } else {
            // Open and unread until the process ends.
            readers.push(thread::spawn(move || drop((thread::park(), output))));
        }
        let text = Arc::clone(&errors);
        readers.push(thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            *text.lock().unwrap() = String::from_utf8_lossy(&bytes).into_owned();
        }));
        let database = self.database().to_owned();
        App { address, database, child, log, errors, readers }
    }
}

impl App {
    pub fn get(&self, path: &str) -> Response {
        self.client().get(path)
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// The answer of `/health/ready`, or `None` while nobody listens.
    pub fn ready(&self) -> Option<Response> {
        Client::try_connect(self.address)?.try_request("GET", "/health/ready", &[], "")
    }

    /// The value of a metric given with its labels, 0 when it is not there.
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

    /// Waits for the exit; panics after `limit`.
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

    /// Lines of the log so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Lines of the log so far, parsed.
    pub fn log(&self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// Waits for a line of the log.
    pub fn logged(&self, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        eventually(Duration::from_secs(5), what, || self.log().into_iter().find(&check))
    }

    /// Standard error, after the exit.
    pub fn errors(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    /// Resident memory in KiB.
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
    }
}
