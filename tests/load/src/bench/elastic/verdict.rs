//! The targets of a run, and whether they were met.

use std::fmt;

use serde::Serialize;
use stack::services::Service;

use super::Move;
use super::load::Kind;
use super::report::{AFTER, AGAIN, Report, Second};
use super::schedule::Phase;
use crate::bench::table::{Target, write_table};

const LONGEST_MS: f64 = 500.0;
/// Share of the machine's processor time that has to be left, in percent.
const IDLE: f64 = 10.0;
/// Longest delay of the clients themselves in 99 of 100 seconds.
const LATE_MS: f64 = 50.0;

/// One target.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    what: String,
    target: String,
    measured: String,
    is_met: bool,
}

/// The verdict, as a table to print.
pub(super) struct Table<'a>(pub(super) &'a Report);

/// Returns the verdict on all targets.
pub(super) fn rows(report: &Report) -> Vec<Row> {
    let mut rows = vec![failed(report)];
    for (phase, from, to) in report.spans() {
        if let Some(kind) = phase.rush {
            rows.push(grows(report, phase.name, kind, from, to));
        } else if from > 0.0 && phase.name.starts_with("calm") {
            rows.push(shrinks(report, phase.name, to));
        }
    }
    let is_sudden = |at: f64| report.spans().any(|(phase, from, to)| is_sudden(phase) && at >= from && at < to + AFTER);
    let seconds = report.reads.iter().zip(&report.writes).enumerate();
    let longest =
        seconds.filter(|(at, _)| !is_sudden(*at as f64)).map(|(_, both)| both.0.longest_ms.max(both.1.longest_ms));
    rows.push(Row::bounded(
        "longest wait in ms, but for sudden rushes",
        longest.fold(0.0, f64::max),
        Target::AtMost(LONGEST_MS),
    ));
    rows.extend(
        report
            .spans()
            .filter(|(phase, ..)| phase.rush.is_some())
            .flat_map(|(phase, from, to)| waits(report, phase, from, to)),
    );
    let (sudden, others): (Vec<&Move>, Vec<&Move>) = report.single_moves().partition(|one| is_sudden(one.at));
    rows.push(steady_again(report, "but for sudden rushes", &others));
    rows.push(steady_again(report, "in sudden rushes", &sudden));
    let idle = report.spans().map(|(_, from, to)| 100.0 * report.watch.idle(from, to)).fold(100.0, f64::min);
    rows.push(Row::bounded("idle share of the machine in %, busiest phase", idle, Target::AtLeast(IDLE)));
    rows.push(Row::bounded(
        "delay of the clients themselves in ms, p99 of seconds",
        late(report),
        Target::AtMost(LATE_MS),
    ));
    rows
}

fn is_sudden(phase: &Phase) -> bool {
    phase.rush.is_some() && phase.ramp <= 0.0
}

fn failed(report: &Report) -> Row {
    let requests: usize = report.reads.iter().chain(&report.writes).map(|second| second.requests).sum();
    let mut statuses = report.failures.clone();
    statuses.sort_unstable();
    statuses.dedup();
    let statuses = if statuses.is_empty() { String::new() } else { format!(", with status {statuses:?}") };
    Row {
        what: String::from("requests that failed"),
        target: String::from("0"),
        measured: format!("{} of {requests}{statuses}", report.failures.len()),
        is_met: report.failures.is_empty(),
    }
}

/// Judges that a rush makes its own tier grow, and not the other one of command-api and query-api.
fn grows(report: &Report, name: &str, kind: Kind, from: f64, to: f64) -> Row {
    let other = match kind {
        Kind::Read => Service::CommandApi,
        Kind::Write => Service::QueryApi,
    };
    let numbers = |service| [report.watch.at(service, from), report.watch.most(service, from, to)];
    let [own, others, projectors] = [kind.service(), other, Service::Projector].map(numbers);
    let words = |service: Service, [before, most]: [f64; 2]| format!("{} {before} -> {most}", service.name());
    let mut measured = vec![words(kind.service(), own), words(other, others)];
    if kind == Kind::Write {
        measured.push(words(Service::Projector, projectors));
    }
    Row {
        what: format!("{name}: grows"),
        target: format!("{} alone", kind.service().name()),
        measured: measured.join(", "),
        is_met: own[1] > own[0] && others[1] <= others[0],
    }
}

/// Judges that all tiers have one instance again.
fn shrinks(report: &Report, name: &str, to: f64) -> Row {
    let numbers = Service::ALL.map(|service| report.watch.at(service, to - 0.1));
    let words = Service::ALL.iter().zip(numbers).map(|(service, number)| format!("{} {number}", service.name()));
    Row {
        what: format!("{name}: instances at its end"),
        target: String::from("1 of each"),
        measured: words.collect::<Vec<_>>().join(", "),
        is_met: numbers.iter().all(|number| *number <= 1.0),
    }
}

