//! The HTTP server, from the listener to the handlers' extractors.

pub mod closing;
pub mod connection;
pub mod listener;
pub mod head;
pub mod extract;
pub mod conditional;
pub mod access_log;
pub mod load_shed;
pub mod router;
pub mod management;
