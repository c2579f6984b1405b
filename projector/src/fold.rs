//! From a batch of records to what it changes in every view. No I/O: rows that it needs are asked for first.
//!
//! Invariant: a record is folded into a view at most once, in offset order, and only if it counts by the reader's
//! rule from where that view stands.

mod standing;

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use domain::Event;
use schemas::chain::{ChainError, Passed};
use schemas::record::{Commit, Record, RecordError};
use schemas::views::FEEDS;
use schemas::views::customer::{self, CustomerDelta};
use schemas::views::order::{self, OrderRow};
use schemas::views::product::{self, ProductRow};
use schemas::views::revenue::{self, RevenueDelta};

pub(crate) use standing::{Standing, Times};

use crate::config::Feeds;
use crate::journal::JournalRows;
use crate::log::Batch;
use crate::poison::{self, Parked, ParkedRecord};
use crate::snapshots;

pub(crate) const PRODUCT_INDEX: usize = 0;
pub(crate) const ORDER_INDEX: usize = 1;
pub(crate) const CUSTOMER_INDEX: usize = 2;
pub(crate) const REVENUE_INDEX: usize = 3;
const JOURNAL_INDEX: usize = 4;

/// Rows of one view that stay in memory; at the limit all are let go.
const MAX_CACHED_ROWS: usize = 10_000;

/// The log is not the one that the views were folded from, or cannot be read. A person must look.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoldError {
    #[error("the record at offset {offset} of partition {partition} cannot be read")]
    Record { partition: u32, offset: i64, source: RecordError },
    #[error("partition {partition} does not continue what was read of it")]
    Chain { partition: u32, source: ChainError },
    #[error("offset {offset} of partition {partition} holds another record than the one folded from there")]
    OtherHistory { partition: u32, offset: i64 },
    #[error("partition {partition} begins with another claim than the one that the views know")]
    OtherLog { partition: u32 },
    #[error("the fold of {} panicked at {aggregate}: {reason}", FEEDS[*view])]
    Panicked { view: usize, aggregate: String, reason: String },
}

/// What one or more batches changed since the last [`Folder::take`].
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) products: HashMap<String, (u64, ProductRow)>,
    pub(crate) orders: HashMap<String, (u64, OrderRow)>,
    /// By key and partition.
    pub(crate) customers: HashMap<(String, u32), CustomerDelta>,
    pub(crate) revenue: HashMap<(String, u32), RevenueDelta>,
    pub(crate) journal: JournalRows,
    /// Aggregates whose state should be kept anew, with their versions.
    pub(crate) due: Vec<(String, u64)>,
    pub(crate) commits: usize,
    /// Partitions in which something counted that a view shows.
    pub(crate) moved: HashSet<u32>,
    pub(crate) passed_over: Vec<Passed>,
    pub(crate) parked: Vec<ParkedRecord>,
}

/// The records of a batch, read once: partition, offset, bytes, and what they say, unless it is a stranger's.
pub(crate) struct Records<'a>(Vec<(u32, i64, &'a [u8], Option<Record<'a>>)>);

impl<'a> Records<'a> {
    pub(crate) fn of(batch: &'a Batch) -> Result<Self, FoldError> {
        let read = |(partition, offset, value)| match Record::decode(value) {
            Ok(record) => Ok((partition, offset, value, record)),
            Err(source) => Err(FoldError::Record { partition, offset, source }),
        };
        batch.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn commits(&self) -> impl Iterator<Item = &Commit<'a>> {
        self.0.iter().filter_map(|(_, _, _, record)| match record {
            Some(Record::Commit(commit)) => Some(commit),
            _ => None,
        })
    }
}

/// Rows that a batch folds further and that are not in memory.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    pub(crate) products: Vec<String>,
    pub(crate) orders: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Folder {
    products: HashMap<String, (u64, ProductRow)>,
    orders: HashMap<String, (u64, OrderRow)>,
    /// Since the last batch's end.
    changed_products: HashSet<String>,
    changed_orders: HashSet<String>,
    max_rows: usize,
    pub(crate) parked: Parked,
    /// The view that is being folded.
    at: usize,
}

impl Default for Folder {
    fn default() -> Self {
        Self::with_room(MAX_CACHED_ROWS)
    }
}

