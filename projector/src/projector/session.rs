//! A session of folding, from one assignment to the next. Batches are folded one after another and committed
//! concurrently.

mod commits;
mod isolate;

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::kafka::group::{Assignment, changed};
use chassis::shutdown::Shutdown;
use schemas::exceptions::Exceptions;
use schemas::feeds::PerView;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::error::ProjectorError;
use super::uncommitted::{Before, Committer, Uncommitted, Work};
use crate::config::Config;
use crate::fold::{Changes, Folder, Missing, Progress, Records, Rows};
use crate::log_reader::{Batch, BatchLimits, Batches};
use crate::metrics::Metrics;
use crate::other_folds::OtherFolds;
use crate::parked::Parked;
use crate::postgres::{End, Store, StoreError};
use crate::redis::{Advance, Cache, is_early};
use crate::segments::Segments;
use crate::share::{Place, Share};
use crate::snapshots::{self, Due};
use crate::stops::Stops;

/// Minimum interval between checkpoint moves for records that count for no view (claims, fences, foreign records).
const IDLE_MOVE: Duration = Duration::from_secs(1);

/// Folding under one assignment, with the state that it keeps in memory.
pub(crate) struct Session {
    pub(crate) metrics: Arc<Metrics>,
    /// Postgres session that reads rows to fold on, and commits batches that are taken one by one.
    pub(super) store: Store,
    pub(crate) folder: Folder,
    pub(crate) exceptions: Arc<Exceptions>,
    /// Progress of the fold, by partition.
    pub(crate) all_progress: Vec<Progress>,
    /// Progress as committed to the checkpoints, by partition.
    pub(super) committed: Vec<Progress>,
    pub(super) share: Share,
    pub(super) other_folds: OtherFolds,
    committer: Committer,
    /// Folded batches for the next commit.
    pending: Option<Uncommitted>,
    /// Batches that are to be folded again.
    held: VecDeque<Batch>,
    /// Set if each held batch is to be committed before the next one is folded.
    is_careful: bool,
    /// Maximum number of records in a commit.
    max_records: usize,
    last_move: Instant,
    /// Retention of idempotency keys.
    window: Duration,
    due: mpsc::Sender<Due>,
    segments: Segments,
    /// Set if the last rows to fold on came from Redis and no commit has ended since.
    is_postgres_late: bool,
}

/// Time after which rows to fold on are requested from Redis as well, plus [`ROW_WITHIN`] per row.
const ROWS_WITHIN: Duration = Duration::from_millis(20);
const ROW_WITHIN: Duration = Duration::from_micros(50);

/// The share that a session folds, and the state from which it begins.
pub(super) struct Start {
    pub(super) store: Store,
    pub(super) share: Share,
    pub(super) other_folds: OtherFolds,
    pub(super) all_progress: Vec<Progress>,
    pub(super) parked: Parked,
}

/// The batches that a session folds, and the terms on which it does.
pub(super) struct Source<'a> {
    pub(super) batches: &'a mut Batches,
    pub(super) cache: &'a Cache,
    pub(super) stops: &'a Stops,
    /// Maximum number of records in a commit.
    pub(super) max_records: usize,
}

/// The outcome of a wait for a batch.
pub(super) enum Next {
    /// A batch was folded and is not committed yet.
    Folded(Box<Folded>),
    Committed(Box<Committed>),
    /// Another process has changed the rows that were folded on; the batches are held.
    Overtaken,
    /// Shutdown, or the session must restart with another share.
    Over,
}

/// A folded batch: its changes, and the advances of the views that show it early.
pub(super) struct Folded {
    pub(super) advances: Vec<Advance>,
    pub(super) changes: Changes,
    batch: Batch,
    before: Before,
    records: usize,
}

/// The committed outcome of one or more batches.
#[derive(Default)]
pub(crate) struct Committed {
    pub(crate) rows: PerView<Rows>,
    pub(crate) advances: Vec<Advance>,
    /// Places in which Redis may show rows that Postgres does not have.
    pub(crate) refused: Vec<Place>,
    /// Duration of the commit, if it was a single one.
    pub(crate) took: Option<Duration>,
}

