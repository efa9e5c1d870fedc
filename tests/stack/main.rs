//! The image and the stacks of compose and of a Swarm on a Docker engine, and the manifests for Kubernetes without a
//! cluster: `make test-stack`. One test at a time: they measure.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "some of it is for the other test binaries")]
mod support;

mod attack;
mod backup;
mod development;
mod disaster;
mod docker;
mod faults;
mod followed;
mod image;
mod kubernetes;
mod log_store;
mod logging;
mod meter;
mod observability;
mod production;
mod release;
mod restricted;
mod stack;
mod swarm;
mod swarm_node;
mod swarm_stack;
mod workflow;
