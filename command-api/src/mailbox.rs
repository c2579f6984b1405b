//! Where commands wait for the engine of their partition.
//!
//! Three lanes: internal commands, which finish what was begun and go first; single commands of clients, which are
//! refused early when too many wait; and lines of batches, which are kept waiting, so that a batch is slowed down
//! and not torn up. The last two take turns.
//!
//! Invariant: every lane is bounded, and of one aggregate only a part of the clients' lane may wait: a hot product
//! fills its share, and the others find room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use tokio::sync::mpsc::{
    self,
    error::{TryRecvError, TrySendError},
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::dispatcher::Reply;
use crate::engine::{EngineRequest, Status};
use crate::partition::{ParsedRequest, Role};

/// Single commands that may wait for one partition.
const MAX_CLIENTS: usize = 4096;
/// Of those, commands on one aggregate.
const MAX_PER_AGGREGATE: u32 = 1024;
const MAX_INTERNAL: usize = 4096;
/// Lines of batches that may wait for one partition, beside those that wait to get in.
const MAX_LINES: usize = 1024;
/// Lines that are put in at once: a part of a lane, so that those who wait get their turns.
const MAX_PUT: usize = 256;
/// Requests that may wait for one partition's engine.
const MAX_REQUESTS: usize = 64;
/// Counters of what waits; aggregates that share one share its limit. A prime: the aggregates of one partition agree
/// in the remainder by the number of partitions.
const SLOTS: u32 = 4093;

/// What waits in a lane.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) request: ParsedRequest<Reply>,
    pub(crate) came: Instant,
    pub(crate) time_limits: TimeLimits,
    slot: Option<usize>,
}

/// How long a command may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeLimits {
    /// For its turn, once the partition has an owner; then it is refused unexecuted.
    pub(crate) in_mailbox: Duration,
    /// Nobody waits for the answer after this.
    pub(crate) deadline: Instant,
}

/// Why a command was not put into its lane. Nothing was done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotQueued {
    Full,
    /// The engine ends, or has ended: this instance does not serve the partition any more.
    Closed,
}

/// The way into one partition's engine.
pub(crate) struct Mailbox {
    internal: mpsc::Sender<QueuedRequest>,
    clients: mpsc::Sender<QueuedRequest>,
    lines: mpsc::Sender<QueuedRequest>,
    waiting: Arc<Waiting>,
    pub(crate) requests: mpsc::Sender<EngineRequest>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) gauges: Arc<Gauges>,
}

/// What the engine tells of itself at the end of each turn.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    /// Commands whose answer waits for the log.
    pub(crate) in_flight: AtomicU64,
    pub(crate) residents: AtomicU64,
    pub(crate) resident_bytes: AtomicU64,
    pub(crate) largest_state: AtomicU64,
    pub(crate) keys: AtomicU64,
    pub(crate) names: AtomicU64,
    pub(crate) knows_names: AtomicU64,
    pub(crate) tail_records: AtomicU64,
    pub(crate) quarantined: AtomicU64,
}

/// The engine's end.
pub(crate) struct Lanes {
    internal: mpsc::Receiver<QueuedRequest>,
    clients: mpsc::Receiver<QueuedRequest>,
    lines: mpsc::Receiver<QueuedRequest>,
    waiting: Arc<Waiting>,
}

/// How many commands of clients wait, by a hash of their aggregate. No lock, and no aggregate's name is kept.
struct Waiting([AtomicU32; SLOTS as usize]);

/// With the engine's ends of its channels.
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
    /// Whether commands belong here: the engine owns the partition, or will in a moment.
    pub(crate) fn serves(&self) -> bool {
        !self.clients.is_closed() && self.status.borrow().role().is_some_and(Role::serves)
    }

    /// Commands that wait, in all lanes.
    pub(crate) fn depth(&self) -> usize {
        let depth = |lane: &mpsc::Sender<QueuedRequest>| lane.max_capacity() - lane.capacity();
        depth(&self.internal) + depth(&self.clients) + depth(&self.lines)
    }

    /// Refuses early, except that a line of a batch waits for room.
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

    /// Puts lines of one batch in, in their order, as soon as there is room. Those of a closed lane are answered.
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

impl From<&TrySendError<QueuedRequest>> for NotQueued {
    fn from(error: &TrySendError<QueuedRequest>) -> Self {
        match error {
            TrySendError::Full(_) => Self::Full,
            TrySendError::Closed(_) => Self::Closed,
        }
    }
}

impl QueuedRequest {
    /// `served_since`: when the engine could first take it.
    pub(crate) fn waited_too_long(&self, now: Instant, served_since: Instant) -> bool {
        let waited = now.saturating_duration_since(self.came.max(served_since));
        waited > self.time_limits.in_mailbox || now > self.time_limits.deadline
    }
}

impl Lanes {
    /// What waits, up to `max`, once anything does. 0: all senders are gone. Cancel safe.
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

    /// What waits now, until there are `max`.
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

    /// Takes nothing more in; what waits is still given out.
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
    /// `None`: too many of this aggregate wait.
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
