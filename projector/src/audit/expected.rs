//! Folds the log into the state that is expected: the checkpoints' tallies, and the rows of the sample.

use std::collections::HashMap;

use domain::TimeMs;
use schemas::aggregate::type_name;
use schemas::chain::{Digest, Reader, Tally, Verdict};
use schemas::exceptions::Exceptions;
use schemas::feeds::{FeedId, PerFeed, PerView, StoredView};
use schemas::journal::{Hash, SegmentHashes};
use schemas::record::{Commit, Record};
use schemas::views::sums::Delta;
use schemas::views::{AggregateRow, RowFold, Source};
use serde::Serialize;

use super::actual::{Checkpoint, ReadRow};
use super::compare::{self, Difference};
use super::sample::Sample;
use crate::fold::{FoldError, Records};
use crate::log_reader::{Batch, RawRecord};

/// Progress of a feed in a partition, and the offset at which it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Feed {
    pub(super) at: Checkpoint,
    until: i64,
}

/// Result of folding the events of a row.
#[derive(Debug, Default)]
struct Folded {
    version: u64,
    row: Option<AggregateRow>,
    sum: Option<Delta>,
}

pub(super) struct Expected {
    /// Progress of each feed, by partition.
    feeds: Vec<PerFeed<Feed>>,
    /// Hashes of the journal's segments, by partition.
    segments: Vec<SegmentHashes>,
    views: PerView<Sample<Folded>>,
    /// Versions of the journal's aggregates.
    journal: Sample<u64>,
    /// Rows in Redis whose versions are not folded yet.
    newer: PerView<HashMap<String, ReadRow>>,
    /// Differences of such rows whose versions have been folded since.
    differences: Vec<Difference>,
    pub(super) commits: u64,
}

impl Expected {
    /// Returns an empty fold. `most`: number of rows of a view, or all. `tally_from`: the offset from which each feed's
    /// tally counts in each partition.
    pub(super) fn new(most: Option<usize>, tally_from: &[PerFeed<i64>]) -> Self {
        let feed = |tally_from| Feed {
            at: Checkpoint { reader: Reader::START, tally: Tally::default(), tally_from },
            until: 0,
        };
        Self {
            feeds: tally_from.iter().map(|feeds| feeds.map(feed)).collect(),
            segments: tally_from.iter().map(|_| SegmentHashes::default()).collect(),
            views: std::array::from_fn(|_| Sample::new(most)),
            journal: Sample::new(most),
            newer: PerView::default(),
            differences: Vec::new(),
            commits: 0,
        }
    }

    /// Sets the offsets at which each feed stops.
    pub(super) fn limit(&mut self, until: &[PerFeed<i64>]) {
        for (feeds, until) in self.feeds.iter_mut().zip(until) {
            for (feed, until) in feeds.iter_mut().zip(until) {
                feed.until = *until;
            }
        }
    }

    /// Closes the samples: from now on they take no new key.
    pub(super) fn close_sample(&mut self) {
        self.views.iter_mut().for_each(Sample::close);
        self.journal.close();
    }

    /// Registers rows, each to be compared with the log at its own version.
    pub(super) fn expect(&mut self, view: StoredView, newer: Vec<(String, ReadRow)>) {
        self.newer[view].extend(newer);
    }

    /// Returns the differences of the registered rows. A version that the log does not have is a difference, too.
    pub(super) fn differences(&mut self) -> Vec<Difference> {
        let mut differences = std::mem::take(&mut self.differences);
        for view in StoredView::all() {
            let unknown = |(key, found): (String, ReadRow)| compare::unknown(view.name(), &key, &found);
            differences.extend(self.newer[view].drain().map(unknown));
        }
        differences
    }

    pub(super) fn is_at_its_limit(&self) -> bool {
        self.feeds.iter().flatten().all(|feed| feed.at.reader.next_offset >= feed.until)
    }

    /// Returns the offset to read from in each partition.
    pub(super) fn from(&self) -> Vec<i64> {
        let next = |feeds: &PerFeed<Feed>| feeds.iter().map(|feed| feed.at.reader.next_offset).min();
        self.feeds.iter().map(|feeds| next(feeds).unwrap_or_default()).collect()
    }

    /// Returns the hash of a segment's records; `None`: it has none.
    pub(super) fn hash(&self, partition: u32, segment: i64) -> Option<Hash> {
        self.segments.get(partition as usize)?.hash(segment)
    }

    pub(super) fn feeds(&self) -> impl Iterator<Item = (u32, &PerFeed<Feed>)> {
        (0..).zip(&self.feeds)
    }

