//! The HTTP server.

pub mod access_log;
pub mod conditional;
pub mod extract;
pub mod framing;
pub mod listener;
pub mod load_shed;
pub mod management;
pub mod router;
