//! The image and the compose stacks on a Docker engine: `make test-stack`. One test at a time, because they measure.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "part of the module is for the other test binaries")]
mod support;

mod attack;
mod backup;
mod development;
mod docker;
mod faults;
mod image;
mod logging;
mod observability;
mod production;
mod release;
mod stack;
mod workflow;
