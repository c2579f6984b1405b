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

/// Search for the aggregate that is refused on its own, among suspects that are refused together. It ends with several
/// if they are refused only together, and tries no single suspect.
struct Bisection {
    suspects: Vec<String>,
    /// The half of the suspects to try next; `None`: neither is refused.
    half: Option<Half>,
}

enum Half {
    First,
    Second,
}

impl Bisection {
    fn new(suspects: Vec<String>) -> Self {
        Self { suspects, half: Some(Half::First) }
    }

    /// Returns the suspects to try, or `None` at the end.
    fn next(&self) -> Option<&[String]> {
        let (first, second) = self.suspects.split_at(self.suspects.len() / 2);
        let half = self.half.as_ref().filter(|_| self.suspects.len() > 1)?;
        Some(match half {
            Half::First => first,
            Half::Second => second,
        })
    }

    /// Takes the outcome of the trial of [`Self::next`].
    fn learn(&mut self, is_refused: bool) {
        let middle = self.suspects.len() / 2;
        self.half = match (self.half.take(), is_refused) {
            (Some(Half::First), true) => {
                self.suspects.truncate(middle);
                Some(Half::First)
            }
            (Some(Half::First), false) => Some(Half::Second),
            (Some(Half::Second), true) => {
                self.suspects.drain(..middle);
                Some(Half::First)
            }
            (Some(Half::Second), false) | (None, _) => None,
        };
    }
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

    /// Returns the aggregates whose rows are refused: see [`Bisection`].
    async fn find(
        &mut self,
        batch: &Batch,
        before: &[Progress],
        view: StoredView,
    ) -> Result<Vec<String>, ProjectorError> {
        let all = self.suspects(&Records::of(batch, &self.exceptions)?, view);
        let trial = Trial { batch, before, view, all: &all };
        let mut bisection = Bisection::new(all.clone());
        while let Some(these) = bisection.next() {
            let is_refused = self.is_refused(&trial, these).await?;
            bisection.learn(is_refused);
        }
        Ok(bisection.suspects)
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

    /// Bisects ten suspects. Postgres refuses those that include all the aggregates of one of `poisons`. Returns the
    /// culprits and the number of trials.
    fn culprits(poisons: &[&[&str]]) -> (Vec<String>, usize) {
        let mut bisection = Bisection::new((0..10).map(|n| format!("product/{n}")).collect());
        let mut trials = 0;
        while let Some(these) = bisection.next() {
            let has = |name: &&str| these.contains(&format!("product/{name}"));
            let is_refused = poisons.iter().any(|poison| poison.iter().all(has));
            bisection.learn(is_refused);
            trials += 1;
        }
        (bisection.suspects, trials)
    }

    #[test]
    fn the_one_aggregate_that_is_refused_is_found_in_a_few_trials_wherever_it_is() {
        for name in ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"] {
            let (found, trials) = culprits(&[&[name]]);
            assert_eq!(found, [format!("product/{name}")]);
            assert!(trials <= 8, "{trials} trials to find {name}");
        }
    }

    #[test]
    fn of_several_refused_aggregates_one_is_found_at_a_time() {
        assert_eq!(culprits(&[&["3"], &["8"]]).0, ["product/3"]);
        assert_eq!(culprits(&[&["8"], &["6"]]).0, ["product/6"]);
    }

    #[test]
    fn aggregates_that_are_refused_only_together_are_found_together() {
        assert_eq!(culprits(&[&["2", "7"]]).0.len(), 10);
        assert_eq!(culprits(&[&["0", "1"]]).0, ["product/0", "product/1"]);
        assert_eq!(culprits(&[&["2", "4"]]).0, ["product/2", "product/3", "product/4"]);
    }

    #[test]
    fn the_reason_of_an_aggregate_whose_fold_panics_has_the_panics_text() {
        let [view, ..] = StoredView::all();
        let (aggregate, reason) = ("product/cd-1".to_owned(), "attempt to subtract with overflow".to_owned());
        let error = FoldError::Panicked { feed: FeedId::View(view), aggregate, reason };
        let reason = Poison::of(&error.into()).unwrap().reason;
        assert!(reason.contains("attempt to subtract with overflow"), "{reason}");
    }
}
