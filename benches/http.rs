//! `make bench`: the service with default settings and its access log against a bare axum route, with wrk.
//!
//! Client and servers share the machine, so only ratios taken in one run mean something: the three are measured in
//! turn, five times, and medians compared.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "most of it is for the tests")]
mod support;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::free_port;
use support::http::Client;
use support::servers::postgres;
use support::setup::Setup;

const ROUNDS: usize = 5;
const STARTS: usize = 20;
const CONNECTIONS: &str = "64";
const SECONDS: &str = "4";

/// A process that is killed at the end.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(mut command: Command, port: u16) -> Self {
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    fn wait_for(&self, path: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let answers = || Client::try_connect(self.address)?.try_request("GET", path, &[], "");
        // Often, because the time to the first answer is measured.
        while answers().is_none_or(|answer| answer.status >= 400) {
            assert!(Instant::now() < deadline, "{path} does not answer");
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    fn resident_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Requests per second and the 99th percentile in milliseconds.
fn load(address: SocketAddr, path: &str) -> (f64, f64) {
    let wrk = |seconds: &str| {
        let url = format!("http://{address}{path}");
        let arguments = ["-t1", "-c", CONNECTIONS, "-d", seconds, "--latency", &url];
        let output = Command::new("wrk").args(arguments).output();
        String::from_utf8(output.expect("wrk is installed: apt-get install wrk").stdout).unwrap()
    };
    wrk("1");
    let report = wrk(SECONDS);
    assert!(!report.contains("Non-2xx"), "{report}");
    let value = |name: &str| report.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap().trim();
    let p99 = value("99%");
    let unit = if p99.ends_with("ms") { 1.0 } else { 1e-3 };
    (
        value("Requests/sec:").parse().unwrap(),
        p99.trim_end_matches(char::is_alphabetic).parse::<f64>().unwrap() * unit,
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn bare(port: u16) {
    let ok = axum::routing::get(async || "ok");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        axum::serve(listener, axum::Router::new().route("/", ok)).await.unwrap();
    });
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("bare") {
        return bare(arguments.next().unwrap().parse().unwrap());
    }
    let setup = Setup::shared();
    setup.migrate();
    let start = |path: &str| {
        let port = free_port();
        let mut command = Setup::shared().command(&[]);
        command.env("APP__DATABASE__NAME", setup.database()).env("APP__HTTP__PORT", port.to_string());
        let begin = Instant::now();
        let process = Process::start(command, port);
        process.wait_for(path);
        (process, begin.elapsed())
    };

    let starts = (0..STARTS).map(|_| start("/health/live").1.as_secs_f64() * 1e3).collect();
    println!(
        "cold start, exec to the first 200 of /health/live, median of {STARTS}: {:.1} ms",
        median(starts)
    );

    let port = free_port();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("bare").arg(port.to_string());
    let bare = Process::start(command, port);
    bare.wait_for("/");
    let (service, _) = start("/health/ready");
    let idle = service.resident_mib();
    postgres().sql(setup.database(), "insert into links (slug, url) values ('hot', 'https://example.com/')");
    service.wait_for("/r/hot");

    let routes = [
        ("bare axum", &bare, "/"),
        ("/health/live", &service, "/health/live"),
        ("/r/hot", &service, "/r/hot"),
    ];
    let mut results = vec![Vec::new(); routes.len()];
    for _ in 0..ROUNDS {
        for (result, (_, process, path)) in results.iter_mut().zip(routes) {
            result.push(load(process.address, path));
        }
    }
    println!("{CONNECTIONS} keep-alive connections, {SECONDS} s each, medians of {ROUNDS} rounds:\n");
    println!("| route | requests/s | ratio | p99 ms |\n|---|---|---|---|");
    let rate = |result: &[(f64, f64)]| median(result.iter().map(|(rate, _)| *rate).collect());
    for ((name, ..), result) in routes.iter().zip(&results) {
        let ratios = result.iter().zip(&results[0]).map(|(ours, bare)| ours.0 / bare.0).collect();
        let p99 = median(result.iter().map(|(_, p99)| *p99).collect());
        println!("| {name} | {:.0} | {:.2} | {p99:.2} |", rate(result), median(ratios));
    }
    println!("\nresident memory: {idle:.1} MiB idle, {:.1} MiB after the load", service.resident_mib());
}
