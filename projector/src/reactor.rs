//! Executes the reactions of `domain::reactions`: sends their steps to command-api and sets deadlines. It reads the log
//! from its own checkpoints. Each step enters the queue of its aggregate's partition, and its outcome leads to the next
//! step. The checkpoints follow the sagas that have ended.
//!
//! Invariant: every step of every event is sent at least once, and those to one aggregate in order, before the
//! checkpoint passes the event. Steps are designed to be repeated at any time.
//!
//! Invariant: only a final answer parks a step, with its event's record: a rejection by a rule that should not apply, a
//! command that is not understood, or rules that panic. Overload and outages, however long, never do: the step waits.
//!
//! Steps to an unavailable partition delay other steps to it, and the checkpoints, but no other queue. Once more than
//! [`queues::MAX_SAGAS`] wait for it, a source partition whose next event targets it pauses too, because its reactions
//! are ordered. Source partitions without such events go on.

pub mod begin;
pub mod grown;
mod open;
mod sagas;
mod client;
mod queue;
mod queues;
mod positions;
pub(crate) mod deadlines;
pub(crate) mod retries;
pub(crate) mod unconfirmed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::clock::since_epoch;
use chassis::kafka::group::{Assignment, changed};
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use chassis::telemetry::with_causes;
use domain::TimeMs;
use rdkafka::error::KafkaError;
use schemas::chain::Verdict;
use schemas::record::Record;
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::fold::{FoldError, Records};
use crate::log_reader::{self, Batch, BatchLimits, Blame, LogError, RawRecord};
use crate::metrics::Metrics;
use crate::stops::Stops;
pub(crate) use client::CommandClient;
use positions::{ParkedSoFar, Positions, ReactorStoreError};
pub(crate) use queues::{PartitionQueues, WeakQueues};
use sagas::{Caused, EndedSaga, Lease, Origin, Saga, SagaEnd};

/// Delay before a new session after an error.
const RETRY: Duration = Duration::from_millis(300);
/// Delay before a new session if the checkpoints moved, the lease lapsed or a partition halted.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Interval between checkpoint commits. After a crash, events since the last one are handled again.
const MOVE_EVERY: Duration = Duration::from_millis(100);
/// Maximum interval between checks that no other reactor moved the checkpoints.
const VERIFY_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of open sagas over all queues; above it, reading pauses. One takes about 1 KiB.
const MAX_OPEN: usize = 4 * queues::MAX_SAGAS;
/// Maximum number of ended sagas handled at once.
const MAX_ENDED: usize = 4096;
/// Minimum interval between restarts of the log reader after partitions were blocked or unblocked.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// Time limit for open sagas to end after a revocation or at shutdown.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
/// Interval between checks whether an operator has chosen where to begin.
const TOLD_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum ReactorError {
    #[error("access to the reactor's tables failed")]
    Store(#[from] ReactorStoreError),
    #[error("log integrity check failed")]
    Read(#[from] FoldError),
    #[error(transparent)]
    Log(LogError),
    #[error("log reader failed to start")]
    Reader(#[source] anyhow::Error),
    #[error("reading the age of the log from Kafka failed")]
    Age(#[source] KafkaError),
    #[error("lease lapsed: another reactor may have taken over")]
    Lapsed,
}

impl ReactorError {
    fn blame(&self) -> Option<Blame> {
        match self {
            Self::Read(error) => error.blame(),
            Self::Log(error) => error.blame(),
            Self::Store(_) | Self::Reader(_) | Self::Age(_) | Self::Lapsed => None,
        }
    }
}

pub(crate) struct Reactor {
    pub(crate) config: Config,
    pub(crate) partitions: u32,
    pub(crate) queues: PartitionQueues,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ready: Condition,
    /// Partitions that the consumer group assigns to this process.
    pub(crate) assignment: watch::Receiver<Assignment>,
    pub(crate) stops: Stops,
}

/// One run of the reactor, from a load of the checkpoints to the next.
struct Session<'a> {
    reactor: &'a Reactor,
    positions: Positions,
    lease: Arc<Lease>,
    sender: mpsc::UnboundedSender<EndedSaga>,
    ended: mpsc::UnboundedReceiver<EndedSaga>,
    verified: Instant,
    blocked: Blocked,
}

/// Source partitions that pause because a target of their next event has no room.
#[derive(Default)]
struct Blocked {
    /// Target partition that each source partition waits for.
    by_source: BTreeMap<u32, u32>,
    /// Set until the log reader follows the latest change.
    has_changed: bool,
}

impl Reactor {
    /// Runs sessions until shutdown. A partition whose log cannot be read halts on its own.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let wait = match self.session(&shutdown).await {
                Ok(()) => continue,
                Err(ReactorError::Store(ReactorStoreError::Moved) | ReactorError::Lapsed) => LOOK_AGAIN,
                Err(error) if self.stops.stop(error.blame(), &error) => LOOK_AGAIN,
                Err(error @ (ReactorError::Read(_) | ReactorError::Log(_))) => {
                    let reason = with_causes(&error);
                    tracing::error!(error = reason, "reactor halted: operator intervention required");
                    self.ready.waiting(format!("halted: {reason}"));
                    return shutdown.requested().await;
                }
                Err(error) => {
                    let reason = with_causes(&error);
                    tracing::warn!(error = reason, "reactor session failed; restarting from the checkpoints");
                    self.ready.waiting(reason);
                    RETRY
                }
            };
            shutdown.sleep(wait).await;
        }
    }

    /// Reacts to events until the assignment changes.
    async fn session(&mut self, shutdown: &Shutdown) -> Result<(), ReactorError> {
        let assigned = self.assignment.borrow_and_update().clone().unwrap_or_default();
        if assigned.is_empty() {
            self.metrics.oldest_open(None);
            self.ready.ready();
            changed(&mut self.assignment, shutdown).await;
            return Ok(());
        }
        self.stops.look(&assigned, &self.config);
        let mut assignment = self.assignment.clone();
        let session = Session::begin(self, &assigned).await?;
        let Config { kafka, topic, .. } = &self.config;
        let is_new = async || begin::is_old(kafka, &topic.name, self.partitions).await.map(|is_old| !is_old);
        let may_begin = session.positions.have_begun() || is_new().await.map_err(ReactorError::Age)?;
        self.metrics.waits_to_be_told(!may_begin);
        if !may_begin {
            self.ready.waiting(begin::TO_BE_TOLD);
            tokio::select! {
                () = tokio::time::sleep(TOLD_EVERY) => {}
                () = changed(&mut assignment, shutdown) => {}
            }
            return Ok(());
        }
        let batches = session.follow()?;
        match self.stops.of_all(&assigned) {
            Some(reason) => self.ready.waiting(reason),
            None => self.ready.ready(),
        }
        tracing::info!(partitions = ?assigned, "reacting to events");
        let passed = self.stops.passed(&self.config);
        let over = async {
            tokio::select! {
                () = changed(&mut assignment, shutdown) => {}
                () = passed => {}
            }
        };
        session.run(batches, over).await
    }
}

