//! Reads the purchases of the CDNOW log and computes the totals that the views must show.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use flate2::read::MultiGzDecoder;
use jiff::ToSpan;
use jiff::civil::Date;

/// Shift in days from each shop to the next: longer than the log, and whole weeks.
const DAYS_APART: i64 = 728;
/// Maximum number of shops; the days of the last one are still in four-digit years.
pub(crate) const MAX_SHOPS: u32 = 4000;

/// Maximum size of a purchase log, at least twice that of the CDNOW log.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Purchase {
    /// Line number in the file, from 1.
    pub(super) line: usize,
    pub(super) customer: String,
    pub(super) date: Date,
    pub(super) units: u32,
    pub(super) amount_cents: u64,
}

/// Totals of one customer or day, as in a row of the view `customer` or `revenue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) orders: u64,
    pub(super) units: u64,
    pub(super) amount_cents: u64,
    pub(super) first: Date,
    pub(super) last: Date,
}

/// Totals computed from the file.
#[derive(Debug, Default)]
pub(super) struct Expected {
    pub(super) customers: BTreeMap<String, Sums>,
    pub(super) days: BTreeMap<String, Sums>,
}

/// Reads the purchases from a text file, or from one compressed by gzip.
pub(super) fn read(path: &Path) -> Result<Vec<Purchase>> {
    let what = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(what)?;
    let mut text = String::new();
    let read = match path.extension().is_some_and(|extension| extension == "gz") {
        true => MultiGzDecoder::new(file).take(MAX_BYTES).read_to_string(&mut text),
        false => file.take(MAX_BYTES).read_to_string(&mut text),
    };
    read.with_context(what)?;
    let purchases = parse(&text).with_context(what)?;
    if purchases.is_empty() {
        bail!("{} contains no purchases", path.display());
    }
    Ok(purchases)
}

fn parse(text: &str) -> Result<Vec<Purchase>> {
    let lines = text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let line_number = index + 1;
            parse_line(line_number, line).ok_or_else(|| {
                anyhow!(
                    "line {line_number} is not a customer, a date (YYYYMMDD), a quantity and dollars (0.00): {line:?}"
                )
            })
        })
        .collect()
}

fn parse_line(line: usize, text: &str) -> Option<Purchase> {
    let mut fields = text.split_ascii_whitespace();
    let (customer, day, units, dollars) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if fields.next().is_some() {
        return None;
    }
    Some(Purchase {
        line,
        customer: customer.to_owned(),
        date: Date::strptime("%Y%m%d", day).ok()?,
        units: units.parse().ok()?,
        amount_cents: cents(dollars)?,
    })
}

/// Parses dollars as cents, in integer arithmetic, because binary fractions cannot represent cents exactly.
fn cents(dollars: &str) -> Option<u64> {
    let (whole, hundredths) = dollars.split_once('.')?;
    if hundredths.len() != 2 {
        return None;
    }
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(hundredths.parse().ok()?)
}

impl Purchase {
    /// Returns the order's id, which is unique across shops. Shops are numbered from 1.
    pub(super) fn order_id(&self, shop: u32) -> String {
        format!("cdnow-{shop}-{}", self.line)
    }

    pub(super) fn customer_id(&self, shop: u32) -> String {
        format!("cdnow-{shop}-{}", self.customer)
    }

    pub(super) fn date_in(&self, shop: u32) -> Result<Date> {
        Ok(self.date.checked_add((DAYS_APART * i64::from(shop - 1)).days())?)
    }
}

impl Expected {
    pub(super) fn of(purchases: &[Purchase], shops: u32) -> Result<Self> {
        let mut expected = Self::default();
        for shop in 1..=shops {
            for purchase in purchases {
                let date = purchase.date_in(shop)?;
                add(&mut expected.customers, purchase.customer_id(shop), date, purchase);
                add(&mut expected.days, date.to_string(), date, purchase);
            }
        }
        Ok(expected)
    }

    /// Returns the orders, units and cents over all days.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        self.days.values().fold((0, 0, 0), |(orders, units, cents), day| {
            (orders + day.orders, units + day.units, cents + day.amount_cents)
        })
    }
}

fn add(rows: &mut BTreeMap<String, Sums>, key: String, date: Date, purchase: &Purchase) {
    let sums = rows.entry(key).or_insert(Sums { orders: 0, units: 0, amount_cents: 0, first: date, last: date });
    sums.orders += 1;
    sums.units += u64::from(purchase.units);
    sums.amount_cents += purchase.amount_cents;
    sums.first = sums.first.min(date);
    sums.last = sums.last.max(date);
}

#[cfg(test)]
mod tests {
    use super::*;
    use stack::layout::root;

    #[test]
    fn the_log_adds_up_to_its_known_totals() {
        let purchases = read(&root().join("tests/data/cdnow.txt.gz")).unwrap();
        let expected = Expected::of(&purchases, 1).unwrap();
        assert_eq!(expected.totals(), (69_659, 167_881, 250_031_563));
        assert_eq!((expected.customers.len(), expected.days.len()), (23_570, 546));
        let most = expected.customers["cdnow-1-07592"];
        assert_eq!((most.orders, most.units, most.amount_cents), (201, 917, 1_399_093));
        assert_eq!(expected.days["1997-01-01"].amount_cents, 751_535);
    }

    #[test]
    fn shops_share_neither_customers_nor_days() {
        let purchases = read(&root().join("tests/data/cdnow.txt.gz")).unwrap();
        let expected = Expected::of(&purchases, 3).unwrap();
        assert_eq!((expected.customers.len(), expected.days.len()), (3 * 23_570, 3 * 546));
        assert!(purchases[0].date_in(MAX_SHOPS).is_ok());
    }

    #[test]
    fn an_invalid_line_is_named() {
        for line in [
            "00001 19970101 1",
            "00001 19971301 1 1.00",
            "00001 19970101 -1 1.00",
            "00001 19970101 1 1.0",
            "a 19970101 1 1.00 x",
        ] {
            let error = parse(&format!("head\r\n{line}\r\n")).unwrap_err();
            assert!(error.to_string().starts_with("line 2 "), "{error}");
        }
    }
}