impl Session {
    pub(super) async fn begin(
        config: &Config,
        Start { store, share, other_folds, all_progress, parked }: Start,
        metrics: Arc<Metrics>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self, StoreError> {
        let committer = Committer::start(&config.postgres, config.window, tasks).await?;
        let (due, waiting) = snapshots::channel();
        let partitions = all_progress.len() as u32;
        tasks.spawn(snapshots::keep(config.postgres.clone(), partitions, waiting, metrics.clone()));
        let (postgres, window) = (&config.postgres, config.window);
        let segments = Segments::start(postgres, window, &share, &all_progress, metrics.clone(), tasks);
        let mut folder = Folder::default();
        folder.parked = parked;
        tell_parked(&folder.parked, &metrics);
        Ok(Self {
            metrics,
            store,
            folder,
            exceptions: config.exceptions.clone(),
            committed: all_progress.clone(),
            all_progress,
            share,
            other_folds,
            committer,
            pending: None,
            held: VecDeque::new(),
            is_careful: false,
            max_records: 0,
            last_move: Instant::now(),
            window: config.window,
            due,
            segments,
            is_postgres_late: false,
        })
    }

    /// Folds the next batch, or waits for the commit in flight to end. No batch is folded across an announced position
    /// of the cache, because the hash must be compared there.
    pub(super) async fn next(
        &mut self,
        Source { batches, cache, stops, max_records }: Source<'_>,
        assignment: &mut watch::Receiver<Assignment>,
        shutdown: &Shutdown,
    ) -> Result<Next, ProjectorError> {
        if self.other_folds.have_changed(&self.store).await? {
            return Ok(Next::Over);
        }
        self.max_records = max_records;
        batches.allow(max_records.min(BatchLimits::MAX.records));
        self.begin_commit(false).await?;
        let has_room = self.committer.has_room(self.pending.as_ref(), max_records);
        let mut batch = match self.held.pop_front() {
            Some(batch) => batch,
            None => tokio::select! {
                biased;
                () = changed(assignment, shutdown) => return Ok(Next::Over),
                (work, ended) = self.committer.ended(), if self.committer.under_way().is_some() => {
                    return self.end_commit(work, ended);
                }
                batch = batches.recv(), if has_room => batch.map_err(ProjectorError::Log)?,
                () = tokio::time::sleep(IDLE_MOVE), if has_room => Batch::default(),
            },
        };
        stops.filter(&mut batch, self.all_progress.len() as u32);
        let until = cache.announced(self.all_progress.len() as u32);
        if let Some(rest) = until.and_then(|until| batch.split_off(&until)) {
            self.held.push_front(rest);
        }
        if self.is_careful {
            self.is_careful = !self.held.is_empty();
            let before = self.all_progress.clone();
            let taken = match self.try_take(&batch, End::Commit).await {
                Err(ProjectorError::Store(StoreError::Moved)) => {
                    self.all_progress = before;
                    self.held.push_front(batch);
                    return Ok(Next::Overtaken);
                }
                Err(error) => self.take_apart(&batch, &before, error).await?,
                Ok(committed) => committed,
            };
            return Ok(Next::Committed(Box::new(taken)));
        }
        let before = Before::of(&batch, &self.all_progress);
        match self.fold(&batch, Some(cache)).await {
            Ok((changes, records)) => {
                let advances = match changes.commits {
                    0 => Vec::new(),
                    _ => self.early(|partition| before.get(partition), &self.all_progress),
                };
                Ok(Next::Folded(Box::new(Folded { advances, changes, batch, before, records })))
            }
            Err(ProjectorError::Fold(_)) => {
                // The batches before this one must be committed first; then it is taken by itself.
                before.restore(&mut self.all_progress);
                self.held.push_front(batch);
                self.settle().await
            }
            Err(error) => Err(error),
        }
    }

    /// Returns whether a commit succeeded, or there is nothing to commit.
    pub(super) fn has_caught_up(&self, next: &Next) -> bool {
        match next {
            Next::Committed(committed) => !committed.advances.is_empty(),
            Next::Folded(folded) => {
                folded.records == 0 && self.pending.is_none() && self.committer.under_way().is_none()
            }
            Next::Overtaken | Next::Over => false,
        }
    }

    /// Adds a folded batch to the next commit.
    pub(super) fn keep(&mut self, folded: Folded) {
        let Folded { changes, batch, before, records, .. } = folded;
        self.pending.get_or_insert_with(Uncommitted::new).push(before, batch, changes, records);
    }

    /// Waits until everything that was folded is committed, and returns it to be shown. Held batches are then committed
    /// one by one.
    pub(super) async fn settle(&mut self) -> Result<Next, ProjectorError> {
        let mut all = Committed::default();
        loop {
            self.begin_commit(true).await?;
            if self.committer.under_way().is_none() {
                self.folder.clear();
                self.is_careful = true;
                return Ok(Next::Committed(Box::new(all)));
            }
            let (work, ended) = self.committer.ended().await;
            match self.end_commit(work, ended)? {
                Next::Committed(committed) if committed.refused.is_empty() => all.add(*committed),
                other => return Ok(other),
            }
        }
    }

    /// Returns rows that Postgres may lack, in order, with the advances of the views that show them early.
    pub(super) fn ahead(&self) -> Vec<(&PerView<Rows>, Vec<Advance>)> {
        let mut all = Vec::new();
        let mut before = &self.committed;
        if let Some(Work { ahead, all_progress, .. }) = self.committer.under_way() {
            all.push((&ahead.changes.rows, self.early(|at| before.get(at as usize), all_progress)));
            before = all_progress;
        }
        if let Some(pending) = &self.pending {
            all.push((&pending.changes.rows, self.early(|at| before.get(at as usize), &self.all_progress)));
        }
        all
    }

    /// Returns the advances of the views that show their rows early.
    fn early<'a>(&self, before: impl Fn(u32) -> Option<&'a Progress>, now: &[Progress]) -> Vec<Advance> {
        let partitions = now.len() as u32;
        let advance = |place: Place| {
            let before = before(place.partition)?;
            is_early(place, &self.folder.parked, partitions)
                .then(|| Advance::between(place, before, &now[place.partition as usize]))?
        };
        self.share.places().filter_map(advance).collect()
    }

