//! Simulation of one partition with several writers and a network that loses, duplicates, delays and reorders records.
//! Every record that a writer acknowledges must count for every reader.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::{Log, claim, commit, fence, int, read_on, read_whole};
use crate::chain::{Doubt, Passed, Reader, Settled, Verdict, Writer};
use crate::record::{Claim, Commit, Epoch, Fence, Record};

/// Far more steps than a healed network needs to deliver everything that a run can have in flight.
const MAX_STEPS_TO_REST: usize = 10_000;

/// Choice among the available items, taken modulo their number.
type Pick = usize;

#[derive(Debug, Clone, Copy)]
enum Op {
    /// An owner without a partition claims it.
    Claim(Pick),
    /// An owner hands a record to its Kafka client, which accepts it.
    Send(Pick),
    /// An owner hands a record to its Kafka client, which refuses it because its queue is full.
    Refuse(Pick),
    /// The network decides the fate of a record in flight.
    Carry(Pick, Fate),
    /// A delivery report reaches its writer.
    Report(Pick),
    /// An owner finishes resolving a doubt, having read this many records more than necessary.
    Look(Pick, i64),
    /// The Kafka client of an owner gives up on its records in flight.
    TimeOut(Pick),
    /// A value that this system did not write is appended.
    Foreign,
    /// A record is appended that would count next, had its epoch not come from another incarnation of the topic.
    Ghost,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Appended,
    /// The record is appended, and a copy of it stays in flight and is appended too; the report names the first one.
    TwiceReportedFirst,
    TwiceReportedLast,
    AppendedWithoutReport,
    AppendedWithError,
    Lost,
    LostWithoutReport,
}

/// A record in flight to the log. Sequence number 0 denotes a claim.
struct Flight {
    owner: usize,
    generation: u32,
    seq: u64,
    record: Option<Record<'static>>,
    is_reported: bool,
}

struct Report {
    owner: usize,
    generation: u32,
    seq: u64,
    /// `None` if the report is an error, which does not imply that the record was lost.
    offset: Option<i64>,
}

enum Phase {
    Idle,
    Claiming(u64),
    Owning(Writer),
    Looking(Writer, Reader, Doubt),
}

/// Drives one [`Writer`] after another as the write path does: read to the end, then claim.
struct Owner {
    phase: Phase,
    /// Number of claims so far; reports for an earlier claim are ignored.
    generation: u32,
    nonces: BTreeSet<u64>,
    /// Number of records of this generation that the client accepted.
    accepted: usize,
    /// Reported offsets of this generation, by sequence number.
    reported: BTreeMap<u64, i64>,
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Seen {
    acknowledged: u64,
    continued: u32,
    moved: u32,
    doubted_again: u32,
    deposed: u32,
    deposed_with_records_that_count: u32,
    broken: u32,
    passed_other_epoch: u32,
    passed_out_of_sequence: u32,
}

struct World {
    log: Log,
    flights: Vec<Flight>,
    reports: Vec<Report>,
    owners: Vec<Owner>,
    /// The record sent under each sequence number of each epoch.
    sent: BTreeMap<(Epoch, u64), Record<'static>>,
    /// Highest sequence number that any writer reported as acknowledged.
    acknowledged: BTreeMap<Epoch, u64>,
    /// Number of records that counted when their epoch was found to have ended.
    ended: BTreeMap<Epoch, usize>,
    /// Offsets of records after a gap.
    behind_holes: Vec<i64>,
    last_nonce: u64,
    seen: Seen,
}

impl World {
    /// Creates a topic that one owner has just initialized.
    fn new(owners: usize) -> Self {
        let owners = (0..owners).map(|_| Owner {
            phase: Phase::Idle,
            generation: 0,
            nonces: BTreeSet::new(),
            accepted: 0,
            reported: BTreeMap::new(),
        });
        let mut world = Self {
            log: vec![],
            flights: vec![],
            reports: vec![],
            owners: owners.collect(),
            sent: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            ended: BTreeMap::new(),
            behind_holes: vec![],
            last_nonce: 0,
            seen: Seen::default(),
        };
        world.claim(0);
        world.carry(0, Fate::Appended);
        world.report(0);
        world
    }

