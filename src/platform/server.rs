//! The composition root: connects, builds, binds, serves and drains. Everything is constructed here.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use sqlx::migrate::Migrator;
use tokio::time::{Instant, timeout, timeout_at};

use crate::platform::config::{self, Config};
use crate::platform::health::Health;
use crate::platform::health::probe::{PostgresProbe, RedisProbe};
use crate::platform::http::listener::{self, Server};
use crate::platform::http::management::{Heartbeat, Management};
use crate::platform::http::router;
use crate::platform::postgres::Database;
use crate::platform::postgres::migrations;
use crate::platform::redis::cache::Cache;
use crate::platform::rotation::Rotation;
use crate::platform::shutdown::{self, Signals, Stages, Tasks};
use crate::platform::state::AppState;
use crate::platform::telemetry::Telemetry;
use crate::platform::telemetry::metrics::Metrics;

/// Exit code after a shutdown that cut off requests.
const EXIT_CUT: u8 = 3;
/// Longest wait for connections to notice that they are cut.
const CUT_LIMIT: Duration = Duration::from_millis(200);
/// Descriptors for everything that is not a public connection: dependencies, the management listener, files.
const RESERVED_DESCRIPTORS: u64 = 64;
/// Connections of the management listener: probes and scrapes.
const MANAGEMENT_CONNECTIONS: usize = 32;

/// Serves `domains`, whose schema `migrations` make, until a signal comes, and returns the exit code: 0 when no request
/// was cut off, 3 when some were, 128 + n when a second signal (number n) ended the drain.
///
/// Dependencies need not be there: the service is alive at once and ready when they are.
pub fn run(
    config: Config,
    telemetry: &Telemetry,
    domains: Router<AppState>,
    migrations: &'static Migrator,
) -> anyhow::Result<u8> {
    on_runtime(config.runtime, Box::pin(serve(config, telemetry, domains, migrations)))
}

/// Applies those of `migrations` that are pending; a signal stops it with exit code 128 + n.
pub fn migrate(config: &Config, migrations: &Migrator) -> anyhow::Result<u8> {
    on_runtime(config.runtime, Box::pin(shutdown::or_signal(migrations::apply(&config.database, migrations))))
}

/// Does `work`. Neither generic nor in `main`: the compiler would translate all of the service once more for each use.
fn on_runtime(
    config: config::Runtime,
    work: Pin<Box<dyn Future<Output = anyhow::Result<u8>> + '_>>,
) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.worker_threads)
        .max_blocking_threads(config.max_blocking_threads)
        .thread_keep_alive(Duration::from_secs(10))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(work);
    // A blocking call or a hung connection must not hold up the exit.
    runtime.shutdown_background();
    result
}

async fn serve(
    config: Config,
    telemetry: &Telemetry,
    domains: Router<AppState>,
    migrations: &'static Migrator,
) -> anyhow::Result<u8> {
    let mut signals = Signals::install().context("cannot install signal handlers")?;
    let (stages, tasks) = (Stages::default(), Tasks::new(config.http.request_timeout));
    let metrics = Arc::new(Metrics::new(&telemetry.counters()).context("cannot register the metrics")?);
    let health = Health::new(config.health.clone(), stages.clone(), Arc::clone(&metrics));
    let database = Database::new(&config.database, migrations, Arc::clone(&metrics));
    let request_timeout = config.http.request_timeout;
    let cache = Cache::new(&config.redis, &config.service.name, request_timeout, Arc::clone(&metrics))
        .context("cannot use the address of Redis")?;
    let postgres_probe = PostgresProbe::new(database.clone(), health.clone());
    let redis_probe = RedisProbe::new(cache.clone(), &config.health);
    let heartbeat = Heartbeat::new(config.management.stall_timeout);
    let management = Arc::new(Management {
        health: health.clone(),
        metrics: Arc::clone(&metrics),
        database: database.clone(),
        heartbeat: heartbeat.clone(),
        runtime: tokio::runtime::Handle::current().metrics(),
    });

    let mut http = config.http.clone();
    http.max_connections = affordable(http.max_connections, config.database.max_connections);
    let endpoints = match config.management.address {
        Some(_) => Arc::clone(&management).short(),
        None => Arc::clone(&management).full(),
    };
    let rotation = Rotation::new(&config, database.clone(), cache.clone(), Arc::clone(&metrics));
    let state = AppState { database: database.clone(), cache, tasks: tasks.clone() };
    let router = router::build(domains, endpoints, state, &http, health.clone(), Arc::clone(&metrics));
    let listener =
        listener::bind(http.address).with_context(|| format!("cannot listen on {}", http.address))?;
    let address = listener.local_addr().context("cannot tell the address of the listener")?;
    if let Some(address) = config.management.address {
        serve_management(address, management, http.clone(), telemetry)?;
    }

    in_background(heartbeat.beat());
    // A connection in the making would hold up the closing of the pool.
    in_background(stages.draining.clone().run_until_cancelled_owned(database.clone().warm_up()));
    in_background(database.clone().renew());
    in_background(rotation.watch());
    in_background(health.clone().watch_postgres(postgres_probe));
    in_background(health.watch_redis(redis_probe));
    let server = Server::new(router, http, stages.clone(), Arc::clone(&metrics));
    let mut accept = pin!(server.clone().accept(listener));
    tracing::info!(
        address = %address,
        management = config.management.address.map(tracing::field::display),
        worker_threads = config.runtime.worker_threads,
        database_connections = config.database.max_connections,
        "listening",
    );

    let first = tokio::select! {
        signal = signals.next() => signal,
        // The loop does not end before the stage `closing`.
        ended = &mut accept => return ended.map(|()| 1).context("the accept loop ended"),
    };
    metrics.shutdown_draining.set(1);
    tracing::info!(signal = first, "shutting down");
    tokio::select! {
        code = drain(&config, &stages, accept, &server, &tasks, &database) => code,
        second = signals.next() => {
            tracing::warn!(signal = second, "a second signal ends the shutdown at once");
            Ok(128 + second)
        }
    }
}

