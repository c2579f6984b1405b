//! Does what events cause: sends the steps of `domain::reactions` to command-api, and sets the deadlines.
//!
//! It reads the log by itself, from checkpoints of its own. Each step goes into the lane of the aggregate that it asks,
//! and leads to the next one there; the checkpoint follows what has ended.
//!
//! Invariant: every step of every event is taken at least once, those to one aggregate in their order, before the
//! checkpoint passes the event. That it may be taken again, at any time, is what the steps are made for.
//!
//! Invariant: only an answer that is final parks a step, with its event's record: a rule that has no business to refuse it,
//! a command that is not understood, rules that panic. Overload and outages never do, however long they last: the step waits.
//!
//! What waits for a partition that is away holds up the steps to that partition, and the checkpoints, but no other lane.
//! Only when more waits for it than [`queues::MAX_SAGAS`] does a partition whose next event asks for it wait, too, since
//! what is caused there has an order. The partitions that cause nothing there go on.

pub mod begin;
mod sagas;
mod client;
mod queues;
mod positions;
pub(crate) mod deadlines;
pub(crate) mod retries;
pub(crate) mod unconfirmed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chassis::kafka::group::Assignment;
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use domain::TimeMs;
use rdkafka::error::KafkaError;
use schemas::chain::Verdict;
use schemas::exceptions::Exceptions;
use schemas::record::Record;
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::fold::{FoldError, Records};
use crate::log_reader::{self, Batch, LogError};
use crate::metrics::Metrics;
use crate::stops::{Blame, Stops};
pub(crate) use client::{Answered, CommandClient};
use positions::Positions;
pub(crate) use positions::{ParkedSoFar, REACTOR, ReactorStoreError};
pub(crate) use queues::{PartitionQueues, WeakQueues};
use sagas::{Caused, EndedSaga, Lease, Origin, RecordPosition, Saga, SagaEnd};

