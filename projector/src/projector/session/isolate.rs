//! Isolates records that a view cannot take because the fold panics or Postgres refuses the row. Such a record is
//! parked together with all later ones of the same aggregate, so that everything else continues.
//!
//! Invariant: a record is either folded into a view or parked, in the transaction that moves the view's checkpoint, and
//! an aggregate's parked records are in offset order. An aggregate with parked records is not folded further.

use std::collections::BTreeSet;

use chassis::telemetry::with_causes;
use schemas::feeds::{FeedId, StoredView};
use schemas::views::Source;

use super::{Committed, Session, tell_parked};
use crate::fold::{FoldError, Progress, Records};
use crate::log_reader::Batch;
use crate::parked::partition_of;
use crate::postgres::{End, StoreError};
use crate::projector::error::ProjectorError;
use crate::share::Place;

/// The view that failed, with the reason and, for a panic, the aggregate.
struct Poison {
    view: StoredView,
    aggregate: Option<String>,
    reason: String,
}

impl Poison {
    fn of(error: &ProjectorError) -> Option<Self> {
        let reason = with_causes(error);
        match error {
            // Only views are isolated: the write side depends on the journal, which must have no gap.
            ProjectorError::Fold(FoldError::Panicked { feed: FeedId::View(view), aggregate, .. }) => {
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

/// A batch of which Postgres refuses rows of the view, with the progress before it and all aggregates that may be to
/// blame.
struct Trial<'a> {
    batch: &'a Batch,
    before: &'a [Progress],
    view: StoredView,
    all: &'a [String],
}

impl Session {
    /// Retries a batch that failed, and parks the aggregates that are to blame until the rest commits.
    pub(super) async fn take_apart(
        &mut self,
        batch: &Batch,
        before: &[Progress],
        error: ProjectorError,
    ) -> Result<Committed, ProjectorError> {
        if Poison::of(&error).is_none() {
            return Err(error);
        }
        let mut refused = Vec::new();
        loop {
            let error = match self.again(batch, before).await {
                Ok(committed) => return Ok(Committed { refused, ..committed }),
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
                tracing::error!(view = view.name(), aggregate, reason, "aggregate parked for the view");
                self.folder.parked.insert(view, &aggregate, Some(reason.clone()));
                // Redis may already show its row.
                let partition = partition_of(view, &aggregate, self.all_progress.len() as u32);
                refused.extend(partition.map(|partition| Place { feed: FeedId::View(view), partition }));
            }
            tell_parked(&self.folder.parked, &self.metrics);
        }
    }

    async fn again(&mut self, batch: &Batch, before: &[Progress]) -> Result<Committed, ProjectorError> {
        self.all_progress = before.to_vec();
        self.folder.clear();
        self.try_take(batch, End::Commit).await
    }

    /// Bisects a batch for the aggregate whose rows are refused. Returns several if they are refused only together.
    async fn find(
        &mut self,
        batch: &Batch,
        before: &[Progress],
        view: StoredView,
    ) -> Result<Vec<String>, ProjectorError> {
        let all = self.suspects(&Records::of(batch, &self.exceptions)?, view);
        let trial = Trial { batch, before, view, all: &all };
        let mut suspects = all.clone();
        while suspects.len() > 1 {
            let rest = suspects.split_off(suspects.len() / 2);
            if self.is_refused(&trial, &suspects).await? {
                continue;
            }
            if !self.is_refused(&trial, &rest).await? {
                suspects.extend(rest);
                break;
            }
            suspects = rest;
        }
        Ok(suspects)
    }

    /// Returns whether Postgres refuses the batch if the view folds only `these` of the suspects.
    async fn is_refused(&mut self, trial: &Trial<'_>, these: &[String]) -> Result<bool, ProjectorError> {
        let Trial { batch, before, view, all } = *trial;
        let parked = self.folder.parked.clone();
        for aggregate in all.iter().filter(|aggregate| !these.contains(aggregate)) {
            self.folder.parked.insert(view, aggregate, None);
        }
        self.all_progress = before.to_vec();
        self.folder.clear();
        let outcome = self.try_take(batch, End::Rollback).await;
        self.folder.parked = parked;
        match outcome {
            Ok(_) => Ok(false),
            Err(ProjectorError::Store(StoreError::Refused { view: refused, .. })) => Ok(refused == view),
            Err(error) => Err(error),
        }
    }

    /// Returns the batch's aggregates that feed the view and are not parked, sorted.
    fn suspects(&self, records: &Records<'_>, view: StoredView) -> Vec<String> {
        let kind = match view.view().source {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_an_aggregate_whose_fold_panics_has_the_panics_text() {
        let [view, ..] = StoredView::all();
        let (aggregate, reason) = ("product/cd-1".to_owned(), "attempt to subtract with overflow".to_owned());
        let error = FoldError::Panicked { feed: FeedId::View(view), aggregate, reason };
        let reason = Poison::of(&error.into()).unwrap().reason;
        assert!(reason.contains("attempt to subtract with overflow"), "{reason}");
    }
}