    fn step(&mut self, op: Op) {
        let writable = |owner: &Owner| matches!(owner.phase, Phase::Owning(_));
        let idle = |owner: &Owner| matches!(owner.phase, Phase::Idle);
        let it = match op {
            Op::Claim(pick) => self.pick(pick, idle),
            Op::Send(pick) | Op::Refuse(pick) | Op::TimeOut(pick) => self.pick(pick, writable),
            Op::Look(pick, _) => self.pick(pick, is_looking),
            Op::Carry(pick, _) => pick.checked_rem(self.flights.len()),
            Op::Report(pick) => pick.checked_rem(self.reports.len()),
            Op::Foreign | Op::Ghost => Some(0),
        };
        let Some(it) = it else { return };
        match op {
            Op::Claim(_) => self.claim(it),
            Op::Send(_) => self.send(it, Client::Accepts),
            Op::Refuse(_) => self.send(it, Client::Refuses),
            Op::TimeOut(_) => self.start_over(it),
            Op::Look(_, further) => self.look(it, further),
            Op::Carry(_, fate) => self.carry(it, fate),
            Op::Report(_) => self.report(it),
            Op::Foreign => self.log.push(None),
            Op::Ghost => self.haunt(),
        }
    }

    /// Heals the network: everything still in flight arrives, and every doubt is resolved.
    fn settle(&mut self) {
        for _ in 0..MAX_STEPS_TO_REST {
            if !self.flights.is_empty() {
                self.carry(0, Fate::Appended);
            } else if !self.reports.is_empty() {
                self.report(0);
            } else if let Some(owner) = self.pick(0, is_looking) {
                self.look(owner, 0);
            } else {
                return;
            }
        }
        panic!("the owners do not come to rest although nothing is sent anymore");
    }

    fn pick(&self, pick: Pick, is_meant: impl Fn(&Owner) -> bool) -> Option<usize> {
        let meant: Vec<_> = (0..self.owners.len()).filter(|it| is_meant(&self.owners[*it])).collect();
        Some(meant[pick.checked_rem(meant.len())?])
    }

    fn claim(&mut self, it: usize) {
        self.last_nonce += 1;
        let owner = &mut self.owners[it];
        owner.phase = Phase::Claiming(self.last_nonce);
        owner.generation += 1;
        owner.nonces.insert(self.last_nonce);
        owner.accepted = 0;
        owner.reported.clear();
        let (generation, record) = (owner.generation, claim(self.last_nonce));
        self.flights.push(Flight { owner: it, generation, seq: 0, record, is_reported: true });
    }

    fn send(&mut self, it: usize, client: Client) {
        let owner = &mut self.owners[it];
        let Phase::Owning(writer) = &mut owner.phase else { unreachable!("picked as an owner") };
        let (epoch, seq) = (writer.epoch(), writer.next_seq());
        let record = match seq % 5 {
            0 => fence(epoch, seq),
            _ => commit(epoch, seq, format!("{it}-{}-{}", owner.generation, owner.accepted)),
        };
        match client {
            Client::Refuses => {}
            Client::Accepts => {
                writer.sent();
                owner.accepted += 1;
                let earlier = self.sent.insert((epoch, seq), record.clone().unwrap());
                assert_eq!(earlier, None, "a sequence number was used twice");
                let generation = owner.generation;
                self.flights.push(Flight { owner: it, generation, seq, record, is_reported: true });
            }
        }
    }

    fn carry(&mut self, it: usize, fate: Fate) {
        let mut flight = self.flights.remove(it);
        let offset = int(self.log.len());
        let (is_appended, report) = match fate {
            Fate::Appended | Fate::TwiceReportedFirst => (true, Some(Some(offset))),
            Fate::TwiceReportedLast | Fate::AppendedWithoutReport => (true, None),
            Fate::AppendedWithError => (true, Some(None)),
            Fate::Lost => (false, Some(None)),
            Fate::LostWithoutReport => (false, None),
        };
        if is_appended {
            self.log.push(flight.record.clone());
        }
        if let Some(offset) = report.filter(|_| flight.is_reported) {
            let Flight { owner, generation, seq, .. } = flight;
            self.reports.push(Report { owner, generation, seq, offset });
        }
        if matches!(fate, Fate::TwiceReportedFirst | Fate::TwiceReportedLast) {
            flight.is_reported &= report.is_none();
            self.flights.push(flight);
        }
    }

