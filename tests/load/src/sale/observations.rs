//! Measurements of the rush from its participants' point of view.

use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// An accepted claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) order: String,
    pub(crate) customer: String,
}

pub(crate) struct Observations {
    pub(crate) buyers: u64,
    /// Number of buyers whose claims have been answered.
    pub(super) answered: u64,
    pub(crate) accepted: Vec<Claim>,
    pub(crate) odd: Vec<String>,
    pub(super) counts: Counts,
    pub(crate) commands: Times,
    pub(super) queries: Times,
    pub(crate) visible: Times,
    opened: Instant,
    /// Time from the start to the last answer to a buyer.
    pub(crate) within: Duration,
    /// Processor time of the crowd's own thread.
    pub(super) crowd: Duration,
    /// Time from the start to the last accepted claim.
    accepted_within: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) sold_out: u64,
    pub(super) over_limit: u64,
    pub(super) retried: u64,
    pub(super) again: u64,
    pub(super) failed_queries: u64,
}

/// Latencies in microseconds.
pub(crate) struct Times(Histogram<u64>);

impl Observations {
    pub(super) fn new(buyers: u64) -> Self {
        Self {
            buyers,
            answered: 0,
            accepted: Vec::new(),
            odd: Vec::new(),
            counts: Counts::default(),
            commands: Times::default(),
            queries: Times::default(),
            visible: Times::default(),
            opened: Instant::now(),
            within: Duration::ZERO,
            crowd: Duration::ZERO,
            accepted_within: Duration::ZERO,
        }
    }

    pub(super) fn buyer_answered(&mut self) {
        self.answered += 1;
        self.within = self.opened.elapsed();
    }

    pub(super) fn claim_accepted(&mut self, claim: Claim) {
        self.accepted.push(claim);
        self.accepted_within = self.opened.elapsed();
    }

    pub(crate) fn was_sold_out(&self) -> bool {
        self.counts.sold_out > 0
    }

    /// Returns the rate of accepted claims while units were available.
    pub(crate) fn claims_per_second(&self) -> f64 {
        self.accepted.len() as f64 / self.accepted_within.as_secs_f64()
    }

    /// Returns a one-line summary of the rush in progress.
    pub(super) fn so_far(&self) -> String {
        let seconds = self.opened.elapsed().as_secs_f64();
        let rate = self.commands.0.len() as f64 / seconds;
        let times = |times: &Times| format!("{:.1}/{:.1} ms", times.ms(0.5), times.ms(0.99));
        format!(
            "{seconds:.1} s  {rate:.0}/s  {} accepted  {} sold out  {} retried  commands {}  queries {}  visible {}",
            self.accepted.len(),
            self.counts.sold_out,
            self.counts.retried,
            times(&self.commands),
            times(&self.queries),
            times(&self.visible),
        )
    }
}

impl Times {
    pub(super) fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        // Cannot fail: the histogram resizes automatically.
        let _ = self.0.record(micros);
    }

    pub(crate) fn ms(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1_000.0
    }
}

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new(3).expect("three significant digits are valid"))
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.1} ms, p99 {:.1} ms", self.ms(0.5), self.ms(0.99))
    }
}

impl fmt::Display for Observations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { sold_out, over_limit, retried, again, failed_queries } = self.counts;
        let seconds = self.within.as_secs_f64();
        writeln!(f, "rush        {} buyers answered within {seconds:.2} s", self.answered)?;
        writeln!(
            f,
            "commands    {:.0}/s, {}; {} accepted, {sold_out} sold out, {over_limit} over the limit, {retried} retried, \
             {again} repeated although answered",
            self.commands.0.len() as f64 / seconds,
            self.commands,
            self.accepted.len(),
        )?;
        writeln!(
            f,
            "queries     {:.0}/s, {}; {failed_queries} of {} failed",
            self.queries.0.len() as f64 / seconds,
            self.queries,
            self.queries.0.len(),
        )?;
        writeln!(f, "visible     {} after the answer, over {} claims", self.visible, self.visible.0.len())?;
        let requests = self.commands.0.len() + self.queries.0.len();
        let (crowd, each) = (self.crowd.as_secs_f64(), self.crowd.as_secs_f64() * 1e6 / requests as f64);
        write!(f, "crowd       {crowd:.2} s of processor time, {each:.1} µs per request")
    }
}
