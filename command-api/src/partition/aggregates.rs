//! The aggregates in memory, each at its newest version.
//!
//! If the log was read from its beginning and nothing was evicted, an aggregate that is not in memory has no events.
//! Otherwise it is cold: its state is in the store, as of a checkpoint. The floor is the offset that this checkpoint
//! must have reached: below it, the log may hold events of aggregates that are not in memory. An aggregate whose name
//! is not among the names of those with events is new, not cold.
//!
//! Invariant: the names include every aggregate whose first event was applied, even if it was evicted since. Together
//! with the names from all events before the offset at which reading began, they are complete.
//!
//! Invariant: a panic in the domain rules affects only its aggregate, which is quarantined.

use std::panic::{AssertUnwindSafe, catch_unwind};

use domain::{Command, Event, MAX_STATE_BYTES, Rejection, State, TimeMs, decide, evolve};
use hashbrown::HashMap;
use schemas::aggregate::AggregateId;

use super::effects::{LoadedNames, LoadedState};
use super::names::Names;
use super::quarantine::Quarantined;
use super::tails::{Tails, Unfolded};

/// State size at which operators are warned.
const NEARLY_FULL: usize = MAX_STATE_BYTES / 5 * 4;

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Aggregates {
    residents: HashMap<AggregateId, Resident>,
    pub(super) tails: Tails,
    pub(super) quarantined: Quarantined,
    /// Offset at which reading began.
    start: i64,
    /// Offset that the checkpoint of a loaded state must have reached; 0: an aggregate that is not in memory has no
    /// events.
    floor: i64,
    names: Names,
    /// Approximate memory used by the residents.
    bytes: usize,
    /// Size of the largest state since reading began.
    largest: usize,
    /// Aggregates whose states came near the size limit, and that have not been reported yet.
    nearly_full: Vec<AggregateId>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Resident {
    state: State,
    /// Number of events folded into the state.
    version: u64,
    /// Offset of the last commit.
    offset: i64,
    /// Set if the aggregate was used since the last eviction pass.
    used: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Rejected by the domain rules; the text is the name of the aggregate's state.
    Rejected(Rejection, &'static str),
    Quarantined,
}

impl Aggregates {
    /// Discards everything except the names. The log was read up to `end`; reading restarts at `start`.
    pub(super) fn restart(&mut self, end: i64, start: i64) {
        self.extend_names(end);
        *self = Self { start, floor: start, names: std::mem::take(&mut self.names), ..Self::default() };
    }

    /// Returns the version and the offset of the last commit. An aggregate without events is at version 0, and its
    /// position is the beginning of the log.
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

    /// Returns the size of the largest state since reading began, in bytes.
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

    /// Returns whether the aggregate is in memory or in quarantine; in both cases no state needs to be loaded.
    pub(super) fn knows(&self, aggregate: &AggregateId) -> bool {
        self.residents.contains_key(aggregate) || self.quarantined.contains(aggregate)
    }

    /// Returns whether the aggregate's state has to be loaded before a command on it can be decided.
    pub(super) fn is_cold(&self, aggregate: &AggregateId) -> bool {
        self.floor > 0 && !self.knows(aggregate) && !self.is_unnamed(aggregate)
    }

    /// Returns whether the aggregate certainly has no event in the log.
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

    /// Returns the offset from which names are missing, if any are.
    pub(super) fn lacks_names_from(&self) -> Option<i64> {
        self.names.lack_from(self.start)
    }

    /// Adds names that were loaded from the store.
    pub(super) fn bring_names(&mut self, kept: &LoadedNames) {
        kept.names.iter().for_each(|name| self.names.insert(name));
        if self.names.reach(kept.from) {
            self.names.extend_to(kept.until);
        }
    }

    /// Records that every event between the start of reading and `end` was applied, so the names reach up to `end`.
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
        // The rules only borrow the state, so a panic cannot leave it half changed.
        let decide = || decide(state, command, at).map_err(|rejection| Refusal::Rejected(rejection, state.status(at)));
        catch_unwind(AssertUnwindSafe(decide)).unwrap_or_else(|panic| {
            self.quarantined.insert(aggregate, chassis::panic::text(panic.as_ref()), at, false);
            Err(Refusal::Quarantined)
        })
    }

    /// Applies the events of a commit.
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
        // The fold owns the state, so a panic drops it instead of leaving it half changed.
        match catch_unwind(AssertUnwindSafe(|| events.iter().fold(state, evolve))) {
            Ok(state) => resident.state = state,
            Err(panic) => self.quarantined.insert(aggregate, chassis::panic::text(panic.as_ref()), at, true),
        }
        self.bytes = (self.bytes + weight(aggregate, &resident.state)).saturating_sub(before);
        let bytes = resident.state.heap_bytes();
        self.note_size(aggregate, was, bytes);
    }

    /// Applies a commit from the log, or keeps it until the aggregate's state is loaded; `size` is that of its record.
    /// A loaded state may already include it. An aggregate that begins with this commit needs no stored state.
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

    /// Adds a loaded state, which reaches at least up to the floor, and applies the commits that waited for it.
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

    /// Evicts residents that were not used since the last pass and that the checkpoint covers completely, until about
    /// `bytes` are left. Returns whether that was reached.
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

    /// Parses an aggregate's name from a record, sharing the resident's copy. Returns `None` if the name is invalid.
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

/// Returns the approximate memory of a resident: its state, its slot in the map and its name, with their shares of
/// unused capacity.
fn weight(aggregate: &AggregateId, state: &State) -> usize {
    const PLACE: usize = (size_of::<AggregateId>() + size_of::<Resident>() + 1) * 3 / 2;
    const SHARED: usize = 32;
    PLACE + SHARED + aggregate.as_str().len() + state.heap_bytes()
}