/// Judges the waits of a rush until its tier had grown as far as it did, and afterwards.
fn waits(report: &Report, phase: &Phase, from: f64, to: f64) -> Vec<Row> {
    let own = |one: &&Move| {
        let grown = one.change.is_some_and(|(service, before, after)| {
            phase.rush.is_some_and(|kind| kind.service() == service) && after > before
        });
        grown && one.at >= from && one.at < to
    };
    let grown: Vec<&Move> = report.moves.iter().filter(own).collect();
    let (Some(first), Some(last)) = (grown.first(), grown.last()) else { return Vec::new() };
    let bounded = |what: &str, from, to| {
        let what = format!("{}: longest wait in ms, {what}", phase.name);
        Row::bounded(&what, report.longest_between(from, to), Target::AtMost(LONGEST_MS))
    };
    let grown = last.ended - from;
    let mut rows = vec![bounded("until the tier has grown", from, last.ended)];
    rows[0].measured += &format!(" (growth begins after {:.1} s, ends after {grown:.1} s)", first.at - from);
    if last.ended + AFTER < to {
        rows.push(bounded(&format!("from {AFTER} s after that"), last.ended + AFTER, to));
    }
    rows
}

fn steady_again(report: &Report, which: &str, moves: &[&Move]) -> Row {
    let met = moves.iter().filter(|one| report.again(one).is_some_and(|after| after <= AFTER)).count();
    let worst = moves.iter().map(|one| report.again(one).unwrap_or(f64::INFINITY)).fold(0.0, f64::max);
    Row {
        what: format!("seconds from a move until p99 ≤ {AGAIN} × steady, {which}"),
        target: Target::AtMost(AFTER).to_string(),
        measured: format!("{met} of {} moves, the slowest {worst:.0}", moves.len()),
        is_met: met == moves.len(),
    }
}

/// Returns the delay of the clients themselves that one of a hundred seconds exceeds.
fn late(report: &Report) -> f64 {
    let mut delays: Vec<f64> =
        report.reads.iter().chain(&report.writes).map(|second: &Second| second.late_ms).collect();
    delays.sort_by(f64::total_cmp);
    delays.get(delays.len() * 99 / 100).copied().unwrap_or_default()
}

impl Row {
    fn bounded(what: &str, value: f64, target: Target) -> Self {
        Self {
            what: what.to_owned(),
            target: target.to_string(),
            measured: format!("{value:.0}"),
            is_met: target.is_met(value),
        }
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = |row: Row| {
            let Row { what, target, measured, is_met } = row;
            vec![what, target, measured, String::from(if is_met { "met" } else { "NOT met" })]
        };
        write_table(f, &["what", "target", "measured", ""], rows(self.0).into_iter().map(cells).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::elastic::capacity::{Capacity, Peak};
    use crate::bench::elastic::load::Answer;
    use crate::bench::elastic::watch::{Look, Watch};

    #[test]
    fn a_rush_is_judged_by_the_tier_that_grows_and_a_move_by_the_seconds_after_it() {
        let phase = |name, rush| Phase { name, seconds: 10.0, ramp: 5.0, reads: 1.0, writes: 0.0, rush };
        let phases = vec![phase("steady", None), phase("read rush", Some(Kind::Read)), phase("calm", None)];
        let answers: Vec<_> = (0..30_u8)
            .map(|second| {
                let latency = Duration::from_millis(if (15..18).contains(&second) { 400 } else { 10 });
                let (due, status) = (f64::from(second) + 0.5, if second == 29 { 503 } else { 200 });
                Answer { kind: Kind::Read, due, latency, late: Duration::ZERO, status }
            })
            .collect();
        let look = |at: u8| {
            let queries = if (16..25).contains(&at) { 2 } else { 1 };
            let of = |service: Service, most| (1..=most).map(move |number| service.instance_name(number));
            let all = of(Service::QueryApi, queries).chain(of(Service::CommandApi, 1)).chain(of(Service::Projector, 1));
            Look { at: f64::from(at), idle: 0.3, instances: all.map(|name| (name, Default::default())).collect() }
        };
        let (reads, watch) = (Peak::default(), Watch { looks: (0..30).map(look).collect() });
        let capacity = Capacity { quota: 0.1, reads, writes: reads, records_per_second: 0.0, projector_busy: 0.0 };
        let mut report = Report::new(capacity, phases, &answers, watch);
        report.moves.push(Move { at: 14.5, ended: 15.5, what: String::new(), change: Some((Service::QueryApi, 1, 2)) });
        assert_eq!((report.longest(&report.moves[0]), report.again(&report.moves[0])), (400.0, Some(3.0)));
        let judged: Vec<_> = rows(&report).into_iter().map(|row| (row.measured, row.is_met)).collect();
        for expected in [
            ("1 of 30, with status [503]", false),
            ("query-api 1 -> 2, command-api 1 -> 1", true),
            ("command-api 1, query-api 1, projector 1", true),
            ("1 of 1 moves, the slowest 3", true),
            ("30", true),
        ] {
            assert!(judged.contains(&(expected.0.to_owned(), expected.1)), "{expected:?} is not in {judged:?}");
        }
    }
}
