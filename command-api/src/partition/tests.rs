//! Tests of a single owner by example; [`simulation`] runs several on one faulty log.

mod commands;
mod takeover;
mod handover;
mod clock;
mod doubt;
mod quarantine;
mod loading;
mod tails;
mod simulation;
mod model;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use domain::ids::OrderId;
use domain::product::{By, Command, Registration};
use domain::{AggregateType, TimeMs};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::chain::Passed;
use schemas::commands::Precondition;
use schemas::exceptions::{Exceptions, SigningKey, Stray, Unreadable};
use schemas::idempotency::IdempotencyKey;
use schemas::record::{Claim, Commit, Epoch, Fence, Record};

use super::{
    DoubtCause, Effects, HaltError, LoadRequest, NoOffset, ParsedRequest, Partition, QueueFull, ReadTo, Release, Role,
    Ticket, Unavailable,
};

const PARTITION: u32 = 3;
const PARTITIONS: u32 = 12;
const WINDOW: Duration = Duration::from_secs(900);
const NOW: TimeMs = TimeMs(1_000_000);
const FOREIGN_NONCE: u64 = 0xF0;

const REGISTERED: &str = "product.registered.v1";
const RESERVED: &str = "product.reserved.v2";
const RESTOCKED: &str = "product.restocked.v1";

/// A record that the producer accepted.
#[derive(Debug, Clone)]
struct Sent {
    key: String,
    value: Vec<u8>,
    ticket: Ticket,
}

/// Recorder of the effects that a state machine requests.
#[derive(Debug)]
struct Recorder<R> {
    sent: VecDeque<Sent>,
    reading: Option<(i64, ReadTo)>,
    answers: Vec<(R, Answer)>,
    doubts: Vec<DoubtCause>,
    passed: Vec<Passed>,
    twins: usize,
    wanted: Vec<LoadRequest>,
    wanted_later: Vec<LoadRequest>,
    /// Offset from which names were requested.
    wants_names: Option<i64>,
    refuses_loads: bool,
    exceptions: Arc<Exceptions>,
    next_nonce: u64,
    /// Number of appends that are yet to be refused.
    refusals: usize,
}

impl<R> Recorder<R> {
    fn new(next_nonce: u64) -> Self {
        Self {
            sent: VecDeque::new(),
            reading: None,
            answers: vec![],
            doubts: vec![],
            passed: vec![],
            twins: 0,
            wanted: vec![],
            wanted_later: vec![],
            wants_names: None,
            refuses_loads: false,
            exceptions: Arc::new(Exceptions::honouring(signing_key().public().parse().unwrap())),
            next_nonce,
            refusals: 0,
        }
    }
}

impl<R> Effects for Recorder<R> {
    type Reply = R;

    fn append(&mut self, key: &str, value: &[u8], ticket: Ticket) -> Result<(), QueueFull> {
        if let Some(fewer) = self.refusals.checked_sub(1) {
            self.refusals = fewer;
            return Err(QueueFull);
        }
        self.sent.push_back(Sent { key: key.into(), value: value.into(), ticket });
        Ok(())
    }

    fn read(&mut self, from: i64, to: ReadTo) {
        self.reading = Some((from, to));
    }

    fn decode<'a>(&self, offset: i64, value: &'a [u8]) -> Result<Option<Record<'a>>, Unreadable> {
        self.exceptions.decode((PARTITION, offset), value)
    }

    fn load(&mut self, wanted: LoadRequest) -> Result<(), Unavailable> {
        if self.refuses_loads {
            return Err(Unavailable);
        }
        self.wanted.push(wanted);
        Ok(())
    }

    fn load_later(&mut self, wanted: LoadRequest) -> Result<(), Unavailable> {
        self.wanted_later.push(wanted);
        Ok(())
    }

    fn load_names(&mut self, from: i64) {
        let earlier = self.wants_names.replace(from);
        assert_eq!(earlier, None, "names were requested twice");
    }

    fn answer(&mut self, reply: R, answer: Answer) {
        self.answers.push((reply, answer));
    }

    fn nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce
    }

    fn doubted(&mut self, cause: DoubtCause) {
        self.doubts.push(cause);
    }

    fn passed_over(&mut self, reason: Passed) {
        self.passed.push(reason);
    }

    fn shares_url(&mut self) {
        self.twins += 1;
    }
}

