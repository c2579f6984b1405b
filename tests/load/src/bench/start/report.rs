//! The figures of a run.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::table::{Spread, write_table};
use super::Service;

/// Durations of one stop and start, and the memory of the process before and after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) stopped: Duration,
    /// Until the probe succeeded, which is tried every 25 ms.
    pub(super) ready: Duration,
    pub(super) answered: Duration,
    pub(super) bytes_before: u64,
    pub(super) bytes_after: u64,
}

pub(super) struct Report {
    load_average: f64,
    starts: Vec<(u64, Service, Start)>,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [stopped, ready, answered] = [self.stopped, self.ready, self.answered].map(|time| time.as_secs_f64());
        let [before, after] = [self.bytes_before, self.bytes_after].map(mebibytes);
        write!(f, "stopped {stopped:.2} s, ready {ready:.2} s, answered {answered:.2} s, {before:.0} -> {after:.0} MiB")
    }
}

impl Report {
    pub(super) fn new(load_average: f64) -> Self {
        Self { load_average, starts: Vec::new() }
    }

    pub(super) fn add(&mut self, aggregates: u64, service: Service, start: Start) {
        self.starts.push((aggregates, service, start));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    pub(super) fn json(&self, time: u64) -> Value {
        let start = |(aggregates, service, start): &(u64, Service, Start)| {
            json!({
                "aggregates": aggregates,
                "process": service.process(),
                "stopped_seconds": start.stopped.as_secs_f64(),
                "ready_seconds": start.ready.as_secs_f64(),
                "answered_seconds": start.answered.as_secs_f64(),
                "bytes_before": start.bytes_before,
                "bytes_after": start.bytes_after,
            })
        };
        let starts: Vec<_> = self.starts.iter().map(start).collect();
        json!({ "bench": "start", "unix_time": time, "load_average": self.load_average, "starts": starts })
    }

    /// Returns the median, the minimum and the maximum of a figure of a service.
    fn spread(&self, of: (u64, Service), digits: usize, figure: impl Fn(&Start) -> f64) -> Option<String> {
        let starts = self.starts.iter().filter(|(aggregates, service, _)| (*aggregates, *service) == of);
        let values: Vec<_> = starts.map(|(.., start)| figure(start)).collect();
        Spread::of(&values).map(|spread| spread.text(digits))
    }

    fn row(&self, of: (u64, Service)) -> Option<Vec<String>> {
        let answered = self.spread(of, 2, |start| start.answered.as_secs_f64())?;
        Some(vec![
            of.1.process().to_owned(),
            of.0.to_string(),
            self.spread(of, 2, |start| start.ready.as_secs_f64())?,
            if of.1 == Service::Projector { String::from("-") } else { answered },
            self.spread(of, 2, |start| start.stopped.as_secs_f64())?,
            self.spread(of, 0, |start| mebibytes(start.bytes_before))?,
            self.spread(of, 0, |start| mebibytes(start.bytes_after))?,
        ])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sizes: Vec<_> = self.starts.iter().map(|(aggregates, ..)| *aggregates).collect();
        sizes.dedup();
        let rows = Service::ALL.into_iter().flat_map(|service| sizes.iter().map(move |size| (*size, service)));
        let rows: Vec<_> = rows.filter_map(|of| self.row(of)).collect();
        let head = ["process", "aggregates", "ready, s", "answers, s", "stopped, s", "MiB before", "MiB after"];
        write_table(f, &head, rows)?;
        writeln!(f, "load average at the beginning: {}", self.load_average)
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