impl<'a> Session<'a> {
    async fn begin(reactor: &'a Reactor, assigned: &BTreeSet<u32>) -> Result<Self, ReactorError> {
        let asked = Instant::now();
        let positions = Positions::load(&reactor.config.postgres, reactor.partitions, assigned).await?;
        // It holds no more ends than sagas are open: MAX_OPEN, and those of one batch.
        let (sender, ended) = mpsc::unbounded_channel();
        let (lease, blocked) = (Arc::new(Lease::new(asked)), Blocked::default());
        let mut session = Self { reactor, positions, lease, sender, ended, verified: asked, blocked };
        session.verify().await?;
        Ok(session)
    }

    /// Follows the log, except for partitions that are blocked or halted.
    fn follow(&self) -> Result<log_reader::Batches, ReactorError> {
        let Config { kafka, topic, .. } = &self.reactor.config;
        let mut from = self.positions.from();
        from.retain(|(partition, offset)| {
            !self.blocked.by_source.contains_key(partition) && self.reactor.stops.reads(*partition, *offset)
        });
        let known = from.iter().map(|(partition, _)| (*partition, self.positions.next_offset(*partition))).collect();
        log_reader::follow_by(BatchLimits::MAX, kafka, &topic.name, &from, known).map_err(ReactorError::Reader)
    }

    /// Reacts to events until `over` completes, then settles. An error ends it at once.
    async fn run(
        mut self,
        mut batches: log_reader::Batches,
        over: impl Future<Output = ()>,
    ) -> Result<(), ReactorError> {
        let mut over = std::pin::pin!(over);
        let mut next_move = tokio::time::Instant::now() + MOVE_EVERY;
        let mut followed = Instant::now();
        let mut all = Vec::new();
        let outcome = loop {
            let may_read = self.positions.open_sagas() < MAX_OPEN;
            let step = tokio::select! {
                biased;
                () = &mut over => break self.settle().await,
                _ = self.ended.recv_many(&mut all, MAX_ENDED) => self.take_ended(&mut all),
                () = tokio::time::sleep_until(next_move) => {
                    next_move = tokio::time::Instant::now() + MOVE_EVERY;
                    self.unblock();
                    let kept = self.keep().await;
                    if kept.is_ok() && self.blocked.has_changed && followed.elapsed() >= FOLLOW_EVERY {
                        (followed, self.blocked.has_changed) = (Instant::now(), false);
                        self.follow().map(|again| batches = again)
                    } else {
                        kept
                    }
                }
                batch = batches.recv(), if may_read => batch.map_err(ReactorError::Log).and_then(|batch| self.take(batch)),
            };
            if let Err(error) = step {
                break Err(error);
            }
        };
        // Sagas that have not begun belong to the next session, in this or another process.
        self.lease.end();
        outcome
    }

