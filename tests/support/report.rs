//! Results of a load.

use std::time::{Duration, Instant};

use super::http::Response;

/// The fate of a request.
#[derive(Clone, Debug)]
pub enum Fate {
    Answered(Response),
    /// The connection was refused: safe to send to another instance.
    Refused,
    /// The connection was opened, but ended without a complete response.
    Lost,
}

/// One request: its scheduled time, its duration from then on, and its fate.
pub struct Sample {
    pub due: Instant,
    pub time: Duration,
    pub fate: Fate,
}

/// All requests of a load.
pub struct Report(pub Vec<Sample>);

impl Report {
    /// Removes requests that were due before `start`.
    pub fn from(mut self, start: Instant) -> Self {
        self.0.retain(|sample| sample.due >= start);
        self
    }

    pub fn answers(&self) -> impl Iterator<Item = &Response> {
        self.0.iter().filter_map(|sample| match &sample.fate {
            Fate::Answered(answer) => Some(answer),
            _ => None,
        })
    }

    pub fn with_status(&self, status: u16) -> usize {
        self.answers().filter(|answer| answer.status == status).count()
    }

    pub fn refused(&self) -> usize {
        self.count(|fate| matches!(fate, Fate::Refused))
    }

    pub fn lost(&self) -> usize {
        self.count(|fate| matches!(fate, Fate::Lost))
    }

    fn count(&self, is: impl Fn(&Fate) -> bool) -> usize {
        self.0.iter().filter(|sample| is(&sample.fate)).count()
    }

    pub fn slowest(&self) -> Duration {
        self.0.iter().map(|sample| sample.time).max().unwrap()
    }

    /// Returns the 99th percentile of the responses with `status`, or 0 without any.
    pub fn p99(&self, status: u16) -> Duration {
        let has_status = |sample: &&Sample| matches!(&sample.fate, Fate::Answered(a) if a.status == status);
        let mut times: Vec<_> = self.0.iter().filter(has_status).map(|sample| sample.time).collect();
        times.sort_unstable();
        times.get(times.len() * 99 / 100).copied().unwrap_or_default()
    }
}
