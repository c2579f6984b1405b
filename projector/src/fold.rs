//! From a batch of records to what it changes in every view. No I/O: rows that it needs are asked for first.
//!
//! Invariant: a record is folded into a view at most once, in offset order, and only if it counts by the reader's
//! rule from where that view stands.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use domain::Event;
use schemas::chain::{ChainError, Digest, Passed, Reader, Tally, Verdict};
use schemas::idempotency::IdempotencyKey;
use schemas::record::{Commit, Record, RecordError};
use schemas::views::FEEDS;
use schemas::views::customer::{self, CustomerDelta};
use schemas::views::order::{self, OrderRow};
use schemas::views::product::{self, ProductRow};
use schemas::views::revenue::{self, RevenueDelta};

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

/// Where the views stand in one partition.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// One a view, in the order of [`FEEDS`].
    pub(crate) readers: [Reader; FEEDS.len()],
    /// Those of them that are folded here.
    feeds: Feeds,
    /// Of what each counted.
    pub(crate) tallies: [Tally; FEEDS.len()],
    /// Which making of its rows each is.
    pub(crate) generations: [i32; FEEDS.len()],
    /// See `V7__parked.sql`.
    pub(crate) revisions: [i64; FEEDS.len()],
    /// Whether the record that each view counted last was seen again since the start.
    recognized: [bool; FEEDS.len()],
    /// The partition's first claim, once known.
    pub(crate) nonce: Option<u64>,
    pub(crate) times: Times,
}

/// Of the commits that were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) last_at_ms: u64,
    /// The latest time that a key told.
    pub(crate) max_key_ms: u64,
}

impl Times {
    fn note(&mut self, commit: &Commit<'_>) {
        self.last_at_ms = self.last_at_ms.max(commit.at_ms);
        let key = IdempotencyKey::from_bare(&commit.command_id).ok().and_then(|key| key.time());
        self.max_key_ms = self.max_key_ms.max(key.map_or(0, |time| time.0));
    }
}

impl Standing {
    pub(crate) fn new(readers: [Reader; FEEDS.len()], feeds: Feeds, nonce: Option<u64>) -> Self {
        let recognized = readers.map(|reader| reader.last_counted < 0);
        let (tallies, generations, revisions) = (Default::default(), [1; FEEDS.len()], [0; FEEDS.len()]);
        Self { recognized, readers, feeds, nonce, tallies, generations, revisions, times: Times::default() }
    }

