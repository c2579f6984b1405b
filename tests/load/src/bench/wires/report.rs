//! Tables of a run: the rates and latencies of both stacks, and the processor time of a request in each process.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::super::results;
use super::super::table::{Spread, write_table};
use super::{Measurement, PROCESSES, Row, Wires};

/// All measurements of a run, by round.
pub(super) struct Report {
    seconds: u64,
    load_average: f64,
    measurements: BTreeMap<(Row, Wires), Vec<Measurement>>,
}

impl Report {
    pub(super) fn new(seconds: u64, load_average: f64) -> Self {
        if load_average > 1.0 {
            println!("Warning: the machine is busy (load average {load_average}); the figures below are unreliable.");
        }
        Self { seconds, load_average, measurements: BTreeMap::new() }
    }

    /// Records and prints a measurement.
    pub(super) fn take(&mut self, row: Row, wires: Wires, measurement: Measurement) {
        println!("          {:<18} {}", row.name(), measurement.turn);
        self.measurements.entry((row, wires)).or_default().push(measurement);
    }

    /// Prints the tables and saves the measurements, if there are any.
    pub(super) fn show(&self, folder: &Path) -> Result<()> {
        if self.measurements.is_empty() {
            return Ok(());
        }
        let rows = self.measurements.iter().map(|((row, wires), rounds)| {
            let stack = if *wires == Wires::Plain { "plain" } else { "secured" };
            json!({ "row": row, "wires": row.wires(), "stack": stack, "rounds": rounds })
        });
        let rows: Vec<_> = rows.collect();
        let path = results::save(folder, "wires", |time| {
            let (seconds, load_average) = (self.seconds, self.load_average);
            json!({ "time": time, "seconds": seconds, "load_average": load_average, "processes": PROCESSES, "rows": rows })
        })?;
        println!("\n{self}\n{}", path.display());
        Ok(())
    }

    fn values(&self, row: Row, wires: Wires, value: impl Fn(&Measurement) -> f64) -> Vec<f64> {
        self.measurements.get(&(row, wires)).into_iter().flatten().map(value).collect()
    }

    /// Returns the medians on both stacks.
    fn both(&self, row: Row, digits: usize, value: impl Fn(&Measurement) -> f64) -> String {
        let median = |wires| Spread::of(&self.values(row, wires, &value)).map(|spread| spread.median);
        match (median(Wires::Plain), median(Wires::Secured)) {
            (Some(plain), Some(secured)) => format!("{plain:.digits$} → {secured:.digits$}"),
            _ => String::from("-"),
        }
    }

    /// Returns the ratio of the secured stack to the plain one, over the rounds.
    fn ratio(&self, row: Row, value: impl Fn(&Measurement) -> f64) -> String {
        let [plain, secured] = [Wires::Plain, Wires::Secured].map(|wires| self.values(row, wires, &value));
        let ratios: Vec<_> = plain.iter().zip(&secured).map(|(plain, secured)| secured / plain).collect();
        Spread::of(&ratios).map_or_else(|| String::from("-"), |spread| spread.text(2))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.measurements.values().map(Vec::len).max().unwrap_or_default();
        writeln!(
            f,
            "plain → secured: medians of {rounds} rounds of {} s; ratio: median (min to max) of the rounds\n",
            self.seconds
        )?;
        let ms = |micros: Option<u64>| micros.unwrap_or_default() as f64 / 1_000.0;
        let rows = Row::ALL.into_iter().map(|row| {
            vec![
                row.name().to_owned(),
                self.both(row, 0, |one| one.turn.rate()),
                self.ratio(row, |one| one.turn.rate()),
                self.both(row, 2, |one| ms(one.turn.p50_us)),
                self.both(row, 2, |one| ms(one.turn.p99_us)),
                row.wires().to_owned(),
            ]
        });
        write_table(f, &["ROW", "PER SECOND", "RATIO", "P50 MS", "P99 MS", "WIRES"], rows.collect())?;
        writeln!(f, "\nµs of processor time per request\n")?;
        let head: Vec<_> = ["ROW"].into_iter().chain(PROCESSES).chain(["all", "RATIO"]).collect();
        let all = |one: &Measurement| one.micros.iter().sum::<f64>();
        let rows = Row::ALL.into_iter().map(|row| {
            let mut cells = vec![row.name().to_owned()];
            cells.extend((0..PROCESSES.len()).map(|process| self.both(row, 1, |one| one.micros[process])));
            cells.extend([self.both(row, 1, all), self.ratio(row, all)]);
            cells
        });
        write_table(f, &head, rows.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::comparison::Turn;
    use super::*;

    #[test]
    fn rows_show_both_stacks_and_the_ratio_of_each_round() {
        let mut report = Report::new(1, 0.0);
        let one = |requests, micros| Measurement {
            turn: Turn { requests, seconds: 1.0, ..Turn::default() },
            micros: [micros; PROCESSES.len()],
        };
        for (wires, requests, micros) in [
            (Wires::Plain, 100, 10.0),
            (Wires::Plain, 200, 10.0),
            (Wires::Secured, 50, 15.0),
            (Wires::Secured, 200, 20.0),
        ] {
            report.take(Row::Query, wires, one(requests, micros));
        }
        assert_eq!(report.both(Row::Query, 0, |one| one.turn.rate()), "150 → 125");
        assert_eq!(report.ratio(Row::Query, |one| one.turn.rate()), "0.75 (0.50 to 1.00)");
        assert_eq!(report.both(Row::List, 0, |one| one.turn.rate()), "-");
        let text = report.to_string();
        assert!(text.contains("10.0 → 17.5") && text.contains("1.75 (1.50 to 2.00)"), "{text}");
    }
}