    /// Returns whether a checkpoint is where this session left it, or where the commit in flight moves it.
    pub(super) fn has_committed(&self, Place { feed, partition }: Place, found: &[Progress]) -> bool {
        let reader = |all_progress: &[Progress]| all_progress[partition as usize].readers[feed];
        let under_way = self.committer.under_way().map(|work| reader(&work.all_progress));
        reader(found) == reader(&self.committed) || Some(reader(found)) == under_way
    }

    /// Returns whether a view's rows still have the generation and revision that this session folds on.
    pub(super) fn is_as_made(&self, Place { feed, partition }: Place, found: &[Progress]) -> bool {
        let made = |all_progress: &[Progress]| {
            let progress = &all_progress[partition as usize];
            (progress.generations[feed], progress.revisions[feed])
        };
        made(found) == made(&self.committed)
    }

    /// Continues from the same checkpoints with rows that another process has changed.
    ///
    /// # Errors
    /// [`StoreError::Moved`] if the checkpoints have moved: another projector folds this share.
    pub(super) async fn adopt(&mut self, partitions: u32) -> Result<(), ProjectorError> {
        let found = self.store.all_progress(partitions, self.share.feeds).await?;
        let is_there = |Place { feed, partition }: Place| {
            found[partition as usize].readers[feed] == self.committed[partition as usize].readers[feed]
        };
        if !self.share.places().all(is_there) {
            return Err(StoreError::Moved.into());
        }
        for known in [&mut self.all_progress, &mut self.committed] {
            for (known, found) in known.iter_mut().zip(&found) {
                (known.generations, known.revisions) = (found.generations, found.revisions);
            }
        }
        self.folder.clear();
        self.folder.parked = self.store.parked().await?;
        tell_parked(&self.folder.parked, &self.metrics);
        Ok(())
    }

    /// Folds a batch on rows in memory, and on rows from Postgres for the rest, or from `cache` if Postgres is slow.
    async fn fold(&mut self, batch: &Batch, cache: Option<&Cache>) -> Result<(Changes, usize), ProjectorError> {
        let records = Records::of(batch, &self.exceptions)?;
        if self.folder.is_full() {
            let under_way = self.committer.under_way().map(|work| &work.ahead.changes);
            let lacking: Vec<_> =
                under_way.into_iter().chain(self.pending.as_ref().map(|ahead| &ahead.changes)).collect();
            self.folder.let_go(&lacking);
        }
        let missing = self.folder.missing(&records, self.share.feeds);
        if missing.iter().any(|keys| !keys.is_empty()) {
            self.fetch(&missing, cache).await?;
        }
        Ok((self.folder.fold(&records, &mut self.all_progress)?, records.len()))
    }

    /// Loads rows into memory: from Postgres, or from `cache` if it returns all of them before Postgres answers.
    async fn fetch(&mut self, missing: &Missing, cache: Option<&Cache>) -> Result<(), StoreError> {
        let count: usize = missing.iter().map(HashMap::len).sum();
        let patience = if self.is_postgres_late { Duration::ZERO } else { ROWS_WITHIN + ROW_WITHIN * count as u32 };
        let partitions = self.all_progress.len() as u32;
        let shown = async {
            let Some(cache) = cache else { return pending().await };
            tokio::time::sleep(patience).await;
            match cache.bases(missing, partitions).await {
                Some(rows) => rows,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            rows = self.store.rows(missing) => {
                self.folder.remember(rows?);
                self.is_postgres_late = false;
            }
            rows = shown => {
                self.folder.remember_unproved(rows);
                self.is_postgres_late = true;
            }
        }
        Ok(())
    }
}

impl Committed {
    fn add(&mut self, later: Self) {
        for (rows, later) in self.rows.iter_mut().zip(later.rows) {
            rows.extend(later);
        }
        for advance in later.advances {
            match self.advances.iter_mut().find(|earlier| earlier.is_of(&advance)) {
                Some(earlier) => earlier.extend(&advance),
                None => self.advances.push(advance),
            }
        }
        self.refused.extend(later.refused);
    }
}

/// Records the numbers of parked aggregates.
fn tell_parked(parked: &Parked, metrics: &Metrics) {
    parked.counts().for_each(|(view, aggregates)| metrics.parked(view, aggregates as u64));
}
