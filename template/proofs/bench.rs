//! `make bench`: compares the service, with default settings and its access log, with a bare axum route, and measures the
//! cost of observability. Uses wrk.
//!
//! Client and servers share the machine, so only ratios within one run are meaningful. The targets are measured in turn,
//! five times, and their medians compared.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "../../tests/support/mod.rs"]
#[expect(dead_code, reason = "most of the module is for the tests")]
mod support;

#[path = "../../tests/workload/notes.rs"]
mod notes;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use app::PACKAGE;
use app::platform::config::Config;
use app::platform::health::Health;
use app::platform::http::connection::Connections;
use app::platform::http::listener::Listener;
use app::platform::http::load_shed::LoadShed;
use app::platform::http::router;
use app::platform::postgres::Database;
use app::platform::postgres::probe::PostgresProbe;
use app::platform::redis::cache::Cache;
use app::platform::redis::probe::RedisProbe;
use app::platform::stages::Stages;
use app::platform::state::AppState;
use app::platform::tasks::Tasks;
use app::platform::telemetry::metrics::Metrics;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use sqlx::migrate::Migrator;
use support::collector::Collector;
use support::free_port;
use support::http::Client;
use support::servers::postgres;
use support::setup::Setup;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;

const ROUNDS: usize = 5;
const STARTS: usize = 20;
const CONNECTIONS: &str = "64";
const SECONDS: &str = "4";

/// A process that is killed on drop.
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
        // Polls often, because the time to the first response is measured.
        while answers().is_none_or(|answer| answer.status >= 400) {
            assert!(Instant::now() < deadline, "{path} does not answer");
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    /// Returns the CPU time so far; the unit of /proc is a hundredth of a second on every Linux.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
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

/// Result of one round of load.
#[derive(Clone, Copy)]
struct Round {
    /// Requests per second.
    rate: f64,
    /// 99th percentile in milliseconds.
    p99: f64,
    /// CPU time of the server per request in microseconds, the figure least affected by other processes.
    cpu: f64,
}

fn load(process: &Process, path: &str) -> Round {
    let wrk = |seconds: &str| {
        let url = format!("http://{}{path}", process.address);
        let arguments = ["-t1", "-c", CONNECTIONS, "-d", seconds, "--latency", &url];
        let output = Command::new("wrk").args(arguments).output();
        String::from_utf8(output.expect("wrk is installed: apt-get install wrk").stdout).unwrap()
    };
    wrk("1");
    let before = process.cpu();
    let report = wrk(SECONDS);
    let cpu = process.cpu() - before;
    assert!(!report.contains("Non-2xx"), "{report}");
    let value = |name: &str| report.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap().trim();
    let p99 = value("99%");
    let unit = if p99.ends_with("ms") { 1.0 } else { 1e-3 };
    let requests = report.lines().find_map(|line| line.split_once(" requests in ")).unwrap().0.trim();
    Round {
        rate: value("Requests/sec:").parse().unwrap(),
        p99: p99.trim_end_matches(char::is_alphabetic).parse::<f64>().unwrap() * unit,
        cpu: cpu.as_secs_f64() * 1e6 / requests.parse::<f64>().unwrap(),
    }
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

/// Empty, because the example `workload` has created the schema.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| Migrator::with_migrations(Vec::new()));

/// Runs the service without observability: no log, no metrics, no trace context, no time limit.
fn unobserved() {
    let loaded = Config::load(&PACKAGE, "", std::env::vars_os(), |_| ());
    let (config, (), _) = loaded.map_err(|problems| problems.len()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let http = &config.http;
        let stages = Stages::default();
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new(), &[], "", "").unwrap());
        let health = Health::new(config.health.clone(), "", stages.clone(), Arc::clone(&metrics));
        let database = Database::new(&config.database, &MIGRATIONS, Arc::clone(&metrics));
        let cache = Cache::new(&config.redis, "bench", http.request_timeout, Arc::clone(&metrics)).unwrap();
        let tasks = Tasks::new(http.request_timeout);
        let load = LoadShed::new(http, health.clone(), Arc::clone(&metrics));
        let state = AppState { database: database.clone(), cache: cache.clone(), tasks };
        let routes = router::public(notes::router(), state, load, Router::new()).layer((
            CatchPanicLayer::new(),
            RequestBodyLimitLayer::new(http.max_body_bytes),
            DefaultBodyLimit::disable(),
        ));
        let connections = Connections::new(routes, http.clone(), stages.clone(), Arc::clone(&metrics));
        let listener = Listener::bind(http.address, http.max_connections, stages, metrics).unwrap();
        let postgres = health.clone().monitor("postgres", PostgresProbe::new(database.clone()));
        let redis = health.monitor("redis", RedisProbe::new(cache, &config.health));
        tokio::join!(database.warm_up(), postgres, redis, listener.accept(connections)).3.unwrap();
    });
}

