//! A span collector: receives OTLP over HTTP and keeps the spans.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::eventually;
use super::http::read_request;

/// One request of the exporter.
struct Batch {
    /// The request head in lower case.
    head: String,
    resource: Vec<KeyValue>,
    spans: Vec<Span>,
}

/// Runs until the process ends.
pub struct Collector {
    pub address: SocketAddr,
    batches: Arc<Mutex<Vec<Batch>>>,
}

impl Collector {
    pub fn start() -> Self {
        Self::on(0)
    }

    /// Listens on all addresses, so that containers can reach the collector. Port 0 selects a free port.
    pub fn on(port: u16) -> Self {
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let batches = Arc::<Mutex<Vec<Batch>>>::default();
        let kept = Arc::clone(&batches);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = Arc::clone(&kept);
                thread::spawn(move || serve(stream.unwrap(), &kept));
            }
        });
        Self { address, batches }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns all spans so far; the spans of one export are ordered by end time.
    pub fn spans(&self) -> Vec<Span> {
        self.batches.lock().unwrap().iter().flat_map(|batch| batch.spans.clone()).collect()
    }

    /// Waits for at least `count` spans of a trace.
    #[track_caller]
    pub fn trace(&self, trace_id: &str, count: usize) -> Vec<Span> {
        let of_trace = |span: &Span| hex(&span.trace_id) == trace_id;
        eventually(Duration::from_secs(10), "the spans of the trace", || {
            let spans: Vec<_> = self.spans().into_iter().filter(of_trace).collect();
            (spans.len() >= count).then_some(spans)
        })
    }

    /// Returns a resource attribute of the last exporter.
    pub fn resource(&self, key: &str) -> Option<String> {
        text(&self.batches.lock().unwrap().last()?.resource, key)
    }

    /// Returns the heads of all requests.
    pub fn heads(&self) -> Vec<String> {
        self.batches.lock().unwrap().iter().map(|batch| batch.head.clone()).collect()
    }
}

/// Formats an ID as lower-case hexadecimal digits.
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the value of an attribute as text.
pub fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let AnyValue { value } = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?;
    match value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

fn serve(stream: TcpStream, kept: &Mutex<Vec<Batch>>) {
    let mut reader = BufReader::new(stream);
    while let Some((head, body)) = read_request(&mut reader) {
        let head = head.to_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
        let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        for spans in request.resource_spans {
            let resource = spans.resource.unwrap_or_default().attributes;
            let spans = spans.scope_spans.into_iter().flat_map(|scope| scope.spans).collect();
            kept.lock().unwrap().push(Batch { head: head.clone(), resource, spans });
        }
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            break;
        }
    }
}
