//! The results, as printed tables and saved JSON.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use super::Measurements;
use super::measure::Measurement;
use super::ratio::RATIOS;
use super::row::Row;
use crate::bench::results;
use crate::bench::table::{Spread, write_table};

pub(super) struct Report<'a> {
    pub(super) seconds: u64,
    /// Load average of the machine before the first round; load by other programs distorts every figure.
    pub(super) load_average: f64,
    pub(super) measurements: &'a Measurements,
}

impl Report<'_> {
    /// Saves the results as JSON and returns the file's path.
    pub(super) fn save(&self, folder: &Path) -> Result<PathBuf> {
        results::save(folder, "write", |time| self.json(time))
    }

    fn json(&self, time: u64) -> Value {
        let rows = self.measurements.iter();
        let rows: Vec<_> = rows.map(|(row, rounds)| json!({ "row": row.name(), "rounds": rounds })).collect();
        let ratios = RATIOS.iter().filter_map(|ratio| {
            let values = ratio.values(|row| self.rounds(row));
            let spread = Spread::of(&values)?;
            let (comparison, target) = ratio.target.parts();
            let met = ratio.target.is_met(spread.median);
            Some(json!({ "ratio": ratio.name, "rounds": values, "median": spread.median, comparison: target, "met": met }))
        });
        json!({
            "time": time,
            "seconds": self.seconds,
            "load_average": self.load_average,
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "rows": rows,
            "ratios": ratios.collect::<Vec<_>>(),
        })
    }

    fn rounds(&self, row: Row) -> Vec<Option<Measurement>> {
        self.measurements.get(&row).cloned().unwrap_or_default()
    }

    fn row_cells(&self, row: Row) -> Vec<String> {
        let measured: Vec<_> = self.rounds(row).into_iter().flatten().collect();
        let of = |value: &dyn Fn(&Measurement) -> Option<f64>| {
            Spread::of(&measured.iter().filter_map(value).collect::<Vec<_>>())
        };
        let cell =
            |spread: Option<Spread>, digits| spread.map_or_else(|| String::from("-"), |spread| spread.text(digits));
        let ms = |micros: Option<u64>| micros.map(|micros| micros as f64 / 1_000.0);
        vec![
            row.name(),
            cell(of(&|measured| Some(measured.rate)), 0),
            cell(of(&|measured| ms(measured.p50_us)), 2),
            cell(of(&|measured| ms(measured.p99_us)), 2),
            measured.iter().map(|measured| measured.failed).sum::<u64>().to_string(),
            cell(of(&|measured| measured.cpu_seconds_per_1000), 4),
        ]
    }

    fn ratio_rows(&self) -> Vec<Vec<String>> {
        let rows = RATIOS.iter().filter_map(|ratio| {
            let spread = Spread::of(&ratio.values(|row| self.rounds(row)))?;
            let verdict = if ratio.target.is_met(spread.median) { "" } else { "missed" };
            Some(vec![ratio.name.to_owned(), spread.text(2), ratio.target.to_string(), verdict.to_owned()])
        });
        rows.collect()
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.measurements.values().map(Vec::len).max().unwrap_or_default();
        writeln!(f, "median (min to max) of {rounds} rounds of {} s\n", self.seconds)?;
        let head = ["ROW", "PER SECOND", "P50 MS", "P99 MS", "FAILED", "CPU S PER 1,000"];
        write_table(f, &head, self.measurements.keys().map(|row| self.row_cells(*row)).collect())?;
        let ratios = self.ratio_rows();
        if !ratios.is_empty() {
            writeln!(f)?;
            write_table(f, &["RATIO", "VALUE", "TARGET", ""], ratios)?;
        }
        Ok(())
    }
}
