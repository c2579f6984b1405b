//! Commits of the batches that a session has folded.

use std::sync::Arc;
use std::time::Instant;

use super::{Committed, IDLE_MOVE, Next, Session};
use crate::fold::{Changes, Progress};
use crate::log_reader::Batch;
use crate::postgres::checkpoints::CheckpointMove;
use crate::postgres::{End, StoreError, Target};
use crate::projector::error::ProjectorError;
use crate::projector::uncommitted::{Uncommitted, Work, log_ms};
use crate::redis::Advance;
use crate::share::Place;

impl Session {
    /// Begins a commit of the folded batches, if there are any and none is in flight. Records that do not count are
    /// committed together with ones that do, or after a while; with `all`, at once.
    pub(super) async fn begin_commit(&mut self, all: bool) -> Result<(), ProjectorError> {
        if self.committer.under_way().is_some() {
            return Ok(());
        }
        let all = all || self.last_move.elapsed() >= IDLE_MOVE;
        let max_records = self.max_records;
        let is_due = |ahead: &mut Uncommitted| all || ahead.is_full(max_records) || !ahead.changes.moved.is_empty();
        let Some(ahead) = self.pending.take_if(is_due) else { return Ok(()) };
        let moves = self.moves(&ahead.changes, all);
        if moves.is_empty() {
            self.note(&ahead.changes, ahead.records);
            return Ok(());
        }
        let (begun, all_progress) = (Instant::now(), self.all_progress.clone());
        Ok(self.committer.begin(Work { begun, ahead, moves, all_progress }).await?)
    }

    /// Applies the outcome of a commit.
    pub(super) fn end_commit(
        &mut self,
        work: Option<Arc<Work>>,
        ended: Result<(), StoreError>,
    ) -> Result<Next, ProjectorError> {
        let work = work.and_then(Arc::into_inner).ok_or(StoreError::Silent)?;
        match ended {
            Ok(()) => {
                let Work { begun, ahead, moves, all_progress } = work;
                self.commit_ended(&moves, &all_progress);
                self.is_postgres_late = false;
                self.note(&ahead.changes, ahead.records);
                self.metrics.committed(ahead.begun.elapsed());
                self.make_due(&ahead.changes);
                let (rows, advances, took) = (ahead.changes.rows, Advance::of(&moves), Some(begun.elapsed()));
                Ok(Next::Committed(Box::new(Committed { rows, advances, took, refused: Vec::new() })))
            }
            Err(StoreError::Moved) => {
                self.hold(work.ahead);
                Ok(Next::Overtaken)
            }
            Err(StoreError::Refused { .. }) => {
                self.hold(work.ahead);
                self.is_careful = true;
                Ok(Next::Committed(Box::default()))
            }
            Err(StoreError::Disproved(refused)) => {
                tracing::error!(places = ?refused, "Redis had other rows than Postgres; folding again on Postgres's");
                self.hold(work.ahead);
                self.is_careful = true;
                Ok(Next::Committed(Box::new(Committed { refused, ..Committed::default() })))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Resets the progress to before these batches, and holds them and all later ones to be folded again.
    fn hold(&mut self, first: Uncommitted) {
        let later = self.pending.take().map(|pending| {
            pending.before.restore(&mut self.all_progress);
            pending.batches
        });
        first.before.restore(&mut self.all_progress);
        for batch in first.batches.into_iter().chain(later.into_iter().flatten()).rev() {
            self.held.push_front(batch);
        }
        self.folder.clear();
    }

    /// Folds a batch and commits it. No other batch may be uncommitted.
    pub(super) async fn try_take(&mut self, batch: &Batch, end: End) -> Result<Committed, ProjectorError> {
        let begun = Instant::now();
        let (changes, records) = self.fold(batch, None).await?;
        let moves = self.moves(&changes, true);
        if !moves.is_empty() {
            self.store.maintain_repeats(self.window, log_ms(&self.all_progress)).await?;
            self.store.commit(&changes, &moves, &self.all_progress, end).await?;
        }
        if end == End::Rollback {
            return Ok(Committed::default());
        }
        self.note(&changes, records);
        if !moves.is_empty() {
            self.metrics.committed(begun.elapsed());
            self.make_due(&changes);
            self.commit_ended(&moves, &self.all_progress.clone());
        }
        Ok(Committed { rows: changes.rows, advances: Advance::of(&moves), ..Committed::default() })
    }

    fn commit_ended(&mut self, moves: &[CheckpointMove], all_progress: &[Progress]) {
        for CheckpointMove { partition, .. } in moves {
            let (committed, now) = (&mut self.committed[*partition as usize], &all_progress[*partition as usize]);
            self.segments.passed(*partition, committed, now);
            committed.clone_from(now);
        }
    }

    fn note(&self, changes: &Changes, records: usize) {
        self.metrics.folded(records, changes.commits);
        for reason in &changes.passed_over {
            self.metrics.passed_over(*reason);
        }
    }

    fn make_due(&self, changes: &Changes) {
        for due in &changes.due {
            // If the channel is full, the snapshot becomes due again later.
            let _ = self.due.try_send(due.clone());
        }
    }

    /// Returns the checkpoint moves of the partitions in which something changed, or of all. A partition with new
    /// journal records counts as changed, because the journal must not reach past its checkpoint.
    fn moves(&mut self, changes: &Changes, all: bool) -> Vec<CheckpointMove> {
        if all {
            self.last_move = Instant::now();
        }
        let has_moved = |partition| all || changes.moved.contains(&partition) || changes.journal.has(partition);
        let mut moves = Vec::new();
        for Place { feed, partition } in self.share.places().filter(|place| has_moved(place.partition)) {
            let (now, committed) = (&self.all_progress[partition as usize], &self.committed[partition as usize]);
            let (from, to) = (committed.readers[feed], now.readers[feed]);
            if to != from {
                let (name, tally, revision) = (Target::Live.name(feed), now.tallies[feed], now.revisions[feed]);
                moves.push(CheckpointMove { name, partition, from, to, tally, times: now.times, revision });
            }
        }
        moves
    }
}
