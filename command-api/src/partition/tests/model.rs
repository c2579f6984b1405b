//! Exhaustive model of a few owners of one partition, within bounds: a log that delays, loses, duplicates and reorders
//! records in flight, owners that pause, crash and hand over, and clients that retry. The simulation plays long random
//! runs; the model plays all short ones, and shows the shortest that violates a property.
//!
//! The owners are the production state machines, cloned from state to state. Two states are equal if the log,
//! everything in flight, the clients and the machines are equal. Machines are compared by content, not by history:
//! otherwise runs would never converge, and far fewer would fit the bounds.
//!
//! Faults, takeovers included, are counted against a bound. Everything else is free: an owner may pause at any point
//! for any time, and a record, a report or a read may take as long.
//!
//! Liveness is shown as follows. Without further commands and faults, each step shortens the queue of items in flight
//! or lengthens the log, except for reads, which are followed to their end. The search terminates, so no log grows for
//! ever. Hence every run reaches a state with nothing in flight, and there some owner has to accept.

mod clients;
mod history;
mod owner;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::stray;
use crate::partition::Role;
use clients::{RESERVE, RESTOCK, TRIES, Told};
use history::{Flaw, Value};
use world::{Fate, World};

#[derive(Debug, Clone)]
struct Shop {
    bounds: Bounds,
    /// Outcomes of all runs together.
    told: Arc<Mutex<BTreeMap<Told, usize>>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Clients send commands within one turn.
    Ask {
        owner: usize,
        attempts: Vec<usize>,
    },
    EndTurn {
        owner: usize,
    },
    Land {
        flight: usize,
        fate: Fate,
    },
    LandStray {
        stray: usize,
    },
    DeliveryReport {
        owner: usize,
        report: usize,
    },
    Read {
        owner: usize,
    },
    Prepare {
        owner: usize,
    },
    TakeOver {
        owner: usize,
    },
    LetGo {
        owner: usize,
    },
    Crash {
        owner: usize,
    },
    /// The owner's producer refuses the next record.
    Refuse {
        owner: usize,
    },
    /// A foreign value is appended.
    Litter,
    /// A record of another incarnation of the topic is appended.
    Haunt,
}

impl Step {
    /// Returns whether the step is counted against the bound on faults.
    fn is_trouble(&self) -> bool {
        match self {
            Self::Land { fate, .. } => *fate != Fate::Appended,
            Self::DeliveryReport { report, .. } => *report > 0,
            Self::Prepare { .. }
            | Self::LetGo { .. }
            | Self::Crash { .. }
            | Self::Refuse { .. }
            | Self::Litter
            | Self::Haunt => true,
            Self::Ask { .. }
            | Self::EndTurn { .. }
            | Self::LandStray { .. }
            | Self::Read { .. }
            | Self::TakeOver { .. } => false,
        }
    }
}

impl Shop {
    /// Returns the next attempt of each command, excluding `after`, which is made in the same turn.
    fn attempts<'a>(&'a self, world: &'a World, after: Option<usize>) -> impl Iterator<Item = usize> + 'a {
        let next = move |(wish, tries): (usize, usize)| {
            (wish * TRIES..wish * TRIES + tries).find(|attempt| world.is_free(*attempt) && after != Some(*attempt))
        };
        [(RESTOCK, self.bounds.restocks), (RESERVE, self.bounds.reserves)].into_iter().filter_map(next)
    }

    fn steps_of(&self, world: &World, owner: usize, steps: &mut Vec<Step>) {
        let role = world.role(owner);
        if role == Role::Owner {
            for first in self.attempts(world, None) {
                steps.push(Step::Ask { owner, attempts: vec![first] });
                let seconds = self.attempts(world, Some(first));
                steps.extend(seconds.map(|second| Step::Ask { owner, attempts: vec![first, second] }));
            }
        }
        if world.wants_turn(owner) {
            steps.push(Step::EndTurn { owner });
        }
        if world.reads(owner) {
            steps.push(Step::Read { owner });
        }
        steps.extend((0..world.reports(owner)).map(|report| Step::DeliveryReport { owner, report }));
        match role {
            // Owners that have done nothing yet are interchangeable.
            Role::Idle if (0..owner).any(|other| world.is_fresh(other)) && world.is_fresh(owner) => {}
            Role::Idle => steps.push(Step::Prepare { owner }),
            Role::Preparing => steps.extend([Step::TakeOver { owner }, Step::LetGo { owner }]),
            Role::Prepared => steps.push(Step::TakeOver { owner }),
            Role::Owner | Role::Unsettled => {
                steps.extend([Step::LetGo { owner }, Step::Crash { owner }, Step::Refuse { owner }]);
            }
            Role::Leaving => steps.extend([Step::Crash { owner }, Step::Refuse { owner }]),
        }
    }
}

