//! Batches that are folded and not committed to Postgres yet.
//!
//! A separate Postgres session commits them while the next batches are folded on their result. Batches that are folded
//! during a commit go into the next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::postgres::PostgresSettings;
use chassis::telemetry::with_causes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::fold::{Changes, Progress};
use crate::log_reader::{Batch, BatchLimits, RawRecord};
use crate::postgres::checkpoints::CheckpointMove;
use crate::postgres::{End, Store, StoreError, Target};

/// Maximum lead of folding over Postgres, in time; folding waits when it is reached.
const MAX_AHEAD: Duration = Duration::from_secs(2);
const MAX_AHEAD_BYTES: usize = 4 * 1024 * 1024;

/// The progress in a batch's partitions before the batch was folded.
#[derive(Debug)]
pub(super) struct Before(BTreeMap<u32, Progress>);

impl Before {
    pub(super) fn of(batch: &Batch, all_progress: &[Progress]) -> Self {
        let mut before = BTreeMap::new();
        for RawRecord { partition, .. } in batch.iter() {
            before.entry(partition).or_insert_with(|| all_progress[partition as usize].clone());
        }
        Self(before)
    }

    pub(super) fn get(&self, partition: u32) -> Option<&Progress> {
        self.0.get(&partition)
    }

    /// Adds the partitions that only a later batch has.
    fn add(&mut self, later: Self) {
        for (partition, progress) in later.0 {
            self.0.entry(partition).or_insert(progress);
        }
    }

    /// Resets the progress to its state before the batch.
    pub(super) fn restore(self, all_progress: &mut [Progress]) {
        for (partition, progress) in self.0 {
            all_progress[partition as usize] = progress;
        }
    }
}

/// Folded batches with all their changes.
#[derive(Debug)]
pub(super) struct Uncommitted {
    pub(super) before: Before,
    pub(super) batches: Vec<Batch>,
    pub(super) changes: Changes,
    pub(super) records: usize,
    bytes: usize,
    pub(super) begun: Instant,
}

impl Uncommitted {
    pub(super) fn new() -> Self {
        let (batches, changes, before) = (Vec::new(), Changes::default(), Before(BTreeMap::new()));
        Self { before, batches, changes, records: 0, bytes: 0, begun: Instant::now() }
    }

    pub(super) fn push(&mut self, before: Before, batch: Batch, changes: Changes, records: usize) {
        self.before.add(before);
        self.bytes += batch.bytes().len();
        self.records += records;
        self.batches.push(batch);
        self.changes.merge(changes);
    }

    /// Returns whether a commit with this limit on its records takes no more.
    pub(super) fn is_full(&self, max_records: usize) -> bool {
        self.records >= max_records || self.bytes >= MAX_AHEAD_BYTES || self.begun.elapsed() >= MAX_AHEAD
    }
}

/// Maximum number of records in a commit: divided by four when Postgres cancels a commit that takes too long, and
/// doubled after each quick one.
#[derive(Debug)]
pub(crate) struct CommitSize(usize);

impl CommitSize {
    const MAX: usize = 2 * BatchLimits::MAX.records;
    const QUICK: Duration = Duration::from_secs(1);

    pub(super) fn records(&self) -> usize {
        self.0
    }

    pub(super) fn shrink(&mut self) {
        self.0 = (self.0 / 4).max(1);
    }

    pub(super) fn committed(&mut self, took: Duration) {
        if took < Self::QUICK {
            self.0 = (self.0 * 2).min(Self::MAX);
        }
    }
}

impl Default for CommitSize {
    fn default() -> Self {
        Self(Self::MAX)
    }
}

/// A commit: folded batches, the checkpoints that it moves, and the progress afterwards.
pub(super) struct Work {
    pub(super) begun: Instant,
    pub(super) ahead: Uncommitted,
    pub(super) moves: Vec<CheckpointMove>,
    pub(super) all_progress: Vec<Progress>,
}

