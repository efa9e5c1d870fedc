//! The HTTP server, from the listener to the handlers' extractors.

pub mod closing;
pub mod conditional;
pub mod connection;
pub mod extract;
pub mod head;
pub mod access_log;
pub mod load_shed;
pub mod management;
pub mod router;
pub mod listener;