/// Measures each of `targets` (name, process and path) in turn, and prints a table relative to the first.
fn compare(targets: &[(&str, &Process, &str)]) {
    let mut results = vec![Vec::new(); targets.len()];
    for _ in 0..ROUNDS {
        for (result, (_, process, path)) in results.iter_mut().zip(targets) {
            result.push(load(process, path));
        }
    }
    println!("\n| | requests/s | ratio | p99 ms | CPU us per request |\n|---|---|---|---|---|");
    for ((name, ..), result) in targets.iter().zip(&results) {
        let ratios = result.iter().zip(&results[0]).map(|(round, first)| round.rate / first.rate).collect();
        let of = |value: fn(&Round) -> f64| median(result.iter().map(value).collect());
        let (rate, p99, cpu) = (of(|round| round.rate), of(|round| round.p99), of(|round| round.cpu));
        println!("| {name} | {rate:.0} | {:.2} | {p99:.2} | {cpu:.1} |", median(ratios));
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("bare") => return bare(arguments.next().unwrap().parse().unwrap()),
        Some("unobserved") => return unobserved(),
        _ => {}
    }
    let setup = Setup::shared().workload();
    setup.migrate();
    // Starts the service, or this program as `unobserved`, with additional settings.
    let start_as = |observed: bool, settings: &[(&str, &str)], path: &str| {
        let port = free_port();
        let mut command = Setup::shared().workload().command(&[]);
        if !observed {
            let settings =
                command.get_envs().map(|(name, value)| (name.to_owned(), value.unwrap().to_owned()));
            let settings: Vec<_> = settings.collect();
            command = Command::new(std::env::current_exe().unwrap());
            command.arg("unobserved").envs(settings);
        }
        command.env("APP__DATABASE__NAME", setup.database()).env("APP__HTTP__PORT", port.to_string());
        command.envs(settings.iter().copied());
        let begin = Instant::now();
        let process = Process::start(command, port);
        process.wait_for(path);
        (process, begin.elapsed())
    };
    let start = |path: &str| start_as(true, &[], path);

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
    postgres().sql(setup.database(), "insert into notes (text) values ('hot')");
    service.wait_for("/v1/notes/1");
    println!("{CONNECTIONS} keep-alive connections, {SECONDS} s each, medians of {ROUNDS} rounds:");
    compare(&[
        ("bare axum", &bare, "/"),
        ("`/health/live`", &service, "/health/live"),
        ("`/v1/notes/{id}`, from the cache, logged", &service, "/v1/notes/1"),
    ]);
    println!("\nresident memory: {idle:.1} MiB idle, {:.1} MiB after the load", service.resident_mib());

    let endpoint = Collector::start().endpoint();
    let otlp = |ratio| [("APP__OTLP__ENDPOINT", &*endpoint), ("APP__OTLP__SAMPLE_RATIO", ratio)];
    let (unobserved, _) = start_as(false, &[], "/v1/notes/1");
    let (hundredth, _) = start_as(true, &otlp("0.01"), "/v1/notes/1");
    let (all, _) = start_as(true, &otlp("1"), "/v1/notes/1");
    println!("\ncost of observability for `/v1/notes/{{id}}`:");
    compare(&[
        ("nothing", &unobserved, "/v1/notes/1"),
        ("access log, metrics, trace context", &service, "/v1/notes/1"),
        ("and spans of every hundredth request", &hundredth, "/v1/notes/1"),
        ("and spans of every request", &all, "/v1/notes/1"),
    ]);
}
