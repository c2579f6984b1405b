//! A client's measurements, for the program that started it.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

/// Upper bound of the recorded latencies, in microseconds.
const MAX_MICROS: u64 = 120_000_000;

pub struct Seen {
    pub requests: u64,
    /// Number of these requests without the expected answer.
    pub failed: u64,
    latency: Histogram<u64>,
}

impl Seen {
    pub fn new() -> Result<Self> {
        Ok(Self { requests: 0, failed: 0, latency: Histogram::new_with_max(MAX_MICROS, 3)? })
    }

    /// Records an answer to `requests` requests, `failed` of which did not get the expected answer.
    pub fn answered(&mut self, requests: u64, failed: u64, after: Duration) {
        self.requests += requests;
        self.failed += failed;
        self.latency.saturating_record(u64::try_from(after.as_micros()).unwrap_or(MAX_MICROS));
    }

    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.requests += other.requests;
        self.failed += other.failed;
        Ok(self.latency.add(&other.latency)?)
    }

    /// Prints the line of JSON on standard output.
    pub fn print(&self, elapsed: Duration) {
        let at = |quantile| if self.latency.is_empty() { None } else { Some(self.latency.value_at_quantile(quantile)) };
        let line = serde_json::json!({
            "requests": self.requests,
            "failed": self.failed,
            "seconds": elapsed.as_secs_f64(),
            "p50_us": at(0.5),
            "p99_us": at(0.99),
        });
        println!("{line}");
    }
}
