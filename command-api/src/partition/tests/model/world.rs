//! Owners, the records between them and the log, and the state of the clients' commands.

use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use schemas::answers::Answer;
use schemas::commands::Precondition;

use super::clients::{Attempt, LAST, TRIES, Told, WISHES, Wish};
use super::history::{Flaw, History, Value};
use super::owner::{DeliveryReport, Owner};
use crate::partition::tests::{NOW, Recorder, Sent, int, request};
use crate::partition::{HaltError, ParsedRequest, Role};

/// Maximum number of reads that an owner may begin in a row without other input.
const MAX_READS: usize = 8;

/// Treatment of a record by the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Appended,
    /// The record sent after it is appended first.
    Overtaken,
    /// A copy stays in flight; the report is that of the first.
    TwiceReportedFirst,
    TwiceReportedLast,
    AppendedWithError,
    /// The record is reported as failed, and is lost or appended later.
    ErrorThenStray,
}

/// A record on its way to the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Flight {
    /// Sender: an owner and its life.
    producer: (usize, u32),
    /// Report that the sender will receive.
    report: DeliveryReport,
    value: Value,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) log: History,
    owners: Vec<Arc<Owner>>,
    /// Records in flight by producer, and in sending order for each.
    flights: Vec<Flight>,
    /// Copies, and records reported as failed: they may be appended at any time, or never.
    strays: Vec<Value>,
    attempts: Vec<Attempt>,
    /// Number of faults so far.
    pub(super) troubles: usize,
    flaw: Option<Flaw>,
    /// Outcomes of the last step.
    pub(super) told: Vec<Told>,
}

impl World {
    /// Creates a world in which the first owner owns the partition, and a product without stock is on sale.
    pub(super) fn new(owners: usize) -> Self {
        let mut world = Self {
            log: History::EMPTY,
            owners: (0..owners).map(|it| Arc::new(Owner::new(it, 0, 0))).collect(),
            flights: vec![],
            strays: vec![],
            attempts: vec![Attempt::NotYet; WISHES.len() * TRIES],
            troubles: 0,
            flaw: None,
            told: vec![],
        };
        world.take_over(0);
        world.settle();
        world.ask(0, &[0]);
        world.settle();
        world.seal();
        world
    }

    pub(super) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn owners(&self) -> usize {
        self.owners.len()
    }

    pub(super) fn role(&self, it: usize) -> Role {
        self.owners[it].partition.role()
    }

    /// Returns whether the owner has never done anything.
    pub(super) fn is_fresh(&self, it: usize) -> bool {
        self.owners[it].is_fresh(it)
    }

    pub(super) fn reads(&self, it: usize) -> bool {
        self.owners[it].reading.is_some()
    }

    pub(super) fn reports(&self, it: usize) -> usize {
        self.owners[it].reports.len()
    }

    pub(super) fn wants_turn(&self, it: usize) -> bool {
        self.owners[it].partition.wants_turn()
    }

    pub(super) fn strays(&self) -> usize {
        self.strays.len()
    }

    /// Returns the first record in flight of each producer, the number of records behind it, and whether its sender is
    /// alive.
    pub(super) fn heads(&self) -> impl Iterator<Item = (usize, usize, bool)> {
        let mut at = 0;
        self.flights.chunk_by(|one, other| one.producer == other.producer).map(move |flights| {
            let first = at;
            at += flights.len();
            (first, flights.len() - 1, self.is_alive(flights[0].producer))
        })
    }

    pub(super) fn is_free(&self, attempt: usize) -> bool {
        self.attempts[attempt] == Attempt::NotYet
    }

    /// Sends commands within one turn.
    pub(super) fn ask(&mut self, it: usize, attempts: &[usize]) {
        for attempt in attempts {
            self.attempts[*attempt] = Attempt::Open { owner: it, asked_at: self.log.changed_at() };
        }
        self.turn(it, |owner, out| {
            for attempt in attempts {
                let Wish { key, command } = &WISHES[attempt / TRIES];
                let trace = Some(attempt.to_string().into());
                let request = ParsedRequest { trace, ..request(*attempt, key, command(), Precondition::None) };
                owner.partition.command(request, NOW, out);
            }
            Ok(())
        });
    }

