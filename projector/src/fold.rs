//! Folds a batch of records into changes to every view. No I/O: the caller loads the rows that are needed beforehand.
//!
//! Invariant: a record is folded into a view at most once, in offset order, and only if it counts by the reader's
//! rule from that view's checkpoint on.

mod error;
mod progress;

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use domain::{Event, TimeMs};
use schemas::aggregate::type_name;
use schemas::chain::Passed;
use schemas::exceptions::Exceptions;
use schemas::feeds::{FeedId, PerFeed, PerView, StoredView};
use schemas::record::{Commit, Record};
use schemas::views::sums::Delta;
use schemas::views::{AggregateRow, Source};

pub(crate) use error::FoldError;
pub(crate) use progress::{Progress, Times};

use crate::config::Feeds;
use crate::journal::JournalRows;
use crate::log_reader::{Batch, RawRecord};
use crate::parked::{Parked, ParkedRecord};
use crate::snapshots;

/// Rows of a view that one aggregate feeds, by key, with their versions.
pub(crate) type Rows = HashMap<String, (u64, AggregateRow)>;

/// Maximum number of a view's rows in memory; at the limit all are evicted.
const MAX_CACHED_ROWS: usize = 10_000;

/// The changes that one or more batches made.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// New rows of views that a single aggregate feeds.
    pub(crate) rows: PerView<Rows>,
    /// Rows from another source than Postgres on which `rows` were folded, see [`Folder::remember_unproved`].
    pub(crate) bases: PerView<Rows>,
    /// Deltas of views that many aggregates feed, by key and partition.
    pub(crate) sums: PerView<HashMap<(String, u32), Delta>>,
    pub(crate) journal: JournalRows,
    /// Aggregates of which a snapshot is due, with their versions.
    pub(crate) due: Vec<(String, u64)>,
    pub(crate) commits: usize,
    /// Partitions in which a commit counted.
    pub(crate) moved: HashSet<u32>,
    pub(crate) passed_over: Vec<Passed>,
    pub(crate) parked: Vec<ParkedRecord>,
}

/// The records of a batch, decoded once, with their content, which a foreign record does not have.
pub(crate) struct Records<'a> {
    read: Vec<(RawRecord<'a>, Option<Record<'a>>)>,
    bytes: &'a Bytes,
}

impl<'a> Records<'a> {
    pub(crate) fn of(batch: &'a Batch, exceptions: &Exceptions) -> Result<Self, FoldError> {
        let read = |raw: RawRecord<'a>| Ok((raw, exceptions.decode((raw.partition, raw.offset), raw.value)?));
        Ok(Self { read: batch.iter().map(read).collect::<Result<_, FoldError>>()?, bytes: batch.bytes() })
    }

    pub(crate) fn len(&self) -> usize {
        self.read.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (RawRecord<'a>, Option<&Record<'a>>)> {
        self.read.iter().map(|(raw, record)| (*raw, record.as_ref()))
    }

    pub(crate) fn commits(&self) -> impl Iterator<Item = &Commit<'a>> {
        self.read.iter().filter_map(|(_, record)| match record {
            Some(Record::Commit(commit)) => Some(commit),
            _ => None,
        })
    }
}

/// An event, with the aggregate's id, its commit's version and time, and its partition.
struct Occurrence<'a> {
    partition: u32,
    version: u64,
    at: TimeMs,
    id: &'a str,
    event: Event,
}

/// Keys of rows that a batch changes and that are not in memory, with the versions that they have before.
pub(crate) type Missing = PerView<HashMap<String, u64>>;

#[derive(Debug)]
pub(crate) struct Folder {
    rows: PerView<Rows>,
    /// Rows for the next batch that did not come from Postgres.
    unproved: PerView<Rows>,
    /// Keys of rows that the current batch has changed.
    changed: PerView<HashSet<String>>,
    max_rows: usize,
    pub(crate) parked: Parked,
    /// The feed that is being folded, to be named if the fold panics.
    at: FeedId,
}

impl Default for Folder {
    fn default() -> Self {
        Self::with_room(MAX_CACHED_ROWS)
    }
}

impl Changes {
    /// Adds the changes of a later batch.
    pub(crate) fn merge(&mut self, later: Self) {
        for (rows, later) in self.rows.iter_mut().zip(later.rows) {
            rows.extend(later);
        }
        for (bases, later) in self.bases.iter_mut().zip(later.bases) {
            bases.extend(later);
        }
        for (sums, later) in self.sums.iter_mut().zip(later.sums) {
            for (key, delta) in later {
                sums.entry(key).and_modify(|sum| sum.add(&delta)).or_insert(delta);
            }
        }
        self.journal.append(later.journal);
        self.due.extend(later.due);
        self.commits += later.commits;
        self.moved.extend(later.moved);
        self.passed_over.extend(later.passed_over);
        self.parked.extend(later.parked);
    }

