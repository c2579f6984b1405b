//! The loop: fold the share of the log that the group assigns, and begin again when it changes or something breaks.
//!
//! The assignment is a hint. Two projectors that fold the same partition for a moment move the same checkpoints: one of
//! them fails, and begins again from where the other one is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::kafka::group::Assignment;
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use rdkafka::error::KafkaError;
use schemas::feeds::FeedId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::config::{Config, Feeds};
use crate::fold::{Changes, FoldError, Folder, Records, Standing};
use crate::log::{self, Batch, Batches};
use crate::metrics::Metrics;
use crate::other_folds::{self, Notice, OtherFolds};
use crate::postgres::{End, Move, Store, StoreError, Target};
use crate::redis::{Cache, Resumed};
use crate::snapshots::{self, Due};

/// After something broke.
const RETRY: Duration = Duration::from_millis(300);
/// Who folded a partition before may still have to show in Redis what it committed last. After so long it won't.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Then it is folded though somebody else folds it as well: the checkpoints tell whose it is.
const TAKEN_ON_WITHIN: Duration = Duration::from_secs(5);
/// What counts for no view (claims, fences, strangers) moves a checkpoint this often at most.
const IDLE_MOVE: Duration = Duration::from_secs(1);
/// Between tries to bring Redis back in step.
const CACHE_RETRY: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProjectorError {
    #[error("Postgres failed")]
    Store(#[from] StoreError),
    #[error("the log is not what the views were folded from")]
    Fold(#[from] FoldError),
    #[error("the log does not hold what is asked of it")]
    Log(#[source] KafkaError),
    #[error("the log's reader could not start")]
    Reader(#[source] anyhow::Error),
}

pub(crate) struct Projector {
    pub(crate) config: Config,
    pub(crate) partitions: u32,
    pub(crate) cache: Cache,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ready: Ready,
    pub(crate) notice: Notice,
    /// Told by the group.
    pub(crate) assignment: watch::Receiver<Assignment>,
}

/// What one projector folds.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) feeds: Feeds,
    pub(crate) partitions: Arc<BTreeSet<u32>>,
}

impl Share {
    /// Returns each feed in each partition.
    pub(crate) fn places(&self) -> impl Iterator<Item = (FeedId, u32)> {
        self.partitions.iter().flat_map(|partition| self.feeds.iter().map(move |feed| (feed, *partition)))
    }
}

/// What `/readyz` may wait for.
pub(crate) struct Ready {
    pub(crate) log: Condition,
    pub(crate) postgres: Condition,
    pub(crate) redis: Condition,
    /// How Redis is set up.
    pub(crate) redis_settings: Condition,
}

impl Projector {
    /// Until shutdown. Only a log that cannot be read on ends it in place: it halts and says so.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let outcome = self.stretch(&shutdown).await;
            self.metrics.active(false);
            match outcome {
                Ok(()) => continue,
                Err(error @ (ProjectorError::Fold(_) | ProjectorError::Log(_))) => {
                    let reason = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(error = reason, "halted: a person must look at the log");
                    self.ready.log.waiting(format!("halted: {reason}"));
                    return shutdown.requested().await;
                }
                Err(ProjectorError::Store(StoreError::Moved)) => {
                    tracing::info!("another process moved the checkpoints; beginning again from there");
                    pause(LOOK_EVERY, &shutdown).await;
                    continue;
                }
                Err(ProjectorError::Store(error @ StoreError::OtherFold(_))) => {
                    tracing::info!(error = %error, "a view was rebuilt by another build; going on without it");
                    pause(LOOK_EVERY, &shutdown).await;
                    continue;
                }
                Err(error) => {
                    let reason = format!("{:#}", anyhow::Error::from(error));
                    tracing::warn!(error = reason, "folding stopped; beginning again from the checkpoints");
                    self.ready.postgres.waiting(reason);
                }
            }
            pause(RETRY, &shutdown).await;
        }
    }

    /// Folds until the assignment changes.
    async fn stretch(&mut self, shutdown: &Shutdown) -> Result<(), ProjectorError> {
        let store = Store::connect(&self.config.postgres_url, Target::Live).await?;
        self.ready.postgres.ready();
        let assigned = self.assignment.borrow_and_update().clone().unwrap_or_default();
        let other_folds = OtherFolds::find(&store, self.config.feeds).await?;
        self.notice.tell(&other_folds);
        let share = Share { feeds: other_folds.others(), partitions: assigned };
        self.cache.lose_step();
        if share.places().next().is_none() {
            self.stand_by(&other_folds, shutdown).await;
            return Ok(());
        }
        let standings = self.take_on(&store, &share).await?;
        if self.assignment.has_changed().unwrap_or(false) {
            return Ok(());
        }
        let mut folder = Folder::default();
        folder.parked = store.parked().await?;
        self.metrics.parked(&folder.parked);
        let from: Vec<_> =
            share.partitions.iter().map(|partition| (*partition, standings[*partition as usize].from())).collect();
        let mut batches =
            log::follow(&self.config.kafka, &self.config.topic.name, &from).map_err(ProjectorError::Reader)?;
        self.ready.log.ready();
        tracing::info!(views = share.feeds.names(), partitions = ?share.partitions, "folding");
        self.metrics.active(true);
        let (due, waiting) = snapshots::channel();
        // It ends with this stretch.
        let mut background = JoinSet::new();
        background.spawn(snapshots::keep(self.config.postgres_url.clone(), waiting, self.metrics.clone()));
        let mut fold = Fold {
            metrics: self.metrics.clone(),
            store,
            folder,
            committed: standings.clone(),
            standings,
            share,
            other_folds,
            held: None,
            last_move: Instant::now(),
            window: self.config.window,
            due,
        };
        let mut last_try = None;
        let mut committed = None;
        let mut assignment = self.assignment.clone();
        loop {
            if !self.cache.is_in_step() {
                self.mend_cache(&fold, &mut last_try).await;
            }
            // Redis shows one batch while Postgres takes the next.
            let next = fold.next(&mut batches, &mut assignment, shutdown);
            let (next, ()) = tokio::join!(next, self.show(committed.take()));
            if !fold.other_folds.is_empty() {
                self.notice.tell(&fold.other_folds);
            }
            match next? {
                Next::Committed(batch) => committed = Some(*batch),
                Next::Overtaken => {
                    // It costs readers less than to begin again, if only what is folded on has changed. It may once
                    // more while Redis is waited for.
                    fold.adopt(self.partitions).await?;
                    self.cache.lose_step();
                    self.take_on(&fold.store, &fold.share).await?;
                    fold.adopt(self.partitions).await?;
                }
                Next::Over => return Ok(()),
            }
        }
    }

    /// Waits until there may be something to fold.
    async fn stand_by(&mut self, other_folds: &OtherFolds, shutdown: &Shutdown) {
        self.ready.log.ready();
        self.ready.redis.ready();
        tokio::select! {
            () = changed(&mut self.assignment, shutdown) => {}
            () = tokio::time::sleep(other_folds::LOOK_EVERY), if !other_folds.is_empty() => {}
        }
    }

    /// Returns where the share stands, once Redis shows it: who folded it before may be about to, and is left the time to as
    /// long as the checkpoints move.
    async fn take_on(&mut self, store: &Store, share: &Share) -> Result<Vec<Standing>, ProjectorError> {
        let (begun, mut moved, mut last) = (Instant::now(), Instant::now(), Vec::new());
        loop {
            let standings = store.standings(self.partitions, share.feeds).await?;
            let now: Vec<_> =
                share.places().map(|(feed, at)| standings[at as usize].readers[feed].next_offset).collect();
            if now != last {
                (moved, last) = (Instant::now(), now);
            }
            match self.cache.resume(share, &standings, moved.elapsed() > SHOWN_WITHIN).await {
                Ok(Resumed::NotYet) if begun.elapsed() > TAKEN_ON_WITHIN => return Ok(standings),
                Ok(Resumed::NotYet) if self.assignment.has_changed().unwrap_or(false) => return Ok(standings),
                Ok(Resumed::NotYet) => tokio::time::sleep(LOOK_EVERY).await,
                Ok(resumed) => {
                    self.resumed(resumed);
                    return Ok(standings);
                }
                Err(error) => {
                    self.cache_failed(error);
                    return Ok(standings);
                }
            }
        }
    }

    async fn show(&mut self, committed: Option<Committed>) {
        let Some(Committed { changes, moves }) = committed.filter(|committed| !committed.moves.is_empty()) else {
            if let Err(error) = self.cache.verify().await {
                self.cache_failed(error);
            }
            return;
        };
        let begun = Instant::now();
        match self.cache.show(&changes, &moves).await {
            Ok(()) => self.metrics.cached(begun.elapsed()),
            Err(error) => self.cache_failed(error),
        }
    }

    /// Brings Redis back in step, if the share is still this projector's: its checkpoints in Postgres say so.
    async fn mend_cache(&mut self, fold: &Fold, last_try: &mut Option<Instant>) {
        if last_try.is_some_and(|last| last.elapsed() < CACHE_RETRY) {
            return;
        }
        *last_try = Some(Instant::now());
        // Where they cannot be read, the next commit tells.
        let Ok(found) = fold.store.standings(self.partitions, fold.share.feeds).await else { return };
        let reader = |standings: &[Standing], (feed, partition)| standings[partition as usize].readers[feed];
        if !fold.share.places().all(|place| reader(&found, place) == reader(&fold.committed, place)) {
            return;
        }
        match self.cache.resume(&fold.share, &found, true).await {
            Ok(resumed) => self.resumed(resumed),
            Err(error) => self.cache_failed(error),
        }
    }

    fn resumed(&self, resumed: Resumed) {
        if let Resumed::Anew(places) = resumed {
            tracing::info!(places, "Redis did not show the checkpoints: what it has of these places is declared stale");
            self.metrics.incarnations_begun(places);
        }
        self.ready.redis.ready();
    }

    fn cache_failed(&mut self, error: crate::redis::CacheError) {
        let reason = format!("{:#}", anyhow::Error::from(error));
        tracing::warn!(error = reason, "Redis is out of step; queries go to Postgres");
        self.metrics.cache_failed();
        self.ready.redis.waiting(reason);
    }
}

/// One stretch of folding.
pub(crate) struct Fold {
    pub(crate) metrics: Arc<Metrics>,
    store: Store,
    pub(crate) folder: Folder,
    /// Where the fold stands, and where the checkpoints do.
    pub(crate) standings: Vec<Standing>,
    committed: Vec<Standing>,
    share: Share,
    other_folds: OtherFolds,
    /// A batch that is to be taken once more.
    held: Option<Batch>,
    last_move: Instant,
    /// How long keys are remembered.
    window: Duration,
    due: mpsc::Sender<Due>,
}

/// What became of a wait for a batch.
enum Next {
    Committed(Box<Committed>),
    /// Somebody else has changed what the batch was folded on; it is held.
    Overtaken,
    /// It is time to stop, or to fold another share.
    Over,
}

/// What Postgres has of a batch.
pub(crate) struct Committed {
    changes: Changes,
    moves: Vec<Move>,
}

impl Fold {
    /// The next batch, once it is committed.
    async fn next(
        &mut self,
        batches: &mut Batches,
        assignment: &mut watch::Receiver<Assignment>,
        shutdown: &Shutdown,
    ) -> Result<Next, ProjectorError> {
        if self.other_folds.have_changed(&self.store).await? {
            return Ok(Next::Over);
        }
        let batch = match self.held.take() {
            Some(batch) => batch,
            None => tokio::select! {
                biased;
                () = changed(assignment, shutdown) => return Ok(Next::Over),
                batch = batches.recv() => batch.map_err(ProjectorError::Log)?,
                () = tokio::time::sleep(IDLE_MOVE) => Batch::default(),
            },
        };
        let before = self.standings.clone();
        match self.try_take(&batch, End::Commit).await {
            Ok(committed) => Ok(Next::Committed(Box::new(committed))),
            Err(ProjectorError::Store(StoreError::Moved)) => {
                (self.standings, self.held) = (before, Some(batch));
                Ok(Next::Overtaken)
            }
            Err(error) => self.take_apart(&batch, &before, error).await.map(|batch| Next::Committed(Box::new(batch))),
        }
    }

    /// Goes on from the same places, with the rows as others have changed them.
    ///
    /// # Errors
    /// [`StoreError::Moved`] where the checkpoints are elsewhere: another projector folds this share.
    async fn adopt(&mut self, partitions: u32) -> Result<(), ProjectorError> {
        let found = self.store.standings(partitions, self.share.feeds).await?;
        let is_there = |(feed, partition): (FeedId, u32)| {
            found[partition as usize].readers[feed] == self.committed[partition as usize].readers[feed]
        };
        if !self.share.places().all(is_there) {
            return Err(StoreError::Moved.into());
        }
        for known in [&mut self.standings, &mut self.committed] {
            for (known, found) in known.iter_mut().zip(&found) {
                (known.generations, known.revisions) = (found.generations, found.revisions);
            }
        }
        self.folder.clear();
        self.folder.parked = self.store.parked().await?;
        self.metrics.parked(&self.folder.parked);
        Ok(())
    }

    pub(crate) async fn try_take(&mut self, batch: &Batch, end: End) -> Result<Committed, ProjectorError> {
        let begun = Instant::now();
        let records = Records::of(batch)?;
        let missing = self.folder.missing(&records, self.share.feeds);
        self.folder.remember(self.store.rows(&missing).await?);
        let changes = self.folder.fold(&records, &mut self.standings)?;
        let moves = self.moves(&changes);
        if !moves.is_empty() {
            let log_ms = self.standings.iter().map(|standing| standing.times.last_at_ms).max().unwrap_or(0);
            self.store.maintain_repeats(self.window, log_ms).await?;
            self.store.commit(&changes, &moves, &self.standings, end).await?;
        }
        if end == End::Rollback {
            return Ok(Committed { changes, moves });
        }
        self.metrics.folded(records.len(), changes.commits);
        for reason in &changes.passed_over {
            self.metrics.passed_over(*reason);
        }
        if !moves.is_empty() {
            self.metrics.committed(begun.elapsed());
            for due in &changes.due {
                // Without room it comes again later.
                let _ = self.due.try_send(due.clone());
            }
            for Move { partition, .. } in &moves {
                self.committed[*partition as usize] = self.standings[*partition as usize].clone();
            }
        }
        Ok(Committed { changes, moves })
    }

    /// Partitions in which something counted; now and then the others too.
    fn moves(&mut self, changes: &Changes) -> Vec<Move> {
        let all = self.last_move.elapsed() >= IDLE_MOVE;
        if all {
            self.last_move = Instant::now();
        }
        let mut moves = Vec::new();
        for (feed, partition) in self.share.places().filter(|(_, partition)| all || changes.moved.contains(partition)) {
            let (now, committed) = (&self.standings[partition as usize], &self.committed[partition as usize]);
            let (from, to) = (committed.readers[feed], now.readers[feed]);
            if to != from {
                let (name, tally, revision) = (Target::Live.name(feed), now.tallies[feed], now.revisions[feed]);
                moves.push(Move { name, partition, from, to, tally, times: now.times, revision });
            }
        }
        moves
    }
}

/// The share did, or it is time to end.
async fn changed(assignment: &mut watch::Receiver<Assignment>, shutdown: &Shutdown) {
    tokio::select! {
        // The group ends after the projector.
        Ok(()) = assignment.changed() => {}
        () = shutdown.requested() => {}
    }
}

async fn pause(length: Duration, shutdown: &Shutdown) {
    tokio::select! {
        () = tokio::time::sleep(length) => {}
        () = shutdown.requested() => {}
    }
}
