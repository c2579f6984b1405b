//! Phases of a run, and the times at which their requests are due.

use serde::Serialize;

use super::load::Kind;

/// A part of the run, with requests per second.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    pub(super) seconds: f64,
    /// Seconds in which the rates change evenly from those of the phase before.
    pub(super) ramp: f64,
    pub(super) reads: f64,
    pub(super) writes: f64,
    /// The kind of request that there are many of.
    pub(super) rush: Option<Kind>,
}

/// Times at which the requests of a kind are due.
#[derive(Debug)]
pub(super) struct Schedule {
    pieces: Vec<Piece>,
    /// Number of all requests.
    count: f64,
}

/// A time in which the rate changes evenly, or not at all.
#[derive(Debug)]
struct Piece {
    /// Requests that are due before.
    before: f64,
    from: f64,
    seconds: f64,
    first: f64,
    last: f64,
}

impl Phase {
    pub(super) fn rate(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Read => self.reads,
            Kind::Write => self.writes,
        }
    }
}

impl Schedule {
    pub(super) fn new(phases: &[Phase], kind: Kind) -> Self {
        let (mut pieces, mut from, mut before) = (Vec::new(), 0.0, 0.0);
        let mut earlier = phases.first().map_or(0.0, |phase| phase.rate(kind));
        for phase in phases {
            let rate = phase.rate(kind);
            for (seconds, first) in [(phase.ramp, earlier), (phase.seconds - phase.ramp, rate)] {
                pieces.push(Piece { before, from, seconds, first, last: rate });
                from += seconds;
                before += seconds * (first + rate) / 2.0;
            }
            earlier = rate;
        }
        Self { pieces, count: before }
    }

    /// Returns the seconds from the beginning until a request is due; `None` if there are fewer requests.
    pub(super) fn due(&self, request: u32) -> Option<f64> {
        let request = f64::from(request);
        let after = self.pieces.partition_point(|piece| piece.before <= request);
        let Piece { before, from, seconds, first, last } = self.pieces.get(after.checked_sub(1)?)?;
        let growth = if *seconds > 0.0 { (last - first) / seconds } else { 0.0 };
        // The time t at which first × t + growth × t² / 2 requests were due.
        let number = request - before;
        let at = 2.0 * number / (first + (first * first + 2.0 * growth * number).max(0.0).sqrt());
        (request < self.count).then_some(from + at.min(*seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_the_rates_of_the_phases() {
        let phase = |seconds, ramp, reads| Phase { name: "", seconds, ramp, reads, writes: 1.0, rush: None };
        let schedule =
            Schedule::new(&[phase(2.0, 0.0, 10.0), phase(4.0, 2.0, 30.0), phase(1.0, 0.0, 10.0)], Kind::Read);
        let due: Vec<_> = (0..).map_while(|request| schedule.due(request)).collect();
        let between = |from: f64, to: f64| due.iter().filter(|due| (from..to).contains(*due)).count();
        assert_eq!([between(0.0, 2.0), between(2.0, 4.0), between(4.0, 6.0), between(6.0, 7.0)], [20, 40, 60, 10]);
        assert_eq!(between(2.0, 3.0), 15, "half-way the rate is the mean");
        assert!(due.is_sorted());
    }
}