/// A state machine and its log; the test acts as the network between them.
struct Shop {
    machine: Partition<&'static str>,
    out: Recorder<&'static str>,
    log: Vec<Vec<u8>>,
    now: TimeMs,
}

impl Shop {
    /// Creates a machine that has neither read nor claimed anything.
    fn closed() -> Self {
        let machine = Partition::new(PARTITION, PARTITIONS, "http://me".into(), WINDOW);
        Self { machine, out: Recorder::new(0), log: vec![], now: NOW }
    }

    /// Creates the owner of the partition, by the claim at offset 0.
    fn open() -> Self {
        let mut shop = Self::closed();
        shop.machine.take_over(&mut shop.out);
        shop.settle();
        assert_eq!(shop.machine.role(), Role::Owner);
        shop
    }

    /// Creates the owner of a partition with a product of this stock, registered at offset 1.
    fn stocked(stock: u32) -> Self {
        let mut shop = Self::open();
        shop.ask("registration", "registration", register(stock));
        shop.settle();
        shop.out.answers.clear();
        shop
    }

    /// Sends a command whose reply is named like its key.
    fn ask_for(&mut self, key: &'static str, command: Command) {
        self.ask(key, key, command);
    }

    fn ask(&mut self, reply: &'static str, key: &str, command: Command) {
        self.ask_when(Precondition::None, reply, key, command);
    }

    fn ask_when(&mut self, precondition: Precondition, reply: &'static str, key: &str, command: Command) {
        let request = request(reply, key, command, precondition);
        self.machine.command(request, self.now, &mut self.out);
        self.end_turn();
    }

    fn end_turn(&mut self) {
        self.machine.end_turn(self.now, &mut self.out);
    }

    /// Appends the oldest record in flight to the log.
    fn carry(&mut self) -> (Ticket, i64) {
        let sent = self.out.sent.pop_front().unwrap();
        (sent.ticket, self.write(sent.value))
    }

    /// Drops the oldest record in flight.
    fn lose(&mut self) -> Sent {
        self.out.sent.pop_front().unwrap()
    }

    fn write(&mut self, value: Vec<u8>) -> i64 {
        self.log.push(value);
        int(self.log.len()) - 1
    }

    fn report(&mut self, (ticket, offset): (Ticket, i64)) {
        self.machine.delivered(ticket, Ok(offset), &mut self.out);
        self.end_turn();
    }

    fn report_failure(&mut self, ticket: Ticket) {
        self.machine.delivered(ticket, Err(NoOffset), &mut self.out);
        self.end_turn();
    }

    /// Carries out the read that the machine requested.
    fn read(&mut self) {
        self.try_read().unwrap();
    }

    /// Carries out the requested read. A record at which it fails is to be read again.
    fn try_read(&mut self) -> Result<(), HaltError> {
        let (from, to) = self.out.reading.take().unwrap();
        let to = end_of(to, self.log.len());
        for offset in from..to {
            self.out.reading = Some((offset, ReadTo::Offset(to)));
            self.machine.record(offset, &self.log[index(offset)], &mut self.out)?;
        }
        self.out.reading = None;
        self.machine.read_ended(self.now, &mut self.out)?;
        self.end_turn();
        Ok(())
    }

