//! The owner's side of one log partition, as a pure state machine.
//!
//! Inputs are commands, delivery reports, log records and timestamps, passed as method calls. Outputs go through
//! [`Effects`]: records to append, reads to start, answers. There is no I/O, clock or randomness in here, so tests
//! drive the production code.
//!
//! Invariant: commands are decided one at a time, each on all events before it: the state in memory is ahead of the log
//! by exactly the records in flight.
//!
//! Invariant: no answer is sent before it is proved. An accepted command waits until its own record counts; a command
//! that appended nothing waits for a record sent after it was decided.
//!
//! Invariant: in doubt, the log is read before a new claim, and no command that may be in it is reported as failed.

mod effects;
mod replay;
mod aggregates;
mod tails;
mod names;
mod quarantine;
mod repeats;
mod awaiting_load;
mod pending;
mod fences;
mod claiming;
mod doubt;
mod loading;

use std::collections::BTreeMap;
use std::time::Duration;

use domain::{Event, TimeMs};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::chain::{Reader, Verdict, Writer};
use schemas::events::WireEvent;
use schemas::record::{Commit, Epoch, Fence, Record};

pub use effects::{
    Checkpoint, ClockTrust, DoubtCause, Effects, HaltError, LoadRequest, LoadedAggregate, LoadedNames, LoadedState,
    NoOffset, ParsedRequest, QueueFull, ReadTo, Role, Ticket, Unavailable,
};
pub use quarantine::{Quarantine, Release};
pub use repeats::Repeat;

use aggregates::Refusal;
use awaiting_load::AwaitingLoad;
use fences::Fences;
use pending::{Pending, PendingAnswers};
use replay::Replay;

/// Maximum lag of an unverified clock behind the partition's last record; beyond it, the clock is considered wrong.
const MAX_CLOCK_LAG_MS: u64 = 60_000;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
enum Phase {
    /// Neither the owner nor about to become it.
    Idle,
    /// Reads to the end of the log, then claims the partition or becomes prepared.
    CatchingUp {
        then_claim: bool,
    },
    /// Has read to the end of the log, and waits for the call to take over.
    Prepared,
    /// A claim has been sent, or is about to be.
    Claiming {
        nonce: u64,
        sent: bool,
    },
    /// The claim is in the log; the records up to it are being read.
    ReadingBack {
        epoch: Epoch,
    },
    Owner(Writer),
    /// Reads the log, in doubt about which of its own records count.
    Looking {
        writer: Writer,
        reader: Reader,
    },
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Partition<R> {
    partition: u32,
    url: String,
    generation: u16,
    /// Nonces of the claims sent since the takeover began; a claim with any other nonce is foreign.
    claims: Vec<u64>,
    phase: Phase,
    memory: Replay,
    pending: PendingAnswers<R>,
    /// Commands that wait for data from the store.
    parked: AwaitingLoad<R>,
    /// Newest known checkpoint. Without one, the log is read from its beginning and nothing is evicted.
    checkpoint: Option<Checkpoint>,
    /// Set while memory has no room for aggregates that are not in it.
    full: bool,
    /// Set while a request for names is outstanding.
    asks_names: bool,
    fences: Fences,
    /// Set while the partition is being released: it decides nothing more, and becomes idle once all is answered.
    leaving: bool,
    clock: ClockTrust,
    buffer: Vec<u8>,
}

impl<R> Partition<R> {
    /// Creates an idle partition. Claims contain `url`, the address of the instance's internal listener, and
    /// `partitions`, the topic's partition count: a log with a claim that states another count halts the partition.
    pub fn new(partition: u32, partitions: u32, url: String, window: Duration) -> Self {
        Self {
            partition,
            url,
            generation: 0,
            claims: Vec::new(),
            phase: Phase::Idle,
            memory: Replay::new(window, partitions),
            pending: PendingAnswers::default(),
            parked: AwaitingLoad::default(),
            checkpoint: None,
            full: false,
            asks_names: false,
            fences: Fences::default(),
            leaving: false,
            clock: ClockTrust::Unknown,
            buffer: Vec::with_capacity(1024),
        }
    }

