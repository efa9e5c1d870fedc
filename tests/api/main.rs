//! What the service answers: the real binary on real servers.

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "some of it is for the other test binary")]
mod support;

mod links;