    /// Delivers, reports and reads everything until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..1000 {
            if self.out.reading.is_some() {
                self.read();
            } else if !self.out.sent.is_empty() {
                let carried = self.carry();
                self.report(carried);
            } else if self.machine.wants_turn() {
                self.now.0 += 1;
                self.end_turn();
            } else {
                return;
            }
        }
        panic!("the machine never settles");
    }

    fn answers(&mut self) -> Vec<(&'static str, Answer)> {
        std::mem::take(&mut self.out.answers)
    }

    /// Returns the sequence number and the kind of each record in flight.
    fn sent(&self) -> Vec<(u64, Kind)> {
        self.out.sent.iter().map(|sent| (sent.ticket.seq, kind(&sent.value))).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Claim,
    Commit,
    Fence,
}

fn kind(value: &[u8]) -> Kind {
    match Record::decode(value).unwrap().unwrap() {
        Record::Claim(_) => Kind::Claim,
        Record::Commit(_) => Kind::Commit,
        Record::Fence(_) => Kind::Fence,
    }
}

fn request<R>(reply: R, key: &str, command: Command, precondition: Precondition) -> ParsedRequest<R> {
    let mut fingerprint = DefaultHasher::new();
    format!("{command:?} {precondition:?}").hash(&mut fingerprint);
    ParsedRequest {
        aggregate: product("p"),
        command: domain::Command::Product(command),
        fingerprint: fingerprint.finish(),
        precondition,
        key: IdempotencyKey::from_bare(key).unwrap(),
        cause: None,
        trace: None,
        batch: None,
        reply,
    }
}

fn product(id: &str) -> AggregateId {
    AggregateId::new(AggregateType::Product, id).unwrap()
}

fn register(stock: u32) -> Command {
    Command::Register(Registration { name: "CD".into(), price_cents: 999, stock, limit_per_order: None })
}

fn reserve(order: &str) -> Command {
    Command::Reserve { order: OrderId(order.into()), quantity: 1, by: By::Client { hold_secs: None } }
}

fn accepted(version: u64, event: &'static str, offset: i64) -> Answer {
    Answer::Accepted {
        version,
        events: vec![event.into()],
        position: (PARTITION, offset),
        replayed: false,
        order: None,
    }
}

fn replayed(version: u64, event: &'static str, offset: i64) -> Answer {
    Answer::Accepted { version, events: vec![event.into()], position: (PARTITION, offset), replayed: true, order: None }
}

fn rejected(rejection: &'static str, version: u64, offset: i64) -> Answer {
    let (state, position) = (Some("on_sale".into()), (PARTITION, offset));
    Answer::Rejected { rejection: rejection.into(), version, position, state, price_cents: None }
}

fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut value = vec![];
    record.encode(&mut value);
    value
}

fn claim(nonce: u64) -> Vec<u8> {
    encoded(&Record::Claim(Claim { nonce, url: "http://other".into(), partitions: None }))
}

fn fence(epoch: Epoch, seq: u64) -> Vec<u8> {
    encoded(&Record::Fence(Fence { epoch, seq }))
}

/// Returns the same command in another epoch.
fn moved(value: &[u8], epoch: Epoch, seq: u64) -> Vec<u8> {
    let Some(Record::Commit(commit)) = Record::decode(value).unwrap() else { panic!("not a commit") };
    encoded(&Record::Commit(Commit { epoch, seq, ..commit }))
}

/// Returns a foreign value, which is passed over.
fn stray() -> Vec<u8> {
    b"hello".to_vec()
}

/// Returns a value that begins like a record and cannot be decoded.
fn unreadable() -> Vec<u8> {
    b"stop".to_vec()
}

fn signing_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn except(exceptions: &Exceptions, offset: i64, value: &[u8]) {
    exceptions.learn(&[signing_key().sign(Stray::new(PARTITION, offset, value).exception("a test wrote it", 0))]);
}

fn end_of(to: ReadTo, log: usize) -> i64 {
    match to {
        ReadTo::End => int(log),
        ReadTo::Offset(offset) => offset,
    }
}

fn int(index: usize) -> i64 {
    i64::try_from(index).unwrap()
}

fn index(offset: i64) -> usize {
    usize::try_from(offset).unwrap()
}