    /// Returns the number of rows and sums.
    pub(crate) fn len(&self) -> usize {
        self.rows.iter().map(HashMap::len).chain(self.sums.iter().map(HashMap::len)).sum()
    }

    /// Returns the keys of rows and sums, with duplicates.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        let parts = self.sums.iter().flat_map(HashMap::keys).map(|(key, _)| key);
        self.rows.iter().flat_map(HashMap::keys).chain(parts)
    }
}

impl Folder {
    /// Returns a folder that keeps `max_rows` rows of each view in memory.
    pub(crate) fn with_room(max_rows: usize) -> Self {
        let (rows, unproved, changed) = Default::default();
        Self { rows, unproved, changed, max_rows, parked: Parked::default(), at: FeedId::Journal }
    }

    /// Returns whether rows should be evicted.
    pub(crate) fn is_full(&self) -> bool {
        self.rows.iter().any(|rows| rows.len() > self.max_rows)
    }

    /// Evicts all rows except those that Postgres may lack.
    pub(crate) fn let_go(&mut self, lacking: &[&Changes]) {
        for view in StoredView::all() {
            self.rows[view].retain(|key, _| lacking.iter().any(|changes| changes.rows[view].contains_key(key)));
        }
    }

    /// Returns the rows that [`Self::fold`] needs and that are not in memory.
    pub(crate) fn missing(&mut self, records: &Records<'_>, feeds: Feeds) -> Missing {
        let mut missing: PerView<HashMap<&str, u64>> = Default::default();
        for commit in records.commits() {
            // An aggregate's first commit has no row before it.
            let Some(before @ 1..) = commit.version.checked_sub(commit.events.len() as u64) else { continue };
            let Some((kind, id)) = commit.aggregate.split_once('/') else { continue };
            for view in StoredView::all() {
                if feeds.contain(FeedId::View(view)) && is_of(view, kind) && !self.rows[view].contains_key(id) {
                    missing[view].entry(id).or_insert(before);
                }
            }
        }
        missing.map(|keys| keys.into_iter().map(|(key, version)| (key.to_owned(), version)).collect())
    }

    /// Adds rows from Postgres, by view.
    pub(crate) fn remember(&mut self, rows: impl IntoIterator<Item = Vec<(String, (u64, AggregateRow))>>) {
        for (known, rows) in self.rows.iter_mut().zip(rows) {
            known.extend(rows);
        }
    }

    /// Adds rows from another source than Postgres, for the next batch alone. Those that the batch folds are returned
    /// in [`Changes::bases`], for the commit to compare with Postgres.
    pub(crate) fn remember_unproved(&mut self, rows: PerView<Rows>) {
        for ((known, unproved), rows) in self.rows.iter_mut().zip(&mut self.unproved).zip(rows) {
            known.extend(rows.iter().map(|(key, row)| (key.clone(), row.clone())));
            *unproved = rows;
        }
    }

    /// Clears all rows, because those in Postgres may differ from them.
    pub(crate) fn clear(&mut self) {
        self.rows.iter_mut().for_each(HashMap::clear);
        self.unproved.iter_mut().for_each(HashMap::clear);
        self.changed.iter_mut().for_each(HashSet::clear);
    }

    pub(crate) fn fold(&mut self, records: &Records<'_>, all_progress: &mut [Progress]) -> Result<Changes, FoldError> {
        let mut changes = Changes::default();
        let partitions = all_progress.len() as u32;
        for (raw @ RawRecord { partition, offset, value }, record) in records.iter() {
            if let Some(Record::Claim(claim)) = record {
                let checked = claim.check_partitions(partitions);
                checked.map_err(|source| FoldError::Partitions { partition, offset, source })?;
            }
            let progress = &mut all_progress[partition as usize];
            let is_journalled = progress.passes(FeedId::Journal, offset);
            let mut counts = progress.read(raw, record, &mut changes.passed_over)?;
            let commit = match record {
                Some(Record::Commit(commit)) => Some(commit),
                Some(Record::Claim(_) | Record::Fence(_)) | None => None,
            };
            if is_journalled {
                let commit = commit.filter(|_| counts[FeedId::Journal]);
                changes.journal.push(partition, offset, records.bytes.slice_ref(value), commit);
            }
            if let Some(commit) = commit
                && counts.contains(&true)
            {
                progress.times.note(commit);
                progress.last_commit = offset;
                changes.moved.insert(partition);
                changes.commits += 1;
                self.parked.take(raw, commit, &mut counts, &mut changes.parked);
                self.commit(partition, commit, counts, &mut changes)?;
            }
        }
        self.finish(&mut changes);
        Ok(changes)
    }

