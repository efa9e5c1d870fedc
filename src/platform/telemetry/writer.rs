//! A bounded, non-blocking way to stdout.
//!
//! A pipe that nobody reads blocks whoever writes to it. One thread writes; everybody else leaves lines in a buffer, or
//! drops them, counted, when it holds its limit: logging never stops a request. As many are with the thread meanwhile.

use std::io::{self, Write};
use std::mem;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

/// Time in which further lines join the first: to wake the thread for each costs more than to make the line.
const GATHER_PAUSE: Duration = Duration::from_millis(5);

/// Room that a buffer keeps.
const IDLE_BYTES: usize = 256 * 1024;

/// Handle that takes lines.
#[derive(Clone)]
pub struct LogWriter {
    shared: Arc<Shared>,
    limit: usize,
    /// Lines that there was no room for.
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

/// One buffer for all lines, not one for each: what one thread allocates and another frees is slow.
#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    lines: usize,
    /// No more will come.
    ended: bool,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines and moves them into `text`; `true` when they are the last.
    fn take(&self, text: &mut Vec<u8>) -> bool {
        let idle = |waiting: &mut Waiting| waiting.lines == 0 && !waiting.ended;
        let waiting = self.changed.wait_while(self.waiting(), idle).unwrap_or_else(PoisonError::into_inner);
        let ended = waiting.ended;
        drop(waiting);
        if !ended {
            thread::sleep(GATHER_PAUSE);
        }
        let mut waiting = self.waiting();
        mem::swap(&mut waiting.text, text);
        waiting.lines = 0;
        waiting.ended
    }
}

impl LogWriter {
    /// Starts the thread that writes to `output`. `report` makes the line that says how many were dropped.
    pub fn start(
        mut output: impl Write + Send + 'static,
        buffer_lines: usize,
        report: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<(Self, LogGuard)> {
        let shared = Arc::<Shared>::default();
        let (done, finished) = sync_channel(1);
        let dropped = IntCounter::new("log_lines_dropped_total", "Log lines that there was no room for.");
        let dropped = dropped.map_err(io::Error::other)?;
        let (lines, counter) = (Arc::clone(&shared), dropped.clone());
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            let (mut text, mut reported, mut last) = (Vec::new(), 0, false);
            while !last {
                last = lines.take(&mut text);
                // A closed stdout is nobody's to repair from here; the service goes on.
                let _ = output.write_all(&text);
                let dropped = counter.get();
                if dropped > reported {
                    let _ = output.write_all(&report(dropped - reported));
                    reported = dropped;
                }
                let _ = output.flush();
                text.clear();
                // What a reader that stood still has made of it is not needed again.
                text.shrink_to(IDLE_BYTES);
            }
            let _ = done.send(());
        })?;
        Ok((
            Self { shared: Arc::clone(&shared), limit: buffer_lines, dropped },
            LogGuard { shared, finished },
        ))
    }

    /// Leaves `line`, which ends in a newline, or counts it as dropped.
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
    /// Waits until all lines are written, at most `limit`: the reader may be gone.
    pub fn finish(&self, limit: Duration) -> Result<(), RecvTimeoutError> {
        self.shared.waiting().ended = true;
        self.shared.changed.notify_one();
        self.finished.recv_timeout(limit)
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

        writer.write_line(b"first\n");
        inside.recv().unwrap();
        for line in 0..1000 {
            writer.write_line(format!("{line}\n").as_bytes());
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
