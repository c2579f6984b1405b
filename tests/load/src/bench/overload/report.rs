//! The results, as printed tables and saved JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{CLIENT, Measurement, PARTS, Row};
use crate::bench::results;
use crate::bench::table::Target::{self, AtLeast, AtMost};
use crate::bench::table::{Spread, write_table};

/// A figure of one row in one round, possibly relative to other rows of that round.
type Figure = fn(&Report, Row, usize) -> Option<f64>;

const GOALS: [(&str, Row, Figure, Target); 7] = [
    ("accepted, 2 x peak / peak", Row::Times(2), Report::of_peak, AtLeast(0.8)),
    ("accepted, 5 x peak / peak", Row::Times(5), Report::of_peak, AtLeast(0.4)),
    ("accepted, 2 x peak / possible", Row::Times(2), Report::of_possible, AtLeast(0.9)),
    ("accepted, 5 x peak / possible", Row::Times(5), Report::of_possible, AtLeast(0.9)),
    ("p99 of accepted, 2 x peak, ms", Row::Times(2), Report::p99_ms, AtMost(250.0)),
    ("p99 of accepted, 5 x peak, ms", Row::Times(5), Report::p99_ms, AtMost(250.0)),
    (
        "a refusal, µs",
        Row::Refusals,
        |report, _, round| report.refusal(round).map(|seconds| seconds * 1e6),
        AtMost(10.0),
    ),
];

pub(super) struct Report {
    edge: bool,
    seconds: u64,
    load_average: f64,
    measurements: BTreeMap<Row, Vec<Measurement>>,
}