    /// Where to read from: the last record that the hindmost view counted is read again.
    pub(crate) fn from(&self) -> i64 {
        self.feeds.iter().map(|feed| self.readers[feed].last_counted.max(0)).min().unwrap_or(0)
    }
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
        Self { products: HashMap::new(), orders: HashMap::new(), max_rows, parked: Parked::default(), at: 0 }
    }

    /// Whether it will let go of its rows at the next [`Self::missing`]: what it changed must be in Postgres by then.
    pub(crate) fn is_full(&self) -> bool {
        self.products.len().max(self.orders.len()) > self.max_rows
    }

    /// What [`Self::fold`] will ask for. Records that do not decode are that one's business.
    pub(crate) fn missing(&mut self, batch: &Batch, feeds: Feeds) -> Missing {
        if self.is_full() {
            self.clear();
        }
        let (of_products, of_orders) = (feeds.contain(PRODUCT_INDEX), feeds.contain(ORDER_INDEX));
        let (mut products, mut orders) = (HashSet::new(), HashSet::new());
        for (_, _, value) in batch.iter() {
            let Ok(Some(Record::Commit(commit))) = Record::decode(value) else { continue };
            // An aggregate's first commit has no row before it.
            if commit.version == commit.events.len() as u64 {
                continue;
            }
            match commit.aggregate.split_once('/') {
                Some(("product", id)) if of_products && !self.products.contains_key(id) => {
                    products.insert(id.to_owned())
                }
                Some(("order", id)) if of_orders && !self.orders.contains_key(id) => orders.insert(id.to_owned()),
                Some(_) | None => continue,
            };
        }
        Missing { products: products.into_iter().collect(), orders: orders.into_iter().collect() }
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
    }

    pub(crate) fn fold(&mut self, batch: &Batch, standings: &mut [Standing]) -> Result<Changes, FoldError> {
        let mut changes = Changes::default();
        for (partition, offset, value) in batch.iter() {
            let record = Record::decode(value).map_err(|source| FoldError::Record { partition, offset, source })?;
            let standing = &mut standings[partition as usize];
            let mut counts = standing.read(partition, offset, (record.as_ref(), value), &mut changes.passed_over)?;
            if let Some(Record::Commit(commit)) = record
                && counts.contains(&true)
            {
                standing.times.note(&commit);
                changes.moved.insert(partition);
                changes.commits += 1;
                self.parked.take((partition, offset, value), &commit, &mut counts, &mut changes.parked);
                self.commit(partition, offset, &commit, counts, &mut changes)?;
            }
        }
        Ok(changes)
    }

    /// What was parked of a view, whether it counts was decided then.
    pub(crate) fn refold(&mut self, batch: &Batch, view: usize) -> Result<Changes, FoldError> {
        let mut changes = Changes::default();
        for (partition, offset, value) in batch.iter() {
            let record = Record::decode(value).map_err(|source| FoldError::Record { partition, offset, source })?;
            if let Some(Record::Commit(commit)) = record {
                let counts = std::array::from_fn(|feed| feed == view);
                self.commit(partition, offset, &commit, counts, &mut changes)?;
            }
        }
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
                    let row = self.products.remove(id).map(|(_, row)| row);
                    if let Some(row) = product::fold(row, &event) {
                        self.products.insert(id.to_owned(), (commit.version, row));
                    }
                }
                Event::Product(_) => {}
                Event::Order(event) => {
                    if counts[ORDER_INDEX] {
                        self.at = ORDER_INDEX;
                        let row = self.orders.remove(id).map(|(_, row)| row);
                        if let Some(row) = order::fold(row, &event) {
                            self.orders.insert(id.to_owned(), (commit.version, row));
                        }
                    }
                    self.sums(partition, &event, counts, changes);
                }
            }
        }
        // Rows of a view that did not count this are another projector's to write.
        let is_of = |kind: &str, view: usize| counts[view] && commit.aggregate.starts_with(kind);
        if let Some(row) = self.products.get(id).filter(|_| is_of("product/", PRODUCT_INDEX)) {
            changes.products.insert(id.to_owned(), row.clone());
        }
        if let Some(row) = self.orders.get(id).filter(|_| is_of("order/", ORDER_INDEX)) {
            changes.orders.insert(id.to_owned(), row.clone());
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

impl Standing {
    /// For which views the record counts.
    fn read(
        &mut self,
        partition: u32,
        offset: i64,
        (record, value): (Option<&Record<'_>>, &[u8]),
        passed_over: &mut Vec<Passed>,
    ) -> Result<[bool; FEEDS.len()], FoldError> {
        if let (0, Some(Record::Claim(claim))) = (offset, record)
            && *self.nonce.get_or_insert(claim.nonce) != claim.nonce
        {
            return Err(FoldError::OtherLog { partition });
        }
        let mut counts = [false; FEEDS.len()];
        let mut passed = None;
        let digest = Digest::of(value);
        for feed in self.feeds.iter() {
            let (reader, recognized) = (&mut self.readers[feed], &mut self.recognized[feed]);
            if offset < reader.next_offset {
                if offset == reader.last_counted && !reader.recognizes(record) {
                    return Err(FoldError::OtherHistory { partition, offset });
                }
                *recognized |= offset == reader.last_counted;
                continue;
            }
            if !*recognized {
                return Err(FoldError::OtherHistory { partition, offset: reader.last_counted });
            }
            match reader.read(offset, record).map_err(|source| FoldError::Chain { partition, source })? {
                Verdict::Counts => {
                    counts[feed] = true;
                    self.tallies[feed].take(offset, digest);
                }
                Verdict::Claimed(_) => self.tallies[feed].take(offset, digest),
                Verdict::PassedOver(reason) => passed = Some(reason),
            }
        }
        passed_over.extend(passed);
        Ok(counts)
    }
}

#[cfg(test)]
mod tests;
