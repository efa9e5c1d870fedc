//! The command line: parses arguments, loads the configuration, starts telemetry, and runs a command.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

pub mod healthcheck;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::platform::config::Package;
use crate::platform::server;
use crate::platform::service::{Loaded, Service};
use crate::platform::shutdown::Exit;
use crate::platform::telemetry::Telemetry;

/// A web service. Its settings come from the environment; `config show` lists them.
#[derive(Parser)]
#[command(name = "app")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve requests (the default)
    Serve,
    /// Apply the pending migrations
    Migrate,
    /// Ask the running service for its health; exit with 0 or 1
    Healthcheck {
        #[arg(value_enum, default_value = "ready")]
        endpoint: Endpoint,
    },
    /// Check or show the configuration
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
            Self::Live => "/health/live",
            Self::Ready => "/health/ready",
            Self::Startup => "/health/startup",
        }
    }
}

#[derive(Clone, Copy, Subcommand)]
enum ConfigAction {
    /// List every configuration error; exit with 78 if there is one
    Check,
    /// Print each effective value with its source, secrets redacted
    Show,
}

/// Runs the command that the arguments name.
pub fn run(service: Service) -> Exit {
    let result = match parse(service.package).command.unwrap_or(Command::Serve) {
        Command::Serve => {
            with_telemetry(service, |loaded, telemetry| server::serve(service, loaded, telemetry))
        }
        Command::Migrate => with_telemetry(service, |loaded, _| server::migrate(service, &loaded.config)),
        Command::Healthcheck { endpoint } => {
            healthcheck::run(&mut service.read_settings(), endpoint.path()).map(|()| Exit::Clean)
        }
        Command::Config { action: ConfigAction::Check } => with_configuration(service, |_| Ok(Exit::Clean)),
        Command::Config { action: ConfigAction::Show } => with_configuration(service, |loaded| {
            print!("{}", loaded.settings.show());
            Ok(Exit::Clean)
        }),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        Exit::Failed
    })
}

fn parse(package: Package) -> Arguments {
    let version = format!("{} ({})", package.version, package.revision);
    let matches = Arguments::command().version(version).get_matches();
    Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn with_configuration(
    service: Service,
    command: impl FnOnce(Loaded) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    match service.load(std::env::vars_os()) {
        Ok(loaded) => command(loaded),
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            Ok(Exit::ConfigurationInvalid)
        }
    }
}

/// Runs a command that logs.
fn with_telemetry(
    service: Service,
    command: impl FnOnce(Loaded, &Telemetry) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    with_configuration(service, |loaded| {
        // A core dump would contain every secret.
        let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, no_core)?;
        let telemetry = Telemetry::start(&loaded.config)?;
        let result = command(loaded, &telemetry);
        if let Err(error) = &result {
            tracing::error!(error = format!("{error:#}"), "exiting after a fatal error");
        }
        // A signal that ends the command immediately leaves no time for the collector.
        if !matches!(result, Ok(Exit::Signal(_))) {
            telemetry.flush_spans();
        }
        result
    })
}
