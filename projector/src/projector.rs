//! The projector's main loop: folds the assigned partitions, and restarts when the assignment changes or on an error.
//!
//! The assignment is a hint. If two projectors fold the same partition for a moment, they move the same checkpoints:
//! one of them fails, and restarts from the other's checkpoint.

mod error;
mod uncommitted;
mod session;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::kafka::group::{Assignment, changed};
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use chassis::telemetry::with_causes;
use schemas::feeds::PerView;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::fold::{Progress, Rows};
use crate::log_reader::{self, BatchLimits, Batches};
use crate::metrics::Metrics;
use crate::other_folds::{self, Notice, OtherFolds};
use crate::parked::Parked;
use crate::postgres::{Store, StoreError, Target};
use crate::redis::resume::Resumed;
use crate::redis::{Advance, Cache, CacheError};
use crate::share::{Place, Share};
use crate::stops::Stops;
use error::ProjectorError;
use session::{Next, Session, Source, Start};
pub(crate) use uncommitted::CommitSize;

/// Pause after an error.
const RETRY: Duration = Duration::from_millis(300);
/// Time for a partition's previous projector to show its last commit in Redis; after that, it no longer will.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Upper bound of the wait for a previous projector; if it still folds, the checkpoints' compare-and-set decides.
const TAKEN_ON_WITHIN: Duration = Duration::from_secs(5);
/// Minimum interval between attempts to resynchronize Redis.
const CACHE_RETRY: Duration = Duration::from_millis(250);
/// Timeout for reading the checkpoints in such an attempt, because folding waits for it.
const FOUND_WITHIN: Duration = Duration::from_millis(100);

pub(crate) struct Projector {
    pub(crate) config: Config,
    pub(crate) partitions: u32,
    pub(crate) cache: Cache,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ready: Ready,
    /// The last logged reason why Redis is out of sync.
    pub(crate) cache_failure: Option<String>,
    /// The last logged failure, until a commit succeeds: a Postgres with a full disk answers everything but commits.
    pub(crate) failure: Option<String>,
    pub(crate) notice: Notice,
    pub(crate) assignment: watch::Receiver<Assignment>,
    pub(crate) commit_size: CommitSize,
    pub(crate) stops: Stops,
}

/// The readiness conditions of folding.
pub(crate) struct Ready {
    pub(crate) log: Condition,
    pub(crate) postgres: Condition,
    pub(crate) redis: Condition,
    /// Met while Redis is configured as required.
    pub(crate) redis_settings: Condition,
}

