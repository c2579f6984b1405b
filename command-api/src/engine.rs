//! Drives one partition: takes commands from its mailbox, passes them to the state machine and performs the effects
//! that the machine requests.
//!
//! Invariant: the machine belongs to one task; no part of it is shared or locked.

mod status;
mod halt;
mod io;
mod backoff;

use std::sync::Arc;
use std::time::Duration;

use chassis::clock::now_ms;
use chassis::kafka::group::Assignment;
use chassis::shutdown::Shutdown;
use domain::TimeMs;
use rdkafka::error::KafkaError;
use schemas::answers::Answer;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::handover::Handover;
use crate::kafka::producer::{DeliveryReport, DeliveryReports};
use crate::kafka::reader::ReadEvent;
use crate::loader::{JournalProgress, Loaded, LoaderInbox};
use crate::mailbox::{EngineRequest, Gauges, Lanes, QueuedRequest, Status};
use crate::memory_budget::MemoryBudget;
use crate::partition::{Effects as _, HaltError, Partition, Role, Unavailable};
use crate::request::Reply;

use backoff::Backoff;
pub(crate) use io::PartitionIo;

/// Maximum number of a partition's commands whose answers wait for the log.
const MAX_PENDING: usize = 10_000;
/// Maximum number of commands decided in one turn.
const MAX_TURN: usize = 256;
const MAX_REPORTS_A_TURN: usize = 1024;
/// Delay before records that the producer refused are sent again.
const RETRY: Duration = Duration::from_millis(20);

pub(crate) struct Engine {
    pub(crate) machine: Partition<Reply>,
    pub(crate) lanes: Lanes,
    pub(crate) requests: mpsc::Receiver<EngineRequest>,
    pub(crate) reports: DeliveryReports,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) assignment: watch::Receiver<Assignment>,
    pub(crate) handover: Handover,
    pub(crate) clock: Clock,
    pub(crate) io: PartitionIo,
    pub(crate) gauges: Arc<Gauges>,
    /// `None` if there is no Postgres to load from.
    pub(crate) inbox: Option<LoaderInbox>,
    pub(crate) budget: MemoryBudget,
    /// Set once another instance has requested the partition, or this one is shutting down.
    pub(crate) was_asked: bool,
    /// Set once the partition is released because the clock cannot be right.
    pub(crate) let_go_by_clock: bool,
    /// Time at which this instance became the owner. Waiting for an owner does not count against a command's time
    /// limit.
    pub(crate) served_since: Instant,
}

