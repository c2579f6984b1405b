//! Compares every row of the views with the totals of the file.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::client::Client;
use super::purchases::{Expected, Sums};

/// Maximum time for the views to catch up.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(100);
const PAGE: usize = 1000;
/// Interval of customers that are also read one by one, which goes through Redis. Every customer is compared by pages,
/// which are read from Postgres.
const SINGLE_READS_EVERY: usize = 50;
/// Maximum number of differences that are listed; further ones are only counted.
const TOLD: usize = 10;

#[derive(Deserialize)]
struct Page {
    rows: Vec<Row>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Row {
    key: String,
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    orders: u64,
    units: u64,
    amount_cents: u64,
    first_order_at: Option<String>,
    last_order_at: Option<String>,
}

/// Result of a comparison.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) customers: usize,
    pub(super) days: usize,
    pub(super) single_reads: usize,
    pub(super) differences: Vec<String>,
    more_differences: usize,
}

pub(super) struct Comparison<'a> {
    pub(super) client: &'a Client,
    /// Consistency token that the views must reach before a row is compared.
    pub(super) token: &'a str,
    pub(super) cancelled: &'a AtomicBool,
}

impl Comparison<'_> {
    pub(super) fn run(&self, expected: &Expected) -> Result<Compared> {
        let mut compared = Compared::default();
        let days = self.rows("/v1/revenue?", &expected.days)?;
        compared.days = compared.compare("day", &expected.days, &days, false);
        let customers = self.rows("/v1/views/customer?", &expected.customers)?;
        compared.customers = compared.compare("customer", &expected.customers, &customers, true);
        for (customer, sums) in expected.customers.iter().step_by(SINGLE_READS_EVERY) {
            let row: Row = self.get(&format!("/v1/customers/{customer}"))?;
            compared.check("customer (single read)", customer, sums, Some(&row.data), true);
            compared.single_reads += 1;
        }
        Ok(compared)
    }

    /// Reads a view page by page and returns the rows that the replay expects, by key.
    fn rows(&self, path: &str, expected: &BTreeMap<String, Sums>) -> Result<BTreeMap<String, Data>> {
        let mut rows = BTreeMap::new();
        let mut after = String::new();
        loop {
            let page: Page = self.get(&format!("{path}limit={PAGE}{after}"))?;
            rows.extend(page.rows.into_iter().filter(|row| is_ours(&row.key, expected)).map(|row| (row.key, row.data)));
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(rows),
            }
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = self.client.get(path, self.token)? {
                return Ok(found);
            }
            if begun.elapsed() > PATIENCE {
                bail!("the views have not caught up after {} s; see `cargo stack status`", PATIENCE.as_secs());
            }
            if self.cancelled.load(Ordering::Relaxed) {
                bail!("the stack is stopping");
            }
            thread::sleep(RETRY);
        }
    }
}

/// Returns whether a row belongs to this replay; the stack may hold others.
fn is_ours(key: &str, expected: &BTreeMap<String, Sums>) -> bool {
    expected.contains_key(key)
}

impl Compared {
    /// Compares all expected rows and returns the number of those that match.
    fn compare(
        &mut self,
        what: &str,
        expected: &BTreeMap<String, Sums>,
        rows: &BTreeMap<String, Data>,
        with_dates: bool,
    ) -> usize {
        expected.iter().filter(|(key, sums)| self.check(what, key, sums, rows.get(*key), with_dates)).count()
    }

    fn check(&mut self, what: &str, key: &str, sums: &Sums, row: Option<&Data>, with_dates: bool) -> bool {
        if row.is_some_and(|row| row.equals(sums, with_dates)) {
            return true;
        }
        if self.differences.len() < TOLD {
            self.differences.push(format!("{what} {key}: the file has {sums:?}, the view {row:?}"));
        } else {
            self.more_differences += 1;
        }
        false
    }

    pub(super) fn count_differences(&self) -> usize {
        self.differences.len() + self.more_differences
    }
}

impl Data {
    fn equals(&self, sums: &Sums, with_dates: bool) -> bool {
        let at = |date: jiff::civil::Date| Some(format!("{date}T00:00:00Z"));
        (self.orders, self.units, self.amount_cents) == (sums.orders, sums.units, sums.amount_cents)
            && (!with_dates || (self.first_order_at == at(sums.first) && self.last_order_at == at(sums.last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_differs_in_anything_or_is_missing_is_a_difference() {
        let day = jiff::civil::date(1997, 1, 1);
        let sums = Sums { orders: 1, units: 2, amount_cents: 3, first: day, last: day };
        let expected = BTreeMap::from([("a".to_owned(), sums)]);
        let row = |orders, last: &str| {
            let at = |day: &str| Some(format!("{day}T00:00:00Z"));
            let data =
                Data { orders, units: 2, amount_cents: 3, first_order_at: at("1997-01-01"), last_order_at: at(last) };
            BTreeMap::from([("a".to_owned(), data)])
        };
        let differences = |rows| {
            let mut compared = Compared::default();
            compared.compare("customer", &expected, &rows, true);
            compared.count_differences()
        };
        assert_eq!(differences(row(1, "1997-01-01")), 0);
        assert_eq!(differences(row(2, "1997-01-01")), 1);
        assert_eq!(differences(row(1, "1997-01-02")), 1);
        assert_eq!(differences(BTreeMap::new()), 1);
    }
}
