//! Redis: how to connect to it, the cache, and the health check.

pub mod connect;
pub mod cache;
pub mod probe;