    pub(super) fn end_turn(&mut self, it: usize) {
        self.turn(it, |_, _| Ok(()));
    }

    pub(super) fn prepare(&mut self, it: usize) {
        self.turn(it, |owner, out| {
            owner.partition.prepare(out);
            Ok(())
        });
    }

    pub(super) fn take_over(&mut self, it: usize) {
        self.turn(it, |owner, out| {
            owner.partition.take_over(out);
            Ok(())
        });
    }

    /// Releases the partition, in the middle of a read if one is in progress.
    pub(super) fn let_go(&mut self, it: usize) {
        let log = self.log.clone();
        self.turn(it, |owner, out| owner.let_go(&log, out));
    }

    /// Restarts an owner. Records that it sent may still arrive, or not.
    pub(super) fn crash(&mut self, it: usize) {
        let Owner { life, nonces, .. } = *self.owners[it];
        self.owners[it] = Arc::new(Owner::new(it, life + 1, nonces));
        for attempt in &mut self.attempts {
            if matches!(attempt, Attempt::Open { owner, .. } if *owner == it) {
                *attempt = Attempt::Forgotten;
            }
        }
    }

    pub(super) fn refuse(&mut self, it: usize) {
        let owner = Arc::make_mut(&mut self.owners[it]);
        (owner.refuses, owner.digest) = (true, None);
    }

    pub(super) fn report(&mut self, it: usize, report: usize) {
        self.turn(it, |owner, out| {
            owner.hear(report, out);
            Ok(())
        });
    }

    /// Carries out the whole of the requested read.
    pub(super) fn read(&mut self, it: usize) {
        let log = self.log.clone();
        self.turn(it, |owner, out| owner.read(&log, out));
        // Reads that follow this one have to end too, without any other input.
        let mut further = self.reads(it).then(|| self.clone());
        for _ in 0..MAX_READS {
            further = further.filter(|world| world.reads(it));
            let Some(world) = &mut further else { return };
            world.turn(it, |owner, out| owner.read(&log, out));
        }
        self.note(Err(Flaw::Endless));
    }

    pub(super) fn land(&mut self, flight: usize, fate: Fate) {
        if fate == Fate::Overtaken {
            return self.land(flight + 1, Fate::Appended);
        }
        let Flight { producer, report, value } = self.flights[flight].clone();
        let offset = int(self.log.len());
        let heard = match fate {
            Fate::Appended | Fate::Overtaken | Fate::TwiceReportedFirst => Some(report.at(offset)),
            Fate::AppendedWithError | Fate::ErrorThenStray => Some(report),
            Fate::TwiceReportedLast => None,
        };
        if let Some(report) = heard {
            self.flights.remove(flight);
            if self.is_alive(producer) {
                Arc::make_mut(&mut self.owners[producer.0]).reports.push(report);
            }
        }
        if matches!(fate, Fate::TwiceReportedFirst | Fate::ErrorThenStray) {
            self.strays.push(value.clone());
            self.strays.sort_by_key(Value::digest);
        }
        if fate != Fate::ErrorThenStray {
            self.append(value);
        }
    }

    pub(super) fn land_stray(&mut self, stray: usize) {
        let value = self.strays.remove(stray);
        self.append(value);
    }

    pub(super) fn append(&mut self, value: Value) {
        let appended = self.log.append(value, &self.attempts);
        self.note(appended);
    }

    /// Ends all faults, and delivers awaited records, reports and reads. Returns whether the world settles.
    pub(super) fn settle(&mut self) -> bool {
        for _ in 0..200 {
            let awaited = self.heads().find(|(.., is_alive)| *is_alive);
            if let Some((flight, ..)) = awaited {
                self.land(flight, Fate::Appended);
            } else if let Some(it) = self.find(|it| self.reports(it) > 0) {
                self.report(it, 0);
            } else if let Some(it) = self.find(|it| self.reads(it)) {
                self.read(it);
            } else if let Some(it) = self.find(|it| self.wants_turn(it)) {
                self.end_turn(it);
            } else {
                return true;
            }
        }
        false
    }

    /// Returns whether nothing is in flight, except records whose sender is gone.
    pub(super) fn is_quiet(&self) -> bool {
        !self.heads().any(|(.., is_alive)| is_alive) && self.find(|it| self.reports(it) > 0 || self.reads(it)).is_none()
    }

