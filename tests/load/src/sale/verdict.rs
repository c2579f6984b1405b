//! Checks the log and the views of a sale against the answers that the buyers received.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::observations::Observations;
use super::orders::Ended;
use super::shop::Shop;
use super::{BESIDE, LIMIT_PER_CUSTOMER, Names, PATIENCE, PRICE_CENTS};

const PAGE: usize = 1_000;

#[derive(Default)]
pub(crate) struct Verdict(Vec<(String, bool)>);

/// Counts over the sale's events.
#[derive(Default)]
struct Log {
    /// Customer of each claimed order.
    claims: HashMap<String, String>,
    claimed_twice: u64,
    most_at_once: u64,
    /// Number of units in claims that have not been returned.
    claimed: u64,
    most_claimed: u64,
    returned: HashSet<String>,
    committed: u64,
}

pub(super) fn of(
    shop: &Shop,
    names: &Names,
    units: u64,
    observations: &Observations,
    ended: &Ended,
) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let log = Log::read(shop, &names.sale)?;
    verdict.check(format!("{} unexpected answers to buyers", observations.odd.len()), observations.odd.is_empty());
    for odd in observations.odd.iter().take(5) {
        verdict.0.push((format!("    {odd}"), true));
    }
    let accepted = observations.accepted.len() as u64;
    let told =
        format!("at most {} of {units} units were claimed at a time, by {accepted} claims in total", log.most_claimed);
    verdict.check(told, log.most_claimed <= units);
    let all = observations.counts.sold_out == 0 || log.most_claimed == units;
    verdict.check(
        format!("every unit was claimed, or every buyer got one ({} sold-out answers)", observations.counts.sold_out),
        all,
    );
    let same = observations.accepted.iter().all(|claim| log.claims.get(&claim.order) == Some(&claim.customer));
    let told = format!("the log has {} claims, exactly the accepted ones, once each", log.claims.len());
    verdict.check(told, same && log.claims.len() as u64 == accepted && log.claimed_twice == 0);
    let told = format!("no customer held more than {} units at once (limit {LIMIT_PER_CUSTOMER})", log.most_at_once);
    verdict.check(told, log.most_at_once <= LIMIT_PER_CUSTOMER);
    let unpaid = accepted - ended.paid;
    let right = log.returned.len() as u64 == unpaid
        && log.returned.iter().all(|order| ended.statuses.get(order).is_some_and(|status| *status != "paid"));
    verdict.check(format!("the log has {} returns, exactly those of the unpaid orders", log.returned.len()), right);
    verdict.check(format!("the log has {} units committed by payments", log.committed), log.committed == ended.paid);
    verdict.views(shop, names, units, ended.paid, unpaid)?;
    Ok(verdict)
}

impl Verdict {
    pub(crate) fn is_right(&self) -> bool {
        self.0.iter().all(|(_, right)| *right)
    }

    fn check(&mut self, what: String, right: bool) {
        self.0.push((what, right));
    }

    /// Checks the sale's rows in the views, after waiting for them to catch up.
    fn views(&mut self, shop: &Shop, names: &Names, units: u64, paid: u64, unpaid: u64) -> Result<()> {
        let stock = units + BESIDE - paid;
        let expected: BTreeMap<String, Value> = [
            (
                format!("/v1/sales/{}", names.sale),
                json!({ "status": "closed", "claimed": paid, "committed": paid, "returned": unpaid }),
            ),
            (format!("/v1/products/{}", names.product), json!({ "stock": stock, "available": stock, "reserved": 0 })),
            (
                format!("/v1/views/best_sellers/{}", names.product),
                json!({ "units": paid, "amount_cents": paid * PRICE_CENTS }),
            ),
        ]
        .into();
        for (path, fields) in expected {
            let begun = Instant::now();
            let (row, right) = loop {
                let row = shop.row(&path)?.unwrap_or_default();
                let right =
                    fields.as_object().is_some_and(|fields| fields.iter().all(|(name, value)| row[name] == *value));
                if right || begun.elapsed() > PATIENCE {
                    break (row, right);
                }
                thread::sleep(Duration::from_millis(100));
            };
            let shown: BTreeMap<&String, &Value> =
                fields.as_object().into_iter().flatten().map(|(name, _)| (name, &row[name])).collect();
            let text = serde_json::to_string(&shown).context("cannot serialize a row")?;
            self.check(format!("{path} shows {text}"), right || (paid == 0 && path.contains("best_sellers")));
        }
        Ok(())
    }
}

impl Log {
    fn read(shop: &Shop, sale: &str) -> Result<Self> {
        let mut log = Self::default();
        let mut units: HashMap<String, u64> = HashMap::new();
        let mut after = 0;
        loop {
            let path = format!("/v1/sales/{sale}/history?limit={PAGE}&after={after}");
            let page = shop.get(&path)?.unwrap_or_default();
            let events = page.as_array().cloned().unwrap_or_default();
            for event in &events {
                log.take(event, &mut units);
                after = event["version"].as_u64().context("an event without a version")?;
            }
            if events.len() < PAGE {
                return Ok(log);
            }
        }
    }

    fn take(&mut self, event: &Value, units: &mut HashMap<String, u64>) {
        let data = &event["data"];
        let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
        let quantity = data["quantity"].as_u64().unwrap_or_default();
        match event["type"].as_str().unwrap_or_default() {
            "sale.claimed.v1" => {
                let has = units.entry(text("customer")).or_default();
                *has += quantity;
                self.most_at_once = self.most_at_once.max(*has);
                self.claimed += quantity;
                self.most_claimed = self.most_claimed.max(self.claimed);
                self.claimed_twice += u64::from(self.claims.insert(text("order"), text("customer")).is_some());
            }
            "sale.returned.v1" => {
                *units.entry(text("customer")).or_default() -= quantity;
                self.claimed -= quantity;
                self.returned.insert(text("order"));
            }
            "sale.committed.v1" => self.committed += quantity,
            _ => {}
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, right) in &self.0 {
            writeln!(f, "{}     {what}", if *right { "ok     " } else { "DIFFERS" })?;
        }
        writeln!(f, "{}", if self.is_right() { "All checks passed." } else { "Some checks failed; see DIFFERS above." })
    }
}
