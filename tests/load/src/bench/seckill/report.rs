//! The results of all rounds, side by side.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::Side;
use super::count::Count;
use crate::bench::results;
use crate::bench::table::{Spread, write_table};
use crate::sale::observations::Observations;

/// Result of one row in one round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    claims_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Time from the acknowledgement until the order's page is found, 99th percentile.
    order_p99_ms: f64,
    #[serde(flatten)]
    count: Count,
    /// Number of answers that are invalid or contradict an earlier one.
    odd: usize,
}

pub(super) struct Report {
    buyers: u64,
    units: u64,
    confirms: bool,
    load_average: f64,
    order: Vec<&'static str>,
    rows: BTreeMap<(&'static str, Side), Vec<Outcome>>,
    audits: Vec<bool>,
}

impl Outcome {
    pub(super) fn new(observations: &Observations, count: Count) -> Self {
        let (commands, odd) = (&observations.commands, observations.odd.len());
        for odd in observations.odd.iter().take(3) {
            println!("            {odd}");
        }
        Self {
            claims_per_second: observations.claims_per_second(),
            p50_ms: commands.ms(0.5),
            p99_ms: commands.ms(0.99),
            order_p99_ms: observations.visible.ms(0.99),
            count,
            odd,
        }
    }
}

impl Report {
    pub(super) fn new(buyers: u64, units: u64, confirms: bool) -> Result<Self> {
        let load_average = results::load_average()?;
        Ok(Self { buyers, units, confirms, load_average, order: Vec::new(), rows: BTreeMap::new(), audits: Vec::new() })
    }

    /// Records and prints the result of a row. A failed row does not stop the others.
    pub(super) fn take(&mut self, side: Side, row: &'static str, outcome: Result<Outcome>) {
        match outcome {
            Ok(outcome) => {
                println!("          {row}: {outcome:?}");
                if !self.order.contains(&row) {
                    self.order.push(row);
                }
                self.rows.entry((row, side)).or_default().push(outcome);
            }
            Err(error) => println!("          {row} failed: {error:#}"),
        }
    }

    pub(super) fn audited(&mut self, audit: Result<()>) {
        if let Err(error) = &audit {
            println!("          audit failed: {error:#}");
        }
        self.audits.push(audit.is_ok());
    }

    /// Prints the results so far and saves them in the folder `results`.
    pub(super) fn finish(&self, results: &Path) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        print!("\n{self}");
        let path = results::save(results, "seckill", |time| {
            let rows = self.rows.iter().map(|((row, side), turns)| json!({ "row": row, "side": side, "turns": turns }));
            json!({
                "time": time,
                "buyers": self.buyers,
                "units": self.units,
                "confirms": self.confirms,
                "load_average": self.load_average,
                "processors": std::thread::available_parallelism().map_or(0, usize::from),
                "rows": rows.collect::<Vec<_>>(),
                "audits": self.audits,
            })
        })?;
        println!("\n{}", path.display());
        Ok(())
    }

    fn cells(&self, row: &'static str, side: Side) -> Option<Vec<String>> {
        let turns = self.rows.get(&(row, side))?;
        let spread = |value: fn(&Outcome) -> f64| {
            let values: Vec<_> = turns.iter().map(value).collect();
            Spread::of(&values).map_or_else(|| String::from("-"), |spread| spread.text(0))
        };
        let each =
            |value: fn(&Outcome) -> u64| turns.iter().map(|turn| value(turn).to_string()).collect::<Vec<_>>().join(" ");
        Some(vec![
            row.to_owned(),
            String::from(if side == Side::Ours { "stampede" } else { "textbook" }),
            spread(|turn| turn.claims_per_second),
            spread(|turn| turn.p50_ms),
            spread(|turn| turn.p99_ms),
            spread(|turn| turn.order_p99_ms),
            each(|turn| turn.count.oversold),
            each(|turn| turn.count.lost),
            each(|turn| turn.count.doubled),
            each(|turn| turn.count.stranded),
            each(|turn| turn.odd as u64),
        ])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let confirms = if self.confirms { "on" } else { "off" };
        let Self { buyers, units, load_average, .. } = self;
        writeln!(f, "{buyers} buyers, {units} units, confirms {confirms}, initial load average {load_average}")?;
        writeln!(f, "median (min to max); counts by round\n")?;
        let head = [
            "ROW",
            "SYSTEM",
            "CLAIMS/S",
            "P50 MS",
            "P99 MS",
            "ORDER P99 MS",
            "OVERSOLD",
            "LOST",
            "DOUBLED",
            "STRANDED",
            "ODD",
        ];
        let rows = self.order.iter().flat_map(|row| [Side::Peer, Side::Ours].map(|side| self.cells(row, side)));
        write_table(f, &head, rows.flatten().collect())?;
        let right = self.audits.iter().filter(|right| **right).count();
        writeln!(f, "\nStampede's audits without differences: {right} of {}", self.audits.len())
    }
}