/// Does what goes on until the process ends.
#[expect(clippy::disallowed_methods, reason = "nothing waits for the end of these")]
fn in_background<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) {
    tokio::spawn(work);
}

/// Walks through the stages; see `shutdown`. One deadline counts from the signal.
async fn drain(
    config: &Config,
    stages: &Stages,
    mut accept: Pin<&mut impl Future<Output = io::Result<()>>>,
    server: &Server,
    tasks: &Tasks,
    database: &Database,
) -> anyhow::Result<u8> {
    let start = Instant::now();
    let closing = start + config.shutdown.ready_delay;
    let deadline = closing + config.shutdown.drain_timeout;
    stages.draining.cancel();
    tokio::select! {
        () = tokio::time::sleep_until(closing) => {}
        ended = &mut accept => return ended.map(|()| 1).context("the accept loop ended"),
    }

    stages.closing.cancel();
    accept.await.context("cannot serve the last connections")?;
    tracing::info!("no longer accepting connections");
    let mut stuck = false;
    if timeout_at(deadline, server.finished()).await.is_err() {
        stages.cutting.cancel();
        // A handler that blocks its thread does not notice.
        stuck = timeout(CUT_LIMIT, server.finished()).await.is_err();
    }
    // Transactions whose client has gone.
    let tasks_cut = timeout_at(deadline, tasks.finished()).await.is_err();
    if timeout(config.shutdown.pool_close_timeout, database.close()).await.is_err() {
        tracing::warn!("the database connections did not close in time");
    }

    let (cut, seconds) = (server.cut(), start.elapsed().as_secs_f64());
    if cut > 0 || tasks_cut || stuck {
        tracing::error!(
            connections_cut = cut,
            tasks_cut,
            stuck,
            seconds,
            "shutdown complete, work was cut off"
        );
        Ok(EXIT_CUT)
    } else {
        tracing::info!(seconds, "shutdown complete");
        Ok(0)
    }
}

/// Serves health and metrics at `address`, on a thread of its own, until the process ends.
fn serve_management(
    address: SocketAddr,
    management: Arc<Management>,
    mut http: config::Http,
    telemetry: &Telemetry,
) -> anyhow::Result<()> {
    http.max_connections = MANAGEMENT_CONNECTIONS;
    // What is counted of requests and connections is about the public listener: a scrape that counted itself would hide
    // whether any request is in progress. These go nowhere.
    let aside = Arc::new(Metrics::new(&telemetry.counters()).context("cannot register the metrics")?);
    let health = management.health.clone();
    let router = router::surround(management.full(), &http, health, Arc::clone(&aside));
    let server = Server::new(router, http, Stages::default(), aside);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let listener = listener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    drop(entered);
    thread::Builder::new()
        .name("management".to_owned())
        .spawn(move || runtime.block_on(server.accept(listener)))
        .context("cannot start the management thread")?;
    Ok(())
}

/// No more connections than there are descriptors for: without one, probes could not connect either.
fn affordable(wanted: usize, database_connections: u32) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let reserved = RESERVED_DESCRIPTORS + u64::from(database_connections);
    let affordable = limit.map_or(u64::MAX, |limit| limit.saturating_sub(reserved).max(1));
    let affordable = usize::try_from(affordable).unwrap_or(usize::MAX);
    if affordable < wanted {
        tracing::warn!(wanted, affordable, "the descriptor limit allows fewer connections");
    }
    wanted.min(affordable)
}
