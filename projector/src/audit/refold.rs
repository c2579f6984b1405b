//! What the log says: the checkpoints' tallies, and the rows of the sample.

use domain::Event;
use schemas::chain::{Digest, Reader, Tally, Verdict};
use schemas::record::{Commit, Record};
use schemas::views::customer::{self, CustomerDelta, CustomerRow};
use schemas::views::order::{self, OrderRow};
use schemas::views::product::{self, ProductRow};
use schemas::views::revenue::{self, RevenueDelta};
use schemas::views::{CUSTOMER, FEEDS, ORDER, PRODUCT, REVENUE};
use serde::Serialize;

use super::sample::Sample;
use crate::fold::FoldError;
use crate::log::Batch;

const PRODUCT_INDEX: usize = 0;
const ORDER_INDEX: usize = 1;
const CUSTOMER_INDEX: usize = 2;
const REVENUE_INDEX: usize = 3;
const JOURNAL_INDEX: usize = 4;

/// How far a view is folded in a partition, and how far it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Feed {
    pub(super) reader: Reader,
    pub(super) tally: Tally,
    tally_from: i64,
    until: i64,
}

/// A row of a view with its version, if its events made one.
type Row<T> = (u64, Option<T>);

pub(super) struct Refold {
    /// By partition and view.
    feeds: Vec<[Feed; FEEDS.len()]>,
    products: Sample<Row<ProductRow>>,
    orders: Sample<Row<OrderRow>>,
    customers: Sample<Option<CustomerDelta>>,
    revenue: Sample<Option<RevenueDelta>>,
    /// Versions of aggregates.
    journal: Sample<u64>,
    pub(super) commits: u64,
}

/// A row as readers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReadRow {
    pub(super) version: u64,
    pub(super) data: String,
}

impl Refold {
    /// `most`: rows of a view, or all. `tally_from`: the offset from which each view's tally counts in each partition.
    pub(super) fn new(most: Option<usize>, tally_from: &[[i64; FEEDS.len()]]) -> Self {
        let feed = |tally_from| Feed { reader: Reader::START, tally: Tally::default(), tally_from, until: 0 };
        Self {
            feeds: tally_from.iter().map(|views| views.map(feed)).collect(),
            products: Sample::new(most),
            orders: Sample::new(most),
            customers: Sample::new(most),
            revenue: Sample::new(most),
            journal: Sample::new(most),
            commits: 0,
        }
    }

    /// What comes at these offsets and behind is left alone.
    pub(super) fn limit(&mut self, until: &[[i64; FEEDS.len()]]) {
        for (feeds, until) in self.feeds.iter_mut().zip(until) {
            for (feed, until) in feeds.iter_mut().zip(until) {
                feed.until = *until;
            }
        }
    }

    /// From now on no row comes that was not there.
    pub(super) fn close_sample(&mut self) {
        self.products.close();
        self.orders.close();
        self.customers.close();
        self.revenue.close();
        self.journal.close();
    }

    pub(super) fn is_at_its_limit(&self) -> bool {
        self.feeds.iter().flatten().all(|feed| feed.reader.next_offset >= feed.until)
    }

    /// Where to read on, by partition.
    pub(super) fn from(&self) -> Vec<i64> {
        let next = |feeds: &[Feed; FEEDS.len()]| feeds.iter().map(|feed| feed.reader.next_offset).min();
        self.feeds.iter().map(|feeds| next(feeds).unwrap_or_default()).collect()
    }

    pub(super) fn feeds(&self) -> impl Iterator<Item = (u32, &[Feed; FEEDS.len()])> {
        (0..).zip(&self.feeds)
    }

    pub(super) fn take(&mut self, batch: &Batch) -> Result<(), FoldError> {
        for (partition, offset, value) in batch.iter() {
            let record = Record::decode(value).map_err(|source| FoldError::Record { partition, offset, source })?;
            let digest = Digest::of(value);
            let mut counts = [false; FEEDS.len()];
            for (feed, counts) in self.feeds[partition as usize].iter_mut().zip(&mut counts) {
                let read = feed.take(offset, record.as_ref(), digest);
                *counts = read.map_err(|source| FoldError::Chain { partition, source })?;
            }
            if let Some(Record::Commit(commit)) = record
                && counts.contains(&true)
            {
                self.commits += 1;
                self.commit(&commit, counts);
            }
        }
        Ok(())
    }