    fn report(&mut self, it: usize) {
        let Report { owner: it, generation, seq, offset } = self.reports.remove(it);
        let owner = &mut self.owners[it];
        if generation != owner.generation || matches!(owner.phase, Phase::Idle) {
            return;
        }
        let Some(offset) = offset else { return self.start_over(it) };
        owner.phase = match std::mem::replace(&mut owner.phase, Phase::Idle) {
            Phase::Idle => unreachable!("returned above"),
            Phase::Claiming(nonce) => Phase::Owning(Writer::new(Epoch { claim: offset, nonce })),
            Phase::Owning(mut writer) => {
                owner.reported.insert(seq, offset);
                match writer.delivered(seq, offset) {
                    Ok(()) => Phase::Owning(writer),
                    Err(doubt) => doubted(writer, doubt),
                }
            }
            Phase::Looking(mut writer, reader, doubt) => {
                owner.reported.insert(seq, offset);
                // A doubt that this report raises surfaces once the current one is settled.
                let _ = writer.delivered(seq, offset);
                Phase::Looking(writer, reader, doubt)
            }
        };
        self.observe(it);
    }

    fn look(&mut self, it: usize, further: i64) {
        let phase = std::mem::replace(&mut self.owners[it].phase, Phase::Idle);
        let Phase::Looking(mut writer, mut reader, doubt) = phase else { unreachable!("picked as looking") };
        read_on(&mut reader, &self.log, doubt.offset + 1 + further);
        let base = writer.offset_of(0);
        let settled = writer.settle(&reader);
        self.seen.moved += u32::from(base != writer.offset_of(0));
        // The acknowledgements must hold regardless of the outcome.
        self.owners[it].phase = Phase::Owning(writer.clone());
        self.observe(it);
        match settled {
            Ok(Settled::Continues) => self.seen.continued += 1,
            Ok(Settled::Deposed) => self.deposed(it, writer.epoch(), &reader),
            Ok(Settled::Broken) => self.broken(it, &reader),
            Err(doubt) => {
                self.seen.doubted_again += 1;
                self.owners[it].phase = doubted(writer, doubt);
            }
        }
    }

    fn deposed(&mut self, it: usize, epoch: Epoch, reader: &Reader) {
        let read = self.log[..usize::try_from(reader.next_offset).unwrap()].to_vec();
        let count = counted(&read).get(&epoch).map_or(0, Vec::len);
        self.seen.deposed += 1;
        self.seen.deposed_with_records_that_count += u32::from(count > 0);
        self.ended.insert(epoch, count);
        self.start_over(it);
    }

    fn broken(&mut self, it: usize, reader: &Reader) {
        let stands = |(seq, offset): (&u64, &i64)| *seq > reader.last_seq && *offset < reader.next_offset;
        let behind: Vec<_> = self.owners[it].reported.iter().filter(|it| stands(*it)).map(|(_, it)| *it).collect();
        assert!(!behind.is_empty(), "the epoch was abandoned without a gap");
        self.seen.broken += 1;
        self.behind_holes.extend(behind);
        self.start_over(it);
    }

    /// Reads to the end of the log. Claims again if the last claim is its own, otherwise gives up ownership.
    fn start_over(&mut self, it: usize) {
        let epoch = read_whole(&self.log).0.epoch;
        if epoch.is_some_and(|epoch| self.owners[it].nonces.contains(&epoch.nonce)) {
            return self.claim(it);
        }
        self.owners[it].phase = Phase::Idle;
    }

    fn haunt(&mut self) {
        let reader = read_whole(&self.log).0;
        let epoch = reader.epoch.unwrap();
        let elsewhere = Epoch { nonce: !epoch.nonce, ..epoch };
        self.log.push(commit(elsewhere, reader.last_seq + 1, "ghost".into()));
    }

