//! Named rows of measurements, and goals for a row's figures or for its ratio to another row.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::table::{Spread, Target, write_table};
use super::{Cancelled, results};

/// Result of measuring one row in one round.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Turn {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) seconds: f64,
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
}

impl Turn {
    pub(super) fn rate(&self) -> f64 {
        self.requests.saturating_sub(self.failed) as f64 / self.seconds
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Quantity {
    Rate,
    P50Ms,
    P99Ms,
}

/// A target for `of` divided by `to`, or for `of` alone.
pub(super) struct Goal {
    pub(super) name: &'static str,
    pub(super) of: &'static str,
    pub(super) to: Option<&'static str>,
    pub(super) quantity: Quantity,
    pub(super) target: Target,
}

/// All measurements of a run.
pub(super) struct Comparison {
    bench: &'static str,
    seconds: u64,
    load_average: f64,
    goals: &'static [Goal],
    order: Vec<&'static str>,
    turns: BTreeMap<&'static str, Vec<Option<Turn>>>,
}

impl Comparison {
    pub(super) fn new(bench: &'static str, seconds: u64, goals: &'static [Goal]) -> Result<Self> {
        let load_average = results::load_average()?;
        if load_average > 1.0 {
            println!("Warning: the machine is busy (load average {load_average}); the figures below are unreliable.");
        }
        Ok(Self { bench, seconds, load_average, goals, order: Vec::new(), turns: BTreeMap::new() })
    }

    /// Records and prints the result of a row. A failed row does not stop the others.
    pub(super) fn take(&mut self, row: &'static str, turn: Result<Turn>, cancelled: &Cancelled) -> Result<()> {
        cancelled.check()?;
        match &turn {
            Ok(turn) => println!("          {row:<18} {turn}"),
            Err(error) => println!("          {row:<18} failed: {error:#}"),
        }
        if !self.order.contains(&row) {
            self.order.push(row);
        }
        self.turns.entry(row).or_default().push(turn.ok());
        Ok(())
    }

    /// Prints the results so far and saves them in the folder `results`.
    pub(super) fn report(&self, results: &Path) -> Result<()> {
        if self.turns.is_empty() {
            return Ok(());
        }
        print!("\n{self}");
        println!("\n{}", self.save(results)?.display());
        Ok(())
    }

    fn save(&self, folder: &Path) -> Result<PathBuf> {
        results::save(folder, self.bench, |time| self.json(time))
    }

    fn json(&self, time: u64) -> Value {
        let goals = self.goals.iter().filter_map(|goal| {
            let values = self.values(goal);
            let spread = Spread::of(&values)?;
            let (comparison, target) = goal.target.parts();
            let met = goal.target.is_met(spread.median);
            Some(
                json!({ "goal": goal.name, "rounds": values, "median": spread.median, comparison: target, "met": met }),
            )
        });
        json!({
            "time": time,
            "seconds": self.seconds,
            "load_average": self.load_average,
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "rows": self.turns,
            "goals": goals.collect::<Vec<_>>(),
        })
    }

    fn values(&self, goal: &Goal) -> Vec<f64> {
        let of = self.turns.get(goal.of).into_iter().flatten();
        let value = |turn: &Turn| match goal.quantity {
            Quantity::Rate => Some(turn.rate()),
            Quantity::P50Ms => Some(turn.p50_us? as f64 / 1_000.0),
            Quantity::P99Ms => Some(turn.p99_us? as f64 / 1_000.0),
        };
        match goal.to {
            None => of.filter_map(|turn| value(turn.as_ref()?)).collect(),
            Some(to) => {
                let to = self.turns.get(to).into_iter().flatten();
                let both = of.zip(to).filter_map(|(of, to)| Some(value(of.as_ref()?)? / value(to.as_ref()?)?));
                both.filter(|ratio| ratio.is_finite()).collect()
            }
        }
    }

    fn cells(&self, row: &str) -> Vec<String> {
        let turns: Vec<_> = self.turns.get(row).into_iter().flatten().flatten().collect();
        let cell = |digits, value: &dyn Fn(&Turn) -> Option<f64>| {
            let values: Vec<_> = turns.iter().filter_map(|turn| value(turn)).collect();
            Spread::of(&values).map_or_else(|| String::from("-"), |spread| spread.text(digits))
        };
        let ms = |micros: Option<u64>| micros.map(|micros| micros as f64 / 1_000.0);
        vec![
            row.to_owned(),
            cell(0, &|turn| Some(turn.rate())),
            cell(2, &|turn| ms(turn.p50_us)),
            cell(2, &|turn| ms(turn.p99_us)),
            turns.iter().map(|turn| turn.failed).sum::<u64>().to_string(),
        ]
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.turns.values().map(Vec::len).max().unwrap_or_default();
        writeln!(f, "median (min to max) of {rounds} rounds of {} s\n", self.seconds)?;
        let head = ["ROW", "PER SECOND", "P50 MS", "P99 MS", "FAILED"];
        write_table(f, &head, self.order.iter().map(|row| self.cells(row)).collect())?;
        let goals = self.goals.iter().filter_map(|goal| {
            let spread = Spread::of(&self.values(goal))?;
            let verdict = if goal.target.is_met(spread.median) { "" } else { "missed" };
            Some(vec![goal.name.to_owned(), spread.text(2), goal.target.to_string(), verdict.to_owned()])
        });
        let goals: Vec<_> = goals.collect();
        if !goals.is_empty() {
            writeln!(f)?;
            write_table(f, &["GOAL", "VALUE", "TARGET", ""], goals)?;
        }
        Ok(())
    }
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}/s", self.rate())?;
        let ms = |micros: u64| micros as f64 / 1_000.0;
        if let (Some(p50), Some(p99)) = (self.p50_us, self.p99_us) {
            write!(f, ", p50 {:.2} ms, p99 {:.2} ms", ms(p50), ms(p99))?;
        }
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        Ok(())
    }
}

/// Duration of a bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds for which each row is measured, or its log is filled, in each round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(super) seconds: u64,
    /// Number of rounds; each row is measured once per round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_compares_rows_of_the_same_round_or_takes_one_value() {
        const GOALS: &[Goal] = &[
            Goal { name: "r", of: "a", to: Some("b"), quantity: Quantity::Rate, target: Target::AtLeast(1.0) },
            Goal { name: "p", of: "a", to: None, quantity: Quantity::P99Ms, target: Target::AtMost(1.0) },
        ];
        let turn = |requests, p99_us| Some(Turn { requests, seconds: 1.0, p99_us, ..Turn::default() });
        let turns = BTreeMap::from([
            ("a", vec![turn(10, Some(500)), turn(30, None), turn(8, None)]),
            ("b", vec![turn(5, None), None, turn(16, None)]),
        ]);
        let comparison =
            Comparison { bench: "x", seconds: 1, load_average: 0.0, goals: GOALS, order: vec!["a", "b"], turns };
        assert_eq!(comparison.values(&GOALS[0]), [2.0, 0.5]);
        assert_eq!(comparison.values(&GOALS[1]), [0.5]);
    }
}