    pub fn role(&self) -> Role {
        match self.phase {
            Phase::Idle => Role::Idle,
            Phase::Prepared => Role::Prepared,
            Phase::CatchingUp { then_claim: false } => Role::Preparing,
            _ if self.leaving => Role::Leaving,
            Phase::Owner(_) => Role::Owner,
            Phase::CatchingUp { .. } | Phase::Claiming { .. } | Phase::ReadingBack { .. } | Phase::Looking { .. } => {
                Role::Unsettled
            }
        }
    }

    /// Returns the number of commands whose answers wait for a delivery report.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns the number of aggregates in memory.
    pub fn residents(&self) -> usize {
        self.memory.aggregates.len()
    }

    /// Returns the aggregates on which nothing is decided, because the domain rules panicked.
    pub fn quarantined(&self) -> &BTreeMap<AggregateId, Quarantine> {
        self.memory.aggregates.quarantined.all()
    }

    /// Releases an aggregate from quarantine, so that commands on it are tried again.
    pub fn release(&mut self, aggregate: &AggregateId) -> Release {
        self.memory.aggregates.quarantined.release(aggregate)
    }

    /// Returns whether a claim or a fence has yet to be sent, which takes a turn even without input.
    pub fn wants_turn(&self) -> bool {
        match &self.phase {
            Phase::Owner(writer) => self.pending.last_needed() > writer.last_sent(),
            Phase::Claiming { sent, .. } => !sent,
            _ => false,
        }
    }

    /// Decides a command if this is the owner. The caller holds commands back while [`Self::role`] is unsettled.
    pub fn command(&mut self, request: ParsedRequest<R>, now: TimeMs, out: &mut impl Effects<Reply = R>) {
        if self.leaving || !matches!(self.phase, Phase::Owner(_)) {
            return out.answer(request.reply, Answer::Misdirected);
        }
        self.memory.repeats.expire(now);
        self.take_up(request, false, now, out);
    }

    /// Decides a command once its data is in memory. `may_count` is set if it was sent to the log before.
    fn take_up(&mut self, request: ParsedRequest<R>, may_count: bool, now: TimeMs, out: &mut impl Effects<Reply = R>) {
        match self.missing(&request) {
            Some(wanted) => self.park(request, may_count, wanted, out),
            None => self.decide(request, may_count, now, out),
        }
    }

    fn decide(&mut self, request: ParsedRequest<R>, may_count: bool, now: TimeMs, out: &mut impl Effects<Reply = R>) {
        if let Some(repeat) = self.memory.repeats.of(&request) {
            let answer = repeat.answer(self.partition, request.fingerprint);
            return self.prove(request, may_count, answer);
        }
        if self.misjudges(now) {
            return out.answer(request.reply, Answer::NoOwner);
        }
        let (version, position) = self.memory.aggregates.version(&request.aggregate);
        let position = (self.partition, position);
        if !request.precondition.holds_at(version) {
            return self.prove(request, may_count, Answer::PreconditionFailed { version, position });
        }
        let at = now.max(self.memory.last_at);
        match self.memory.aggregates.decide(&request.aggregate, &request.command, at) {
            Ok(events) if events.is_empty() => {
                let answer = Answer::Accepted { version, events: vec![], position, replayed: false, order: None };
                self.prove(request, may_count, answer);
            }
            Ok(events) => self.append(request, &events, at, out),
            Err(Refusal::Quarantined) => out.answer(request.reply, Answer::Quarantined),
            Err(Refusal::Rejected(rejection, state)) => {
                self.prove(request, may_count, Answer::rejected(&rejection, state, version, position));
            }
        }
    }

