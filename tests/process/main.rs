//! The service as a process: configuration errors, signals, failing servers, misbehaving clients.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "part of the module is for the other test binary")]
mod support;

mod config;
mod consistency;
mod dependencies;
mod links;
mod migrations;
mod overload;
mod rotation;
mod shutdown;
mod soak;
mod tracing;
