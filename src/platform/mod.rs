//! What every service needs. [`run`] is the door: `main` hands over a [`Service`](service::Service).
//!
//! The order of the `mod` lines is the layering, here and in each folder: a module imports only from modules above it.
//! `tests/platform/house.rs` checks this.

pub mod config;
pub mod telemetry;
pub mod stages;
pub mod breaker;
pub mod error_class;
pub mod error;
pub mod tasks;
pub mod health;
pub mod redis;
pub mod postgres;
pub mod state;
pub mod http;
pub mod service;
pub mod rotation;
pub mod shutdown;
pub mod server;
pub mod cli;

use std::process::ExitCode;

use service::Service;

/// Runs the command that the process was started with.
pub fn run(service: Service) -> ExitCode {
    cli::run(service).into()
}
