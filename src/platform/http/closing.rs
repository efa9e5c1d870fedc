//! How a listener closes without resetting a connection.

use tokio::net::TcpListener;

/// Makes the kernel drop each request for a connection, and complete those that it has begun to answer.
///
/// Without this, a connection that completes between the last accept and the close is reset. A client whose request is
/// dropped repeats it after a second (RFC 6298) and is refused.
#[cfg(target_os = "linux")]
pub fn ignore_handshakes(listener: &TcpListener) {
    use socket2::{SockFilter, SockRef};

    // Classic BPF (https://docs.kernel.org/networking/filter.html), opcodes of linux/bpf_common.h.
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    // Of the TCP header (RFC 9293 3.1).
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;

    // Drops a segment that has SYN and not ACK.
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OFFSET),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    if let Err(error) = SockRef::from(listener).attach_filter(&filter) {
        tracing::warn!(error = %error, "failed to attach a packet filter; connections made now may be reset");
    }
}

/// Does nothing: the moment between the last accept and the close remains.
#[cfg(not(target_os = "linux"))]
pub fn ignore_handshakes(_: &TcpListener) {}
