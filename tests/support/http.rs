//! An HTTP/1.1 client that can send any bytes and returns the raw response.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Timeout for each read.
const READ_LIMIT: Duration = Duration::from_secs(15);

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    address: SocketAddr,
    received: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Parses the first response in `bytes` and returns its length, once it is complete.
    pub fn parse(bytes: &[u8], head_only: bool) -> Option<(Self, usize)> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.map_or(0, |(_, length)| length.parse().unwrap());
        let length = if head_only || status == 204 || status == 304 { 0 } else { length };
        let body = bytes.get(end + 4..end + 4 + length)?.to_vec();
        Some((Self { status, headers, body: String::from_utf8(body).ok()? }, end + 4 + length))
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect(&self.body)
    }
}

/// Server side: reads one request and returns its head and body; `None` if the connection ends first.
pub fn read_request(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let start = head.len();
        reader.read_line(&mut head).ok().filter(|bytes| *bytes > 0)?;
        if let Some(value) = head[start..].to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap()
    }

    /// Returns `None` if the connection is refused.
    pub fn try_connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, READ_LIMIT).ok()?;
        stream.set_read_timeout(Some(READ_LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Some(Self { stream, address, received: Vec::new() })
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, &[], "")
    }

    /// Sends a JSON body.
    #[track_caller]
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Response {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.request(method, path, &headers, &body.to_string())
    }

    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        self.try_request(method, path, headers, body).expect("the connection was closed without a response")
    }

    /// Returns `None` if the connection ends before the response is complete.
    pub fn try_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Response> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("content-length: {}\r\n", body.len());
        }
        self.write(format!("{head}\r\n{body}").as_bytes())?;
        self.read_response(method == "HEAD")
    }

    /// Sends bytes unchanged. Returns `None` if the server has closed the connection.
    pub fn write(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).ok()
    }

    /// Reads one response. Returns `None` if the connection ends before the response is complete.
    pub fn read_response(&mut self, head_only: bool) -> Option<Response> {
        loop {
            if let Some((response, length)) = Response::parse(&self.received, head_only) {
                self.received.drain(..length);
                return Some(response);
            }
            self.receive()?;
        }
    }

    /// Returns whether the server closes the connection within the read timeout, ignoring any data before.
    pub fn is_closed(&mut self) -> bool {
        while self.receive().is_some() {}
        let end = self.stream.read(&mut [0]);
        matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
    }

    fn receive(&mut self) -> Option<()> {
        let mut buffer = [0; 16 * 1024];
        let count = self.stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        self.received.extend_from_slice(&buffer[..count]);
        Some(())
    }
}
