//! The figures of a run.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use super::Move;
use super::capacity::{BUSY, Capacity};
use super::load::{Answer, Kind};
use super::schedule::Phase;
use super::verdict;
use super::watch::{Joined, Watch};

/// Latency at which the tier counts as steady again, as a multiple of the steady one.
pub(super) const AGAIN: f64 = 1.5;
/// Seconds after a move whose longest wait counts for it.
pub(super) const AFTER: f64 = 5.0;
/// Share of what one instance serves that the rules for scaling let each instance have.
const SHARE: f64 = 0.6;

/// What was due in one second.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Second {
    pub(super) requests: usize,
    pub(super) failed: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) longest_ms: f64,
    /// Longest delay of the clients themselves.
    pub(super) late_ms: f64,
}

pub(super) struct Report {
    pub(super) load_average: f64,
    pub(super) capacity: Capacity,
    pub(super) phases: Vec<Phase>,
    pub(super) reads: Vec<Second>,
    pub(super) writes: Vec<Second>,
    pub(super) watch: Watch,
    pub(super) moves: Vec<Move>,
    /// Statuses of failed requests, 0 for no answer.
    pub(super) failures: Vec<u16>,
}

impl Report {
    pub(super) fn new(capacity: Capacity, phases: Vec<Phase>, answers: &[Answer], watch: Watch) -> Self {
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
        let failures = answers.iter().filter(|answer| !answer.is_good()).map(|answer| answer.status).collect();
        Self { load_average: 0.0, capacity, phases, reads, writes, watch, moves: Vec::new(), failures }
    }

    /// Returns the phases with their beginnings and ends.
    pub(super) fn spans(&self) -> impl Iterator<Item = (&Phase, f64, f64)> {
        self.phases.iter().scan(0.0, |from, phase| {
            let begin = *from;
            *from += phase.seconds;
            Some((phase, begin, *from))
        })
    }

    pub(super) fn show(&self) {
        println!("\nphase        kind    requests  failed  p50 ms  p99 ms  longest ms  idle of the machine");
        for (phase, from, to) in self.spans() {
            for (kind, seconds) in [("reads", &self.reads), ("writes", &self.writes)] {
                let part = &seconds[from as usize..to as usize];
                let sum = |of: fn(&Second) -> usize| part.iter().map(of).sum::<usize>();
                let (p50, p99) = (median(part, |of| of.p50_ms), median(part, |of| of.p99_ms));
                let longest = part.iter().map(|of| of.longest_ms).fold(0.0, f64::max);
                let (requests, failed) = (sum(|of| of.requests), sum(|of| of.failed));
                let idle = 100.0 * self.watch.idle(from, to);
                println!(
                    "{:<12} {kind:<6} {requests:>9} {failed:>7} {p50:>7.1} {p99:>7.1} {longest:>11.1} {idle:>18.0} %",
                    phase.name
                );
            }
        }
        println!("p50 and p99 are the medians of those of each second.");
        println!("\n  at s  took s  longest ms  p99 <= {AGAIN} x steady after s  move");
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
        println!("\n{}", verdict::Table(self));
        println!("load average at the beginning: {}", self.load_average);
    }

    /// Returns the longest wait of a request that was due between two times.
    pub(super) fn longest_between(&self, from: f64, to: f64) -> f64 {
        let (from, to) = (from.max(0.0) as usize, to.max(0.0).ceil() as usize);
        let both = self.reads.iter().zip(&self.writes).take(to).skip(from);
        both.map(|(reads, writes)| reads.longest_ms.max(writes.longest_ms)).fold(0.0, f64::max)
    }

    /// Returns the longest wait of a request that was due during a move or shortly afterwards.
    pub(super) fn longest(&self, one: &Move) -> f64 {
        self.longest_between(one.at, one.ended + AFTER)
    }

    /// Returns the seconds from the end of a move until a second whose p99 is nearly as in the steady phase.
    pub(super) fn again(&self, one: &Move) -> Option<f64> {
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

    /// Returns the moves that are judged on their own: all but the sum of a deployment, and those after the last
    /// request.
    pub(super) fn single_moves(&self) -> impl Iterator<Item = &Move> {
        self.moves.iter().filter(|one| !one.is_sum() && one.ended + AFTER < self.reads.len() as f64)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "load_average": self.load_average,
            "capacity": self.capacity,
            "phases": self.phases,
            "reads": self.reads,
            "writes": self.writes,
            "moves": self.moves,
            "joined": self.watch.joined(),
            "looks": self.watch.looks,
            "verdict": verdict::rows(self),
        })
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { quota, reads, writes, records_per_second, projector_busy } = self;
        writeln!(f, "one instance with {quota} cores serves:")?;
        for (name, peak) in [("reads", reads), ("writes", writes)] {
            let bottleneck = if peak.busy < BUSY { "; it was NOT the bottleneck" } else { "" };
            writeln!(
                f,
                "  {name:<7} {:>6.0}/s by {} connections, p50 {:.1} ms, p99 {:.1} ms; it used {:.0} % of its share, {:.0} % \
                 of the machine were idle{bottleneck}",
                peak.per_second,
                peak.connections,
                peak.p50_ms,
                peak.p99_ms,
                100.0 * peak.busy,
                100.0 * peak.idle,
            )?;
        }
        let busy = 100.0 * projector_busy;
        writeln!(f, "  records {records_per_second:>6.0}/s folded meanwhile, by {busy:.0} % of the projector's share")?;
        let queries = SHARE * reads.per_second / quota;
        write!(
            f,
            "{SHARE} of it for a whole core: {queries:.0} queries/s, {:.0} commands/s",
            SHARE * writes.per_second / quota
        )
    }
}

impl Second {
    fn of(answers: &[Answer]) -> Self {
        let mut latencies: Vec<f64> = answers.iter().map(|answer| answer.latency.as_secs_f64() * 1000.0).collect();
        latencies.sort_by(f64::total_cmp);
        // A share of the last index is a valid index.
        let at = |share: f64| latencies.get((latencies.len().saturating_sub(1) as f64 * share) as usize);
        let at = |share| at(share).copied().unwrap_or_default();
        let failed = answers.iter().filter(|answer| !answer.is_good()).count();
        let late_ms = answers.iter().map(|answer| answer.late.as_secs_f64() * 1000.0).fold(0.0, f64::max);
        Self { requests: answers.len(), failed, p50_ms: at(0.5), p99_ms: at(0.99), longest_ms: at(1.0), late_ms }
    }
}

pub(super) fn median(seconds: &[Second], of: impl Fn(&Second) -> f64) -> f64 {
    let mut values: Vec<f64> = seconds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