    /// Returns whether every command is answered and some owner accepts a new one.
    pub(super) fn comes_to_accept(mut self) -> bool {
        let is_open = |attempt: &Attempt| matches!(attempt, Attempt::Open { .. });
        let rests = |role| matches!(role, Role::Idle | Role::Prepared | Role::Owner);
        if !self.settle() || self.attempts.iter().any(is_open) || self.find(|it| !rests(self.role(it))).is_some() {
            return false;
        }
        for _ in 0..=self.owners() {
            let owner = self.find(|it| self.role(it) == Role::Owner).unwrap_or(0);
            self.take_over(owner);
            self.settle();
            self.attempts[LAST * TRIES] = Attempt::NotYet;
            self.ask(owner, &[LAST * TRIES]);
            self.settle();
            match self.attempts[LAST * TRIES] {
                Attempt::Answered => return self.flaw.is_none(),
                // The owner was deposed without noticing it.
                Attempt::Refused => {}
                Attempt::NotYet | Attempt::Open { .. } | Attempt::Forgotten => return false,
            }
        }
        false
    }

    fn find(&self, is_meant: impl Fn(usize) -> bool) -> Option<usize> {
        (0..self.owners()).find(|it| is_meant(*it))
    }

    fn is_alive(&self, (owner, life): (usize, u32)) -> bool {
        self.owners[owner].life == life
    }

    /// Passes an input to the machine, and carries out the effects that it requests.
    fn turn(&mut self, it: usize, input: impl FnOnce(&mut Owner, &mut Recorder<usize>) -> Result<(), HaltError>) {
        let owner = Arc::make_mut(&mut self.owners[it]);
        let mut out = Recorder::new(owner.nonces);
        out.refusals = usize::from(owner.refuses);
        let taken = input(owner, &mut out).map_err(|_| Flaw::Halted);
        owner.partition.end_turn(NOW, &mut out);
        (owner.nonces, owner.refuses) = (out.next_nonce, out.refusals > 0);
        owner.reading = out.reading.or(owner.reading);
        owner.digest = None;
        let producer = (it, owner.life);
        let at = self.flights.partition_point(|flight| flight.producer <= producer);
        let flight =
            |sent: Sent| Flight { producer, report: DeliveryReport::none(sent.ticket), value: Value::new(sent.value) };
        self.flights.splice(at..at, out.sent.into_iter().map(flight));
        self.told = out.doubts.into_iter().map(Told::from).collect();
        self.note(taken);
        for (attempt, answer) in out.answers {
            self.hear(attempt, &answer);
        }
    }

    fn hear(&mut self, attempt: usize, answer: &Answer) {
        self.told.extend(Told::of(answer));
        let Attempt::Open { asked_at, .. } = self.attempts[attempt] else { return self.note(Err(Flaw::Nonsense)) };
        let is_refused = matches!(answer, Answer::NoOwner | Answer::Misdirected | Answer::Overloaded { .. });
        self.attempts[attempt] = if is_refused { Attempt::Refused } else { Attempt::Answered };
        self.note(self.log.check(attempt, asked_at, answer));
    }

    /// Computes the missing digests, so that comparisons need not.
    pub(super) fn seal(&mut self) {
        for owner in self.owners.iter_mut().filter(|owner| owner.digest.is_none()) {
            let digest = owner.digested();
            Arc::make_mut(owner).digest = Some(digest);
        }
    }

    fn note(&mut self, outcome: Result<(), Flaw>) {
        self.flaw = self.flaw.or(outcome.err());
    }
}

impl World {
    /// Returns the identity: worlds with the same one behave the same from here on, and violated the same property.
    fn identity(&self) -> impl Hash + PartialEq + '_ {
        let owners: Vec<_> = self.owners.iter().map(|owner| (owner.digested(), &owner.reports)).collect();
        let Self { flights, strays, attempts, troubles, flaw, .. } = self;
        (self.log.digest(), owners, flights, strays, attempts, *troubles, *flaw)
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles: Vec<_> = (0..self.owners()).map(|it| self.role(it)).collect();
        let Self { log, attempts, flaw, told, .. } = self;
        write!(f, "{roles:?} {log:?} {attempts:?} {flaw:?} {told:?}")
    }
}
