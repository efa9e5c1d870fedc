//! Parses arguments, loads the configuration, starts telemetry, runs the command, tells the exit code.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

use std::process::ExitCode;

use app::cli::{Arguments, Command, ConfigAction};
use app::config::Config;
use app::settings::Settings;
use app::telemetry::Telemetry;
use app::{healthcheck, router, server};
use clap::Parser;

fn main() -> ExitCode {
    let command = Arguments::parse().command.unwrap_or(Command::Serve);
    if let Command::Healthcheck { endpoint } = command {
        let mut settings = Settings::read(std::env::vars_os());
        return exit(healthcheck::run(&mut settings, endpoint.path()).map(|()| 0));
    }
    let (config, settings) = match Config::load(std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return ExitCode::from(78); // EX_CONFIG of sysexits(3)
        }
    };
    match command {
        Command::Config { action: ConfigAction::Check } => ExitCode::SUCCESS,
        Command::Config { action: ConfigAction::Show } => {
            print!("{}", settings.show());
            ExitCode::SUCCESS
        }
        command => exit(work(config, matches!(command, Command::Migrate))),
    }
}

/// Serves or migrates, with logs.
fn work(config: Config, migrate: bool) -> anyhow::Result<u8> {
    // A core dump would hold every secret.
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, no_core)?;
    let telemetry = Telemetry::start(&config)?;
    let result =
        if migrate { server::migrate(&config) } else { server::run(config, &telemetry, router::domains()) };
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
    ExitCode::from(result.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        1
    }))
}
