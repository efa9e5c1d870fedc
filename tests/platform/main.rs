//! Responses of the platform: the real binary on real servers.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "part of the module is for the other test binary")]
mod support;

mod config;
mod deployment;
mod health;
mod house;
mod http;
mod logs;
mod metrics;
mod observability;
