//! The stages of a shutdown, as tokens that other modules observe. [`shutdown`](super::shutdown) walks through them.

use tokio_util::sync::CancellationToken;

/// Tokens that are cancelled one after the other and never reset.
#[derive(Clone, Default)]
pub struct Stages {
    /// Not ready. New connections are still served; each response closes its connection.
    pub draining: CancellationToken,
    /// The listener is closed; requests in progress continue.
    pub closing: CancellationToken,
    /// The deadline has passed; connections are aborted.
    pub cutting: CancellationToken,
}