/// After something broke.
const RETRY: Duration = Duration::from_millis(300);
/// Another reactor moved the checkpoints.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The checkpoints follow this much behind at most: what they have not passed is only taken again after a crash.
const MOVE_EVERY: Duration = Duration::from_millis(100);
/// That nobody else moved them is proved at least this often.
const VERIFY_EVERY: Duration = Duration::from_secs(1);
/// Sagas under way, wherever they wait; above it nothing more is read. One is about a KiB.
const MAX_OPEN: usize = 4 * queues::MAX_SAGAS;
/// Sagas that ended, in one go.
const MAX_ENDED: usize = 4096;
/// The log's reader is told anew which partitions wait at most this often.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// How long a reactor that gives partitions away, or ends, waits for what it began.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
/// Between looks whether an operator has said where to begin.
const TOLD_EVERY: Duration = Duration::from_secs(2);
/// How long an operator waits for what was parked.
const AGAIN_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum ReactorError {
    #[error("Postgres failed")]
    Store(#[from] ReactorStoreError),
    #[error("the log is not what the reactor read")]
    Read(#[from] FoldError),
    #[error(transparent)]
    Log(LogError),
    #[error("the log's reader could not start")]
    Reader(#[source] anyhow::Error),
    #[error("Kafka does not tell how old the log is")]
    Age(#[source] KafkaError),
    #[error("it was not certain for a while that no other reactor had taken over")]
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
    /// Told by the group.
    pub(crate) assignment: watch::Receiver<Assignment>,
    pub(crate) stops: Stops,
}

/// From a load of the checkpoints to the next.
struct Session<'a> {
    reactor: &'a Reactor,
    positions: Positions,
    lease: Arc<Lease>,
    sender: mpsc::UnboundedSender<EndedSaga>,
    ended: mpsc::UnboundedReceiver<EndedSaga>,
    verified: Instant,
    blocked: Blocked,
}

/// Partitions of which nothing is read, since what their next events cause has no room.
#[derive(Default)]
struct Blocked {
    /// Each with the partition that it waits for.
    by_source: BTreeMap<u32, u32>,
    /// The log's reader does not know of all changes.
    has_changed: bool,
}

impl Reactor {
    /// Until shutdown. A partition whose log cannot be read on halts by itself.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let wait = match self.session(&shutdown).await {
                Ok(()) => continue,
                Err(ReactorError::Store(ReactorStoreError::Moved) | ReactorError::Lapsed) => LOOK_AGAIN,
                Err(error) if self.stops.stop(error.blame(), &error) => LOOK_AGAIN,
                Err(error @ (ReactorError::Read(_) | ReactorError::Log(_))) => {
                    let reason = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(error = reason, "the reactor halted: a person must look at the log");
                    self.ready.waiting(format!("halted: {reason}"));
                    return shutdown.requested().await;
                }
                Err(error) => {
                    let reason = format!("{:#}", anyhow::Error::from(error));
                    tracing::warn!(error = reason, "reacting stopped; beginning again from the checkpoints");
                    self.ready.waiting(reason);
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.requested() => {}
            }
        }
    }

    /// Until the assignment changes.
    async fn session(&mut self, shutdown: &Shutdown) -> Result<(), ReactorError> {
        let assigned = self.assignment.borrow_and_update().clone().unwrap_or_default();
        if assigned.is_empty() {
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
        tracing::info!(partitions = ?assigned, "reacting");
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
        let positions = Positions::load(&reactor.config.postgres_url, reactor.partitions, assigned).await?;
        let (sender, ended) = mpsc::unbounded_channel();
        let (lease, blocked) = (Arc::new(Lease::new(asked)), Blocked::default());
        let mut session = Self { reactor, positions, lease, sender, ended, verified: asked, blocked };
        session.verify().await?;
        Ok(session)
    }

    /// Reads on, but not of the partitions that wait, or that cannot be read.
    fn follow(&self) -> Result<log_reader::Batches, ReactorError> {
        let Config { kafka, topic, .. } = &self.reactor.config;
        let mut from = self.positions.from();
        from.retain(|place| !self.blocked.by_source.contains_key(&place.0) && self.reactor.stops.reads(*place));
        log_reader::follow(kafka, &topic.name, &from).map_err(ReactorError::Reader)
    }

    /// Until another reactor is to have its partitions, some of them at least, or this process ends.
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
        // Whatever has not begun is somebody else's, or this process's once more.
        self.lease.end();
        outcome
    }

    /// Begins what the records cause, as far as there is room for it.
    fn take(&mut self, mut batch: Batch) -> Result<(), ReactorError> {
        self.reactor.stops.filter(&mut batch, self.reactor.partitions);
        for (partition, offset, value, record) in Records::of(&batch, &self.reactor.config.exceptions)?.iter() {
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

    /// Tells whether nothing more is taken of a partition: it waits, or does so from this record on.
    fn blocks(&mut self, source: u32, caused: &Caused) -> bool {
        let Blocked { by_source, has_changed } = &mut self.blocked;
        if by_source.contains_key(&source) {
            return true;
        }
        let Some(target) = self.reactor.queues.full(caused.steps.iter().map(|(step, _)| step)) else { return false };
        if by_source.values().all(|known| *known != target) {
            tracing::warn!(kafka.partition = target, "so much waits for a partition that events elsewhere wait for it");
        }
        *has_changed = true;
        by_source.insert(source, target);
        true
    }

    /// Lets the partitions go on for which there is room again.
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

    /// Writes down how far it is, and makes sure that nobody else did.
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
        self.reactor.metrics.reactor_parked(self.positions.verify().await?);
        self.lease.renew(asked);
        self.verified = asked;
        Ok(())
    }

    /// What has begun ends; what has not is left to others.
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
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(at.0))
}

/// What became of parked records that were reacted to once more.
#[derive(Debug, Default)]
pub(crate) struct Again {
    /// Aggregates and offsets.
    pub(crate) done: Vec<(String, i64)>,
    pub(crate) failed: usize,
    /// Of one that failed.
    pub(crate) why_not: Option<String>,
}

/// Does what the records cause, once more.
pub(crate) async fn again(queues: &PartitionQueues, batch: &Batch, payment_window: Duration) -> Again {
    let (ended, mut answers) = mpsc::unbounded_channel();
    let mut open: BTreeMap<RecordPosition, (String, usize)> = BTreeMap::new();
    // What is parked was read.
    let records = match Records::of(batch, &Exceptions::default()) {
        Ok(records) => records,
        Err(error) => {
            return Again { failed: batch.iter().count(), why_not: Some(error.to_string()), ..Again::default() };
        }
    };
    for (partition, offset, _, record) in records.iter() {
        let Some(Record::Commit(commit)) = record else { continue };
        let source = (partition, offset);
        let caused = sagas::caused_by(commit, source, payment_window);
        open.insert(source, (commit.aggregate.to_string(), caused.steps.len()));
        for (step, cause) in caused.steps {
            let sender = Origin { source, ended: ended.clone(), lease: None, patience: Some(AGAIN_WITHIN) };
            queues.begin(Saga { step, at: TimeMs(commit.at_ms), cause, sender });
        }
    }
    drop(ended);
    let mut why_not = None;
    let all = async {
        while let Some(EndedSaga { source, how, .. }) = answers.recv().await {
            match how {
                SagaEnd::Failed(reason) | SagaEnd::Late(reason) => why_not = Some(reason),
                SagaEnd::Done | SagaEnd::NotDue | SagaEnd::Dropped => open.entry(source).or_default().1 -= 1,
            }
        }
    };
    if tokio::time::timeout(AGAIN_WITHIN, all).await.is_err() {
        why_not.get_or_insert_with(|| "command-api does not take it just now".to_owned());
    }
    let count = open.len();
    let done = open.into_iter().filter(|(_, (_, sagas))| *sagas == 0);
    let done: Vec<_> = done.map(|((_, offset), (aggregate, _))| (aggregate, offset)).collect();
    Again { failed: count - done.len(), done, why_not }
}

/// The share did, or it is time to end.
async fn changed(assignment: &mut watch::Receiver<Assignment>, shutdown: &Shutdown) {
    tokio::select! {
        // The group ends after the reactor.
        Ok(()) = assignment.changed() => {}
        () = shutdown.requested() => {}
    }
}
