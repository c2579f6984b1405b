//! Every row of the views against the file's own sums.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::client::Client;
use super::purchases::{Expected, Sums};

/// As long as the views may take to get there.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(100);
const PAGE: usize = 1000;
/// Every customer is compared by pages, which come from Postgres; one in so many also by its own address, which comes
/// from Redis.
const SINGLE_READS_EVERY: usize = 50;
/// Differences that are told one by one.
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

/// What was compared.
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
    /// What the views must show before a row is looked at.
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

    /// The rows of a view that are expected, by key.
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
                bail!("the views do not show everything after {} s; see `cargo stack status`", PATIENCE.as_secs());
            }
            if self.cancelled.load(Ordering::Relaxed) {
                bail!("the stack is stopping");
            }
            thread::sleep(RETRY);
        }
    }
}

/// Other customers may use the same shop.
fn is_ours(key: &str, expected: &BTreeMap<String, Sums>) -> bool {
    expected.contains_key(key)
}

impl Compared {
    /// Returns how many rows were as they should be.
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
            self.differences.push(format!("{what} {key}: the file says {sums:?}, the view {row:?}"));
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
