//! The aggregates in memory, each at its newest version.
//!
//! Invariant: rules that panic take down nobody but their aggregate: it is put into quarantine.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use domain::{Command, Event, Rejection, State, TimeMs, decide, evolve};
use hashbrown::HashMap;
use schemas::aggregate::AggregateId;

#[derive(Debug, Default)]
pub(super) struct Aggregates {
    residents: HashMap<AggregateId, Resident>,
    quarantined: BTreeMap<AggregateId, Quarantine>,
}

#[derive(Debug)]
struct Resident {
    state: State,
    /// The number of its events.
    version: u64,
    /// Of its last commit.
    offset: i64,
}

/// Why nothing is decided on an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// What the panic said.
    pub reason: String,
    pub since: TimeMs,
    /// Its events cannot be folded: only a build that can fold them brings it back.
    pub state_lost: bool,
}

/// What became of a wish to end a quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    Released,
    StateLost,
    NotQuarantined,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Rejected(Rejection),
    Quarantined,
}

impl Aggregates {
    /// The version and the offset of the last commit. One that never had an event is at version 0, and its
    /// state is as old as the log.
    pub(super) fn version(&self, aggregate: &AggregateId) -> (u64, i64) {
        self.residents.get(aggregate).map_or((0, 0), |resident| (resident.version, resident.offset))
    }

    pub(super) fn len(&self) -> usize {
        self.residents.len()
    }

    pub(super) fn decide(
        &mut self,
        aggregate: &AggregateId,
        command: &Command,
        at: TimeMs,
    ) -> Result<Vec<Event>, Refusal> {
        if self.is_quarantined(aggregate) {
            return Err(Refusal::Quarantined);
        }
        let initial;
        let state = match self.residents.get(aggregate) {
            Some(resident) => &resident.state,
            None => {
                initial = State::initial(aggregate.aggregate());
                &initial
            }
        };
        // Nothing can be seen half changed: the rules borrow the state.
        let decided = catch_unwind(AssertUnwindSafe(|| decide(state, command, at)));
        decided.map(|decided| decided.map_err(Refusal::Rejected)).unwrap_or_else(|panic| {
            self.quarantine(aggregate, panic.as_ref(), at, false);
            Err(Refusal::Quarantined)
        })
    }

    pub(super) fn apply(&mut self, aggregate: &AggregateId, events: &[Event], version: u64, offset: i64, at: TimeMs) {
        let initial = || State::initial(aggregate.aggregate());
        let resident =
            self.residents.entry_ref(aggregate).or_insert_with(|| Resident { state: initial(), version: 0, offset });
        resident.version = version;
        resident.offset = offset;
        if !self.quarantined.is_empty() && self.quarantined.get(aggregate).is_some_and(|known| known.state_lost) {
            return;
        }
        let state = std::mem::replace(&mut resident.state, initial());
        // A state that was half changed is gone with the panic.
        match catch_unwind(AssertUnwindSafe(|| events.iter().fold(state, evolve))) {
            Ok(state) => resident.state = state,
            Err(panic) => self.quarantine(aggregate, panic.as_ref(), at, true),
        }
    }

    pub(super) fn is_quarantined(&self, aggregate: &AggregateId) -> bool {
        !self.quarantined.is_empty() && self.quarantined.contains_key(aggregate)
    }

    pub(super) fn quarantined(&self) -> &BTreeMap<AggregateId, Quarantine> {
        &self.quarantined
    }

    pub(super) fn release(&mut self, aggregate: &AggregateId) -> Release {
        match self.quarantined.get(aggregate) {
            None => Release::NotQuarantined,
            Some(Quarantine { state_lost: true, .. }) => Release::StateLost,
            Some(_) => {
                self.quarantined.remove(aggregate);
                Release::Released
            }
        }
    }

    /// The name of an aggregate in a record, shared with the resident one. `None`: no such name.
    pub(super) fn name(&self, name: &str) -> Option<AggregateId> {
        match self.residents.get_key_value(name) {
            Some((aggregate, _)) => Some(aggregate.clone()),
            None => AggregateId::parse(name).ok(),
        }
    }

    pub(super) fn move_positions(&mut self, proven: i64, shift: i64) {
        for resident in self.residents.values_mut().filter(|resident| resident.offset > proven) {
            resident.offset += shift;
        }
    }

    fn quarantine(&mut self, aggregate: &AggregateId, panic: &(dyn Any + Send), since: TimeMs, state_lost: bool) {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let reason = text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default();
        self.quarantined.insert(aggregate.clone(), Quarantine { reason, since, state_lost });
    }
}
