//! The loop: fold the share of the log that the group assigns, and begin again when it changes or something breaks.
//!
//! The assignment is a hint. Two projectors that fold the same partition for a moment move the same checkpoints: one of
//! them fails, and begins again from where the other one is.

mod uncommitted;
mod session;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::kafka::group::Assignment;
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use schemas::feeds::{FeedId, PerView};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Config, Feeds};
use crate::fold::{FoldError, Progress, Rows};
use crate::isolate::Parked;
use crate::log_reader::{self, Batches, LogError};
use crate::metrics::Metrics;
use crate::other_folds::{self, Notice, OtherFolds};
use crate::postgres::{Store, StoreError, Target};
use crate::redis::{Advance, Cache, Place, Resumed};
use crate::stops::{Blame, Stops};
use session::Next;

pub(crate) use session::{Committed, Session};
pub(crate) use uncommitted::CommitSize;

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
/// For the checkpoints that such a try needs: folding waits for them.
const FOUND_WITHIN: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProjectorError {
    #[error("Postgres failed")]
    Store(#[from] StoreError),
    #[error("the log is not what the views were folded from")]
    Session(#[from] FoldError),
    #[error(transparent)]
    Log(LogError),
    #[error("the log's reader could not start")]
    Reader(#[source] anyhow::Error),
}

impl ProjectorError {
    fn blame(&self) -> Option<Blame> {
        match self {
            Self::Session(error) => error.blame(),
            Self::Log(error) => error.blame(),
            Self::Store(_) | Self::Reader(_) => None,
        }
    }
}

pub(crate) struct Projector {
    pub(crate) config: Config,
    pub(crate) partitions: u32,
    pub(crate) cache: Cache,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ready: Ready,
    /// Why Redis is out of step, as it was logged.
    pub(crate) cache_failure: Option<String>,
    /// Why folding stopped, as it was logged, until it is known to go on: a Postgres that takes no commit, as one whose disk is
    /// full, answers all else.
    pub(crate) failure: Option<String>,
    pub(crate) notice: Notice,
    /// Told by the group.
    pub(crate) assignment: watch::Receiver<Assignment>,
    pub(crate) commit_size: CommitSize,
    pub(crate) stops: Stops,
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
    /// Until shutdown. A partition whose log cannot be read on halts by itself.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let outcome = self.session(&shutdown).await;
            self.metrics.active(false);
            match outcome {
                Ok(()) => continue,
                Err(error) if self.stops.stop(error.blame(), &error) => continue,
                Err(error @ (ProjectorError::Session(_) | ProjectorError::Log(_))) => {
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
                    if let ProjectorError::Store(error) = &error
                        && error.is_time_out()
                    {
                        self.commit_size.shrink();
                    }
                    let reason = format!("{:#}", anyhow::Error::from(error));
                    if self.failure.as_ref() != Some(&reason) {
                        tracing::warn!(error = reason, "folding stopped; beginning again from the checkpoints");
                        self.failure = Some(reason.clone());
                    }
                    self.ready.postgres.waiting(reason);
                }
            }
            pause(RETRY, &shutdown).await;
        }
    }

    /// Folds until the assignment changes.
    async fn session(&mut self, shutdown: &Shutdown) -> Result<(), ProjectorError> {
        let store = Store::connect(&self.config.postgres_url, Target::Live).await?;
        if self.failure.is_none() {
            self.ready.postgres.ready();
        }
        let assigned = self.assignment.borrow_and_update().clone().unwrap_or_default();
        self.stops.look(&assigned, &self.config);
        let other_folds = OtherFolds::find(&store, self.config.feeds).await?;
        self.notice.tell(&other_folds);
        let share = Share { feeds: other_folds.others(), partitions: assigned };
        self.cache.lose_step();
        if share.places().next().is_none() {
            self.goes_on();
            self.stand_by(&other_folds, shutdown).await;
            return Ok(());
        }
        let (all_progress, parked) = self.take_on(&store, &share).await?;
        if self.assignment.has_changed().unwrap_or(false) {
            return Ok(());
        }
        let mut batches = self.read_on(&share.partitions, &all_progress)?;
        if self.failure.is_none() {
            tracing::info!(views = share.feeds.names(), partitions = ?share.partitions, "folding");
        }
        self.metrics.active(true);
        // It ends with this stretch.
        let mut background = JoinSet::new();
        let passed = background.spawn(self.stops.passed(&self.config));
        let mut fold = Session::begin(
            &self.config,
            (share, other_folds),
            (store, all_progress, parked),
            (self.metrics.clone(), &mut background),
        )
        .await?;
        let mut next_try = Instant::now();
        let mut assignment = self.assignment.clone();
        loop {
            let mut next = match self.cache.is_in_step() || self.mend_cache(&fold, &mut next_try).await {
                true => {
                    let from = (&mut batches, &self.cache, self.commit_size.records());
                    match passed.is_finished() {
                        true => Next::Over,
                        false => fold.next((from, &self.stops), &mut assignment, shutdown).await?,
                    }
                }
                false => Next::Overtaken,
            };
            if !fold.other_folds.is_empty() {
                self.notice.tell(&fold.other_folds);
            }
            if self.failure.is_some() && fold.has_caught_up(&next) {
                self.goes_on();
            }
            let is_over = matches!(next, Next::Over);
            if is_over {
                next = fold.settle().await?;
            }
            match next {
                Next::Overtaken if !is_over => self.adopt(&mut fold).await?,
                next => self.take_in(next, &mut fold).await,
            }
            if is_over {
                return Ok(());
            }
        }
    }

    /// Follows the log from where the share stands, in those of its partitions that can be read.
    fn read_on(&self, share: &BTreeSet<u32>, all_progress: &[Progress]) -> Result<Batches, ProjectorError> {
        let from = share.iter().map(|partition| (*partition, all_progress[*partition as usize].from()));
        let from: Vec<_> = from.filter(|place| self.stops.reads(*place)).collect();
        let limits = (self.commit_size.records().min(log_reader::MAX_BATCH_RECORDS), log_reader::MAX_BATCH_BYTES);
        let batches = log_reader::follow_by(limits, &self.config.kafka, &self.config.topic.name, &from);
        match self.stops.of_all(share) {
            Some(reason) => self.ready.log.waiting(reason),
            None => self.ready.log.ready(),
        }
        batches.map_err(ProjectorError::Reader)
    }

    /// What stopped folding is over.
    fn goes_on(&mut self) {
        self.ready.postgres.ready();
        if self.failure.take().is_some() {
            tracing::info!("folding goes on");
        }
    }

    /// Shows what was folded or committed.
    async fn take_in(&mut self, next: Next, fold: &mut Session) {
        match next {
            Next::Folded(folded) => {
                self.show(&folded.changes.rows, &folded.advances, false).await;
                fold.keep(*folded);
            }
            Next::Committed(committed) => {
                if let Some(took) = committed.took {
                    self.commit_size.committed(took);
                }
                // First, so that no position moves past what is parked while its row stands there.
                self.forget(&committed.refused).await;
                self.show(&committed.rows, &committed.advances, true).await;
            }
            Next::Overtaken | Next::Over => {}
        }
        let contradicted = self.cache.contradicted(&fold.all_progress);
        self.forget(&contradicted).await;
    }

    /// Goes on with what others have changed. It costs readers less than to begin again, if only what is folded on has changed.
    async fn adopt(&mut self, fold: &mut Session) -> Result<(), ProjectorError> {
        let settled = fold.settle().await?;
        self.take_in(settled, fold).await;
        fold.adopt(self.partitions).await?;
        self.cache.lose_step();
        self.take_on(&fold.store, &fold.share).await?;
        // It may have changed once more while Redis was waited for.
        fold.adopt(self.partitions).await
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
    async fn take_on(&mut self, store: &Store, share: &Share) -> Result<(Vec<Progress>, Parked), ProjectorError> {
        let (begun, mut moved, mut last) = (Instant::now(), Instant::now(), Vec::new());
        loop {
            let all_progress = store.all_progress(self.partitions, share.feeds).await?;
            let parked = store.parked().await?;
            let now: Vec<_> =
                share.places().map(|(feed, at)| all_progress[at as usize].readers[feed].next_offset).collect();
            if now != last {
                (moved, last) = (Instant::now(), now);
            }
            match self.cache.resume(share, (&all_progress, &parked), moved.elapsed() > SHOWN_WITHIN).await {
                Ok(Resumed::NotYet) if begun.elapsed() > TAKEN_ON_WITHIN => {}
                Ok(Resumed::NotYet) if self.assignment.has_changed().unwrap_or(false) => {}
                Ok(Resumed::NotYet) => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                Ok(resumed) => self.resumed(resumed),
                Err(error) => self.cache_failed(error),
            }
            return Ok((all_progress, parked));
        }
    }

    async fn show(&mut self, rows: &PerView<Rows>, advances: &[Advance], are_committed: bool) {
        let begun = Instant::now();
        match self.cache.show(rows, advances, are_committed).await {
            Ok(()) if advances.is_empty() => {}
            Ok(()) => self.metrics.cached(begun.elapsed()),
            Err(error) => self.cache_failed(error),
        }
    }

    async fn forget(&mut self, places: &[Place]) {
        if !places.is_empty()
            && let Err(error) = self.cache.forget(places).await
        {
            self.cache_failed(error);
        }
    }

    /// Tries now and then to bring Redis back in step. Returns false where others have changed what is folded on.
    async fn mend_cache(&mut self, fold: &Session, next_try: &mut Instant) -> bool {
        let begun = Instant::now();
        if begun < *next_try {
            return true;
        }
        let goes_on = self.try_to_mend_cache(fold).await;
        // Folding waits for it.
        *next_try = Instant::now() + CACHE_RETRY.max(4 * begun.elapsed());
        goes_on
    }

    /// Brings Redis back in step, if the share is still this projector's: its checkpoints in Postgres say so.
    async fn try_to_mend_cache(&mut self, fold: &Session) -> bool {
        // Where they cannot be read, the next commit tells.
        let found = fold.store.all_progress(self.partitions, fold.share.feeds);
        let Ok(Ok(found)) = tokio::time::timeout(FOUND_WITHIN, found).await else { return true };
        if !fold.share.places().all(|place| fold.has_committed(place, &found)) {
            return true;
        }
        if !fold.share.places().all(|place| fold.is_as_made(place, &found)) {
            return false;
        }
        match self.cache.resume(&fold.share, (&found, &fold.folder.parked), true).await {
            Ok(resumed) => self.resumed(resumed),
            Err(error) => self.cache_failed(error),
        }
        // Some places may be back in step, though others are not.
        for (rows, advances) in fold.ahead() {
            self.show(rows, &advances, false).await;
        }
        true
    }

    fn resumed(&mut self, resumed: Resumed) {
        if let Resumed::Anew(places) = resumed {
            tracing::info!(places, "Redis did not show the checkpoints: what it has of these places is declared stale");
            self.metrics.incarnations_begun(places);
        }
        if !self.cache.is_in_step() {
            return;
        }
        self.ready.redis.ready();
        if self.cache_failure.take().is_some() {
            tracing::info!("Redis is back in step");
        }
    }

    fn cache_failed(&mut self, error: crate::redis::CacheError) {
        let reason = format!("{:#}", anyhow::Error::from(error));
        self.metrics.cache_failed();
        self.ready.redis.waiting(reason.clone());
        if self.cache_failure.as_ref() != Some(&reason) {
            tracing::warn!(error = reason, "Redis is out of step; queries go to Postgres");
            self.cache_failure = Some(reason);
        }
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