impl Changes {
    /// What `later` changed, too.
    pub(crate) fn merge(&mut self, later: Self) {
        self.products.extend(later.products);
        self.orders.extend(later.orders);
        for (key, delta) in later.customers {
            self.customers.entry(key).and_modify(|sum| sum.add(&delta)).or_insert(delta);
        }
        for (key, delta) in later.revenue {
            self.revenue.entry(key).and_modify(|sum| sum.add(&delta)).or_insert(delta);
        }
        self.commits += later.commits;
        self.moved.extend(later.moved);
        self.passed_over.extend(later.passed_over);
    }

    /// Rows and parts.
    pub(crate) fn rows(&self) -> usize {
        self.products.len() + self.orders.len() + self.customers.len() + self.revenue.len()
    }
}

impl Folder {
    /// For so many rows of a view.
    pub(crate) fn with_room(max_rows: usize) -> Self {
        Self {
            products: HashMap::new(),
            orders: HashMap::new(),
            changed_products: HashSet::new(),
            changed_orders: HashSet::new(),
            max_rows,
            parked: Parked::default(),
            at: 0,
        }
    }

    /// Whether it will let go of its rows at the next [`Self::missing`]: what it changed must be in Postgres by then.
    pub(crate) fn is_full(&self) -> bool {
        self.products.len().max(self.orders.len()) > self.max_rows
    }

    /// What [`Self::fold`] will ask for.
    pub(crate) fn missing(&mut self, records: &Records<'_>, feeds: Feeds) -> Missing {
        if self.is_full() {
            self.clear();
        }
        let (of_products, of_orders) = (feeds.contain(PRODUCT_INDEX), feeds.contain(ORDER_INDEX));
        let (mut products, mut orders) = (HashSet::new(), HashSet::new());
        for commit in records.commits() {
            // An aggregate's first commit has no row before it.
            if commit.version == commit.events.len() as u64 {
                continue;
            }
            match commit.aggregate.split_once('/') {
                Some(("product", id)) if of_products && !self.products.contains_key(id) => products.insert(id),
                Some(("order", id)) if of_orders && !self.orders.contains_key(id) => orders.insert(id),
                Some(_) | None => continue,
            };
        }
        let owned = |keys: HashSet<&str>| keys.into_iter().map(str::to_owned).collect();
        Missing { products: owned(products), orders: owned(orders) }
    }

    pub(crate) fn remember(
        &mut self,
        products: impl IntoIterator<Item = (String, (u64, ProductRow))>,
        orders: impl IntoIterator<Item = (String, (u64, OrderRow))>,
    ) {
        self.products.extend(products);
        self.orders.extend(orders);
    }

    /// What stands in Postgres may differ from what is in memory.
    pub(crate) fn clear(&mut self) {
        self.products.clear();
        self.orders.clear();
        self.changed_products.clear();
        self.changed_orders.clear();
    }

    pub(crate) fn fold(&mut self, records: &Records<'_>, standings: &mut [Standing]) -> Result<Changes, FoldError> {
        let mut changes = Changes::default();
        for (partition, offset, value, record) in &records.0 {
            let (partition, offset) = (*partition, *offset);
            let standing = &mut standings[partition as usize];
            let mut counts = standing.read(partition, offset, (record.as_ref(), value), &mut changes.passed_over)?;
            if let Some(Record::Commit(commit)) = record
                && counts.contains(&true)
            {
                standing.times.note(commit);
                changes.moved.insert(partition);
                changes.commits += 1;
                self.parked.take((partition, offset, value), commit, &mut counts, &mut changes.parked);
                self.commit(partition, offset, commit, counts, &mut changes)?;
            }
        }
        self.finish(&mut changes);
        Ok(changes)
    }

    /// The rows of what changed, each once, as it is now.
    fn finish(&mut self, changes: &mut Changes) {
        changes.products = drain_rows(&mut self.changed_products, &self.products);
        changes.orders = drain_rows(&mut self.changed_orders, &self.orders);
    }

