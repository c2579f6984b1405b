//! Open reactions: those that have not had their whole effect.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Next, Outcome, Step};
use crate::{AggregateType, Event, Rejection, State, TimeMs, decide, evolve, order};

/// Events that a saga would cause in one aggregate.
struct Change {
    aggregate: AggregateType,
    id: String,
    events: Vec<Event>,
}

/// Returns whether the saga that begins with `step` would still have an effect, or get stuck, if it ran at this time and
/// every aggregate were in the state that `state` returns, `None` being the initial one. `name` names rejections.
///
/// A saga that is not open need never run again: a run at this moment, before all others, would change nothing, and
/// sagas may run late, again and in any order.
pub fn is_open<'a>(
    step: Step,
    at: TimeMs,
    state: impl Fn(AggregateType, &str) -> Option<&'a State>,
    name: impl Fn(&Rejection) -> &'static str,
) -> bool {
    let (mut step, mut changes) = (step, Vec::<Change>::new());
    loop {
        let (aggregate, id, command) = step.command();
        let changed = changes.iter().position(|change| change.aggregate == aggregate && change.id == id);
        if let Some(index) = changed
            && step.gives_back()
        {
            // The saga itself took it.
            changes.swap_remove(index);
            return !changes.is_empty();
        }
        let known = state(aggregate, id);
        let decided = match (changed, known) {
            (None, Some(known)) => decide(known, &command, at),
            (changed, known) => {
                let before = known.cloned().unwrap_or_else(|| State::initial(aggregate));
                let events = changed.into_iter().flat_map(|index| &changes[index].events);
                decide(&events.fold(before, evolve), &command, at)
            }
        };
        let next = match &decided {
            Ok(events) => {
                let is_confirmed = events.contains(&Event::Order(order::Event::Confirmed));
                step.next(Outcome::Accepted { is_confirmed })
            }
            Err(rejection) => step.next(Outcome::Rejected(name(rejection))),
        };
        if let Some(events) = decided.ok().filter(|events| !events.is_empty()) {
            changes.push(Change { aggregate, id: id.into(), events });
        }
        match next {
            Next::Step(next) => step = next,
            Next::Done => return !changes.is_empty(),
            Next::NotDue | Next::Stuck => return true,
        }
    }
}