impl Projector {
    /// Folds until shutdown. A partition whose log cannot be read any further halts without affecting the others.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let outcome = self.session(&shutdown).await;
            self.metrics.active(false);
            match outcome {
                Ok(()) => continue,
                Err(error) if self.stops.stop(error.blame(), &error) => continue,
                Err(error @ (ProjectorError::Fold(_) | ProjectorError::Log(_))) => {
                    let reason = with_causes(&error);
                    tracing::error!(error = reason, "halted: operator intervention required");
                    self.ready.log.waiting(format!("halted: {reason}"));
                    return shutdown.requested().await;
                }
                Err(ProjectorError::Store(StoreError::Moved)) => {
                    tracing::info!("another process moved the checkpoints; restarting from them");
                    shutdown.sleep(LOOK_EVERY).await;
                    continue;
                }
                Err(ProjectorError::Store(error @ StoreError::OtherFold(_))) => {
                    tracing::info!(error = %error, "another build has rebuilt a view; continuing without that view");
                    shutdown.sleep(LOOK_EVERY).await;
                    continue;
                }
                Err(error) => {
                    if let ProjectorError::Store(error) = &error
                        && error.is_time_out()
                    {
                        self.commit_size.shrink();
                    }
                    let reason = with_causes(&error);
                    if self.failure.as_ref() != Some(&reason) {
                        tracing::warn!(error = reason, "folding failed; restarting from the checkpoints");
                        self.failure = Some(reason.clone());
                    }
                    self.ready.postgres.waiting(reason);
                }
            }
            shutdown.sleep(RETRY).await;
        }
    }

    /// Folds until the assignment changes.
    async fn session(&mut self, shutdown: &Shutdown) -> Result<(), ProjectorError> {
        let store = Store::connect(&self.config.postgres, Target::Live).await?;
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
        // Aborts the background tasks when this session ends.
        let mut background = JoinSet::new();
        let passed = background.spawn(self.stops.passed(&self.config));
        let start = Start { store, share, other_folds, all_progress, parked };
        let mut fold = Session::begin(&self.config, start, self.metrics.clone(), &mut background).await?;
        let mut next_try = Instant::now();
        let mut assignment = self.assignment.clone();
        loop {
            let mut next = match self.cache.is_in_step() || self.mend_cache(&fold, &mut next_try).await {
                true => {
                    let (cache, stops, max_records) = (&self.cache, &self.stops, self.commit_size.records());
                    let source = Source { batches: &mut batches, cache, stops, max_records };
                    match passed.is_finished() {
                        true => Next::Over,
                        false => fold.next(source, &mut assignment, shutdown).await?,
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

    /// Starts to read the log from the share's checkpoints, except for halted partitions.
    fn read_on(&self, share: &BTreeSet<u32>, all_progress: &[Progress]) -> Result<Batches, ProjectorError> {
        let from = share.iter().map(|partition| (*partition, all_progress[*partition as usize].from()));
        let from: Vec<_> = from.filter(|(partition, offset)| self.stops.reads(*partition, *offset)).collect();
        let records = self.commit_size.records().min(BatchLimits::MAX.records);
        let limits = BatchLimits { records, ..BatchLimits::MAX };
        let known = |partition: u32| {
            let readers = &all_progress[partition as usize].readers;
            let offsets = self.config.feeds.iter().map(|feed| readers[feed].next_offset);
            (partition, offsets.max().unwrap_or(0))
        };
        let known = from.iter().map(|(partition, _)| known(*partition)).collect();
        let batches = log_reader::follow_by(limits, &self.config.kafka, &self.config.topic.name, &from, known);
        match self.stops.of_all(share) {
            Some(reason) => self.ready.log.waiting(reason),
            None => self.ready.log.ready(),
        }
        batches.map_err(ProjectorError::Reader)
    }

    /// Marks folding as recovered.
    fn goes_on(&mut self) {
        self.ready.postgres.ready();
        if self.failure.take().is_some() {
            tracing::info!("folding resumed");
        }
    }

    /// Shows folded or committed rows in Redis.
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
                // First, so that no position moves past a parked record while Redis still shows a row that contains it.
                self.forget(&committed.refused).await;
                self.show(&committed.rows, &committed.advances, true).await;
            }
            Next::Overtaken | Next::Over => {}
        }
        let contradicted = self.cache.contradicted(&fold.all_progress);
        self.forget(&contradicted).await;
    }

    /// Continues on rows that another process has changed, which costs readers less than a restart.
    async fn adopt(&mut self, fold: &mut Session) -> Result<(), ProjectorError> {
        let settled = fold.settle().await?;
        self.take_in(settled, fold).await;
        fold.adopt(self.partitions).await?;
        self.cache.lose_step();
        self.take_on(&fold.store, &fold.share).await?;
        // The rows may have changed again during the wait for Redis.
        fold.adopt(self.partitions).await
    }

    /// Waits until the assignment, or a view that waits for a rebuild, may have changed.
    async fn stand_by(&mut self, other_folds: &OtherFolds, shutdown: &Shutdown) {
        self.ready.log.ready();
        self.ready.redis.ready();
        tokio::select! {
            () = changed(&mut self.assignment, shutdown) => {}
            () = tokio::time::sleep(other_folds::LOOK_EVERY), if !other_folds.is_empty() => {}
        }
    }

    /// Returns the share's progress once Redis shows it. Waits for the previous projector while the checkpoints move.
    async fn take_on(&mut self, store: &Store, share: &Share) -> Result<(Vec<Progress>, Parked), ProjectorError> {
        let (begun, mut moved, mut last) = (Instant::now(), Instant::now(), Vec::new());
        loop {
            let all_progress = store.all_progress(self.partitions, share.feeds).await?;
            let parked = store.parked().await?;
            let now: Vec<_> =
                share.places().map(|at| all_progress[at.partition as usize].readers[at.feed].next_offset).collect();
            if now != last {
                (moved, last) = (Instant::now(), now);
            }
            match self.cache.resume(share, &all_progress, &parked, moved.elapsed() > SHOWN_WITHIN).await {
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

    /// Tries from time to time to resynchronize Redis. Returns false if another process has changed the rows.
    async fn mend_cache(&mut self, fold: &Session, next_try: &mut Instant) -> bool {
        let begun = Instant::now();
        if begun < *next_try {
            return true;
        }
        let goes_on = self.try_to_mend_cache(fold).await;
        // Folding waits for each attempt, so slow attempts are made less often.
        *next_try = Instant::now() + CACHE_RETRY.max(4 * begun.elapsed());
        goes_on
    }

    /// Resynchronizes Redis if the checkpoints in Postgres show that the share is still this projector's.
    async fn try_to_mend_cache(&mut self, fold: &Session) -> bool {
        // If the checkpoints cannot be read, the next commit will compare them.
        let found = fold.store.all_progress(self.partitions, fold.share.feeds);
        let Ok(Ok(found)) = tokio::time::timeout(FOUND_WITHIN, found).await else { return true };
        if !fold.share.places().all(|place| fold.has_committed(place, &found)) {
            return true;
        }
        if !fold.share.places().all(|place| fold.is_as_made(place, &found)) {
            return false;
        }
        match self.cache.resume(&fold.share, &found, &fold.folder.parked, true).await {
            Ok(resumed) => self.resumed(resumed),
            Err(error) => self.cache_failed(error),
        }
        // Some places may be back in sync even if others are not.
        for (rows, advances) in fold.ahead() {
            self.show(rows, &advances, false).await;
        }
        true
    }

    fn resumed(&mut self, resumed: Resumed) {
        if let Resumed::Anew(places) = resumed {
            tracing::info!(places, "Redis did not show the checkpoints; its rows in these places are declared stale");
            self.metrics.incarnations_begun(places);
        }
        if !self.cache.is_in_step() {
            return;
        }
        self.ready.redis.ready();
        if self.cache_failure.take().is_some() {
            tracing::info!("Redis is back in sync");
        }
    }

    fn cache_failed(&mut self, error: CacheError) {
        let reason = with_causes(&error);
        self.metrics.cache_failed();
        self.ready.redis.waiting(reason.clone());
        if self.cache_failure.as_ref() != Some(&reason) {
            tracing::warn!(error = reason, "Redis is out of sync; queries fall back to Postgres");
            self.cache_failure = Some(reason);
        }
    }
}