    /// What was parked of a view, whether it counts was decided then.
    pub(crate) fn refold(&mut self, records: &Records<'_>, view: usize) -> Result<Changes, FoldError> {
        let mut changes = Changes::default();
        for (partition, offset, _, record) in &records.0 {
            if let Some(Record::Commit(commit)) = record {
                let counts = std::array::from_fn(|feed| feed == view);
                self.commit(*partition, *offset, commit, counts, &mut changes)?;
            }
        }
        self.finish(&mut changes);
        Ok(changes)
    }

    fn commit(
        &mut self,
        partition: u32,
        offset: i64,
        commit: &Commit<'_>,
        counts: [bool; FEEDS.len()],
        changes: &mut Changes,
    ) -> Result<(), FoldError> {
        // What it leaves half done is dropped by whoever hears of it.
        let folded = catch_unwind(AssertUnwindSafe(|| self.fold_commit(partition, offset, commit, counts, changes)));
        folded.map_err(|panic| FoldError::Panicked {
            view: self.at,
            aggregate: commit.aggregate.to_string(),
            reason: poison::panic_text(panic.as_ref()),
        })
    }

    fn fold_commit(
        &mut self,
        partition: u32,
        offset: i64,
        commit: &Commit<'_>,
        counts: [bool; FEEDS.len()],
        changes: &mut Changes,
    ) {
        self.at = JOURNAL_INDEX;
        if counts[JOURNAL_INDEX] {
            changes.journal.push(partition, offset, commit);
            if snapshots::is_due(commit) {
                changes.due.push((commit.aggregate.to_string(), commit.version));
            }
        }
        let id = commit.aggregate.split_once('/').map_or("", |(_, id)| id);
        for event in &commit.events {
            match event.upcast() {
                Event::Product(event) if counts[PRODUCT_INDEX] => {
                    self.at = PRODUCT_INDEX;
                    let (id, row) = take_row(&mut self.products, id);
                    if let Some(row) = product::fold(row, &event) {
                        self.products.insert(id, (commit.version, row));
                    }
                }
                Event::Product(_) => {}
                Event::Order(event) => {
                    if counts[ORDER_INDEX] {
                        self.at = ORDER_INDEX;
                        let (id, row) = take_row(&mut self.orders, id);
                        if let Some(row) = order::fold(row, &event) {
                            self.orders.insert(id, (commit.version, row));
                        }
                    }
                    self.sums(partition, &event, counts, changes);
                }
            }
        }
        // Rows of a view that did not count this are another projector's to write.
        let is_of = |kind: &str, view: usize| counts[view] && commit.aggregate.starts_with(kind);
        if is_of("product/", PRODUCT_INDEX) && !self.changed_products.contains(id) {
            self.changed_products.insert(id.to_owned());
        }
        if is_of("order/", ORDER_INDEX) && !self.changed_orders.contains(id) {
            self.changed_orders.insert(id.to_owned());
        }
    }

    fn sums(
        &mut self,
        partition: u32,
        event: &domain::order::Event,
        counts: [bool; FEEDS.len()],
        changes: &mut Changes,
    ) {
        self.at = CUSTOMER_INDEX;
        if let Some((customer, delta)) = customer::delta(event).filter(|_| counts[CUSTOMER_INDEX]) {
            let key = (customer.to_owned(), partition);
            changes.customers.entry(key).and_modify(|sum| sum.add(&delta)).or_insert(delta);
        }
        self.at = REVENUE_INDEX;
        if let Some((day, delta)) = revenue::delta(event).filter(|_| counts[REVENUE_INDEX]) {
            changes.revenue.entry((day, partition)).and_modify(|sum| sum.add(&delta)).or_insert(delta);
        }
    }
}

fn drain_rows<T: Clone>(changed: &mut HashSet<String>, rows: &HashMap<String, (u64, T)>) -> HashMap<String, (u64, T)> {
    let row = |id: String| rows.get(&id).cloned().map(|row| (id, row));
    changed.drain().filter_map(row).collect()
}

/// Out of the map, with the key that it had there.
fn take_row<T>(rows: &mut HashMap<String, (u64, T)>, id: &str) -> (String, Option<T>) {
    match rows.remove_entry(id) {
        Some((id, (_, row))) => (id, Some(row)),
        None => (id.to_owned(), None),
    }
}

#[cfg(test)]
mod tests;
