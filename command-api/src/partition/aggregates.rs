//! The aggregates in memory, each at its newest version.

use domain::{Command, Event, Rejection, State, TimeMs, decide, evolve};
use hashbrown::HashMap;
use schemas::aggregate::AggregateId;

#[derive(Debug, Default)]
pub(super) struct Aggregates {
    residents: HashMap<AggregateId, Resident>,
}

#[derive(Debug)]
struct Resident {
    state: State,
    /// The number of its events.
    version: u64,
    /// Of its last commit.
    offset: i64,
}

impl Aggregates {
    /// The version and the offset of the last commit. One that never had an event is at version 0, and its
    /// state is as old as the log.
    pub(super) fn version(&self, aggregate: &AggregateId) -> (u64, i64) {
        self.residents.get(aggregate).map_or((0, 0), |resident| (resident.version, resident.offset))
    }

    pub(super) fn decide(
        &self,
        aggregate: &AggregateId,
        command: &Command,
        at: TimeMs,
    ) -> Result<Vec<Event>, Rejection> {
        match self.residents.get(aggregate) {
            Some(resident) => decide(&resident.state, command, at),
            None => decide(&State::initial(command.aggregate()), command, at),
        }
    }

    pub(super) fn apply(&mut self, aggregate: &AggregateId, events: &[Event], version: u64, offset: i64) {
        let initial = || State::initial(aggregate.aggregate());
        let resident =
            self.residents.entry_ref(aggregate).or_insert_with(|| Resident { state: initial(), version: 0, offset });
        let state = std::mem::replace(&mut resident.state, initial());
        resident.state = events.iter().fold(state, evolve);
        resident.version = version;
        resident.offset = offset;
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
}
