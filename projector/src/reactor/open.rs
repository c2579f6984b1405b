//! Finds the reactions that are open at the end of the log, for reactors that lost their checkpoints: see
//! [`domain::reactions::is_open`].
//!
//! The log is read twice: first the states of all aggregates are folded, in memory, and then each reaction is tried on
//! them. About half a kilobyte is needed for each order.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use domain::reactions::{Step, is_open};
use domain::{AggregateType, Event, State, TimeMs, decide, evolve};
use schemas::aggregate::AggregateId;
use schemas::answers::rejection_name;
use schemas::events::WireEvent;
use schemas::record::Commit;

/// The aggregates at the end of what was read.
#[derive(Default)]
pub(super) struct States {
    by_name: HashMap<AggregateId, State>,
    /// Aggregates on which the rules panicked. Whatever targets them is open, and will be parked again.
    broken: HashSet<AggregateId>,
}

impl States {
    pub(super) fn fold(&mut self, commit: &Commit<'_>) {
        // A commit of an aggregate that this build does not know halts owners, and causes nothing.
        let Ok(name) = AggregateId::parse(&commit.aggregate) else { return };
        let state = self.by_name.remove(&name).unwrap_or_else(|| State::initial(name.aggregate()));
        let folded = catch_unwind(AssertUnwindSafe(|| {
            commit.events.iter().map(WireEvent::upcast).fold(state, |state, event: Event| evolve(state, &event))
        }));
        match folded {
            Ok(state) => drop(self.by_name.insert(name, state)),
            Err(_) => drop(self.broken.insert(name)),
        }
    }

    /// Carries out a step and returns whether it has an effect.
    pub(super) fn carry_out(&mut self, step: &Step, at: TimeMs) -> bool {
        let (aggregate, id, command) = step.command();
        let Some((name, state)) =
            AggregateId::of_log(aggregate, id).ok().and_then(|name| self.by_name.remove_entry(&name))
        else {
            return false;
        };
        let decided = catch_unwind(AssertUnwindSafe(|| decide(&state, &command, at)));
        let events = decided.ok().and_then(Result::ok).unwrap_or_default();
        self.by_name.insert(name, events.iter().fold(state, evolve));
        !events.is_empty()
    }

    /// Returns whether the saga that begins with `step` would still have an effect, or fail, if it ran at this time.
    pub(super) fn leave_open(&self, step: &Step, at: TimeMs) -> bool {
        let is_broken = Cell::new(false);
        let state = |aggregate: AggregateType, id: &str| {
            let name = AggregateId::of_log(aggregate, id).ok();
            is_broken.set(is_broken.get() || name.as_ref().is_none_or(|name| self.broken.contains(name)));
            self.by_name.get(&name?)
        };
        let is_open = catch_unwind(AssertUnwindSafe(|| is_open(step.clone(), at, state, rejection_name)));
        is_open.unwrap_or(true) || is_broken.get()
    }
}
