//! Compares the acknowledged claims with the orders in the database.

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::sale::observations::{Claim, Observations};

/// Time without a new order after which no more are expected.
const QUIET: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Count {
    /// Units promised, by an acknowledgement or an order, in excess of those on sale.
    pub(super) oversold: u64,
    /// Acknowledged claims without an order.
    pub(super) lost: u64,
    /// Orders or acknowledgements of a customer beyond the first.
    pub(super) doubled: u64,
    /// Units left unsold although buyers were answered that the sale is sold out.
    pub(super) stranded: u64,
}

impl Count {
    /// Waits until every acknowledged claim has its order, or until no more orders arrive, and returns the counts.
    /// `orders` reads the orders, one per line.
    pub(super) fn settled(
        observations: &Observations,
        units: u64,
        orders: impl Fn() -> Result<String>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let text = orders()?;
            let rows = rows(&text)?;
            let count = Self::of(&observations.accepted, &rows, units, observations.was_sold_out());
            if rows.len() != last {
                (last, since) = (rows.len(), Instant::now());
            }
            if count.lost == 0 || since.elapsed() > QUIET || begun.elapsed() > PATIENCE {
                return Ok(count);
            }
            thread::sleep(PAUSE);
        }
    }

    fn of(accepted: &[Claim], rows: &[(&str, &str)], units: u64, sold_out: bool) -> Self {
        let ordered: HashMap<&str, &str> = rows.iter().copied().collect();
        let lost = accepted.iter().filter(|claim| ordered.get(claim.order.as_str()) != Some(&claim.customer.as_str()));
        let told = accepted.iter().map(|claim| (claim.order.as_str(), claim.customer.as_str()));
        let promised: HashSet<(&str, &str)> = told.chain(rows.iter().copied()).collect();
        let customers: HashSet<&str> = promised.iter().map(|(_, customer)| *customer).collect();
        let repeated = rows.len() - ordered.len();
        Self {
            oversold: (promised.len() as u64).saturating_sub(units),
            lost: lost.count() as u64,
            doubled: (promised.len() - customers.len() + repeated) as u64,
            stranded: if sold_out { units.saturating_sub(promised.len() as u64) } else { 0 },
        }
    }
}

fn rows(text: &str) -> Result<Vec<(&str, &str)>> {
    text.lines().map(|line| line.split_once('\t').with_context(|| format!("{line:?} is not an order"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(accepted: &[(&str, &str)], text: &str) -> Count {
        let claim = |(order, customer): &(&str, &str)| Claim { order: (*order).into(), customer: (*customer).into() };
        let accepted: Vec<_> = accepted.iter().map(claim).collect();
        Count::of(&accepted, &rows(text).unwrap(), 2, true)
    }

    #[test]
    fn every_kind_of_broken_promise_is_counted() {
        let right = [("a", "1"), ("b", "2")];
        assert_eq!(count(&right, "a\t1\nb\t2\n"), Count::default());
        assert_eq!(count(&right, "a\t1\n"), Count { lost: 1, ..Count::default() });
        assert_eq!(count(&right, "a\t1\nb\t3\n"), Count { oversold: 1, lost: 1, ..Count::default() });
        assert_eq!(count(&right, "a\t1\nb\t2\nb\t2\n"), Count { doubled: 1, ..Count::default() });
        assert_eq!(count(&right, "a\t1\nb\t2\nc\t2\n"), Count { oversold: 1, doubled: 1, ..Count::default() });
        assert_eq!(count(&right[..1], "a\t1\n"), Count { stranded: 1, ..Count::default() });
    }
}
