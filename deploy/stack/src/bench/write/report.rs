//! The results: tables to read, and JSON to keep.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Measurements;
use super::measure::Measurement;
use super::ratio::{RATIOS, Target};
use super::row::Row;

pub(super) struct Report<'a> {
    pub(super) seconds: u64,
    /// Of the machine, before the first round; what others do to it is in every number.
    pub(super) load_average: f64,
    pub(super) measurements: &'a Measurements,
}

/// The median of some values, the least and the greatest.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Report<'_> {
    /// Returns the file.
    pub(super) fn save(&self, folder: &Path) -> Result<PathBuf> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
        let path = folder.join(format!("write-{time}.json"));
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(&path, format!("{:#}\n", self.json(time)))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn json(&self, time: u64) -> Value {
        let rows = self.measurements.iter();
        let rows: Vec<_> = rows.map(|(row, rounds)| json!({ "row": row.name(), "rounds": rounds })).collect();
        let ratios = RATIOS.iter().filter_map(|ratio| {
            let values = ratio.values(|row| self.rounds(row));
            let spread = Spread::of(&values)?;
            let (comparison, target) = match ratio.target {
                Target::AtLeast(least) => ("at least", least),
                Target::AtMost(most) => ("at most", most),
            };
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
            let (sign, target) = match ratio.target {
                Target::AtLeast(least) => ("≥", least),
                Target::AtMost(most) => ("≤", most),
            };
            let verdict = if ratio.target.is_met(spread.median) { "" } else { "missed" };
            Some(vec![ratio.name.to_owned(), spread.text(2), format!("{sign} {target}"), verdict.to_owned()])
        });
        rows.collect()
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.measurements.values().map(Vec::len).max().unwrap_or_default();
        writeln!(f, "median (least to most) of {rounds} rounds of {} s\n", self.seconds)?;
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

fn write_table(f: &mut fmt::Formatter<'_>, head: &[&str], rows: Vec<Vec<String>>) -> fmt::Result {
    let head: Vec<_> = head.iter().map(|name| (*name).to_owned()).collect();
    let lines: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..lines[0].len()).map(width).collect();
    for line in &lines {
        let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(f, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

impl Spread {
    /// `None`: of nothing.
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        // Between the two middle ones, where there are two.
        let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median, least, most })
    }

    fn text(self, digits: usize) -> String {
        let Self { median, least, most } = self;
        format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between_the_two_in_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 9.0]), Some(Spread { median: 3.0, least: 1.0, most: 9.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0]), Some(Spread { median: 2.5, least: 1.0, most: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }
}