impl Model for Shop {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.bounds.owners)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for (flight, followers, is_alive) in world.heads() {
            steps.push(Step::Land { flight, fate: Fate::Appended });
            if is_alive {
                let fates =
                    [Fate::TwiceReportedFirst, Fate::TwiceReportedLast, Fate::AppendedWithError, Fate::ErrorThenStray];
                steps.extend(fates.map(|fate| Step::Land { flight, fate }));
            }
            if followers > 0 {
                steps.push(Step::Land { flight, fate: Fate::Overtaken });
            }
        }
        steps.extend((0..world.strays()).map(|stray| Step::LandStray { stray }));
        for owner in 0..self.bounds.owners {
            self.steps_of(world, owner, steps);
        }
        steps.extend([Step::Litter, Step::Haunt]);
        steps.retain(|step| world.troubles < self.bounds.troubles || !step.is_trouble());
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.told.clear();
        next.troubles += usize::from(step.is_trouble());
        match step {
            Step::Ask { owner, attempts } => next.ask(owner, &attempts),
            Step::EndTurn { owner } => next.end_turn(owner),
            Step::Land { flight, fate } => next.land(flight, fate),
            Step::LandStray { stray } => next.land_stray(stray),
            Step::DeliveryReport { owner, report } => next.report(owner, report),
            Step::Read { owner } => next.read(owner),
            Step::Prepare { owner } => next.prepare(owner),
            Step::TakeOver { owner } => next.take_over(owner),
            Step::LetGo { owner } => next.let_go(owner),
            Step::Crash { owner } => next.crash(owner),
            Step::Refuse { owner } => next.refuse(owner),
            Step::Litter => next.append(Value::new(stray())),
            Step::Haunt => next.append(Value::new(next.log.ghost())),
        }
        next.seal();
        let mut told = self.told.lock().unwrap();
        next.told.iter().for_each(|what| *told.entry(*what).or_default() += 1);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("an acknowledged command counts once", |_, world: &World| !world.has(Flaw::Acknowledged)),
            Property::always("all that counts is one chain, each decided on all before it", |_, world: &World| {
                !world.has(Flaw::Chain)
            }),
            Property::always("no key takes effect twice", |_, world: &World| !world.has(Flaw::Twice)),
            Property::always("an answer without events was true between request and answer", |_, world: &World| {
                !world.has(Flaw::Untrue)
            }),
            Property::always("no command that counts is reported as failed", |_, world: &World| {
                !world.has(Flaw::Refused)
            }),
            Property::always("every answer is the only one, and is possible", |_, world: &World| {
                !world.has(Flaw::Nonsense)
            }),
            Property::always("every owner can read the log", |_, world: &World| !world.has(Flaw::Halted)),
            Property::always("reads end", |_, world: &World| !world.has(Flaw::Endless)),
            // A duplicated claim ends its own epoch, and another claim follows.
            Property::always("claims end", |_, world: &World| world.log.claims() <= 1 + 2 * world.troubles),
            Property::always("if nothing is in flight, some owner accepts", |_, world: &World| {
                !world.is_quiet() || world.clone().comes_to_accept()
            }),
        ]
    }
}

/// Bounds of a search.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    owners: usize,
    /// Maximum number of faults.
    troubles: usize,
    /// Maximum numbers of attempts of the two commands, each under one key.
    restocks: usize,
    reserves: usize,
}

/// Searches of a few seconds each. The variable `MODEL_BOUNDS`, the four numbers separated by commas, replaces them
/// with another search.
const BOUNDS: [Bounds; 4] = [
    Bounds { owners: 2, troubles: 1, restocks: 2, reserves: 1 },
    Bounds { owners: 2, troubles: 1, restocks: 1, reserves: 2 },
    Bounds { owners: 2, troubles: 2, restocks: 1, reserves: 1 },
    Bounds { owners: 3, troubles: 2, restocks: 1, reserves: 0 },
];

fn bounds_of(text: &str) -> Bounds {
    let numbers: Vec<usize> = text.split(',').map(|number| number.parse().expect("a number")).collect();
    let [owners, troubles, restocks, reserves] = numbers[..] else { panic!("{text:?} is not four numbers") };
    assert!(owners > 0 && restocks.max(reserves) <= TRIES, "{text:?} is out of the model's reach");
    Bounds { owners, troubles, restocks, reserves }
}

/// Explores all runs, and returns the answers and doubts that occurred, with their numbers.
fn explore(bounds: Bounds) -> BTreeMap<Told, usize> {
    let told = Arc::default();
    let shop = Shop { bounds, told: Arc::clone(&told) };
    let begun = Instant::now();
    let search = shop.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let told = told.lock().unwrap().clone();
    let (states, steps, longest) = (search.unique_state_count(), search.state_count(), search.max_depth());
    println!("{bounds:?}: {states} states by {steps} steps, at most {longest} deep, in {:.1?}", begun.elapsed());
    println!("  told: {told:?}");
    search.assert_properties();
    told
}

#[test]
fn no_run_of_a_few_owners_violates_a_property() {
    if let Ok(text) = std::env::var("MODEL_BOUNDS") {
        explore(bounds_of(&text));
        return;
    }
    let told: BTreeSet<_> = BOUNDS.into_iter().flat_map(|bounds| explore(bounds).into_keys()).collect();
    assert_eq!(told, Told::ALL.into(), "every outcome has to occur");
}
