//! The composition root: builds the service, binds its listeners, and runs it. Everything is constructed here.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use axum::Router;

use crate::platform::config::{self, Config};
use crate::platform::health::Health;
use crate::platform::health::heartbeat::Heartbeat;
use crate::platform::http::access_log::Observer;
use crate::platform::http::connection::Connections;
use crate::platform::http::head::HeadLimits;
use crate::platform::http::listener::Listener;
use crate::platform::http::load_shed::LoadShed;
use crate::platform::http::management::Management;
use crate::platform::http::router;
use crate::platform::postgres::probe::PostgresProbe;
use crate::platform::postgres::{Database, migrations};
use crate::platform::redis::cache::Cache;
use crate::platform::redis::probe::RedisProbe;
use crate::platform::rotation::Rotation;
use crate::platform::service::{Loaded, Service};
use crate::platform::shutdown::{self, Exit, Running, Signals};
use crate::platform::stages::Stages;
use crate::platform::state::AppState;
use crate::platform::tasks::Tasks;
use crate::platform::telemetry::Telemetry;
use crate::platform::telemetry::metrics::Metrics;

/// File descriptors for everything but public connections: dependencies, the management listener, files.
const RESERVED_DESCRIPTORS: u64 = 64;
/// Connections of the management listener: probes and scrapes.
const MANAGEMENT_CONNECTIONS: usize = 32;

/// Serves requests until a signal arrives.
///
/// Dependencies may be unavailable: the service is alive immediately, and ready once they are up.
pub fn serve(service: Service, loaded: Loaded, telemetry: &Telemetry) -> anyhow::Result<Exit> {
    on_runtime(
        loaded.config.runtime,
        Box::pin(async move {
            let signals = Signals::install()?;
            let server = Server::build(service, loaded, telemetry)?;
            server.bind()?.run(signals).await
        }),
    )
}

/// Applies the pending migrations. A signal cancels them.
pub fn migrate(service: Service, config: &Config) -> anyhow::Result<Exit> {
    let work = migrations::apply(&config.database, service.migrations);
    on_runtime(config.runtime, Box::pin(shutdown::or_signal(work)))
}

/// Awaits `work`. Neither generic nor inlined in `main`: each use would compile all of the service once more.
fn on_runtime(
    config: config::Runtime,
    work: Pin<Box<dyn Future<Output = anyhow::Result<Exit>> + '_>>,
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.worker_threads)
        .max_blocking_threads(config.max_blocking_threads)
        .thread_keep_alive(Duration::from_secs(10))
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let result = runtime.block_on(work);
    // A blocking call or a hung connection must not delay the exit.
    runtime.shutdown_background();
    result
}

/// Every part of the service, connected to nothing yet.
struct Server {
    config: Config,
    http: config::Http,
    router: Router,
    management: Option<(SocketAddr, Router)>,
    /// Counts the requests and connections of the management listener apart. A scrape that counted itself would hide
    /// whether any request is in progress.
    management_metrics: Arc<Metrics>,
    metrics: Arc<Metrics>,
    stages: Stages,
    tasks: Tasks,
    database: Database,
    cache: Cache,
    health: Health,
    heartbeat: Heartbeat,
    rotation: Rotation,
}

impl Server {
    fn build(service: Service, loaded: Loaded, telemetry: &Telemetry) -> anyhow::Result<Self> {
        let Loaded { config, routes, metrics: registry, .. } = loaded;
        let config::Service { version, revision, .. } = config.service;
        let new_metrics =
            |registry| Metrics::new(registry, &telemetry.counters(), version, revision).map(Arc::new);
        let metrics = new_metrics(registry).context("failed to register the metrics")?;
        let management_metrics =
            new_metrics(prometheus::Registry::new()).context("failed to register the metrics")?;
        let stages = Stages::default();
        let tasks = Tasks::new(config.http.request_timeout);
        let database = Database::new(&config.database, service.migrations, Arc::clone(&metrics));
        let cache = Cache::new(
            &config.redis,
            &config.service.name,
            config.http.request_timeout,
            Arc::clone(&metrics),
        )
        .context("failed to use the address of Redis")?;
        let health = Health::new(config.health.clone(), version, stages.clone(), Arc::clone(&metrics));
        let heartbeat = Heartbeat::new(config.management.stall_timeout);
        let rotation = Rotation::new(service, &config, database.clone(), cache.clone(), Arc::clone(&metrics));

        let mut http = config.http.clone();
        http.max_connections = limit_by_descriptors(http.max_connections, config.database.max_connections);
        let observer = |metrics: &Arc<Metrics>| Observer {
            head_limits: HeadLimits::new(&http),
            request_timeout: http.request_timeout,
            metrics: Arc::clone(metrics),
            sampler: telemetry.sampler(),
            stages: stages.clone(),
        };
        let endpoints = Arc::new(Management {
            health: health.clone(),
            metrics: Arc::clone(&metrics),
            database: database.clone(),
            heartbeat: heartbeat.clone(),
            runtime: tokio::runtime::Handle::current().metrics(),
        });
        let management = config.management.address.map(|address| {
            let routes = Arc::clone(&endpoints).detailed();
            let router = router::with_middleware(routes, observer(&management_metrics), http.max_body_bytes);
            (address, router)
        });
        let public_endpoints = if management.is_some() { endpoints.public() } else { endpoints.detailed() };
        let state = AppState { database: database.clone(), cache: cache.clone(), tasks: tasks.clone() };
        let load = LoadShed::new(&http, health.clone(), Arc::clone(&metrics));
        let routes = router::public(routes, state, load, public_endpoints);
        let router = router::with_middleware(routes, observer(&metrics), http.max_body_bytes);
        Ok(Self {
            config,
            http,
            router,
            management,
            management_metrics,
            metrics,
            stages,
            tasks,
            database,
            cache,
            health,
            heartbeat,
            rotation,
        })
    }

