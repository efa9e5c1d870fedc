//! Redis as a cache.

pub mod cache;
pub mod connect;