    /// Checks that every acknowledged record counts already, lies at the offset that the writer names, and is the
    /// starting point for resolving a doubt.
    fn observe(&mut self, it: usize) {
        let (Phase::Owning(writer) | Phase::Looking(writer, ..)) = &self.owners[it].phase else { return };
        let acknowledged = writer.acknowledged();
        let known = self.acknowledged.entry(writer.epoch()).or_default();
        assert!(acknowledged >= *known, "an acknowledgement was withdrawn");
        self.seen.acknowledged += acknowledged - *known;
        *known = acknowledged;
        let mut fresh = Reader::START;
        read_on(&mut fresh, &self.log, writer.offset_of(acknowledged) + 1);
        assert_eq!(fresh, writer.reader(), "acknowledged but not counted by a reader");
    }

    /// Checks the invariants of the whole log once everything has arrived.
    fn check(&self) {
        let counted = counted(&self.log);
        for (epoch, offsets) in &counted {
            for (seq, offset) in (1..).zip(offsets) {
                let record = self.log[usize::try_from(*offset).unwrap()].as_ref();
                assert_eq!(record, self.sent.get(&(*epoch, seq)), "{offset} counts as {seq} of {epoch:?}");
                let mut since = (epoch.claim + 1..*offset).map(|offset| &self.log[usize::try_from(offset).unwrap()]);
                assert!(!since.any(|record| matches!(record, Some(Record::Claim(_)))), "{offset} counts after a claim");
            }
        }
        let count = |epoch| counted.get(epoch).map_or(0, Vec::len);
        for (epoch, acknowledged) in &self.acknowledged {
            assert!(count(epoch) as u64 >= *acknowledged, "{acknowledged} of {epoch:?} were acknowledged");
        }
        for (epoch, ended) in &self.ended {
            assert_eq!(count(epoch), *ended, "{epoch:?} continued after its end");
        }
        for offset in &self.behind_holes {
            assert!(!counted.values().flatten().any(|counts| counts == offset), "{offset} counts after a gap");
        }
        for owner in &self.owners {
            if let Phase::Owning(writer) = &owner.phase
                && owner.reported.len() == owner.accepted
            {
                assert_eq!(
                    writer.acknowledged(),
                    owner.accepted as u64,
                    "everything was reported but not everything acknowledged"
                );
            }
        }
    }
}

/// Returns the offsets of the records that count, by epoch.
fn counted(log: &Log) -> BTreeMap<Epoch, Vec<i64>> {
    let mut reader = Reader::START;
    let mut counted = BTreeMap::<Epoch, Vec<i64>>::new();
    for offset in 0..int(log.len()) {
        let verdict = read_on(&mut reader, log, offset + 1);
        if verdict == [Verdict::Counts] {
            counted.entry(reader.epoch.unwrap()).or_default().push(offset);
        }
    }
    counted
}

#[derive(Clone, Copy)]
enum Client {
    Accepts,
    Refuses,
}

fn is_looking(owner: &Owner) -> bool {
    matches!(owner.phase, Phase::Looking(..))
}

fn doubted(writer: Writer, doubt: Doubt) -> Phase {
    let reader = writer.reader();
    Phase::Looking(writer, reader, doubt)
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        30 => Just(Fate::Appended),
        2 => Just(Fate::TwiceReportedFirst),
        2 => Just(Fate::TwiceReportedLast),
        1 => Just(Fate::AppendedWithoutReport),
        1 => Just(Fate::AppendedWithError),
        1 => Just(Fate::Lost),
        1 => Just(Fate::LostWithoutReport),
    ]
}

/// Mostly picks the oldest.
fn any_pick() -> impl Strategy<Value = Pick> {
    prop_oneof![5 => Just(0), 1 => 1..6_usize]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..6_usize).prop_map(Op::Send),
        12 => (any_pick(), any_fate()).prop_map(|(pick, fate)| Op::Carry(pick, fate)),
        12 => any_pick().prop_map(Op::Report),
        3 => (0..6_usize, 0..4_i64).prop_map(|(pick, further)| Op::Look(pick, further)),
        1 => (0..6_usize).prop_map(Op::Claim),
        1 => (0..6_usize).prop_map(Op::Refuse),
        1 => (0..6_usize).prop_map(Op::TimeOut),
        1 => Just(Op::Foreign),
        1 => Just(Op::Ghost),
    ]
}

fn any_world() -> impl Strategy<Value = (usize, Vec<Op>)> {
    (2..=3_usize, vec(any_op(), 0..250))
}

