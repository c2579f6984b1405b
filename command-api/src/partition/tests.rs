//! One owner by example; [`simulation`] has several on one log that is unkind to them.

mod simulation;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use domain::ids::OrderId;
use domain::product::{Command, Registration};
use domain::{AggregateType, TimeMs};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::chain::Passed;
use schemas::commands::Precondition;
use schemas::idempotency::IdempotencyKey;
use schemas::record::{Claim, Commit, Epoch, Fence, Record};

use super::{DoubtCause, HaltError, NoOffset, Outside, Partition, QueueFull, ReadTo, Request, Role, Ticket};

const PARTITION: u32 = 3;
const WINDOW: Duration = Duration::from_secs(900);
const NOW: TimeMs = TimeMs(1_000_000);
const FOREIGN_NONCE: u64 = 0xF0;

const REGISTERED: &str = "product.registered.v1";
const RESERVED: &str = "product.reserved.v1";
const RESTOCKED: &str = "product.restocked.v1";

/// A record that the producer accepted.
#[derive(Debug, Clone)]
struct Sent {
    key: String,
    value: Vec<u8>,
    ticket: Ticket,
}

/// Keeps what a machine asks of the world.
#[derive(Debug)]
struct Recorder<R> {
    sent: VecDeque<Sent>,
    reading: Option<(i64, ReadTo)>,
    answers: Vec<(R, Answer)>,
    doubts: Vec<DoubtCause>,
    passed: Vec<Passed>,
    next_nonce: u64,
    /// So many records more are refused.
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
            next_nonce,
            refusals: 0,
        }
    }
}

impl<R> Outside for Recorder<R> {
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
}

/// One machine and the log under it; the test is the network between them.
struct Shop {
    machine: Partition<&'static str>,
    out: Recorder<&'static str>,
    log: Vec<Vec<u8>>,
}

impl Shop {
    /// Nothing was read and nothing claimed.
    fn closed() -> Self {
        Self { machine: Partition::new(PARTITION, "http://me".into(), WINDOW), out: Recorder::new(0), log: vec![] }
    }

    /// Owns the partition by the claim at offset 0.
    fn open() -> Self {
        let mut shop = Self::closed();
        shop.machine.take_over(&mut shop.out);
        shop.settle();
        assert_eq!(shop.machine.role(), Role::Owner);
        shop
    }

    /// The product stands at offset 1 with this stock.
    fn stocked(stock: u32) -> Self {
        let mut shop = Self::open();
        shop.ask("registration", "registration", register(stock));
        shop.settle();
        shop.out.answers.clear();
        shop
    }

    /// The key names the reply too.
    fn ask_for(&mut self, key: &'static str, command: Command) {
        self.ask(key, key, command);
    }

    fn ask(&mut self, reply: &'static str, key: &str, command: Command) {
        self.ask_when(Precondition::None, reply, key, command);
    }

    fn ask_when(&mut self, precondition: Precondition, reply: &'static str, key: &str, command: Command) {
        let request = request(reply, key, command, precondition);
        self.machine.command(request, NOW, &mut self.out);
        self.machine.end_turn(&mut self.out);
    }

    /// The oldest record on its way reaches the log.
    fn carry(&mut self) -> (Ticket, i64) {
        let sent = self.out.sent.pop_front().unwrap();
        (sent.ticket, self.write(sent.value))
    }

    /// The oldest record on its way never arrives.
    fn lose(&mut self) -> Sent {
        self.out.sent.pop_front().unwrap()
    }

    fn write(&mut self, value: Vec<u8>) -> i64 {
        self.log.push(value);
        int(self.log.len()) - 1
    }

    fn report(&mut self, (ticket, offset): (Ticket, i64)) {
        self.machine.delivered(ticket, Ok(offset), &mut self.out);
        self.machine.end_turn(&mut self.out);
    }

    fn report_failure(&mut self, ticket: Ticket) {
        self.machine.delivered(ticket, Err(NoOffset), &mut self.out);
        self.machine.end_turn(&mut self.out);
    }

    /// Carries out the read that the machine asked for.
    fn read(&mut self) {
        self.try_read().unwrap();
    }