    pub(super) fn take(&mut self, batch: &Batch, exceptions: &Exceptions) -> Result<(), FoldError> {
        for (RawRecord { partition, offset, value }, record) in Records::of(batch, exceptions)?.iter() {
            let digest = Digest::of(value);
            self.segments[partition as usize].take(offset, value);
            let mut counts = [false; FeedId::COUNT];
            for (feed, counts) in self.feeds[partition as usize].iter_mut().zip(&mut counts) {
                let read = feed.take(offset, record, digest);
                *counts = read.map_err(|source| FoldError::Chain { partition, source })?;
            }
            if let Some(Record::Commit(commit)) = record
                && counts.contains(&true)
            {
                self.commits += 1;
                self.commit(commit, counts);
            }
        }
        Ok(())
    }

    fn commit(&mut self, commit: &Commit<'_>, counts: PerFeed<bool>) {
        if counts[FeedId::Journal]
            && let Some(version) = self.journal.entry(&commit.aggregate)
        {
            *version = commit.version;
        }
        let id = commit.aggregate.split_once('/').map_or("", |(_, id)| id);
        for event in &commit.events {
            let event = event.upcast();
            for view in StoredView::all().into_iter().filter(|view| counts[FeedId::View(*view)]) {
                let rows = &mut self.views[view];
                match view.view().source {
                    Source::Aggregate(fold) if fold.aggregate == event.aggregate() => {
                        if let Some(folded) = rows.entry(id) {
                            folded.version = commit.version;
                            folded.row = (fold.fold)(folded.row.take(), &event, TimeMs(commit.at_ms));
                        }
                    }
                    Source::Sum(fold) => {
                        if let Some((key, delta)) = (fold.delta)(id, &event)
                            && let Some(folded) = rows.entry(&key)
                        {
                            folded.sum.get_or_insert_default().add(&delta);
                        }
                    }
                    Source::Aggregate(_) | Source::View(_) => {}
                }
            }
        }
        for view in StoredView::all().into_iter().filter(|view| counts[FeedId::View(*view)]) {
            if let Source::Aggregate(fold) = view.view().source {
                self.compare_newer(view, fold, commit, id);
            }
        }
    }

    fn compare_newer(&mut self, view: StoredView, fold: RowFold, commit: &Commit<'_>, id: &str) {
        let (newer, version) = (&mut self.newer[view], commit.version);
        if newer.get(id).is_none_or(|found| found.version != version)
            || !commit.aggregate.starts_with(type_name(fold.aggregate))
        {
            return;
        }
        let (Some(found), Some(folded)) = (newer.remove(id), self.views[view].entry(id)) else { return };
        let row = folded.row.as_ref().map(|row| ReadRow { version, data: json(row) });
        self.differences.extend(match row {
            Some(expected) => compare::cached(view.name(), id, &expected, &found),
            None => Some(compare::unknown(view.name(), id, &found)),
        });
    }

    /// Returns the expected rows of a view; of the journal, the number of events of each aggregate.
    pub(super) fn rows(&self, feed: FeedId) -> Vec<(&str, ReadRow)> {
        let FeedId::View(view) = feed else {
            let events = |version: &u64| ReadRow { version: *version, data: version.to_string() };
            return self.journal.iter().map(|(aggregate, version)| (aggregate, events(version))).collect();
        };
        let row = |key: &str, folded: &Folded| match view.view().source {
            Source::Aggregate(_) => Some(ReadRow { version: folded.version, data: json(folded.row.as_ref()?) }),
            Source::Sum(fold) => {
                let sum = folded.sum.as_ref()?;
                Some(ReadRow { version: sum.events.cast_unsigned(), data: (fold.row)(key, sum) })
            }
            Source::View(_) => None,
        };
        self.views[view].iter().filter_map(|(key, folded)| Some((key, row(key, folded)?))).collect()
    }
}

impl Feed {
    /// Folds a record, unless it was folded before or is beyond the limit. Returns whether it counts.
    fn take(
        &mut self,
        offset: i64,
        record: Option<&Record<'_>>,
        digest: Digest,
    ) -> Result<bool, schemas::chain::ChainError> {
        if offset >= self.until || offset < self.at.reader.next_offset {
            return Ok(false);
        }
        let verdict = self.at.reader.read(offset, record)?;
        if matches!(verdict, Verdict::Counts | Verdict::Claimed(_)) && offset >= self.at.tally_from {
            self.at.tally.take(offset, digest);
        }
        Ok(verdict == Verdict::Counts)
    }
}

fn json(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("every row can be serialized as JSON")
}
