//! `app healthcheck`: asks the running service for its health, for images without a shell and curl.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::platform::config::sources::Settings;

/// Shorter than the timeout of the container engine, so that the reason is printed.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Requests `path`. Reads no secret and needs no address of a dependency.
///
/// # Errors
///
/// If the service does not answer 200 in time.
pub fn run(settings: &mut Settings, path: &str) -> anyhow::Result<()> {
    let address = address(settings);
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("failed to connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    // `HTTP/1.1 200`
    let mut status_line = [0; 12];
    stream.read_exact(&mut status_line).with_context(|| format!("failed to read an answer of {address}"))?;
    let status = String::from_utf8_lossy(&status_line[9..]).into_owned();
    ensure!(status == "200", "{path} answered {status}");
    Ok(())
}

/// Returns the address of the management listener if there is one, otherwise of the public one, on this machine.
fn address(settings: &mut Settings) -> SocketAddr {
    let (section, port) = match settings.get_optional::<u16>("management.port") {
        Some(port) => ("management", port),
        None => ("http", settings.get("http.port")),
    };
    let ip = match settings.get::<IpAddr>(&format!("{section}.address")) {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, port)
}