    fn try_read(&mut self) -> Result<(), HaltError> {
        let (from, to) = self.out.reading.take().unwrap();
        let to = end_of(to, self.log.len());
        for offset in from..to {
            self.machine.record(offset, &self.log[index(offset)], &mut self.out)?;
        }
        self.machine.read_ended(NOW, &mut self.out);
        self.machine.end_turn(&mut self.out);
        Ok(())
    }

    /// Everything arrives, is reported and read, until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..1000 {
            if self.out.reading.is_some() {
                self.read();
            } else if !self.out.sent.is_empty() {
                let carried = self.carry();
                self.report(carried);
            } else {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn answers(&mut self) -> Vec<(&'static str, Answer)> {
        std::mem::take(&mut self.out.answers)
    }

    /// What is on its way: the number of each record, and whether it is a fence.
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

fn request<R>(reply: R, key: &str, command: Command, precondition: Precondition) -> Request<R> {
    let mut fingerprint = DefaultHasher::new();
    format!("{command:?} {precondition:?}").hash(&mut fingerprint);
    Request {
        aggregate: product("p"),
        command: domain::Command::Product(command),
        fingerprint: fingerprint.finish(),
        precondition,
        key: IdempotencyKey::from_bare(key).unwrap(),
        cause: None,
        trace: None,
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
    Command::Reserve { order: OrderId(order.into()), quantity: 1 }
}

fn accepted(version: u64, event: &'static str, offset: i64) -> Answer {
    Answer::Accepted { version, events: vec![event.into()], position: (PARTITION, offset), replayed: false }
}

fn replayed(version: u64, event: &'static str, offset: i64) -> Answer {
    Answer::Accepted { version, events: vec![event.into()], position: (PARTITION, offset), replayed: true }
}

fn rejected(rejection: &'static str, version: u64, offset: i64) -> Answer {
    Answer::Rejected { rejection: rejection.into(), version, position: (PARTITION, offset) }
}

fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut value = vec![];
    record.encode(&mut value);
    value
}

fn claim(nonce: u64) -> Vec<u8> {
    encoded(&Record::Claim(Claim { nonce, url: "http://other".into() }))
}

fn fence(epoch: Epoch, seq: u64) -> Vec<u8> {
    encoded(&Record::Fence(Fence { epoch, seq }))
}

/// The same command, in another epoch.
fn moved(value: &[u8], epoch: Epoch, seq: u64) -> Vec<u8> {
    let Some(Record::Commit(commit)) = Record::decode(value).unwrap() else { panic!("not a commit") };
    encoded(&Record::Commit(Commit { epoch, seq, ..commit }))
}

/// What is not ours and may be passed over.
fn stray() -> Vec<u8> {
    b"hello".to_vec()
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

// Commands, and what proves their answers.

#[test]
fn an_accepted_command_is_answered_when_its_record_counts() {
    let mut shop = Shop::open();
    shop.ask_for("a", register(1));
    assert_eq!(shop.out.sent[0].key, "product/p");
    let carried = shop.carry();
    assert_eq!(shop.answers(), []);
    shop.report(carried);
    assert_eq!(shop.answers(), [("a", accepted(1, REGISTERED, 1))]);
    assert_eq!((shop.machine.pending(), shop.sent()), (0, vec![]));
}

#[test]
fn a_command_is_decided_on_the_records_in_flight_and_answered_after_them() {
    let mut shop = Shop::open();
    shop.ask_for("a", register(1));
    shop.ask_for("b", reserve("o-1"));
    assert_eq!(shop.sent(), [(1, Kind::Commit), (2, Kind::Commit)]);
    let (first, second) = (shop.carry(), shop.carry());
    shop.report(second);
    assert_eq!(shop.answers(), [], "the record before it may be lost");
    shop.report(first);
    assert_eq!(shop.answers(), [("a", accepted(1, REGISTERED, 1)), ("b", accepted(2, RESERVED, 2))]);
}

#[test]
fn a_rejection_is_answered_when_a_record_that_was_sent_after_it_counts() {
    let mut shop = Shop::stocked(1);
    shop.ask_for("last", reserve("o-1"));
    shop.ask_for("late", reserve("o-2"));
    assert_eq!(shop.sent(), [(2, Kind::Commit), (3, Kind::Fence)]);
    let carried = shop.carry();
    shop.report(carried);
    assert_eq!(shop.answers(), [("last", accepted(2, RESERVED, 2))]);
    shop.settle();
    assert_eq!(shop.answers(), [("late", rejected("out_of_stock", 2, 2))]);
}

#[test]
fn a_fence_proves_nothing_that_was_decided_after_it_was_sent() {
    let mut shop = Shop::stocked(0);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", reserve("o-2"));
    assert_eq!(shop.sent(), [(2, Kind::Fence)]);
    let carried = shop.carry();
    shop.report(carried);
    assert_eq!(shop.answers(), [("a", rejected("out_of_stock", 1, 1))]);
    assert_eq!(shop.sent(), [(3, Kind::Fence)]);
    shop.settle();
    assert_eq!(shop.answers(), [("b", rejected("out_of_stock", 1, 1))]);
}

#[test]
fn a_storm_of_rejections_shares_fences() {
    let mut shop = Shop::stocked(0);
    for _ in 0..3 {
        for _ in 0..100 {
            shop.ask("storm", "storm", reserve("o-1"));
        }
        assert_eq!(shop.sent().len(), 1, "more than one fence in flight");
        let carried = shop.carry();
        shop.report(carried);
    }
    shop.settle();
    assert_eq!((shop.answers().len(), shop.log.len()), (300, 2 + 4));
}

#[test]
fn the_next_append_serves_as_a_fence() {
    let mut shop = Shop::stocked(0);
    shop.ask_for("fenced", reserve("o-1"));
    shop.ask_for("rejected", reserve("o-2"));
    shop.ask_for("appended", Command::Restock { quantity: 1 });
    assert_eq!(shop.sent(), [(2, Kind::Fence), (3, Kind::Commit)]);
    shop.settle();
    let replies: Vec<_> = shop.answers().into_iter().map(|(reply, _)| reply).collect();
    assert_eq!((replies, shop.log.len()), (vec!["fenced", "rejected", "appended"], 4));
}

#[test]
fn what_is_already_so_is_accepted_without_events() {
    let mut shop = Shop::stocked(5);
    shop.ask_for("again", register(5));
    assert_eq!(shop.sent(), [(2, Kind::Fence)]);
    shop.settle();
    let answer = Answer::Accepted { version: 1, events: vec![], position: (PARTITION, 1), replayed: false };
    assert_eq!(shop.answers(), [("again", answer)]);
}

#[test]
fn a_precondition_is_held_against_the_version_and_its_failure_is_proved() {
    let mut shop = Shop::stocked(5);
    shop.ask_when(Precondition::Absent, "absent", "a", register(5));
    shop.ask_when(Precondition::Version(2), "wrong", "b", reserve("o-1"));
    assert_eq!((shop.answers(), shop.sent()), (vec![], vec![(2, Kind::Fence)]));
    shop.settle();
    let failed = Answer::PreconditionFailed { version: 1, position: (PARTITION, 1) };
    assert_eq!(shop.answers(), [("absent", failed.clone()), ("wrong", failed)]);
    shop.ask_when(Precondition::Version(1), "right", "c", reserve("o-1"));
    shop.settle();
    assert!(matches!(shop.answers()[..], [("right", Answer::Accepted { version: 2, .. })]));
}

#[test]
fn a_repeat_joins_the_command_in_flight() {
    let mut shop = Shop::stocked(5);
    let restock = || Command::Restock { quantity: 1 };
    shop.ask("first", "key", restock());
    shop.ask("second", "key", restock());
    assert_eq!(shop.sent(), [(2, Kind::Commit), (3, Kind::Fence)]);
    shop.settle();
    assert_eq!(shop.answers(), [("first", accepted(2, RESTOCKED, 2)), ("second", replayed(2, RESTOCKED, 2))]);
}

#[test]
fn a_repeat_is_answered_as_the_first_time_whatever_happened_since() {
    let mut shop = Shop::stocked(1);
    shop.ask("first", "key", reserve("o-1"));
    shop.ask_for("release", Command::Release { order: OrderId("o-1".into()) });
    shop.ask("second", "key", reserve("o-1"));
    shop.settle();
    assert_eq!(shop.answers()[2], ("second", replayed(2, RESERVED, 2)));
}

#[test]
fn a_key_that_comes_with_other_data_is_refused_with_proof() {
    let mut shop = Shop::stocked(5);
    shop.ask("first", "key", reserve("o-1"));
    shop.ask("other", "key", reserve("o-2"));
    assert_eq!(shop.answers(), []);
    shop.settle();
    assert_eq!(shop.answers()[1], ("other", Answer::KeyReused));
}

#[test]
fn a_rejected_key_may_be_decided_anew() {
    let mut shop = Shop::stocked(0);
    shop.ask("first", "key", reserve("o-1"));
    shop.ask_for("restock", Command::Restock { quantity: 1 });
    shop.ask("second", "key", reserve("o-1"));
    shop.settle();
    assert_eq!(shop.answers()[2], ("second", accepted(3, RESERVED, 4)));
}

#[test]
fn a_key_that_came_back_after_its_window_is_kept_for_another() {
    let later = |shop: &mut Shop, after: Duration| {
        let now = TimeMs(NOW.0 + u64::try_from(after.as_millis()).unwrap());
        let request = request("repeat", "key", Command::Restock { quantity: 1 }, Precondition::None);
        shop.machine.command(request, now, &mut shop.out);
        shop.machine.end_turn(&mut shop.out);
        shop.settle();
        shop.answers()
    };
    let mut shop = Shop::stocked(0);
    let once = 2 * WINDOW;
    assert_eq!(later(&mut shop, Duration::ZERO), [("repeat", accepted(2, RESTOCKED, 2))]);
    assert_eq!(later(&mut shop, once), [("repeat", accepted(3, RESTOCKED, 3))]);
    // Another instance knows it from the log.
    let mut shop = Shop { log: shop.log, ..Shop::closed() };
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(later(&mut shop, once + WINDOW / 2), [("repeat", replayed(3, RESTOCKED, 3))]);
    assert_eq!(later(&mut shop, once + WINDOW), [("repeat", replayed(3, RESTOCKED, 3))]);
}

#[test]
fn a_full_queue_refuses_the_command_and_uses_no_number_up() {
    let mut shop = Shop::stocked(1);
    shop.out.refusals = 1;
    shop.ask_for("refused", reserve("o-1"));
    assert!(matches!(shop.answers()[..], [("refused", Answer::Overloaded { .. })]));
    shop.ask_for("taken", reserve("o-2"));
    assert_eq!(shop.sent(), [(2, Kind::Commit)]);
    shop.settle();
    assert_eq!(shop.answers(), [("taken", accepted(2, RESERVED, 2))], "the refused one took the stock");
}

#[test]
fn a_fence_or_a_claim_that_a_full_queue_refused_is_tried_again_next_turn() {
    let mut shop = Shop::stocked(0);
    shop.out.refusals = 1;
    shop.ask_for("rejected", reserve("o-1"));
    assert!(shop.sent().is_empty() && shop.machine.wants_turn());
    shop.machine.end_turn(&mut shop.out);
    assert_eq!((shop.sent(), shop.machine.wants_turn()), (vec![(2, Kind::Fence)], false));
    let mut shop = Shop::closed();
    shop.out.refusals = 2;
    shop.machine.take_over(&mut shop.out);
    shop.read();
    assert!(shop.sent().is_empty() && shop.machine.wants_turn());
    shop.machine.end_turn(&mut shop.out);
    assert_eq!((shop.sent(), shop.machine.wants_turn()), (vec![(0, Kind::Claim)], false));
}

#[test]
fn only_an_owner_takes_commands() {
    let mut shop = Shop::closed();
    shop.ask_for("a", register(1));
    assert_eq!(shop.answers(), [("a", Answer::Misdirected)]);
}

#[test]
fn an_instance_whose_clock_is_far_behind_the_log_refuses_commands() {
    let mut shop = Shop::stocked(5);
    let mut ask_at = |now: u64| {
        let request = request("late", "late", reserve("o-1"), Precondition::None);
        shop.machine.command(request, TimeMs(now), &mut shop.out);
        shop.answers()
    };
    assert!(matches!(ask_at(NOW.0 - 60_001)[..], [(_, Answer::Overloaded { .. })]));
    assert_eq!(ask_at(NOW.0 - 60_000), []);
    // Time never runs back in the log.
    let Some(Record::Commit(commit)) = Record::decode(&shop.out.sent[0].value).unwrap() else { panic!("no commit") };
    assert_eq!(commit.at_ms, NOW.0);
}

// Taking over.

#[test]
fn a_new_owner_knows_what_counted_before_it() {
    let mut before = Shop::stocked(1);
    before.ask_for("key", reserve("o-1"));
    before.settle();
    let mut shop = Shop { log: before.log, ..Shop::closed() };
    shop.write(stray());
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    shop.ask_for("key", reserve("o-1"));
    shop.ask_for("late", reserve("o-2"));
    shop.settle();
    assert_eq!(shop.answers(), [("key", replayed(2, RESERVED, 2)), ("late", rejected("out_of_stock", 2, 2))]);
    assert_eq!(shop.out.passed, [Passed::Foreign]);
}

#[test]
fn what_counts_between_the_look_and_the_claim_is_read_back() {
    let mut shop = Shop { log: Shop::stocked(1).log, ..Shop::closed() };
    shop.machine.take_over(&mut shop.out);
    shop.read();
    // The owner before, which is alive, is faster than the claim.
    let Some(Record::Claim(first)) = Record::decode(&shop.log[0]).unwrap() else { panic!("no claim") };
    let epoch = Epoch { claim: 0, nonce: first.nonce };
    let mut other = Shop::stocked(1);
    other.ask_for("a", reserve("o-1"));
    let theirs = moved(&other.lose().value, epoch, 2);
    shop.write(theirs.clone());
    shop.settle();
    shop.write(theirs);
    shop.ask_for("b", reserve("o-2"));
    shop.settle();
    assert_eq!(shop.answers(), [("b", rejected("out_of_stock", 2, 2))]);
}

#[test]
fn records_of_another_history_do_not_count() {
    let mut shop = Shop::stocked(0);
    shop.ask_for("restock", Command::Restock { quantity: 1 });
    let restock = shop.lose().value;
    // The chain would go on with it, but for the claim that it names.
    let ghost = moved(&restock, Epoch { claim: 0, nonce: FOREIGN_NONCE }, 2);
    let mut shop = Shop { log: Shop::stocked(0).log, ..Shop::closed() };
    shop.write(ghost);
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    shop.ask_for("reserve", reserve("o-1"));
    shop.settle();
    assert_eq!(shop.answers(), [("reserve", rejected("out_of_stock", 1, 1))]);
}

#[test]
fn a_claim_without_an_offset_is_tried_again_whether_it_stands_or_not() {
    for stands in [true, false] {
        let mut shop = Shop::closed();
        shop.machine.take_over(&mut shop.out);
        shop.read();
        let lost = shop.lose();
        if stands {
            shop.write(lost.value);
        }
        shop.report_failure(lost.ticket);
        assert_eq!(shop.out.doubts, [DoubtCause::NoOffset]);
        shop.settle();
        assert_eq!((shop.machine.role(), shop.log.len()), (Role::Owner, if stands { 2 } else { 1 }));
    }
}

#[test]
fn a_record_that_cannot_be_read_halts_with_its_offset() {
    for unreadable in [&b"st2{}"[..], b"st1{", b"st{}"] {
        let mut shop = Shop { log: Shop::stocked(1).log, ..Shop::closed() };
        shop.write(unreadable.to_vec());
        shop.machine.take_over(&mut shop.out);
        let halted = shop.try_read();
        assert!(matches!(halted, Err(HaltError::Record { offset: 2, .. })), "{halted:?}");
    }
}

#[test]
fn a_log_that_is_not_of_this_system_halts() {
    let mut shop = Shop::closed();
    shop.write(stray());
    shop.machine.take_over(&mut shop.out);
    assert!(matches!(shop.try_read(), Err(HaltError::Chain(_))));
    let mut shop = Shop::closed();
    shop.write(claim(FOREIGN_NONCE));
    let named = Commit {
        epoch: Epoch { claim: 0, nonce: FOREIGN_NONCE },
        seq: 1,
        command_id: "key".into(),
        at_ms: 0,
        aggregate: "basket/1".into(),
        version: 1,
        events: vec![],
        fingerprint: 0,
        cause: None,
        trace: None,
    };
    shop.write(encoded(&Record::Commit(named)));
    shop.machine.take_over(&mut shop.out);
    assert!(matches!(shop.try_read(), Err(HaltError::Aggregate { offset: 1, .. })));
}

// Doubt.

#[test]
fn a_displaced_record_leads_to_a_look_and_the_epoch_goes_on_without_a_claim() {
    let mut shop = Shop::stocked(1);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", reserve("o-2"));
    shop.write(fence(Epoch { claim: 0, nonce: FOREIGN_NONCE }, 9));
    let (a, b) = (shop.carry(), shop.carry());
    shop.report(a);
    assert_eq!((shop.machine.role(), shop.answers()), (Role::Unsettled, vec![]));
    assert_eq!((shop.out.reading, &shop.out.doubts[..]), (Some((2, ReadTo::Offset(4))), &[DoubtCause::Displaced][..]));
    shop.report(b);
    shop.read();
    assert_eq!(shop.machine.role(), Role::Owner);
    let answers = [("a", accepted(2, RESERVED, 3)), ("b", rejected("out_of_stock", 2, 3))];
    assert_eq!((shop.answers(), shop.sent()), (answers.to_vec(), vec![]));
    assert_eq!(shop.out.passed, [Passed::OtherEpoch]);
}

#[test]
fn after_a_displacement_no_answer_names_too_early_an_offset() {
    let mut shop = Shop::stocked(2);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", reserve("o-2"));
    shop.write(stray());
    let (a, b) = (shop.carry(), shop.carry());
    shop.report(a);
    shop.read();
    shop.report(b);
    assert_eq!(shop.answers(), [("a", accepted(2, RESERVED, 3)), ("b", accepted(3, RESERVED, 4))]);
    shop.ask("repeat", "b", reserve("o-2"));
    shop.ask_for("c", reserve("o-3"));
    shop.settle();
    assert_eq!(shop.answers(), [("repeat", replayed(3, RESERVED, 4)), ("c", rejected("out_of_stock", 3, 4))]);
}

#[test]
fn a_record_that_stands_twice_displaces_what_follows_and_nothing_more() {
    let mut shop = Shop::stocked(2);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", reserve("o-2"));
    let twice = shop.out.sent[0].value.clone();
    let a = shop.carry();
    shop.write(twice);
    let b = shop.carry();
    shop.report(a);
    shop.report(b);
    shop.settle();
    assert_eq!(shop.answers(), [("a", accepted(2, RESERVED, 2)), ("b", accepted(3, RESERVED, 4))]);
    assert_eq!((shop.machine.role(), &shop.out.passed[..]), (Role::Owner, &[Passed::OutOfSequence][..]));
}

#[test]
fn a_report_without_an_offset_settles_every_command_once_under_a_new_claim() {
    for stands in [true, false] {
        let mut shop = Shop::stocked(1);
        shop.ask("first", "key", reserve("o-1"));
        shop.ask("joined", "key", reserve("o-1"));
        shop.ask_for("late", reserve("o-2"));
        let lost = shop.lose();
        if stands {
            shop.write(lost.value);
        }
        shop.report_failure(lost.ticket);
        assert_eq!((shop.machine.role(), shop.out.reading), (Role::Unsettled, Some((0, ReadTo::End))));
        shop.read();
        assert_eq!(shop.out.sent.back().map(|sent| kind(&sent.value)), Some(Kind::Claim));
        assert_eq!(shop.answers(), [], "the claim is not read back yet");
        // A fence of the epoch before is still on its way.
        shop.settle();
        let offset = if stands { 2 } else { 4 };
        let answers = [
            ("first", accepted(2, RESERVED, offset)),
            ("joined", replayed(2, RESERVED, offset)),
            ("late", rejected("out_of_stock", 2, offset)),
        ];
        assert_eq!(shop.answers(), answers, "stands: {stands}");
        assert_eq!((shop.machine.role(), shop.machine.pending()), (Role::Owner, 0));
    }
}

#[test]
fn a_command_that_is_decided_anew_is_no_proof_for_another_under_its_key() {
    let mut shop = Shop::stocked(0);
    shop.ask("rejected", "key", reserve("o-1"));
    shop.ask_for("restock", Command::Restock { quantity: 1 });
    shop.ask("reserved", "key", reserve("o-1"));
    let fence = shop.carry();
    let restock = shop.carry();
    let lost = shop.lose();
    shop.report_failure(lost.ticket);
    shop.read();
    let claim = shop.carry();
    shop.report(claim);
    shop.read();
    assert_eq!((fence.1, shop.answers()), (2, vec![("restock", accepted(2, RESTOCKED, restock.1))]));
    shop.settle();
    assert_eq!(shop.answers(), [("rejected", accepted(3, RESERVED, 5)), ("reserved", replayed(3, RESERVED, 5))]);
}

#[test]
fn a_record_behind_a_hole_is_not_acknowledged_though_it_stands_where_it_should() {
    let mut shop = Shop::stocked(3);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("lost", reserve("o-2"));
    shop.ask_for("behind", reserve("o-3"));
    shop.write(stray());
    let a = shop.carry();
    let lost = shop.lose();
    let behind = shop.carry();
    assert_eq!(behind, (Ticket { seq: 4, ..lost.ticket }, 4));
    shop.report(behind);
    assert_eq!((shop.answers(), shop.machine.role()), (vec![], Role::Owner));
    shop.report(a);
    shop.settle();
    assert_eq!(shop.out.doubts, [DoubtCause::Displaced, DoubtCause::Broken]);
    let decided =
        [("a", accepted(2, RESERVED, 3)), ("lost", accepted(3, RESERVED, 6)), ("behind", accepted(4, RESERVED, 7))];
    assert_eq!(shop.answers(), decided);
}

#[test]
fn a_deposed_owner_answers_what_counts_and_claims_nothing() {
    let mut shop = Shop::stocked(1);
    shop.ask_for("counts", reserve("o-1"));
    shop.ask("joined", "counts", reserve("o-1"));
    shop.ask_for("void", Command::Restock { quantity: 1 });
    shop.ask_for("unproved", register(9));
    let counts = shop.carry();
    shop.write(claim(FOREIGN_NONCE));
    let (fence, void) = (shop.carry(), shop.carry());
    shop.report(counts);
    assert_eq!(shop.answers(), [("counts", accepted(2, RESERVED, 2))]);
    shop.report(fence);
    shop.report(void);
    shop.out.sent.clear();
    shop.settle();
    let answers = [("joined", accepted(2, RESERVED, 2)), ("void", Answer::NoOwner), ("unproved", Answer::NoOwner)];
    assert_eq!(shop.answers(), answers);
    assert_eq!((shop.machine.role(), shop.log.len(), shop.sent()), (Role::Idle, 6, vec![]));
}

#[test]
fn a_report_without_an_offset_and_a_foreign_claim_lead_to_no_claim() {
    let mut shop = Shop::stocked(2);
    shop.ask_for("counts", reserve("o-1"));
    shop.ask_for("void", reserve("o-2"));
    let (counts, _) = shop.carry();
    let theirs = shop.write(claim(FOREIGN_NONCE));
    let void = shop.lose();
    shop.report_failure(counts);
    shop.read();
    assert_eq!(shop.answers(), [("counts", accepted(2, RESERVED, 2)), ("void", Answer::NoOwner)]);
    assert_eq!((shop.machine.role(), shop.sent()), (Role::Idle, vec![]));
    // What arrives now is under their claim and void.
    shop.write(void.value);
    shop.write(fence(Epoch { claim: theirs, nonce: FOREIGN_NONCE }, 1));
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    shop.ask_for("state", Command::Restock { quantity: 1 });
    shop.settle();
    assert!(matches!(shop.answers()[..], [("state", Answer::Accepted { version: 3, .. })]));
}

#[test]
fn reports_of_an_earlier_generation_are_void() {
    let mut shop = Shop::stocked(2);
    shop.ask_for("a", reserve("o-1"));
    let lost = shop.lose();
    shop.report_failure(lost.ticket);
    shop.settle();
    shop.answers();
    shop.ask_for("b", reserve("o-2"));
    let (in_flight, _) = shop.carry();
    let stale = Ticket { generation: lost.ticket.generation, ..in_flight };
    assert_ne!(stale, in_flight);
    shop.report((stale, int(shop.log.len()) - 1));
    shop.report_failure(stale);
    assert_eq!((shop.answers(), shop.machine.role(), shop.out.reading), (vec![], Role::Owner, None));
}