impl Report {
    pub(super) fn new(edge: bool, seconds: u64, load_average: f64) -> Self {
        Self { edge, seconds, load_average, measurements: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, row: Row, measurement: Measurement) {
        self.measurements.entry(row).or_default().push(measurement);
    }

    /// Prints the results so far and saves them in the folder `results`.
    pub(super) fn show(&self, results: &Path) -> Result<()> {
        if self.measurements.is_empty() {
            return Ok(());
        }
        print!("\n{self}");
        println!("\n{}", results::save(results, "overload", |time| self.json(time))?.display());
        Ok(())
    }

    fn json(&self, time: u64) -> Value {
        let rows = self.measurements.iter().map(|(row, rounds)| json!({ "row": row.name(), "rounds": rounds }));
        let goals = self.goals().map(|(name, spread, target)| {
            let ((comparison, value), met) = (target.parts(), target.is_met(spread.median));
            json!({ "goal": name, "median": spread.median, comparison: value, "met": met })
        });
        json!({
            "time": time,
            "seconds": self.seconds,
            "load_average": self.load_average,
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "through_edge": self.edge,
            "parts": PARTS,
            "rows": rows.collect::<Vec<_>>(),
            "goals": goals.collect::<Vec<_>>(),
        })
    }

    fn goals(&self) -> impl Iterator<Item = (&'static str, Spread, Target)> {
        GOALS.into_iter().filter_map(|(name, row, value, target)| {
            Some((name, self.spread(row, |round| value(self, row, round))?, target))
        })
    }

    fn spread(&self, row: Row, value: impl Fn(usize) -> Option<f64>) -> Option<Spread> {
        let rounds = self.measurements.get(&row).map_or(0, Vec::len);
        Spread::of(&(0..rounds).filter_map(value).collect::<Vec<_>>())
    }

    fn of(&self, row: Row, round: usize) -> Option<&Measurement> {
        self.measurements.get(&row)?.get(round)
    }

    fn of_peak(&self, row: Row, round: usize) -> Option<f64> {
        Some(self.of(row, round)?.accepted / self.of(Row::Peak, round)?.accepted)
    }

    fn p99_ms(&self, row: Row, round: usize) -> Option<f64> {
        self.of(row, round)?.p99_us.map(|micros| micros as f64 / 1_000.0)
    }

    /// Returns the servers' processor seconds per refusal.
    fn refusal(&self, round: usize) -> Option<f64> {
        let row = self.of(Row::Refusals, round)?;
        Some((row.used.iter().sum::<f64>() - row.used[CLIENT]) / (row.refused * super::STANDSTILL_SECONDS as f64))
    }

    /// Returns the accepted rate relative to the possible one: the peak, scaled by the processor time that this row's
    /// client and refusals leave, relative to the time that the peak's client left.
    fn of_possible(&self, row: Row, round: usize) -> Option<f64> {
        let (here, peak) = (self.of(row, round)?, self.of(Row::Peak, round)?);
        let left = |of: &Measurement| of.idle + of.used.iter().sum::<f64>() - of.used[CLIENT];
        let refusals = here.refused * self.seconds as f64 * self.refusal(round)?;
        Some(here.accepted / (peak.accepted * (left(here) - refusals) / left(peak)))
    }

    fn cells(&self, row: Row) -> Vec<String> {
        let text =
            |digits, spread: Option<Spread>| spread.map_or_else(|| String::from("-"), |spread| spread.text(digits));
        let cell = |digits, value: &dyn Fn(&Measurement) -> Option<f64>| {
            text(digits, self.spread(row, |round| value(self.of(row, round)?)))
        };
        let ms = |micros: Option<u64>| micros.map(|micros| micros as f64 / 1_000.0);
        let mut cells = vec![
            row.name(),
            cell(0, &|of| Some(of.offered)),
            cell(0, &|of| Some(of.sent)),
            cell(0, &|of| Some(of.accepted)),
            cell(0, &|of| Some(of.refused)),
            cell(0, &|of| Some(of.failed as f64)),
            cell(1, &|of| ms(of.p50_us)),
            cell(1, &|of| ms(of.p99_us)),
        ];
        cells.extend((0..PARTS.len()).map(|part| cell(1, &|of| Some(of.used[part]))));
        cells.push(cell(1, &|of| Some(of.idle)));
        cells
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.measurements.values().map(Vec::len).max().unwrap_or_default();
        let way = if self.edge { "through the edge" } else { "directly to the instance" };
        writeln!(
            f,
            "{way}: median (min to max) of {rounds} rounds of {} s; processor seconds by part\n",
            self.seconds
        )?;
        let head = ["ROW", "OFFERED/S", "SENT/S", "ACCEPTED/S", "REFUSED/S", "FAILED", "P50 MS", "P99 MS"];
        let head: Vec<_> = head.into_iter().chain(PARTS).chain(["idle"]).collect();
        write_table(f, &head, self.measurements.keys().map(|row| self.cells(*row)).collect())?;
        let goals = self.goals().map(|(name, spread, target)| {
            let verdict = if target.is_met(spread.median) { "" } else { "missed" };
            vec![name.to_owned(), spread.text(2), target.to_string(), verdict.to_owned()]
        });
        writeln!(f)?;
        write_table(f, &["GOAL", "VALUE", "TARGET", ""], goals.collect())
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offered, sent, accepted, refused, failed, .. } = self;
        write!(
            f,
            "{sent:.0} of {offered:.0}/s sent, {accepted:.0}/s accepted, {refused:.0}/s refused, {failed} failed"
        )?;
        if let (Some(p50), Some(p99)) = (self.p50_us, self.p99_us) {
            write!(f, ", p50 {:.1} ms, p99 {:.1} ms", p50 as f64 / 1e3, p99 as f64 / 1e3)?;
        }
        PARTS.iter().zip(self.used).try_for_each(|(part, used)| write!(f, ", {part} {used:.1} s"))?;
        write!(f, ", idle {:.1} s", self.idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_compared_with_the_time_that_its_client_and_refusals_left() {
        let row = |accepted, refused, used, idle| {
            let (failed, p50_us, p99_us) = (0, None, None);
            Measurement { offered: 0.0, sent: 0.0, accepted, refused, failed, p50_us, p99_us, used, idle }
        };
        let mut report = Report::new(false, 10, 0.0);
        // 20 seconds of two processors, of which the client leaves 16.
        report.add(Row::Peak, row(1_600.0, 0.0, [4.0, 0.0, 9.0, 6.0], 1.0));
        // The client leaves 10, of which refusals take 2.
        report.add(Row::Times(5), row(720.0, 10_000.0, [10.0, 0.0, 5.0, 5.0], 0.0));
        report.add(Row::Refusals, row(0.0, 10_000.0, [7.0, 0.25, 0.75, 0.0], 0.0));
        assert_eq!(report.refusal(0).map(|seconds| (seconds * 1e6).round()), Some(20.0));
        assert!((report.of_possible(Row::Times(5), 0).unwrap() - 0.9).abs() < 1e-9);
        assert_eq!(report.of_peak(Row::Times(5), 0), Some(0.45));
    }
}