/// Error that halts an engine.
#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error("log integrity check failed")]
    Log(#[from] HaltError),
    #[error("the log does not hold the requested records")]
    Read(#[source] KafkaError),
}

enum Turn {
    Reports(Vec<DeliveryReport>),
    Read(Option<ReadEvent>),
    Jobs(Vec<QueuedRequest>),
    Request(EngineRequest),
    Loaded(Vec<Loaded>),
    /// Progress of the journal, sent periodically even if unchanged.
    Progress(JournalProgress),
    /// The handover has ended; true if the partition may be claimed.
    Cleared(bool),
    Assigned,
    Tick,
    Stop,
}

impl Engine {
    /// Runs until shutdown and owns the partition while it should. Commands in flight at shutdown are answered first.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut backoff = Backoff::default();
        let mut stopping = false;
        loop {
            self.pursue(&backoff, stopping);
            let mut turn = self.turn(&shutdown, stopping, &backoff).await;
            self.fill_up(&mut turn).await;
            stopping |= matches!(turn, Turn::Stop);
            let now = self.look_at_clock();
            if let Err(error) = self.take(turn, now) {
                match self.halt(&error, &shutdown).await {
                    true => continue,
                    false => return,
                }
            }
            self.machine.end_turn(now, &mut self.io);
            self.show();
            self.publish(&mut backoff);
            if stopping && self.machine.role() == Role::Idle {
                return;
            }
        }
    }

    /// Returns the time that the whole turn uses, because the clock may jump at any moment. Releases the partition if
    /// the clock cannot be right.
    fn look_at_clock(&mut self) -> TimeMs {
        let (now, trust) = self.clock.look();
        if self.machine.look_at_clock(trust, now) {
            tracing::warn!(kafka.partition = self.io.partition, "releasing the partition: the clock cannot be right");
            self.let_go_by_clock = true;
        }
        now
    }

    /// Takes the next step towards owning a partition that is assigned to this instance: first it reads the log, then
    /// it asks the owner to release the partition.
    fn pursue(&mut self, backoff: &Backoff, stopping: bool) {
        let role = self.machine.role();
        if role == Role::Idle {
            self.handover.end();
        }
        if stopping || !self.is_assigned() {
            return;
        }
        match role {
            Role::Idle if backoff.is_over() && self.knows_where_to_begin() => self.machine.prepare(&mut self.io),
            Role::Prepared if !self.handover.is_under_way() && self.clock.may_own() => self.handover.ask_owner(),
            _ => {}
        }
    }

    fn is_assigned(&self) -> bool {
        self.assignment.borrow().as_ref().is_some_and(|partitions| partitions.contains(&self.io.partition))
    }

    /// Returns whether it is known where to start reading. Shortly after the start, Postgres has reported a checkpoint,
    /// or is known to be unavailable and the log short.
    fn knows_where_to_begin(&self) -> bool {
        let begins = |known| matches!(known, JournalProgress::Nothing | JournalProgress::At(_));
        self.inbox.as_ref().is_none_or(|inbox| begins(*inbox.known.borrow()))
    }

    fn takes_records(&self) -> bool {
        self.machine.takes_records(self.budget.unfolded_bytes())
    }

    async fn turn(&mut self, shutdown: &Shutdown, stopping: bool, backoff: &Backoff) -> Turn {
        let role = self.machine.role();
        let takes = match role {
            Role::Owner => self.machine.pending() < MAX_PENDING,
            // Commands wait until the role is settled.
            Role::Unsettled => false,
            // An instance that does not own the partition answers at once.
            Role::Idle | Role::Preparing | Role::Prepared | Role::Leaving => true,
        };
        let (mut reports, mut jobs) = (Vec::new(), Vec::new());
        let retries = role == Role::Unsettled || self.machine.wants_turn() || !backoff.is_over();
        let pause = self.machine.fence_due_in(TimeMs(now_ms())).or(backoff.left()).unwrap_or(RETRY);
        tokio::select! {
            count = self.reports.recv_many(&mut reports, MAX_REPORTS_A_TURN), if !self.reports.is_closed() => {
                debug_assert!(count > 0, "the producers outlive the engines");
                Turn::Reports(reports)
            }
            event = next(&mut self.io.reading), if self.takes_records() => Turn::Read(event),
            count = self.lanes.take(&mut jobs, MAX_TURN), if takes && !stopping => {
                if count == 0 { Turn::Stop } else { Turn::Jobs(jobs) }
            }
            turn = next_loaded(&mut self.inbox) => turn,
            Some(request) = self.requests.recv() => Turn::Request(request),
            cleared = self.handover.cleared() => Turn::Cleared(cleared),
            Ok(()) = self.assignment.changed() => Turn::Assigned,
            _ = self.clock.changed() => Turn::Tick,
            () = tokio::time::sleep(pause), if retries => Turn::Tick,
            () = shutdown.requested(), if !stopping => Turn::Stop,
        }
    }

    /// Adds more events of the same kind to the turn. The event that woke the engine is rarely alone: other ready tasks
    /// run first, and the events that they produce are handled in the same turn. This saves wake-ups, each of which
    /// costs more than a decision.
    async fn fill_up(&mut self, turn: &mut Turn) {
        match turn {
            Turn::Reports(reports) => {
                tokio::task::yield_now().await;
                while reports.len() < MAX_REPORTS_A_TURN
                    && let Ok(report) = self.reports.try_recv()
                {
                    reports.push(report);
                }
            }
            Turn::Jobs(jobs) if !jobs.is_empty() => {
                tokio::task::yield_now().await;
                self.lanes.take_waiting(jobs, MAX_TURN);
            }
            // A long read always has its next batch ready, but the tasks that load states need to run, too.
            Turn::Read(_) => tokio::task::yield_now().await,
            _ => {}
        }
    }

    fn take(&mut self, turn: Turn, now: TimeMs) -> Result<(), EngineError> {
        match turn {
            Turn::Reports(reports) => {
                for DeliveryReport { ticket, offset } in reports {
                    self.io.reported(ticket);
                    self.machine.delivered(ticket, offset, &mut self.io);
                }
            }
            Turn::Read(Some(ReadEvent::Records(records))) => {
                for (offset, value) in records.iter() {
                    self.machine.record(offset, value, &mut self.io)?;
                }
            }
            Turn::Read(Some(ReadEvent::Ended)) => {
                self.io.reading = None;
                self.machine.read_ended(now, &mut self.io)?;
            }
            Turn::Read(Some(ReadEvent::Failed(error))) => return Err(EngineError::Read(error)),
            Turn::Read(None) => self.io.reading = None,
            Turn::Jobs(jobs) => self.decide(jobs, now),
            Turn::Request(request) => self.answer_request(request),
            Turn::Loaded(all) => {
                for brought in all {
                    match brought {
                        Loaded::LoadedAggregate(wanted, kept) => self.machine.loaded(&wanted, kept, now, &mut self.io),
                        Loaded::Names(names) => self.machine.named(&names, now, &mut self.io),
                    }
                }
            }
            Turn::Progress(known) => self.maintain(known, now),
            Turn::Cleared(true) => self.machine.take_over(&mut self.io),
            Turn::Cleared(false) => self.machine.let_go(),
            // The group assigned the partition to another instance, or lost contact with this one for so long that
            // another may have claimed.
            Turn::Assigned if !self.is_assigned() => self.machine.probe(now, &mut self.io),
            Turn::Assigned | Turn::Tick => {}
            Turn::Stop => {
                self.lanes.close();
                self.was_asked = true;
                self.machine.let_go();
            }
        }
        Ok(())
    }

    fn answer_request(&mut self, request: EngineRequest) {
        match request {
            EngineRequest::LetGo(done) => {
                if matches!(self.machine.role(), Role::Owner | Role::Unsettled) {
                    tracing::info!(kafka.partition = self.io.partition, "handing over the partition");
                    self.was_asked = true;
                    self.machine.let_go();
                }
                self.handover.notify_when_released(done);
                if matches!(self.machine.role(), Role::Idle | Role::Preparing | Role::Prepared) {
                    self.handover.released();
                }
            }
            // The requester may have gone away.
            EngineRequest::Quarantined(answer) => _ = answer.send(self.machine.quarantined().clone()),
            EngineRequest::Release(aggregate, answer) => {
                tracing::info!(aggregate = aggregate.as_str(), "release from quarantine requested");
                let _ = answer.send(self.machine.release(&aggregate));
            }
            EngineRequest::Suspect => {
                // An engine that has just started would read the log from its beginning; it will be asked again soon.
                let may = self.machine.role() == Role::Idle && self.knows_where_to_begin() && self.clock.may_own();
                if may && !self.handover.is_under_way() {
                    self.io.metrics.suspected(self.io.partition);
                    self.handover.await_silence();
                    self.machine.prepare(&mut self.io);
                }
            }
        }
    }

    /// Evicts states and keys that need not stay in memory, and requests missing states.
    fn maintain(&mut self, known: JournalProgress, now: TimeMs) {
        if let JournalProgress::At(checkpoint) = known {
            self.machine.checkpointed(checkpoint, &mut self.io);
        }
        self.machine.ask_for_states(&mut self.io);
        self.machine.forget(self.budget.keys(), now);
        let limit = self.budget.limit(self.io.partition, self.machine.resident_bytes());
        self.machine.evict(limit.unwrap_or(usize::MAX));
        for aggregate in self.machine.take_nearly_full() {
            tracing::warn!(
                kafka.partition = self.io.partition,
                aggregate = aggregate.as_str(),
                "the aggregate's state has reached 80 % of its maximum size; at the maximum, commands that add to it are rejected"
            );
        }
        self.load_again(known, now);
    }

    /// Repeats postponed loads once Postgres has caught up; before that, its answer would be as useless as the last
    /// one.
    fn load_again(&mut self, known: JournalProgress, now: TimeMs) {
        if !matches!(known, JournalProgress::At(checkpoint) if checkpoint.reader.next_offset >= self.machine.floor()) {
            return;
        }
        for wanted in std::mem::take(&mut self.io.wanted_later) {
            if self.io.load(wanted.clone()).is_err() {
                self.machine.loaded(&wanted, Err(Unavailable), now, &mut self.io);
            }
        }
    }

    fn decide(&mut self, jobs: Vec<QueuedRequest>, now: TimeMs) {
        let (instant, count) = (Instant::now(), jobs.len());
        let longest_wait = jobs.iter().map(|job| instant.saturating_duration_since(job.came)).max();
        for job in jobs {
            if job.waited_too_long(instant, self.served_since) || job.request.reply.is_refused() {
                let detail = "the command waited too long for its turn; nothing was done".into();
                job.request.reply.send(Answer::Overloaded { detail });
            } else {
                self.machine.command(job.request, now, &mut self.io);
            }
        }
        let mean = instant.elapsed() / u32::try_from(count).unwrap_or(1).max(1);
        self.io.metrics.decided(longest_wait.unwrap_or_default(), mean);
    }
}

/// Waits for the loader; pending forever if there is none.
async fn next_loaded(inbox: &mut Option<LoaderInbox>) -> Turn {
    let Some(LoaderInbox { brought, known }) = inbox else { return std::future::pending().await };
    let mut all = Vec::new();
    tokio::select! {
        count = brought.recv_many(&mut all, MAX_TURN) => {
            if count == 0 { std::future::pending().await } else { Turn::Loaded(all) }
        }
        Ok(()) = known.changed() => Turn::Progress(*known.borrow_and_update()),
        else => std::future::pending().await,
    }
}

/// Waits for the current read; pending forever if there is none.
async fn next(reading: &mut Option<mpsc::Receiver<ReadEvent>>) -> Option<ReadEvent> {
    match reading {
        Some(reading) => reading.recv().await,
        None => std::future::pending().await,
    }
}