    /// Begins the sagas of the records, as far as their target queues have room.
    fn take(&mut self, mut batch: Batch) -> Result<(), ReactorError> {
        self.reactor.stops.filter(&mut batch, self.reactor.partitions);
        for (RawRecord { partition, offset, value }, record) in
            Records::of(&batch, &self.reactor.config.exceptions)?.iter()
        {
            let source = (partition, offset);
            let commit = match record {
                Some(Record::Commit(commit)) => Some(commit),
                Some(_) | None => None,
            };
            let payment_window = self.reactor.config.payment_window;
            let caused = commit.map(|commit| sagas::caused_by(commit, source, payment_window)).unwrap_or_default();
            if self.blocks(partition, &caused) || self.positions.read(source, record)? != Some(Verdict::Counts) {
                continue;
            }
            let Some(commit) = commit else { continue };
            self.positions.set(caused.deadlines);
            self.positions.begin(source, value, commit, caused.steps.len());
            for (step, cause) in caused.steps {
                let (ended, lease) = (self.sender.clone(), Some(self.lease.clone()));
                let sender = Origin { source, ended, lease, patience: None };
                self.reactor.queues.begin(Saga { step, at: TimeMs(commit.at_ms), cause, sender });
            }
        }
        Ok(())
    }

    /// Returns whether the source partition is blocked, or becomes so because a target of `caused` has no room.
    fn blocks(&mut self, source: u32, caused: &Caused) -> bool {
        let Blocked { by_source, has_changed } = &mut self.blocked;
        if by_source.contains_key(&source) {
            return true;
        }
        let Some(target) = self.reactor.queues.full(caused.steps.iter().map(|(step, _)| step)) else { return false };
        if by_source.values().all(|known| *known != target) {
            tracing::warn!(kafka.partition = target, "queue is full; pausing partitions whose events target it");
        }
        *has_changed = true;
        by_source.insert(source, target);
        true
    }

    /// Unblocks source partitions whose target has room again.
    fn unblock(&mut self) {
        let Blocked { by_source, has_changed } = &mut self.blocked;
        let before = by_source.len();
        by_source.retain(|_, target| self.reactor.queues.sagas(*target) > queues::MAX_SAGAS / 2);
        *has_changed |= by_source.len() < before;
    }

    fn take_ended(&mut self, all: &mut Vec<EndedSaga>) -> Result<(), ReactorError> {
        let mut have_begun = true;
        for ended in all.drain(..) {
            if ended.how == SagaEnd::Done {
                self.reactor.metrics.reacted(since(ended.at));
            }
            have_begun &= self.positions.ended(ended);
        }
        if have_begun { Ok(()) } else { Err(ReactorError::Lapsed) }
    }

    /// Commits the progress, and verifies at intervals that no other reactor moved the checkpoints.
    async fn keep(&mut self) -> Result<(), ReactorError> {
        let asked = Instant::now();
        if self.positions.commit().await? {
            self.lease.renew(asked);
        }
        if self.verified.elapsed() >= VERIFY_EVERY {
            self.verify().await?;
        }
        Ok(())
    }

    async fn verify(&mut self) -> Result<(), ReactorError> {
        let asked = Instant::now();
        for (view, ParkedSoFar { aggregates, oldest }) in self.positions.verify().await? {
            self.reactor.metrics.parked(view, aggregates);
            self.reactor.metrics.parked_age(view, oldest);
        }
        self.reactor.metrics.oldest_open(self.positions.oldest_open());
        self.lease.renew(asked);
        self.verified = asked;
        Ok(())
    }

    /// Waits for sagas that have begun, drops the others, and commits the progress.
    async fn settle(&mut self) -> Result<(), ReactorError> {
        self.lease.end();
        let deadline = tokio::time::Instant::now() + SETTLES_WITHIN;
        while self.positions.open_sagas() > 0 {
            match tokio::time::timeout_at(deadline, self.ended.recv()).await {
                Ok(Some(ended)) => _ = self.positions.ended(ended),
                Ok(None) | Err(_) => break,
            }
        }
        self.positions.commit().await?;
        Ok(())
    }
}

fn since(at: TimeMs) -> Duration {
    since_epoch().saturating_sub(Duration::from_millis(at.0))
}