fn lived((owners, ops): &(usize, Vec<Op>)) -> World {
    let mut world = World::new(*owners);
    for op in ops {
        world.step(*op);
    }
    world.settle();
    world
}

/// Returns the log as another incarnation of the topic would have written it: only the nonces differ.
fn of_another_history(log: &Log) -> Log {
    let other = |epoch: Epoch| Epoch { nonce: !epoch.nonce, ..epoch };
    let differ = |record: &Record<'static>| match record.clone() {
        Record::Claim(claim) => Record::Claim(Claim { nonce: !claim.nonce, ..claim }),
        Record::Commit(commit) => Record::Commit(Commit { epoch: other(commit.epoch), ..commit }),
        Record::Fence(fence) => Record::Fence(Fence { epoch: other(fence.epoch), ..fence }),
    };
    log.iter().map(|record| record.as_ref().map(differ)).collect()
}

proptest! {
    #[test]
    fn every_acknowledged_record_counts_for_every_reader(world in any_world()) {
        lived(&world).check();
    }

    #[test]
    fn a_resumed_reader_returns_the_same_verdicts(world in any_world(), at in any::<prop::sample::Index>()) {
        let log = lived(&world).log;
        let (_, verdicts) = read_whole(&log);
        let at = at.index(log.len());
        let mut before = Reader::START;
        read_on(&mut before, &log, int(at));
        // A checkpoint stores these four fields.
        let Reader { next_offset, epoch, last_seq, last_counted } = before;
        let mut resumed = Reader { next_offset, epoch, last_seq, last_counted };
        prop_assert_eq!(&read_on(&mut resumed, &log, i64::MAX), &verdicts[at..]);
        if let Some(epoch) = epoch {
            let mut behind = Reader::behind(epoch, last_seq, last_counted);
            let counted = usize::try_from(last_counted).unwrap();
            prop_assert_eq!(&read_on(&mut behind, &log, i64::MAX), &verdicts[counted + 1..]);
        }
    }

    #[test]
    fn a_state_recognizes_its_own_history_and_no_other(world in any_world()) {
        let log = lived(&world).log;
        let other = of_another_history(&log);
        let mut reader = Reader::START;
        for offset in 0..int(log.len()) {
            read_on(&mut reader, &log, offset + 1);
            let counted = usize::try_from(reader.last_counted).unwrap();
            prop_assert!(reader.recognizes(log[counted].as_ref()));
            prop_assert!(!reader.recognizes(other[counted].as_ref()));
            prop_assert!(!reader.recognizes(None));
            // It must not recognize a record from elsewhere in the same log either, as after a truncation.
            let earlier = log[..counted].iter().rev().find(|record| record.is_some());
            if let Some(earlier) = earlier
                && *earlier != log[counted]
            {
                prop_assert!(!reader.recognizes(earlier.as_ref()));
            }
        }
    }
}

#[test]
fn the_simulation_meets_every_fate() {
    let mut runner = TestRunner::deterministic();
    let mut seen = Seen::default();
    for _ in 0..200 {
        let world = any_world().new_tree(&mut runner).unwrap().current();
        let world = lived(&world);
        let (_, verdicts) = read_whole(&world.log);
        let passed = |why| verdicts.iter().filter(|it| **it == Verdict::PassedOver(why)).count() as u32;
        seen.acknowledged += world.seen.acknowledged;
        seen.continued += world.seen.continued;
        seen.moved += world.seen.moved;
        seen.doubted_again += world.seen.doubted_again;
        seen.deposed += world.seen.deposed;
        seen.deposed_with_records_that_count += world.seen.deposed_with_records_that_count;
        seen.broken += world.seen.broken;
        seen.passed_other_epoch += passed(Passed::OtherEpoch);
        seen.passed_out_of_sequence += passed(Passed::OutOfSequence);
    }
    assert!(seen.acknowledged >= 500, "{seen:?}");
    for count in [
        seen.continued,
        seen.moved,
        seen.doubted_again,
        seen.deposed,
        seen.deposed_with_records_that_count,
        seen.broken,
        seen.passed_other_epoch,
        seen.passed_out_of_sequence,
    ] {
        assert!(count >= 20, "{seen:?}");
    }
}
