//! What a view cannot take: a fold that panics, a row that Postgres refuses. It is found, and parked with all that comes
//! after it of the same aggregate, so that the rest goes on.
//!
//! Invariant: a record is folded into a view or parked, in the transaction that moves the view's checkpoint, and what is
//! parked of an aggregate is in its order. An aggregate of which something is parked is not folded further.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};

use schemas::record::Commit;
use schemas::views::{FEEDS, STORED, Source, VIEWS};

use crate::fold::{FoldError, Records, Standing};
use crate::log::Batch;
use crate::postgres::{End, StoreError};
use crate::projector::{Committed, Fold, ProjectorError};

/// The aggregates that are not folded into a view, with the reason until it is written down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parked([HashMap<String, Option<String>>; STORED]);

/// A record that a view did not take.
#[derive(Debug)]
pub(crate) struct ParkedRecord {
    pub(crate) view: usize,
    pub(crate) aggregate: String,
    pub(crate) partition: u32,
    pub(crate) offset: i64,
    pub(crate) version: u64,
    pub(crate) reason: Option<String>,
    pub(crate) record: Vec<u8>,
}

impl Parked {
    pub(crate) fn insert(&mut self, view: usize, aggregate: &str, reason: Option<String>) {
        self.0[view].insert(aggregate.to_owned(), reason);
    }

    pub(crate) fn contains(&self, view: usize, aggregate: &str) -> bool {
        self.0[view].contains_key(aggregate)
    }

    /// Aggregates, by view.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        VIEWS.iter().zip(&self.0).map(|(view, aggregates)| (view.name, aggregates.len()))
    }

    /// Parks a record for the views that its aggregate is parked for, and tells that it does not count for them.
    pub(crate) fn take(
        &mut self,
        (partition, offset, record): (u32, i64, &[u8]),
        commit: &Commit<'_>,
        counts: &mut [bool; FEEDS.len()],
        records: &mut Vec<ParkedRecord>,
    ) {
        for (view, parked) in self.0.iter_mut().enumerate().filter(|(_, parked)| !parked.is_empty()) {
            let Some(reason) = parked.get_mut(&*commit.aggregate).filter(|_| counts[view]) else { continue };
            counts[view] = false;
            records.push(ParkedRecord {
                view,
                aggregate: commit.aggregate.to_string(),
                partition,
                offset,
                version: commit.version,
                reason: reason.take(),
                record: record.to_vec(),
            });
        }
    }
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it said nothing".to_owned())
}

/// The view that did not take something, and what it said; of a panic also the aggregate.
struct Poison {
    view: usize,
    aggregate: Option<String>,
    reason: String,
}

impl Poison {
    fn of(error: &ProjectorError) -> Option<Self> {
        let reason = format!("{error:#}");
        match error {
            // The write tier stands on the journal: no gap is let into it.
            ProjectorError::Fold(FoldError::Panicked { view, aggregate, .. }) if *view < STORED => {
                Some(Self { view: *view, aggregate: Some(aggregate.clone()), reason })
            }
            ProjectorError::Store(StoreError::Refused { view, source }) => {
                let reason = source.as_db_error().map_or(reason, ToString::to_string);
                Some(Self { view: *view, aggregate: None, reason })
            }
            _ => None,
        }
    }
}

impl Fold {
    /// The next batch, which failed: once more, and then without what is to blame.
    pub(crate) async fn take_apart(
        &mut self,
        batch: &Batch,
        before: &[Standing],
        error: ProjectorError,
    ) -> Result<Committed, ProjectorError> {
        if Poison::of(&error).is_none() {
            return Err(error);
        }
        loop {
            let error = match self.again(batch, before).await {
                Ok(committed) => return Ok(committed),
                Err(error) => error,
            };
            let Some(Poison { view, aggregate, reason }) = Poison::of(&error) else { return Err(error) };
            let culprits = match aggregate {
                Some(aggregate) => vec![aggregate],
                None => self.find(batch, before, view).await?,
            };
            if culprits.is_empty() {
                return Err(error);
            }
            for aggregate in culprits {
                tracing::error!(view = FEEDS[view], aggregate, reason, "parked: the view does not take it");
                self.folder.parked.insert(view, &aggregate, Some(reason.clone()));
            }
            self.metrics.parked(&self.folder.parked);
        }
    }

    async fn again(&mut self, batch: &Batch, before: &[Standing]) -> Result<Committed, ProjectorError> {
        self.standings = before.to_vec();
        self.folder.clear();
        self.try_take(batch, End::Commit).await
    }

    /// The aggregate whose rows are refused, by halves; several where they are refused only together.
    async fn find(&mut self, batch: &Batch, before: &[Standing], view: usize) -> Result<Vec<String>, ProjectorError> {
        let all = self.suspects(&Records::of(batch)?, view);
        let mut suspects = all.clone();
        while suspects.len() > 1 {
            let rest = suspects.split_off(suspects.len() / 2);
            if self.is_refused(batch, before, view, (&all, &suspects)).await? {
                continue;
            }
            if !self.is_refused(batch, before, view, (&all, &rest)).await? {
                suspects.extend(rest);
                break;
            }
            suspects = rest;
        }
        Ok(suspects)
    }

    /// Whether a batch would be, of which the view takes these aggregates alone.
    async fn is_refused(
        &mut self,
        batch: &Batch,
        before: &[Standing],
        view: usize,
        (all, these): (&[String], &[String]),
    ) -> Result<bool, ProjectorError> {
        let parked = self.folder.parked.clone();
        for aggregate in all.iter().filter(|aggregate| !these.contains(aggregate)) {
            self.folder.parked.insert(view, aggregate, None);
        }
        self.standings = before.to_vec();
        self.folder.clear();
        let outcome = self.try_take(batch, End::Rollback).await;
        self.folder.parked = parked;
        match outcome {
            Ok(_) => Ok(false),
            Err(ProjectorError::Store(StoreError::Refused { view: refused, .. })) => Ok(refused == view),
            Err(error) => Err(error),
        }
    }

    /// Of the kind that feeds the view, in order.
    fn suspects(&self, records: &Records<'_>, view: usize) -> Vec<String> {
        let kind = match VIEWS[view].source {
            Source::Aggregate(row) => Some(row.aggregate),
            Source::Sum(_) | Source::View(_) => None,
        };
        let of_kind = |name: &str| {
            schemas::aggregate::AggregateId::parse(name).is_ok_and(|id| kind.is_none_or(|kind| kind == id.aggregate()))
        };
        let mut suspects = BTreeSet::new();
        for commit in records.commits() {
            if of_kind(&commit.aggregate) && !self.folder.parked.contains(view, &commit.aggregate) {
                suspects.insert(commit.aggregate.to_string());
            }
        }
        suspects.into_iter().collect()
    }
}
