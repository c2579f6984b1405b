//! Progress of a cargo build, read from its log.
//!
//! Cargo draws its progress bar into the log as well (`services::cargo_build` asks for that), so the log has lines such
//! as `    Building [====>     ] 123/321: rdkafka-sys(build), serde`, each drawn over by the next.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// Shares of the units of a first build that were compiled after a share of its time, measured with the profile `quick`:
/// the small crates come first, and the services, which take most of the time, come last.
const PACE: [(f64, f64); 10] = [
    (0.0, 0.0),
    (0.1, 0.04),
    (0.3, 0.11),
    (0.5, 0.18),
    (0.7, 0.28),
    (0.8, 0.4),
    (0.9, 0.61),
    (0.98, 0.74),
    (0.99, 0.95),
    (1.0, 1.0),
];
/// Share of the time that has to pass before the rest is estimated. Earlier, librdkafka alone keeps the cores busy, and an
/// estimate would be too high.
const ENOUGH: f64 = 0.1;

/// Numbers of units in a build: crates, build scripts and their runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Units that were up to date at the start.
    fresh: u32,
    done: u32,
    total: u32,
}

impl Progress {
    /// Returns the progress that a log shows, or `None` if it is not a build's or the build has only begun.
    pub(super) fn in_log(log: &Path) -> Option<Self> {
        Self::parse(&String::from_utf8_lossy(&fs::read(log).ok()?))
    }

    fn parse(log: &str) -> Option<Self> {
        let mut bars = log.split(['\r', '\n']).filter_map(bar);
        let (fresh, first) = bars.next()?;
        let (done, total) = bars.next_back().unwrap_or((fresh, first));
        Some(Self { fresh, done, total })
    }

    /// Describes the progress of a build that has run for `elapsed`.
    pub(super) fn describe(self, elapsed: Duration) -> String {
        let Self { done, total, .. } = self;
        match self.left(elapsed).map(|left| left.as_secs()) {
            None => format!("{done} of {total} units compiled"),
            Some(secs @ 0..=90) => format!("{done} of {total} units compiled, about {} s left", secs.max(1)),
            Some(secs) => format!("{done} of {total} units compiled, about {} min left", secs.div_ceil(60)),
        }
    }

    /// Estimates the remaining time; `None` if too little has been compiled.
    fn left(self, elapsed: Duration) -> Option<Duration> {
        let share = |units: u32| time_share(f64::from(units) / f64::from(self.total));
        let (began, now) = (share(self.fresh), share(self.done));
        (now - began >= ENOUGH).then(|| elapsed.mul_f64((1.0 - now) / (now - began)))
    }
}

/// Parses cargo's progress bar into the numbers of finished and of all units.
fn bar(line: &str) -> Option<(u32, u32)> {
    let (_, counts) = line.trim_start().strip_prefix("Building [")?.split_once("] ")?;
    let (done, total) = counts.split_once(':')?.0.split_once('/')?;
    let (done, total) = (done.parse().ok()?, total.parse().ok()?);
    (done <= total && total > 0).then_some((done, total))
}

/// Interpolates [`PACE`].
fn time_share(units: f64) -> f64 {
    let ends = PACE.windows(2).find(|ends| units <= ends[1].0);
    let [(units_before, time_before), (units_after, time_after)] = *ends.unwrap_or(&PACE[PACE.len() - 2..]) else {
        unreachable!("windows of two have two elements");
    };
    time_before + (time_after - time_before) * (units - units_before) / (units_after - units_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bar_counts_and_the_first_shows_what_was_fresh() {
        let log = "   Compiling libc v0.2.189\n    Building [>     ] 4/238: libc, syn   \r   Compiling cfg-if v1.0.5\n    \
                   Building [==>   ] 119/238: schemas   \r";
        assert_eq!(Progress::parse(log), Some(Progress { fresh: 4, done: 119, total: 238 }));
    }

    #[test]
    fn other_logs_show_no_progress() {
        for log in
            ["", "[INFO] Building jar 1/2:", "Building [", "    Building [=> ] x/2: a", "    Building [=> ] 3/2: a"]
        {
            assert_eq!(Progress::parse(log), None, "{log:?}");
        }
    }

    #[test]
    fn the_estimate_grows_with_the_time_and_ends_at_nothing() {
        let at = |done| Progress { fresh: 0, done, total: 100 }.left(Duration::from_secs(60));
        assert_eq!(at(5), None);
        let estimates = [50, 80, 97, 100].map(|done| at(done).expect("enough is compiled"));
        assert!(estimates.is_sorted_by(|more, less| more > less), "{estimates:?}");
        assert_eq!(estimates[3], Duration::ZERO);
    }
}
