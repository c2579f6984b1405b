//! Queues commands for the engine of their partition.
//!
//! Three lanes: internal commands, which finish earlier work and go first; single commands of clients, which are
//! refused early when too many wait; and lines of batches, which wait for room, so that a batch is slowed down instead
//! of torn apart. The last two take turns.
//!
//! Invariant: every lane is bounded, and one aggregate may take only a part of the clients' lane: a hot product fills
//! its share and leaves room for others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use tokio::sync::mpsc::{
    self,
    error::{TryRecvError, TrySendError},
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::partition::{ParsedRequest, Quarantine, Release, Role};
use crate::request::{Reply, TimeLimits};

/// Maximum number of single commands that wait for one partition.
const MAX_CLIENTS: usize = 4096;
/// Maximum number of single commands on one aggregate that wait.
const MAX_PER_AGGREGATE: u32 = 1024;
const MAX_INTERNAL: usize = 4096;
/// Maximum number of batch lines in one partition's lane, not counting those that wait for room.
const MAX_LINES: usize = 1024;
/// Maximum number of lines that are queued at once: a part of a lane, so that waiting batches take turns.
const MAX_PUT: usize = 256;
/// Number of commands that the lanes of one partition hold.
pub(crate) const CAPACITY: usize = MAX_INTERNAL + MAX_CLIENTS + MAX_LINES;
/// Maximum number of requests that wait for one partition's engine.
const MAX_REQUESTS: usize = 64;
/// Number of counters of waiting commands; aggregates with the same counter share its limit. A prime, because the
/// aggregates of one partition agree modulo the number of partitions.
const SLOTS: u32 = 4093;

/// A command that waits in a lane.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) request: ParsedRequest<Reply>,
    pub(crate) came: Instant,
    pub(crate) time_limits: TimeLimits,
    slot: Option<usize>,
}

/// Reason for which a command was not queued. It had no effect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotQueued {
    Full,
    /// The engine is ending or has ended: this instance no longer serves the partition.
    Closed,
}

/// A request to an engine, other than a command.
#[derive(Debug)]
pub(crate) enum EngineRequest {
    /// Another instance is to own the partition. Answered once this one does not own it.
    LetGo(oneshot::Sender<()>),
    /// The owner does not answer: take over unless the log shows that it is alive.
    Suspect,
    Quarantined(oneshot::Sender<BTreeMap<AggregateId, Quarantine>>),
    Release(AggregateId, oneshot::Sender<Release>),
}

/// The status of an engine as published to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    Role(Role),
    /// The engine makes no progress in this role until the event that the text describes.
    Waits(Role, String),
    /// The log cannot be read any further; operator intervention required.
    Halted(String),
}

/// The sending ends of one partition's engine.
pub(crate) struct Mailbox {
    internal: mpsc::Sender<QueuedRequest>,
    clients: mpsc::Sender<QueuedRequest>,
    lines: mpsc::Sender<QueuedRequest>,
    waiting: Arc<Waiting>,
    pub(crate) requests: mpsc::Sender<EngineRequest>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) gauges: Arc<Gauges>,
}

/// Measurements that the engine publishes at the end of each turn.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    /// Number of commands whose answer waits for the log.
    pub(crate) in_flight: AtomicU64,
    pub(crate) residents: AtomicU64,
    pub(crate) resident_bytes: AtomicU64,
    pub(crate) largest_state: AtomicU64,
    pub(crate) keys: AtomicU64,
    pub(crate) names: AtomicU64,
    pub(crate) knows_names: AtomicU64,
    pub(crate) tail_records: AtomicU64,
    pub(crate) quarantined: AtomicU64,
    /// Offset of the claim that counts, as far as the log was read.
    pub(crate) epoch: AtomicU64,
}

/// The engine's receiving ends of the lanes.
pub(crate) struct Lanes {
    internal: mpsc::Receiver<QueuedRequest>,
    clients: mpsc::Receiver<QueuedRequest>,
    lines: mpsc::Receiver<QueuedRequest>,
    waiting: Arc<Waiting>,
}

/// Number of waiting client commands by a hash of their aggregate. Needs no lock and stores no names.
struct Waiting([AtomicU32; SLOTS as usize]);

/// Creates a mailbox and the engine's ends of its channels.
pub(crate) fn new(status: watch::Receiver<Status>) -> (Mailbox, Lanes, mpsc::Receiver<EngineRequest>) {
    let (internal, internal_lane) = mpsc::channel(MAX_INTERNAL);
    let (clients, clients_lane) = mpsc::channel(MAX_CLIENTS);
    let (lines, lines_lane) = mpsc::channel(MAX_LINES);
    let (requests, asked) = mpsc::channel(MAX_REQUESTS);
    let waiting = Arc::new(Waiting([const { AtomicU32::new(0) }; SLOTS as usize]));
    let lanes = Lanes { internal: internal_lane, clients: clients_lane, lines: lines_lane, waiting: waiting.clone() };
    (Mailbox { internal, clients, lines, waiting, requests, status, gauges: Arc::default() }, lanes, asked)
}

impl Mailbox {
    /// Returns whether commands belong here: the engine owns the partition, or will in a moment.
    pub(crate) fn serves(&self) -> bool {
        !self.clients.is_closed() && self.status.borrow().role().is_some_and(Role::serves)
    }

