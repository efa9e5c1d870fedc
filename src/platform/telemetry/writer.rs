//! A bounded, non-blocking writer to stdout. Not `tracing_appender::non_blocking`, which wakes its thread for each line:
//! writing lines together took a request from 56 to 39 us of CPU (docs/decisions.md).
//!
//! Writing to a pipe that is full blocks the writer. So only one thread writes; all others append their lines to a
//! buffer. When the buffer is full, lines are dropped and counted: logging never blocks a request. The thread may hold
//! one more buffer of the same size.

use std::io::{self, Write};
use std::mem;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

/// How long the thread waits for more lines after the first, because waking it costs more than rendering a line.
const GATHER_INTERVAL: Duration = Duration::from_millis(5);

/// Maximum capacity that an empty buffer keeps.
const IDLE_BYTES: usize = 256 * 1024;

/// Accepts lines.
#[derive(Clone)]
pub struct LogWriter {
    shared: Arc<Shared>,
    limit: usize,
    /// Lines dropped because the buffer was full.
    pub dropped: IntCounter,
}

/// Waits for the last lines; see [`LogGuard::finish`].
pub struct LogGuard {
    shared: Arc<Shared>,
    finished: Receiver<()>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// One buffer for all lines, not one for each: memory that one thread allocates and another frees is slow.
#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    lines: usize,
    /// The thread exits after these lines.
    ended: bool,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines and moves them into `text`; returns `true` if these are the last.
    fn take(&self, text: &mut Vec<u8>) -> bool {
        let is_idle = |waiting: &mut Waiting| waiting.lines == 0 && !waiting.ended;
        let waiting =
            self.changed.wait_while(self.waiting(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let ended = waiting.ended;
        drop(waiting);
        if !ended {
            thread::sleep(GATHER_INTERVAL);
        }
        let mut waiting = self.waiting();
        mem::swap(&mut waiting.text, text);
        waiting.lines = 0;
        waiting.ended
    }
}

impl LogWriter {
    /// Starts the thread that writes to `output`. `report` renders the line with the number of dropped lines.
    pub fn start(
        output: impl Write + Send + 'static,
        buffer_lines: usize,
        report: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<(Self, LogGuard)> {
        let help = "Total number of log lines dropped because the buffer was full.";
        let dropped = IntCounter::new("log_lines_dropped_total", help).map_err(io::Error::other)?;
        let shared = Arc::<Shared>::default();
        let (finished_tx, finished_rx) = sync_channel(1);
        let writer = Self { shared: Arc::clone(&shared), limit: buffer_lines, dropped };
        let guard = LogGuard { shared, finished: finished_rx };
        let source = writer.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            source.write_to(output, report);
            let _ = finished_tx.send(());
        })?;
        Ok((writer, guard))
    }

    /// Writes lines to `output` until the last.
    fn write_to(&self, mut output: impl Write, report: impl Fn(u64) -> Vec<u8>) {
        let mut text = Vec::new();
        let mut reported = 0;
        let mut last = false;
        while !last {
            last = self.shared.take(&mut text);
            // Errors are ignored: the service continues without its log when stdout is closed.
            let _ = output.write_all(&text);
            let dropped = self.dropped.get();
            if dropped > reported {
                let _ = output.write_all(&report(dropped - reported));
                reported = dropped;
            }
            let _ = output.flush();
            text.clear();
            // Release the memory that accumulated while stdout was blocked.
            text.shrink_to(IDLE_BYTES);
        }
    }

    /// Appends `line`, which ends in a newline, to the buffer; drops and counts it if the buffer is full.
    pub fn write_line(&self, line: &[u8]) {
        let mut waiting = self.shared.waiting();
        if waiting.lines == self.limit {
            self.dropped.inc();
            return;
        }
        waiting.text.extend_from_slice(line);
        waiting.lines += 1;
        let first = waiting.lines == 1;
        drop(waiting);
        if first {
            self.shared.changed.notify_one();
        }
    }
}

impl LogGuard {
    /// Waits until all lines are written, at most `timeout`, because the reader of stdout may not read.
    pub fn finish(&self, timeout: Duration) -> Result<(), RecvTimeoutError> {
        self.shared.waiting().ended = true;
        self.shared.changed.notify_one();
        self.finished.recv_timeout(timeout)
    }
}

/// The text format writes each event with one call of [`io::Write::write`].
impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// An output that reports each write, and then blocks until the test drops `opened`'s sender.
    struct BlockedOutput {
        entered: Sender<()>,
        opened: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for BlockedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.send(());
            let _ = self.opened.recv();
            self.written.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_output_drops_lines_and_blocks_no_caller() {
        let (entered_tx, entered_rx) = channel();
        let (opened_tx, opened_rx) = channel();
        let (written_tx, written_rx) = channel();
        let output = BlockedOutput { entered: entered_tx, opened: opened_rx, written: written_tx };
        let report = |dropped| format!("dropped {dropped}\n").into_bytes();
        let (writer, guard) = LogWriter::start(output, 10, report).unwrap();

        writer.write_line(b"first\n");
        entered_rx.recv().unwrap();
        for line in 0..1000 {
            writer.write_line(format!("{line}\n").as_bytes());
        }
        assert_eq!(writer.dropped.get(), 990);
        drop(opened_tx);
        guard.finish(Duration::from_secs(5)).unwrap();

        let output = String::from_utf8(written_rx.iter().flatten().collect()).unwrap();
        assert!(output.starts_with("first\n"), "{output}");
        assert!(output.contains("\n9\n") && !output.contains("\n10\n"), "{output}");
        assert!(output.contains("dropped 990\n"), "{output}");
    }
}
