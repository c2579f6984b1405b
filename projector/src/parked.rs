//! The aggregates that a view cannot take, and their records, which are parked until an operator intervenes.

use std::collections::HashMap;

use schemas::feeds::{FeedId, PerFeed, PerView, StoredView};
use schemas::record::Commit;
use schemas::views::Source;

use crate::log_reader::RawRecord;
use crate::share::Place;

/// View name under which the records whose reactions failed are listed. The reactor's checkpoints have it, too.
pub(crate) const REACTOR: &str = "reactor";
/// View name under which failed deadlines are listed.
pub(crate) const DEADLINES: &str = "deadlines";

/// The aggregates that are parked for each view, with the reason until it is stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parked(PerView<HashMap<String, Option<String>>>);

/// The place of a parked record among those of its view.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ParkedAt {
    pub(crate) aggregate: String,
    pub(crate) offset: i64,
}

impl ParkedAt {
    /// Returns the columns of these places.
    pub(crate) fn columns<'a>(places: impl IntoIterator<Item = &'a Self>) -> (Vec<&'a str>, Vec<i64>) {
        places.into_iter().map(|at| (at.aggregate.as_str(), at.offset)).unzip()
    }
}

/// A record that is parked for a view or the reactor.
#[derive(Debug)]
pub(crate) struct ParkedRecord {
    pub(crate) view: &'static str,
    pub(crate) aggregate: String,
    pub(crate) partition: u32,
    pub(crate) offset: i64,
    pub(crate) version: u64,
    pub(crate) reason: Option<String>,
    pub(crate) record: Vec<u8>,
}

impl Parked {
    pub(crate) fn insert(&mut self, view: StoredView, aggregate: &str, reason: Option<String>) {
        self.0[view].insert(aggregate.to_owned(), reason);
    }

    pub(crate) fn contains(&self, view: StoredView, aggregate: &str) -> bool {
        self.0[view].contains_key(aggregate)
    }

    /// Returns whether an aggregate of a partition is parked for the view.
    pub(crate) fn are_in(&self, Place { feed, partition }: Place, partitions: u32) -> bool {
        let FeedId::View(view) = feed else { return false };
        self.0[view].keys().any(|aggregate| partition_of(view, aggregate, partitions).is_none_or(|is| is == partition))
    }

    /// Returns the number of parked aggregates of each view.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        StoredView::all().into_iter().map(|view| (view.name(), self.0[view].len()))
    }

    /// Parks a record for the views for which its aggregate is parked, and clears their `counts`.
    pub(crate) fn take(
        &mut self,
        RawRecord { partition, offset, value }: RawRecord<'_>,
        commit: &Commit<'_>,
        counts: &mut PerFeed<bool>,
        records: &mut Vec<ParkedRecord>,
    ) {
        for (view, parked) in StoredView::all().into_iter().zip(&mut self.0).filter(|(_, parked)| !parked.is_empty()) {
            let counts = &mut counts[FeedId::View(view)];
            let Some(reason) = parked.get_mut(&*commit.aggregate).filter(|_| *counts) else { continue };
            *counts = false;
            records.push(ParkedRecord {
                view: view.name(),
                aggregate: commit.aggregate.to_string(),
                partition,
                offset,
                version: commit.version,
                reason: reason.take(),
                record: value.to_vec(),
            });
        }
    }
}

/// Returns the partition of an aggregate, if each aggregate has its own row in the view.
pub(crate) fn partition_of(view: StoredView, aggregate: &str, partitions: u32) -> Option<u32> {
    let (Source::Aggregate(row), Some((_, id))) = (view.view().source, aggregate.split_once('/')) else { return None };
    Some(schemas::aggregate::partition(row.aggregate, id, partitions))
}
