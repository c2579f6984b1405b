//! The loop: stand by, take the lead, fold, and begin again when something breaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use rdkafka::error::KafkaError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::fold::{Changes, FoldError, Folder, Standing};
use crate::log::{self, Batch, Batches};
use crate::metrics::Metrics;
use crate::postgres::{Move, Store, StoreError, Sums};
use crate::redis::Cache;
use crate::snapshots::{self, Due};

/// Between tries to take the lead, and after something broke.
const RETRY: Duration = Duration::from_millis(300);
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
}

/// What `/readyz` may wait for.
pub(crate) struct Ready {
    pub(crate) log: Condition,
    pub(crate) postgres: Condition,
    pub(crate) redis: Condition,
}

impl Projector {
    /// Until shutdown. Only a log that cannot be read on ends it in place: it halts and says so.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let outcome = self.lead(&shutdown).await;
            self.metrics.active(false);
            match outcome {
                Ok(()) => {}
                Err(error @ (ProjectorError::Fold(_) | ProjectorError::Log(_))) => {
                    let reason = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(error = reason, "halted: a person must look at the log");
                    self.ready.log.waiting(format!("halted: {reason}"));
                    return shutdown.requested().await;
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

    /// Stands by until this session has the lead, then folds until it ends.
    async fn lead(&mut self, shutdown: &Shutdown) -> Result<(), ProjectorError> {
        let store = Store::connect(&self.config.postgres_url).await?;
        self.ready.postgres.ready();
        self.ready.log.ready();
        while !store.take_lead().await? {
            self.ready.redis.ready();
            pause(RETRY, shutdown).await;
            if shutdown.is_requested() {
                return Ok(());
            }
        }
        let standings = store.standings(self.partitions).await?;
        let from: Vec<i64> = standings.iter().map(Standing::from).collect();
        let mut batches =
            log::follow(&self.config.kafka, &self.config.topic.name, &from).map_err(ProjectorError::Reader)?;
        tracing::info!("folding");
        self.metrics.active(true);
        self.cache.lose_step();
        let (due, waiting) = snapshots::channel();
        // It ends with this stretch of folding.
        let mut background = JoinSet::new();
        background.spawn(snapshots::keep(self.config.postgres_url.clone(), waiting, self.metrics.clone()));
        let mut fold = Fold {
            metrics: self.metrics.clone(),
            store,
            folder: Folder::default(),
            committed: standings.clone(),
            standings,
            last_move: Instant::now(),
            window: self.config.window,
            due,
        };
        let mut last_try = None;
        let mut committed = None;
        loop {
            if !self.cache.is_in_step() {
                self.mend_cache(&fold, &mut last_try).await;
            }
            // Redis shows one batch while Postgres takes the next.
            let (next, ()) = tokio::join!(fold.next(&mut batches, shutdown), self.show(committed.take()));
            match next? {
                Some(batch) => committed = Some(batch),
                None => return Ok(()),
            }
        }
    }

    async fn show(&mut self, committed: Option<Committed>) {
        let Some(Committed { changes, sums, moves }) = committed.filter(|committed| !committed.moves.is_empty()) else {
            return;
        };
        let begun = Instant::now();
        match self.cache.show(&changes, &sums, &moves).await {
            Ok(()) => self.metrics.cached(begun.elapsed()),
            Err(error) => self.cache_failed(error),
        }
    }

    /// Brings Redis back in step, if this projector still leads: its checkpoints in Postgres say so.
    async fn mend_cache(&mut self, fold: &Fold, last_try: &mut Option<Instant>) {
        if last_try.is_some_and(|last| last.elapsed() < CACHE_RETRY) {
            return;
        }
        *last_try = Some(Instant::now());
        let own = match fold.store.standings(self.partitions).await {
            Ok(found) => found.iter().zip(&fold.committed).all(|(found, own)| found.readers == own.readers),
            // The next commit tells.
            Err(_) => return,
        };
        if !own {
            return;
        }
        match self.cache.resume(&fold.committed).await {
            Ok(begun) => {
                if begun {
                    tracing::info!("Redis did not show the checkpoints: all of it is declared stale");
                    self.metrics.incarnation_begun();
                }
                self.ready.redis.ready();
            }
            Err(error) => self.cache_failed(error),
        }
    }

    fn cache_failed(&mut self, error: crate::redis::CacheError) {
        let reason = format!("{:#}", anyhow::Error::from(error));
        tracing::warn!(error = reason, "Redis is out of step; queries go to Postgres");
        self.metrics.cache_failed();
        self.ready.redis.waiting(reason);
    }
}

/// One stretch of folding, from taking the lead to losing it.
struct Fold {
    metrics: Arc<Metrics>,
    store: Store,
    folder: Folder,
    /// Where the fold stands, and where the checkpoints do.
    standings: Vec<Standing>,
    committed: Vec<Standing>,
    last_move: Instant,
    /// How long keys are remembered.
    window: Duration,
    due: mpsc::Sender<Due>,
}

/// What Postgres has of a batch.
struct Committed {
    changes: Changes,
    sums: Sums,
    moves: Vec<Move>,
}

impl Fold {
    /// The next batch, once it is committed; `None`: told to stop.
    async fn next(&mut self, batches: &mut Batches, shutdown: &Shutdown) -> Result<Option<Committed>, ProjectorError> {
        let batch = tokio::select! {
            biased;
            () = shutdown.requested() => return Ok(None),
            batch = batches.recv() => batch,
            () = tokio::time::sleep(IDLE_MOVE) => Some(Ok(Batch::default())),
        };
        match batch {
            Some(Ok(batch)) => self.take(&batch).await.map(Some),
            Some(Err(error)) => Err(ProjectorError::Log(error)),
            None => Ok(None),
        }
    }

    async fn take(&mut self, batch: &Batch) -> Result<Committed, ProjectorError> {
        let begun = Instant::now();
        let missing = self.folder.missing(batch);
        let (products, orders) = self.store.rows(&missing).await?;
        self.folder.remember(products, orders);
        let changes = self.folder.fold(batch, &mut self.standings)?;
        self.metrics.folded(batch.len(), changes.commits);
        for reason in &changes.passed_over {
            self.metrics.passed_over(*reason);
        }
        let moves = self.moves(&changes);
        let mut sums = Sums::default();
        if !moves.is_empty() {
            self.store.maintain_repeats(self.window).await?;
            sums = self.store.commit(&changes, &moves, &self.standings).await?;
            self.metrics.committed(begun.elapsed());
            for due in &changes.due {
                // Without room it comes again later.
                let _ = self.due.try_send(due.clone());
            }
            for Move { partition, .. } in &moves {
                self.committed[*partition as usize] = self.standings[*partition as usize].clone();
            }
        }
        Ok(Committed { changes, sums, moves })
    }

    /// Partitions in which something counted; now and then the others too.
    fn moves(&mut self, changes: &Changes) -> Vec<Move> {
        let all = self.last_move.elapsed() >= IDLE_MOVE;
        if all {
            self.last_move = Instant::now();
        }
        let mut moves = Vec::new();
        for (partition, (now, committed)) in (0..).zip(self.standings.iter().zip(&self.committed)) {
            if !all && !changes.moved.contains(&partition) {
                continue;
            }
            for (view, (to, from)) in now.readers.iter().zip(&committed.readers).enumerate() {
                if to != from {
                    let tally = now.tallies[view];
                    moves.push(Move { view, partition, from: *from, to: *to, tally, times: now.times });
                }
            }
        }
        moves
    }
}

async fn pause(length: Duration, shutdown: &Shutdown) {
    tokio::select! {
        () = tokio::time::sleep(length) => {}
        () = shutdown.requested() => {}
    }
}