/// The handle of the task that commits one [`Work`] at a time.
pub(super) struct Committer {
    work: mpsc::Sender<Arc<Work>>,
    ended: mpsc::Receiver<Result<(), StoreError>>,
    under_way: Option<Arc<Work>>,
}

impl Committer {
    /// Starts the committing task, which is spawned on `tasks`.
    pub(super) async fn start(
        postgres: &PostgresSettings,
        window: Duration,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self, StoreError> {
        let store = Store::connect(postgres, Target::Live).await?;
        let ((work, waiting), (outcomes, ended)) = (mpsc::channel(1), mpsc::channel(1));
        tasks.spawn(commit(store, window, waiting, outcomes));
        Ok(Self { work, ended, under_way: None })
    }

    pub(super) fn under_way(&self) -> Option<&Work> {
        self.under_way.as_deref()
    }

    /// Begins a commit. No other may be in flight.
    pub(super) async fn begin(&mut self, work: Work) -> Result<(), StoreError> {
        let work = Arc::new(work);
        self.work.send(work.clone()).await.map_err(|_| StoreError::Silent)?;
        self.under_way = Some(work);
        Ok(())
    }

    /// Waits for the commit in flight to end. Cancel safe.
    pub(super) async fn ended(&mut self) -> (Option<Arc<Work>>, Result<(), StoreError>) {
        let ended = self.ended.recv().await.unwrap_or(Err(StoreError::Silent));
        (self.under_way.take(), ended)
    }

    /// Returns whether more may be folded. `max_records` limits one commit.
    pub(super) fn has_room(&self, pending: Option<&Uncommitted>, max_records: usize) -> bool {
        let is_late = self.under_way.as_ref().is_some_and(|work| work.ahead.begun.elapsed() >= MAX_AHEAD);
        !is_late && pending.is_none_or(|pending| !pending.is_full(max_records))
    }
}

async fn commit(
    mut store: Store,
    window: Duration,
    mut waiting: mpsc::Receiver<Arc<Work>>,
    outcomes: mpsc::Sender<Result<(), StoreError>>,
) {
    let mut last_ms = 0;
    loop {
        let work = tokio::select! {
            work = waiting.recv() => work,
            () = store.repeats_are_due() => {
                if let Err(error) = store.maintain_repeats(window, last_ms).await {
                    tracing::debug!(
                        error = with_causes(&error),
                        "maintenance of the table repeats failed; retrying"
                    );
                }
                continue;
            }
        };
        let Some(work) = work else { return };
        last_ms = log_ms(&work.all_progress);
        let Work { ahead, moves, all_progress, .. } = &*work;
        let outcome = async {
            store.maintain_repeats(window, log_ms(all_progress)).await?;
            store.commit(&ahead.changes, moves, all_progress, End::Commit).await
        };
        let outcome = outcome.await;
        drop(work);
        if outcomes.send(outcome).await.is_err() {
            return;
        }
    }
}

/// Returns the latest time of a commit that was read, in milliseconds since 1970.
pub(super) fn log_ms(all_progress: &[Progress]) -> u64 {
    all_progress.iter().map(|progress| progress.times.last_at_ms).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_waits_behind_so_many_bytes_that_are_not_being_committed() {
        let (work, _waiting) = mpsc::channel(1);
        let (_outcomes, ended) = mpsc::channel(1);
        let committer = Committer { work, ended, under_way: None };
        let mut pending = Uncommitted::new();
        for bytes in [MAX_AHEAD_BYTES - 1, 1] {
            assert!(committer.has_room(Some(&pending), usize::MAX), "{} bytes are ahead", pending.bytes);
            let batch = Batch::of([(0, 0, &*vec![0; bytes])]);
            pending.push(Before(BTreeMap::new()), batch, Changes::default(), 1);
        }
        assert!(!committer.has_room(Some(&pending), usize::MAX));
    }
}
