//! Progress of a long run, for the operator.

use std::fmt;
use std::time::{Duration, Instant};

const TELL_EVERY: Duration = Duration::from_secs(2);
const MB: f64 = 1e6;

/// A count of the records that were copied, which says every two seconds how far it is.
pub(super) struct Meter<'a> {
    tell: &'a dyn Fn(String),
    begun: Instant,
    told: Instant,
    amount: Amount,
    /// Number of all records to copy.
    total: u64,
}

/// A number of records, and the length of their frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    pub records: u64,
    pub bytes: u64,
}

impl<'a> Meter<'a> {
    pub(super) fn new(total: u64, tell: &'a dyn Fn(String)) -> Self {
        let now = Instant::now();
        Self { tell, begun: now, told: now, amount: Amount::default(), total }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.amount.records += 1;
        self.amount.bytes += bytes as u64;
        // Asking for the time costs as much as the rest.
        if self.amount.records.is_multiple_of(256) && self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            let Amount { records, .. } = self.amount;
            let left = self.total.saturating_sub(records) as f64 / records as f64 * self.seconds();
            (self.tell)(format!(
                "{records:>12} of {} records, {:.1} MB/s, about {left:.0} s left",
                self.total,
                self.rate()
            ));
        }
    }

    pub(super) fn amount(&self) -> Amount {
        self.amount
    }

    fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn rate(&self) -> f64 {
        self.amount.bytes as f64 / MB / self.seconds()
    }
}

impl fmt::Display for Meter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Amount { records, bytes }, seconds) = (self.amount, self.seconds());
        let (per_second, rate) = (records as f64 / seconds, self.rate());
        write!(f, "{records} records, {:.1} MB in {seconds:.1} s: {per_second:.0}/s, {rate:.1} MB/s", bytes as f64 / MB)
    }
}