    /// Moves the changed rows, each once in its latest state, into `changes`.
    fn finish(&mut self, changes: &mut Changes) {
        for ((changed, rows), changes) in self.changed.iter_mut().zip(&self.rows).zip(&mut changes.rows) {
            let row = |id: String| rows.get(&id).cloned().map(|row| (id, row));
            *changes = changed.drain().filter_map(row).collect();
        }
        for view in StoredView::all() {
            for (key, row) in self.unproved[view].drain() {
                match changes.rows[view].contains_key(&key) {
                    true => drop(changes.bases[view].insert(key, row)),
                    // No commit will compare it with Postgres.
                    false => drop(self.rows[view].remove(&key)),
                }
            }
        }
    }

    /// Folds a view's parked records. They were found to count when they were parked.
    pub(crate) fn fold_parked(&mut self, records: &Records<'_>, view: StoredView) -> Result<Changes, FoldError> {
        let mut changes = Changes::default();
        for (raw, record) in records.iter() {
            if let Some(Record::Commit(commit)) = record {
                let counts = FeedId::all().map(|feed| feed == FeedId::View(view));
                self.commit(raw.partition, commit, counts, &mut changes)?;
            }
        }
        self.finish(&mut changes);
        Ok(changes)
    }

    fn commit(
        &mut self,
        partition: u32,
        commit: &Commit<'_>,
        counts: PerFeed<bool>,
        changes: &mut Changes,
    ) -> Result<(), FoldError> {
        // The caller drops the changes of a fold that panicked halfway.
        let folded = catch_unwind(AssertUnwindSafe(|| self.fold_commit(partition, commit, counts, changes)));
        folded.map_err(|panic| FoldError::Panicked {
            feed: self.at,
            aggregate: commit.aggregate.to_string(),
            reason: chassis::panic::text(panic.as_ref()),
        })
    }

    fn fold_commit(&mut self, partition: u32, commit: &Commit<'_>, counts: PerFeed<bool>, changes: &mut Changes) {
        self.at = FeedId::Journal;
        if counts[FeedId::Journal] && snapshots::is_due(commit) {
            changes.due.push((commit.aggregate.to_string(), commit.version));
        }
        let (kind, id) = commit.aggregate.split_once('/').unwrap_or_default();
        let (version, at) = (commit.version, TimeMs(commit.at_ms));
        let views = || StoredView::all().into_iter().filter(|view| counts[FeedId::View(*view)]);
        for event in &commit.events {
            let occurrence = Occurrence { partition, version, at, id, event: event.upcast() };
            for view in views() {
                self.at = FeedId::View(view);
                self.fold_event(view, &occurrence, changes);
            }
        }
        // If a view did not count this commit, another projector writes its rows.
        for view in views().filter(|view| is_of(*view, kind)) {
            if !self.changed[view].contains(id) {
                self.changed[view].insert(id.to_owned());
            }
        }
    }

    fn fold_event(&mut self, view: StoredView, occurrence: &Occurrence<'_>, changes: &mut Changes) {
        let Occurrence { partition, version, at, id, event } = occurrence;
        match view.view().source {
            Source::Aggregate(row) if row.aggregate == event.aggregate() => {
                let rows = &mut self.rows[view];
                let (id, before) = take_row(rows, id);
                if let Some(row) = (row.fold)(before, event, *at) {
                    rows.insert(id, (*version, row));
                }
            }
            Source::Sum(sum) => {
                if let Some((key, delta)) = (sum.delta)(id, event) {
                    let sums = &mut changes.sums[view];
                    sums.entry((key, *partition)).and_modify(|sum| sum.add(&delta)).or_insert(delta);
                }
            }
            Source::Aggregate(_) | Source::View(_) => {}
        }
    }
}

/// Returns whether each aggregate of this kind has a row in the view.
fn is_of(view: StoredView, kind: &str) -> bool {
    matches!(view.view().source, Source::Aggregate(row) if type_name(row.aggregate) == kind)
}

/// Removes a row from the map, and returns it with its key, whose allocation is reused.
fn take_row(rows: &mut Rows, id: &str) -> (String, Option<AggregateRow>) {
    match rows.remove_entry(id) {
        Some((id, (_, row))) => (id, Some(row)),
        None => (id.to_owned(), None),
    }
}

#[cfg(test)]
mod tests;