    pub fn delivered(&mut self, ticket: Ticket, report: Result<i64, NoOffset>, out: &mut impl Effects<Reply = R>) {
        if ticket.generation != self.generation {
            return;
        }
        match (&mut self.phase, report) {
            (Phase::Claiming { nonce, .. }, Ok(offset)) if ticket.seq == 0 => {
                let epoch = Epoch { claim: offset, nonce: *nonce };
                self.phase = Phase::ReadingBack { epoch };
                out.read(self.memory.reader.next_offset, ReadTo::Offset(offset + 1));
            }
            // The claim may be in the log nevertheless; the next one ends its epoch.
            (Phase::Claiming { .. }, Err(NoOffset)) => self.doubt(DoubtCause::NoOffset, out),
            (Phase::Owner(writer), Ok(offset)) => match writer.delivered(ticket.seq, offset) {
                Ok(()) => self.answer_proven(out),
                Err(doubt) => self.look(doubt, out),
            },
            // A doubt that is raised here is settled when the read ends.
            (Phase::Looking { writer, .. }, Ok(offset)) => {
                let _ = writer.delivered(ticket.seq, offset);
            }
            (Phase::Owner(_) | Phase::Looking { .. }, Err(NoOffset)) => self.doubt(DoubtCause::NoOffset, out),
            (
                Phase::Idle
                | Phase::CatchingUp { .. }
                | Phase::Prepared
                | Phase::Claiming { .. }
                | Phase::ReadingBack { .. },
                _,
            ) => {}
        }
    }

    /// Processes a record of the read in progress. It may be passed in again after an error that an exception resolves.
    pub fn record(&mut self, offset: i64, value: &[u8], out: &mut impl Effects<Reply = R>) -> Result<(), HaltError> {
        // The partition was released while the read was in progress.
        if matches!(self.phase, Phase::Idle) {
            return Ok(());
        }
        let record = out.decode(offset, value)?;
        if let Phase::Looking { reader, .. } = &mut self.phase {
            if let Verdict::PassedOver(reason) = reader.read(offset, record.as_ref())? {
                out.passed_over(reason);
            }
            return Ok(());
        }
        if self.is_of_a_twin(record.as_ref()) {
            out.shares_url();
        }
        if let Verdict::PassedOver(reason) = self.memory.read(offset, record.as_ref(), value.len())? {
            out.passed_over(reason);
        }
        self.ask_for_states(out);
        Ok(())
    }

    /// Returns whether the next record is a claim by which another instance with the same URL took the partition.
    fn is_of_a_twin(&self, record: Option<&Record<'_>>) -> bool {
        let Some(Record::Claim(claim)) = record else { return false };
        let is_own = |nonce| self.claims.contains(&nonce);
        claim.url == self.url
            && !is_own(claim.nonce)
            && self.memory.reader.epoch.is_some_and(|epoch| is_own(epoch.nonce))
    }

    pub fn read_ended(&mut self, now: TimeMs, out: &mut impl Effects<Reply = R>) -> Result<(), HaltError> {
        self.memory.check_recognized()?;
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::CatchingUp { .. } | Phase::ReadingBack { .. } if self.memory.reader.is_closed() => self.end(out)?,
            Phase::CatchingUp { .. } if self.is_deposed() => self.step_down(out),
            Phase::CatchingUp { then_claim: true } => self.claim(out),
            Phase::CatchingUp { then_claim: false } => self.phase = Phase::Prepared,
            Phase::ReadingBack { epoch } => {
                self.phase = Phase::Owner(Writer::new(epoch));
                self.fences = Fences::default();
                self.settle_pending(now, out);
            }
            Phase::Looking { writer, reader } => self.looked(writer, &reader, out),
            phase @ (Phase::Idle | Phase::Prepared | Phase::Claiming { .. } | Phase::Owner(_)) => self.phase = phase,
        }
        Ok(())
    }

    /// Returns the remaining delay of a fence that waits for more answers to share it.
    pub fn fence_due_in(&self, now: TimeMs) -> Option<Duration> {
        self.fences.due_in(now)
    }

    /// Ends a turn: sends the records that the commands of this turn share. A fence that is not due yet is sent at the
    /// end of a later turn, so that a burst of rejections shares a few fences.
    pub fn end_turn(&mut self, now: TimeMs, out: &mut impl Effects<Reply = R>) {
        if let Phase::Claiming { sent: false, .. } = self.phase {
            self.send_claim(out);
        }
        self.ask_names(out);
        if self.role() != Role::Owner {
            self.dismiss_parked(out);
        }
        let Phase::Owner(writer) = &self.phase else { return };
        let wanted = self.pending.last_needed() > writer.last_sent();
        if wanted && self.fences.is_due(writer.acknowledged(), now) {
            self.send_fence(now, out);
        }
    }

