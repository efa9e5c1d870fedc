//! A bounded, non-blocking way to stdout.
//!
//! A pipe that nobody reads blocks whoever writes to it. One thread writes; everybody else hands it lines
//! through a bounded queue and drops them, counted, when it is full: logging never stops a request.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

/// Time in which further lines join the first: to wake the thread for each costs more than to make the line.
const GATHER_PAUSE: Duration = Duration::from_millis(5);
/// Bytes that the thread joins before it writes.
const BATCH_BYTES: usize = 64 * 1024;

/// Handle that takes lines.
#[derive(Clone)]
pub struct LogWriter {
    queue: SyncSender<Vec<u8>>,
    /// Lines that the queue had no room for.
    pub dropped: IntCounter,
}

/// Waits for the last lines; see [`LogGuard::finish`].
pub struct LogGuard {
    stop: SyncSender<Vec<u8>>,
    finished: Receiver<()>,
}

impl LogWriter {
    /// Starts the thread that writes to `output`. `report` makes the line that says how many were dropped.
    pub fn start(
        mut output: impl Write + Send + 'static,
        buffer_lines: usize,
        report: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<(Self, LogGuard)> {
        let (queue, lines) = sync_channel::<Vec<u8>>(buffer_lines);
        let (done, finished) = sync_channel(1);
        let dropped = IntCounter::new("log_lines_dropped_total", "Log lines that found the queue full.");
        let dropped = dropped.map_err(io::Error::other)?;
        let counter = dropped.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            let mut reported = 0;
            while let Ok(mut batch) = lines.recv() {
                // The empty line is the guard's: everything before it has been taken.
                let mut last = batch.is_empty();
                if !last {
                    thread::sleep(GATHER_PAUSE);
                }
                while batch.len() < BATCH_BYTES && !last {
                    let Ok(line) = lines.try_recv() else { break };
                    last = line.is_empty();
                    batch.extend_from_slice(&line);
                }
                // A closed stdout is nobody's to repair from here; the service goes on.
                let _ = output.write_all(&batch);
                let dropped = counter.get();
                if dropped > reported {
                    let _ = output.write_all(&report(dropped - reported));
                    reported = dropped;
                }
                let _ = output.flush();
                if last {
                    break;
                }
            }
            let _ = done.send(());
        })?;
        Ok((Self { queue: queue.clone(), dropped }, LogGuard { stop: queue, finished }))
    }

    /// Queues `line`, which ends in a newline, or counts it as dropped.
    pub fn write_line(&self, line: Vec<u8>) {
        if self.queue.try_send(line).is_err() {
            self.dropped.inc();
        }
    }
}

impl LogGuard {
    /// Waits until all queued lines are written, at most `limit`: the reader may be gone.
    pub fn finish(self, limit: Duration) -> Result<(), RecvTimeoutError> {
        let deadline = Instant::now() + limit;
        while self.stop.try_send(Vec::new()).is_err() {
            if Instant::now() > deadline {
                return Err(RecvTimeoutError::Timeout);
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.finished.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    }
}

/// The text format writes through [`io::Write`], a whole event at a time.
impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_line(line.to_vec());
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

    /// An output that says when it is written to, and then waits until the test lets it.
    struct Gate {
        entered: Sender<()>,
        opened: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Gate {
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
    fn a_blocked_reader_costs_lines_and_never_time() {
        let ((entered, inside), (open, opened)) = (channel(), channel());
        let (sink, written) = channel();
        let gate = Gate { entered, opened, written: sink };
        let (writer, guard) =
            LogWriter::start(gate, 10, |dropped| format!("dropped {dropped}\n").into_bytes()).unwrap();

        writer.write_line(b"first\n".to_vec());
        inside.recv().unwrap();
        for line in 0..1000 {
            writer.write_line(format!("{line}\n").into_bytes());
        }
        assert_eq!(writer.dropped.get(), 990);
        drop(open);
        guard.finish(Duration::from_secs(5)).unwrap();

        let output: Vec<u8> = written.iter().flatten().collect();
        let output = String::from_utf8(output).unwrap();
        assert!(output.starts_with("first\n"), "{output}");
        assert!(output.contains("\n9\n") && !output.contains("\n10\n"), "{output}");
        assert!(output.contains("dropped 990\n"), "{output}");
    }
}
