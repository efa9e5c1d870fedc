//! Responses of the service: the real binary on real servers.

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "part of the module is for the other test binary")]
mod support;

mod links;
