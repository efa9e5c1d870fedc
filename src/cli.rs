//! The command line.

use clap::{Parser, Subcommand, ValueEnum};

/// Settings come from the environment: see docs/settings.md, or `app config show`.
#[derive(Parser)]
#[command(name = "app", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("APP_REVISION"), ")"), about)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
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
pub enum Endpoint {
    Live,
    Ready,
    Startup,
}

impl Endpoint {
    pub fn path(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ready => "ready",
            Self::Startup => "startup",
        }
    }
}

#[derive(Clone, Copy, Subcommand)]
pub enum ConfigAction {
    /// List every problem, and exit with 78 if there is one.
    Check,
    /// Print each effective value with its source; secrets are redacted.
    Show,
}