    fn commit(&mut self, commit: &Commit<'_>, counts: [bool; FEEDS.len()]) {
        if counts[JOURNAL_INDEX]
            && let Some(version) = self.journal.entry(&commit.aggregate)
        {
            *version = commit.version;
        }
        let id = commit.aggregate.split_once('/').map_or("", |(_, id)| id);
        for event in &commit.events {
            match event.upcast() {
                Event::Product(event) => {
                    if counts[PRODUCT_INDEX]
                        && let Some(row) = self.products.entry(id)
                    {
                        *row = (commit.version, product::fold(row.1.take(), &event));
                    }
                }
                Event::Order(event) => {
                    if counts[ORDER_INDEX]
                        && let Some(row) = self.orders.entry(id)
                    {
                        *row = (commit.version, order::fold(row.1.take(), &event));
                    }
                    self.sums(&event, counts);
                }
            }
        }
    }

    fn sums(&mut self, event: &domain::order::Event, counts: [bool; FEEDS.len()]) {
        if let Some((key, delta)) = customer::delta(event).filter(|_| counts[CUSTOMER_INDEX])
            && let Some(sum) = self.customers.entry(key)
        {
            match sum {
                Some(sum) => sum.add(&delta),
                None => *sum = Some(delta),
            }
        }
        if let Some((key, delta)) = revenue::delta(event).filter(|_| counts[REVENUE_INDEX])
            && let Some(sum) = self.revenue.entry(&key)
        {
            match sum {
                Some(sum) => sum.add(&delta),
                None => *sum = Some(delta),
            }
        }
    }

    /// The rows of a view that the log says there are; of the journal, how many events each aggregate has.
    pub(super) fn rows(&self, view: &str) -> Vec<(&str, ReadRow)> {
        let row = |version, data: String| ReadRow { version, data };
        if view == PRODUCT.name {
            let made = self.products.iter().filter_map(|(key, (version, data))| Some((key, *version, data.as_ref()?)));
            made.map(|(key, version, data)| (key, row(version, json(data)))).collect()
        } else if view == ORDER.name {
            let made = self.orders.iter().filter_map(|(key, (version, data))| Some((key, *version, data.as_ref()?)));
            made.map(|(key, version, data)| (key, row(version, json(data)))).collect()
        } else if view == CUSTOMER.name {
            let made = self.customers.iter().filter_map(|(key, sum)| Some((key, sum.as_ref()?)));
            made.map(|(key, sum)| (key, row(sum.events.cast_unsigned(), json(&CustomerRow::from(sum))))).collect()
        } else if view == REVENUE.name {
            let made = self.revenue.iter().filter_map(|(key, sum)| Some((key, sum.as_ref()?)));
            made.map(|(key, sum)| (key, row(sum.events.cast_unsigned(), json(&sum.sums)))).collect()
        } else {
            let events = |version: &u64| row(*version, version.to_string());
            self.journal.iter().map(|(aggregate, version)| (aggregate, events(version))).collect()
        }
    }
}

impl Feed {
    /// Whether the record counts.
    fn take(
        &mut self,
        offset: i64,
        record: Option<&Record<'_>>,
        digest: Digest,
    ) -> Result<bool, schemas::chain::ChainError> {
        if offset >= self.until || offset < self.reader.next_offset {
            return Ok(false);
        }
        let verdict = self.reader.read(offset, record)?;
        if matches!(verdict, Verdict::Counts | Verdict::Claimed(_)) && offset >= self.tally_from {
            self.tally.take(offset, digest);
        }
        Ok(verdict == Verdict::Counts)
    }
}

fn json(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("rows hold nothing that JSON cannot")
}