    /// Binds the public listener, and starts the management listener if there is one.
    fn bind(self) -> anyhow::Result<BoundServer> {
        let max_connections = self.http.max_connections;
        let bind = |address, max_connections, stages: &Stages, metrics: &Arc<Metrics>| {
            Listener::bind(address, max_connections, stages.clone(), Arc::clone(metrics))
                .with_context(|| format!("failed to listen on {address}"))
        };
        let listener = bind(self.http.address, max_connections, &self.stages, &self.metrics)?;
        if let Some((address, router)) = self.management.clone() {
            // Until the process ends, so its stages never change.
            let stages = Stages::default();
            let metrics = &self.management_metrics;
            let connections =
                Connections::new(router, self.http.clone(), stages.clone(), Arc::clone(metrics));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let entered = runtime.enter();
            let listener = bind(address, MANAGEMENT_CONNECTIONS, &stages, metrics)?;
            drop(entered);
            thread::Builder::new()
                .name("management".to_owned())
                .spawn(move || runtime.block_on(listener.accept(connections)))
                .context("failed to start the management thread")?;
        }
        Ok(BoundServer { server: self, listener })
    }
}

/// A server whose listeners are bound.
struct BoundServer {
    server: Server,
    listener: Listener,
}

impl BoundServer {
    /// Serves until a signal arrives, then shuts down.
    async fn run(self, mut signals: Signals) -> anyhow::Result<Exit> {
        let Self { server, listener } = self;
        let Server { config, stages, tasks, database, cache, health, metrics, .. } = server;
        let address = listener.address().context("failed to read the listener's local address")?;

        in_background(server.heartbeat.beat());
        // A connection that is being opened would delay the closing of the pool.
        in_background(stages.draining.clone().run_until_cancelled_owned(database.clone().warm_up()));
        in_background(database.clone().renew());
        in_background(server.rotation.watch());
        in_background(health.clone().monitor("postgres", PostgresProbe::new(database.clone())));
        in_background(health.monitor("redis", RedisProbe::new(cache, &config.health)));
        let connections = Connections::new(server.router, server.http, stages.clone(), Arc::clone(&metrics));
        let mut accept = pin!(listener.accept(connections.clone()));
        tracing::info!(
            address = %address,
            management = config.management.address.map(tracing::field::display),
            worker_threads = config.runtime.worker_threads,
            database_connections = config.database.max_connections,
            "listening",
        );

        let signal = tokio::select! {
            signal = signals.next() => signal,
            // The accept loop does not end before the stage `closing`.
            ended = &mut accept => return ended.map(|()| Exit::Failed).context("the accept loop ended"),
        };
        metrics.shutdown_draining.set(1);
        tracing::info!(signal, "shutting down");
        let running = Running { stages, connections, tasks, database };
        tokio::select! {
            exit = running.drain(&config.shutdown, accept) => exit,
            signal = signals.next() => {
                tracing::warn!(signal, "a second signal ends the shutdown immediately");
                Ok(Exit::Signal(signal))
            }
        }
    }
}

/// Runs `work` until the process ends.
#[expect(clippy::disallowed_methods, reason = "nothing waits for the end of this work")]
fn in_background<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) {
    tokio::spawn(work);
}

/// Lowers `max_connections` to what the file descriptor limit allows. Without a free descriptor probes fail too.
fn limit_by_descriptors(max_connections: usize, database_connections: u32) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let reserved = RESERVED_DESCRIPTORS + u64::from(database_connections);
    let allowed = limit.map_or(u64::MAX, |limit| limit.saturating_sub(reserved).max(1));
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
    if allowed < max_connections {
        tracing::warn!(max_connections, allowed, "the file descriptor limit allows fewer connections");
    }
    max_connections.min(allowed)
}