    /// Returns the number of commands that wait in all lanes.
    pub(crate) fn depth(&self) -> usize {
        let depth = |lane: &mpsc::Sender<QueuedRequest>| lane.max_capacity() - lane.capacity();
        depth(&self.internal) + depth(&self.clients) + depth(&self.lines)
    }

    /// Queues a command. A full lane refuses it at once, except that a line of a batch waits for room.
    pub(crate) async fn put(
        &self,
        request: ParsedRequest<Reply>,
        time_limits: TimeLimits,
        internal: bool,
    ) -> Result<(), NotQueued> {
        let mut job = QueuedRequest { request, came: Instant::now(), time_limits, slot: None };
        match (internal, job.request.reply.is_of_batch()) {
            (true, true) => self.internal.send(job).await.map_err(|_| NotQueued::Closed),
            (false, true) => self.lines.send(job).await.map_err(|_| NotQueued::Closed),
            (true, false) => self.internal.try_send(job).map_err(|error| NotQueued::from(&error)),
            (false, false) => {
                let Some(slot) = self.waiting.enter(&job.request.aggregate) else { return Err(NotQueued::Full) };
                job.slot = Some(slot);
                self.clients.try_send(job).map_err(|error| {
                    self.waiting.leave(slot);
                    NotQueued::from(&error)
                })
            }
        }
    }

    /// Queues lines of one batch, in order, as room becomes available. If the lane is closed, answers them.
    pub(crate) async fn put_lines(&self, requests: Vec<ParsedRequest<Reply>>, time_limits: TimeLimits, internal: bool) {
        let (lane, came) = (if internal { &self.internal } else { &self.lines }, Instant::now());
        let mut jobs = requests.into_iter().map(|request| QueuedRequest { request, came, time_limits, slot: None });
        while jobs.len() > 0 {
            match lane.reserve_many(jobs.len().min(MAX_PUT)).await {
                Ok(places) => places.zip(&mut jobs).for_each(|(place, job)| place.send(job)),
                Err(_closed) => jobs.by_ref().for_each(|job| job.request.reply.send(Answer::NoOwner)),
            }
        }
    }
}

impl Status {
    pub(crate) fn role(&self) -> Option<Role> {
        match self {
            Self::Role(role) | Self::Waits(role, _) => Some(*role),
            Self::Halted(_) => None,
        }
    }
}

impl From<&TrySendError<QueuedRequest>> for NotQueued {
    fn from(error: &TrySendError<QueuedRequest>) -> Self {
        match error {
            TrySendError::Full(_) => Self::Full,
            TrySendError::Closed(_) => Self::Closed,
        }
    }
}

impl QueuedRequest {
    /// Returns whether the command has waited too long, not counting the time before `served_since`, when the engine
    /// could first take it.
    pub(crate) fn waited_too_long(&self, now: Instant, served_since: Instant) -> bool {
        let waited = now.saturating_duration_since(self.came.max(served_since));
        waited > self.time_limits.in_mailbox || now > self.time_limits.deadline
    }
}

impl Lanes {
    /// Waits for commands, takes up to `max` of them and returns their number; 0 once all senders are gone. Cancel
    /// safe.
    pub(crate) async fn take(&mut self, jobs: &mut Vec<QueuedRequest>, max: usize) -> usize {
        let first = tokio::select! {
            biased;
            Some(job) = self.internal.recv() => job,
            Some(job) = self.clients.recv() => job,
            Some(job) = self.lines.recv() => job,
            else => return 0,
        };
        jobs.push(first);
        self.take_waiting(jobs, max);
        jobs.len()
    }

    /// Takes commands that are waiting now, until there are `max`.
    pub(crate) fn take_waiting(&mut self, jobs: &mut Vec<QueuedRequest>, max: usize) {
        drain(&mut self.internal, jobs, max);
        let half = jobs.len() + (max - jobs.len()) / 2;
        drain(&mut self.lines, jobs, half);
        drain(&mut self.clients, jobs, max);
        drain(&mut self.lines, jobs, max);
        for slot in jobs.iter_mut().filter_map(|job| job.slot.take()) {
            self.waiting.leave(slot);
        }
    }

    /// Closes the lanes to new commands; those that wait can still be taken.
    pub(crate) fn close(&mut self) {
        self.internal.close();
        self.clients.close();
        self.lines.close();
    }
}

fn drain(lane: &mut mpsc::Receiver<QueuedRequest>, jobs: &mut Vec<QueuedRequest>, max: usize) {
    while jobs.len() < max {
        match lane.try_recv() {
            Ok(job) => jobs.push(job),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
        }
    }
}

impl Waiting {
    /// Counts a command and returns its slot, or `None` if too many wait on the same aggregate.
    fn enter(&self, aggregate: &AggregateId) -> Option<usize> {
        let slot = aggregate.partition(SLOTS) as usize;
        let counter = &self.0[slot];
        if counter.fetch_add(1, Ordering::Relaxed) < MAX_PER_AGGREGATE {
            return Some(slot);
        }
        counter.fetch_sub(1, Ordering::Relaxed);
        None
    }

    fn leave(&self, slot: usize) {
        self.0[slot].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