    /// Sends a fence to find out whether this instance still owns the partition. An owner that was suspended does not
    /// see the claims made since, and without anything to append it never would.
    pub fn probe(&mut self, now: TimeMs, out: &mut impl Effects<Reply = R>) {
        if self.role() == Role::Owner {
            self.send_fence(now, out);
        }
    }

    fn send_fence(&mut self, now: TimeMs, out: &mut impl Effects<Reply = R>) {
        let Phase::Owner(writer) = &mut self.phase else { return };
        let (epoch, seq) = (writer.epoch(), writer.next_seq());
        self.buffer.clear();
        Record::Fence(Fence { epoch, seq }).encode(&mut self.buffer);
        if out.append("", &self.buffer, Ticket { generation: self.generation, seq }).is_ok() {
            self.fences.sent(writer.sent(), self.pending.needing(seq), now);
        }
    }

    fn append(&mut self, request: ParsedRequest<R>, events: &[Event], at: TimeMs, out: &mut impl Effects<Reply = R>) {
        let Phase::Owner(writer) = &mut self.phase else { unreachable!("only an owner decides") };
        let seq = writer.next_seq();
        let version = self.memory.aggregates.version(&request.aggregate).0 + events.len() as u64;
        let events_on_wire: Vec<_> = events.iter().map(WireEvent::newest).collect();
        let names: Vec<_> = events_on_wire.iter().map(WireEvent::name).collect();
        self.buffer.clear();
        let commit = Commit {
            epoch: writer.epoch(),
            seq,
            command_id: request.key.as_str().into(),
            at_ms: at.0,
            aggregate: request.aggregate.as_str().into(),
            version,
            events: events_on_wire,
            fingerprint: request.fingerprint,
            cause: request.cause.as_deref().map(Into::into),
            trace: request.trace.as_deref().map(Into::into),
            origin: None,
        };
        Record::Commit(commit).encode(&mut self.buffer);
        let ticket = Ticket { generation: self.generation, seq };
        if out.append(request.aggregate.as_str(), &self.buffer, ticket).is_err() {
            let detail = "too many records are waiting to be written to the log".into();
            return out.answer(request.reply, Answer::Overloaded { detail });
        }
        writer.sent();
        let offset = writer.offset_of(seq);
        self.memory.last_at = at;
        self.memory.aggregates.apply(&request.aggregate, events, version, offset, at);
        let repeat = Repeat { offset, fingerprint: request.fingerprint, version, events: names.into() };
        let answer = repeat.accepted(self.partition).naming_order(&request.command);
        if let Some(key) = request.remembered_key() {
            self.memory.repeats.insert(&request.aggregate, key.as_str(), at, repeat);
        }
        self.pending.push(Pending { needs: seq, may_count: true, answer, request });
    }

    /// Queues an answer that appends nothing; it is sent once the next record counts.
    fn prove(&mut self, request: ParsedRequest<R>, may_count: bool, answer: Answer) {
        let Phase::Owner(writer) = &self.phase else { unreachable!("only an owner decides") };
        let answer = answer.naming_order(&request.command);
        self.pending.push(Pending { needs: writer.next_seq(), may_count, answer, request });
    }

    fn answer_proven(&mut self, out: &mut impl Effects<Reply = R>) {
        let Phase::Owner(writer) = &self.phase else { return };
        self.memory.aggregates.extend_names(writer.offset_of(writer.acknowledged()) + 1);
        while let Some(proven) = self.pending.pop_proven(writer.acknowledged()) {
            out.answer(proven.request.reply, proven.answer);
        }
        self.leave_if_settled();
    }

    fn leave_if_settled(&mut self) {
        if self.leaving && matches!(self.phase, Phase::Owner(_)) && self.pending.len() == 0 {
            self.rest();
        }
    }
}

#[cfg(test)]
mod tests;
