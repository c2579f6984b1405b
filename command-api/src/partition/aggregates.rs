//! The aggregates in memory, each at its newest version.
//!
//! Where reading began at the log's beginning and nothing was let go, what is not here has no events. Else it is cold:
//! its state is kept outside, as of a checkpoint. The floor is the offset that such a checkpoint must have reached: up
//! to it, events of aggregates that are not here may stand in the log. One whose name is not among the names of those that
//! have events is not cold, but new.
//!
//! Invariant: the names have every aggregate whose first event was taken in, wherever it is by now. So with those of all
//! events before the offset at which reading began, they are complete.
//!
//! Invariant: rules that panic take down nobody but their aggregate: it is put into quarantine.

use std::panic::{AssertUnwindSafe, catch_unwind};

use domain::{Command, Event, MAX_STATE_BYTES, Rejection, State, TimeMs, decide, evolve};
use hashbrown::HashMap;
use schemas::aggregate::AggregateId;

use super::effects::{LoadedNames, LoadedState};
use super::names::Names;
use super::quarantine::{Quarantined, panic_text};
use super::tails::{Tails, Unfolded};

/// The size from which on operators are warned of a state.
const NEARLY_FULL: usize = MAX_STATE_BYTES / 5 * 4;

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Aggregates {
    residents: HashMap<AggregateId, Resident>,
    pub(super) tails: Tails,
    pub(super) quarantined: Quarantined,
    /// Reading began at this offset.
    start: i64,
    /// 0: what is not here has no events.
    floor: i64,
    names: Names,
    /// About how much memory the residents take.
    bytes: usize,
    /// The size of the largest state since reading began.
    largest: usize,
    /// Aggregates that came near the size at which they take on nothing more, and were not told of yet.
    nearly_full: Vec<AggregateId>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Resident {
    state: State,
    /// The number of its events.
    version: u64,
    /// Of its last commit.
    offset: i64,
    /// Used since the last look for what may go.
    used: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// In a state that goes by this word.
    Rejected(Rejection, &'static str),
    Quarantined,
}

impl Aggregates {
    /// Empty but for the names. Everything up to `end` was read; reading begins anew at `start`.
    pub(super) fn restart(&mut self, end: i64, start: i64) {
        self.extend_names(end);
        *self = Self { start, floor: start, names: std::mem::take(&mut self.names), ..Self::default() };
    }

    /// The version and the offset of the last commit. One that never had an event is at version 0, and its
    /// state is as old as the log.
    pub(super) fn version(&self, aggregate: &AggregateId) -> (u64, i64) {
        self.residents.get(aggregate).map_or((0, 0), |resident| (resident.version, resident.offset))
    }

    #[cfg(test)]
    pub(super) fn state(&self, aggregate: &AggregateId) -> Option<&State> {
        self.residents.get(aggregate).map(|resident| &resident.state)
    }

    pub(super) fn floor(&self) -> i64 {
        self.floor
    }

    pub(super) fn len(&self) -> usize {
        self.residents.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.tails.bytes()
    }

    /// The size of the largest state since reading began, in bytes.
    pub(super) fn largest_state(&self) -> usize {
        self.largest
    }

    /// Returns aggregates whose states have grown beyond [`NEARLY_FULL`] since the last call.
    pub(super) fn take_nearly_full(&mut self) -> Vec<AggregateId> {
        std::mem::take(&mut self.nearly_full)
    }

    fn note_size(&mut self, aggregate: &AggregateId, before: usize, after: usize) {
        self.largest = self.largest.max(after);
        if before < NEARLY_FULL && after >= NEARLY_FULL {
            self.nearly_full.push(aggregate.clone());
        }
    }

    /// Whether it is here, or nothing more of it will be.
    pub(super) fn knows(&self, aggregate: &AggregateId) -> bool {
        self.residents.contains_key(aggregate) || self.quarantined.contains(aggregate)
    }

    /// Whether its state has to be brought before anything is decided on it.
    pub(super) fn is_cold(&self, aggregate: &AggregateId) -> bool {
        self.floor > 0 && !self.knows(aggregate) && !self.is_unnamed(aggregate)
    }

    /// Whether it has no event in the log for certain.
    pub(super) fn is_new(&self, aggregate: &AggregateId) -> bool {
        !self.knows(aggregate) && (self.floor == 0 || self.is_unnamed(aggregate))
    }

    fn is_unnamed(&self, aggregate: &AggregateId) -> bool {
        self.knows_names() && !self.names.contain(aggregate.as_str())
    }

    pub(super) fn knows_names(&self) -> bool {
        self.names.reach(self.start)
    }

    pub(super) fn names(&self) -> usize {
        self.names.len()
    }

    /// Returns from where on names are missing.
    pub(super) fn lacks_names_from(&self) -> Option<i64> {
        self.names.lack_from(self.start)
    }

    /// Takes in names that are kept outside.
    pub(super) fn bring_names(&mut self, kept: &LoadedNames) {
        kept.names.iter().for_each(|name| self.names.insert(name));
        if self.names.reach(kept.from) {
            self.names.extend_to(kept.until);
        }
    }

    /// Everything that counts between where reading began and this offset was taken in.
    pub(super) fn extend_names(&mut self, end: i64) {
        if self.knows_names() {
            self.names.extend_to(end);
        }
    }

    pub(super) fn decide(
        &mut self,
        aggregate: &AggregateId,
        command: &Command,
        at: TimeMs,
    ) -> Result<Vec<Event>, Refusal> {
        if self.quarantined.contains(aggregate) {
            return Err(Refusal::Quarantined);
        }
        let initial;
        let state = match self.residents.get_mut(aggregate) {
            Some(resident) => {
                resident.used = true;
                &resident.state
            }
            None => {
                initial = State::initial(aggregate.aggregate());
                &initial
            }
        };
        // Nothing can be seen half changed: the rules borrow the state.
        let decide = || decide(state, command, at).map_err(|rejection| Refusal::Rejected(rejection, state.status(at)));
        catch_unwind(AssertUnwindSafe(decide)).unwrap_or_else(|panic| {
            self.quarantined.insert(aggregate, panic_text(panic.as_ref()), at, false);
            Err(Refusal::Quarantined)
        })
    }

    /// Takes in what was decided on it.
    pub(super) fn apply(&mut self, aggregate: &AggregateId, events: &[Event], version: u64, offset: i64, at: TimeMs) {
        let initial = || State::initial(aggregate.aggregate());
        let mut arrived = false;
        let resident = self.residents.entry_ref(aggregate).or_insert_with(|| {
            arrived = true;
            Resident { state: initial(), version: 0, offset, used: true }
        });
        if resident.version == 0 {
            self.names.insert(aggregate.as_str());
        }
        resident.version = version;
        resident.offset = offset;
        if self.quarantined.is_state_lost(aggregate) {
            return;
        }
        let before = if arrived { 0 } else { weight(aggregate, &resident.state) };
        let was = resident.state.heap_bytes();
        let state = std::mem::replace(&mut resident.state, initial());
        // A state that was half changed is gone with the panic.
        match catch_unwind(AssertUnwindSafe(|| events.iter().fold(state, evolve))) {
            Ok(state) => resident.state = state,
            Err(panic) => self.quarantined.insert(aggregate, panic_text(panic.as_ref()), at, true),
        }
        self.bytes = (self.bytes + weight(aggregate, &resident.state)).saturating_sub(before);
        let bytes = resident.state.heap_bytes();
        self.note_size(aggregate, was, bytes);
    }

    /// Takes in what was read, from a record of this size. What was brought from outside may be ahead of it. One that begins
    /// with it needs nothing brought.
    pub(super) fn read(&mut self, aggregate: &AggregateId, commit: Unfolded, size: usize) {
        let is_whole = commit.version == commit.events.len() as u64;
        if self.floor > 0 && !self.knows(aggregate) && !is_whole {
            self.tails.push(aggregate, commit, size);
        } else {
            self.fold(aggregate, &commit);
        }
    }

    fn fold(&mut self, aggregate: &AggregateId, commit: &Unfolded) {
        if self.residents.get(aggregate).is_none_or(|resident| resident.version < commit.version) {
            self.apply(aggregate, &commit.events, commit.version, commit.offset, commit.at);
        }
    }

    /// Its earlier state was brought; it reaches up to the floor at least.
    pub(super) fn bring(&mut self, aggregate: &AggregateId, kept: LoadedState) {
        if !self.is_cold(aggregate) {
            return;
        }
        let tail = self.tails.take(aggregate);
        match kept.folded {
            Err(reason) => self.quarantined.insert(aggregate, reason, TimeMs(0), true),
            Ok(state) => {
                self.bytes += weight(aggregate, &state);
                self.note_size(aggregate, 0, state.heap_bytes());
                if kept.version > 0 {
                    self.names.insert(aggregate.as_str());
                }
                let resident = Resident { state, version: kept.version, offset: kept.offset, used: true };
                self.residents.insert(aggregate.clone(), resident);
                tail.iter().for_each(|commit| self.fold(aggregate, commit));
            }
        }
    }

    /// Lets go of residents that were not used since the last time, and of which the checkpoint has everything, until
    /// about `bytes` are left. Returns whether that was reached.
    pub(super) fn evict(&mut self, checkpoint: i64, bytes: usize) -> bool {
        let Self { residents, quarantined, floor, bytes: held, tails, .. } = self;
        let bytes = bytes.saturating_sub(tails.bytes());
        residents.retain(|aggregate, resident| {
            let keep = *held <= bytes
                || resident.offset >= checkpoint
                || std::mem::take(&mut resident.used)
                || quarantined.contains(aggregate);
            if !keep {
                *held = held.saturating_sub(weight(aggregate, &resident.state));
                *floor = (*floor).max(resident.offset + 1);
            }
            keep
        });
        if self.bytes <= bytes {
            self.residents.shrink_to(self.residents.len() * 2);
        }
        self.bytes <= bytes
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

/// About how much memory a resident takes: its place in the map and its name with their shares of what is unused.
fn weight(aggregate: &AggregateId, state: &State) -> usize {
    const PLACE: usize = (size_of::<AggregateId>() + size_of::<Resident>() + 1) * 3 / 2;
    const SHARED: usize = 32;
    PLACE + SHARED + aggregate.as_str().len() + state.heap_bytes()
}
