//! The command line: parses arguments, loads the configuration, starts telemetry, runs the command, tells the exit code.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

pub mod healthcheck;

use std::process::ExitCode;

use axum::Router;
use clap::{Parser, Subcommand, ValueEnum};
use sqlx::migrate::Migrator;

use crate::platform::config::Config;
use crate::platform::config::sources::Settings;
use crate::platform::server;
use crate::platform::state::AppState;
use crate::platform::telemetry::Telemetry;

/// EX_CONFIG of sysexits(3).
const EXIT_CONFIG: u8 = 78;

/// Settings come from the environment: see docs/settings.md, or `app config show`.
#[derive(Parser)]
#[command(name = "app", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("APP_REVISION"), ")"), about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve requests (the default).
    Serve,
    /// Apply the pending migrations.
    Migrate,
    /// Ask the service that runs here for its health: exit code 0 or 1.
    Healthcheck {
        #[arg(value_enum, default_value = "ready")]
        endpoint: Endpoint,
    },
    /// Check or show the settings.
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Endpoint {
    Live,
    Ready,
    Startup,
}

impl Endpoint {
    fn path(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ready => "ready",
            Self::Startup => "startup",
        }
    }
}

#[derive(Clone, Copy, Subcommand)]
enum ConfigAction {
    /// List every problem, and exit with 78 if there is one.
    Check,
    /// Print each effective value with its source; secrets are redacted.
    Show,
}

/// Runs the command that the arguments name, for a service of these `domains`, whose schema `migrations` make.
pub fn run(domains: Router<AppState>, migrations: &'static Migrator) -> ExitCode {
    let command = Arguments::parse().command.unwrap_or(Command::Serve);
    if let Command::Healthcheck { endpoint } = command {
        let mut settings = Settings::read(std::env::vars_os());
        return exit(healthcheck::run(&mut settings, endpoint.path()).map(|()| 0));
    }
    let (config, settings) = match Config::load(std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match command {
        Command::Config { action: ConfigAction::Check } => ExitCode::SUCCESS,
        Command::Config { action: ConfigAction::Show } => {
            print!("{}", settings.show());
            ExitCode::SUCCESS
        }
        Command::Migrate => exit(work(config, |config, _| server::migrate(&config, migrations))),
        _ => exit(work(config, |config, telemetry| server::run(config, telemetry, domains, migrations))),
    }
}

/// Serves or migrates, with logs.
fn work(
    config: Config,
    command: impl FnOnce(Config, &Telemetry) -> anyhow::Result<u8>,
) -> anyhow::Result<u8> {
    // A core dump would hold every secret.
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, no_core)?;
    let telemetry = Telemetry::start(&config)?;
    let result = command(config, &telemetry);
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "stopped by an error");
    }
    // A second signal waits for nobody.
    if !matches!(result, Ok(128..)) {
        telemetry.send_spans();
    }
    result
}

fn exit(result: anyhow::Result<u8>) -> ExitCode {
    result.map_or_else(
        |error| {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}
