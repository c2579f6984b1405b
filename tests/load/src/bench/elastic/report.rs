//! The figures of a run.

use serde::Serialize;
use serde_json::{Value, json};

use super::load::{Answer, Kind};
use super::watch::{Joined, Watch};
use super::{Move, Phase};

/// Latency at which the tier counts as steady again, as a multiple of the steady one.
const AGAIN: f64 = 1.5;
/// Seconds after a move whose longest wait counts for it.
const AFTER: f64 = 5.0;

/// What was answered in one second, by the time at which it was due.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Second {
    pub(super) requests: usize,
    pub(super) failed: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) longest_ms: f64,
}

pub(super) struct Report {
    pub(super) load_average: f64,
    pub(super) phases: Vec<Phase>,
    pub(super) reads: Vec<Second>,
    pub(super) writes: Vec<Second>,
    pub(super) watch: Watch,
    pub(super) moves: Vec<Move>,
}

impl Report {
    pub(super) fn new(phases: Vec<Phase>, answers: Vec<Answer>, watch: Watch) -> Self {
        // The length of a run in seconds fits.
        let length = phases.iter().map(|phase| phase.seconds).sum::<f64>().ceil() as usize;
        let of = |kind| {
            let mut seconds = vec![Vec::new(); length];
            for answer in answers.iter().filter(|answer| answer.kind == kind) {
                seconds[(answer.due as usize).min(length - 1)].push(*answer);
            }
            seconds.iter().map(|answers| Second::of(answers)).collect()
        };
        let (reads, writes) = (of(Kind::Read), of(Kind::Write));
        Self { load_average: 0.0, phases, reads, writes, watch, moves: Vec::new() }
    }

    pub(super) fn show(&self) {
        println!("\nphase        kind    requests  failed  p50 ms  p99 ms  longest ms");
        let mut from = 0.0;
        for phase in &self.phases {
            for (kind, seconds) in [("reads", &self.reads), ("writes", &self.writes)] {
                let part = &seconds[from as usize..(from + phase.seconds) as usize];
                let sum = |of: fn(&Second) -> usize| part.iter().map(of).sum::<usize>();
                let (p50, p99) = (median(part, |of| of.p50_ms), median(part, |of| of.p99_ms));
                let longest = part.iter().map(|of| of.longest_ms).fold(0.0, f64::max);
                let (requests, failed) = (sum(|of| of.requests), sum(|of| of.failed));
                println!(
                    "{:<12} {kind:<6} {requests:>9} {failed:>7} {p50:>7.1} {p99:>7.1} {longest:>11.1}",
                    phase.name
                );
            }
            from += phase.seconds;
        }
        println!("\nat s    took s  longest ms  p99 <= {AGAIN} x steady after s  move");
        for one in &self.moves {
            let again = self.again(one).map_or_else(|| String::from("-"), |after| format!("{after:.0}"));
            let (at, took, longest) = (one.at, one.ended - one.at, self.longest(one));
            println!("{at:>6.1} {took:>7.1} {longest:>11.1} {again:>30}  {}", one.what);
        }
        println!();
        for Joined { name, at, seconds } in self.watch.joined() {
            match seconds {
                Some(seconds) => println!("{name} was ready at {at:.1} s and carried its share {seconds:.1} s later"),
                None => println!("{name} was ready at {at:.1} s and never carried its share"),
            }
        }
        println!("load average at the beginning: {}", self.load_average);
    }

    /// Returns the longest wait of a request that was due during a move or shortly afterwards.
    fn longest(&self, one: &Move) -> f64 {
        let [from, to] = [one.at, one.ended + AFTER].map(|at| at.max(0.0) as usize);
        let both = self.reads.iter().zip(&self.writes).skip(from).take(to + 1 - from.min(to));
        both.map(|(reads, writes)| reads.longest_ms.max(writes.longest_ms)).fold(0.0, f64::max)
    }

    /// Returns the seconds from the end of a move until no second's p99 in the five seconds after it exceeds the limit.
    fn again(&self, one: &Move) -> Option<f64> {
        let steady = self.phases.first()?.seconds as usize;
        let is_slow = |seconds: &[Second], at: usize| {
            let limit = AGAIN * median(&seconds[..steady.min(seconds.len())], |of| of.p99_ms);
            seconds.get(at).is_some_and(|second| second.p99_ms > limit)
        };
        let from = one.ended as usize;
        (from..self.reads.len())
            .find(|at| !is_slow(&self.reads, *at) && !is_slow(&self.writes, *at))
            .map(|at| (at - from) as f64)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "load_average": self.load_average,
            "phases": self.phases,
            "reads": self.reads,
            "writes": self.writes,
            "moves": self.moves,
            "joined": self.watch.joined(),
            "looks": self.watch.looks,
        })
    }
}

impl Second {
    fn of(answers: &[Answer]) -> Self {
        let mut latencies: Vec<f64> = answers.iter().map(|answer| answer.latency.as_secs_f64() * 1000.0).collect();
        latencies.sort_by(f64::total_cmp);
        // A share of the last index is a valid index.
        let at = |share: f64| latencies.get((latencies.len().saturating_sub(1) as f64 * share) as usize);
        let at = |share| at(share).copied().unwrap_or_default();
        let failed = answers.iter().filter(|answer| !answer.is_good).count();
        Self { requests: answers.len(), failed, p50_ms: at(0.5), p99_ms: at(0.99), longest_ms: at(1.0) }
    }
}

fn median(seconds: &[Second], of: impl Fn(&Second) -> f64) -> f64 {
    let mut values: Vec<f64> = seconds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_move_is_judged_by_the_seconds_after_it() {
        let phases = vec![Phase { name: "steady", seconds: 10.0, reads: 1.0, writes: 0.0 }];
        let answers = (0..10_u8).map(|second| {
            let latency = Duration::from_millis(if (5..8).contains(&second) { 400 } else { 10 });
            Answer { kind: Kind::Read, due: f64::from(second) + 0.5, latency, is_good: second != 9 }
        });
        let report = Report::new(phases, answers.collect(), Watch::default());
        let one = Move { at: 4.5, ended: 5.5, what: String::new() };
        assert_eq!((report.longest(&one), report.again(&one)), (400.0, Some(3.0)));
        assert_eq!(report.reads.iter().map(|second| second.failed).sum::<usize>(), 1);
    }
}
