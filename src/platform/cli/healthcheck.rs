//! `app healthcheck`: asks the running service for its health, for images that have no shell and no curl.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::platform::config::sources::Settings;

/// Below the container engine's own limit, so that the reason is printed.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Succeeds when `/health/{endpoint}` answers 200. Reads no secret and needs no dependency's address.
pub fn run(settings: &mut Settings, endpoint: &str) -> anyhow::Result<()> {
    let address = address(settings);
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET /health/{endpoint} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).with_context(|| format!("no answer from {address}"))?;
    let status = String::from_utf8_lossy(&answer[9..]).into_owned();
    ensure!(status == "200", "/health/{endpoint} answers {status}");
    Ok(())
}

/// The management listener where there is one, else the public one; on this machine in any case.
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
