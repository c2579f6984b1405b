//! Every course that a few owners of one partition can take, within bounds: a log that delays, loses, doubles and
//! reorders what is in flight, owners that stand still, crash and hand over, clients that ask and ask again. Where the
//! simulation plays long games by chance, this plays short ones, all of them, and shows the shortest that breaks a
//! promise.
//!
//! The owners are the machines that run, cloned from state to state. Two states are one if the log, what is on its way,
//! the clients and the machines are the same, the machines by what they hold rather than by how they came to it: else
//! courses would never meet again, and far fewer would fit the bounds.
//!
//! What goes wrong, a take-over included, is counted against a bound. All else is free: an owner may stand still at any
//! point for as long as it likes, and a record, a report or a read may take as long.
//!
//! That owners come to rest shows as follows. With nothing more asked and nothing more going wrong, each step shortens
//! what is on its way or lengthens the log, but for reads, which are followed to their end. The search ends, so no log
//! grows for ever. Hence every course leads to where nothing is on its way, and there some owner has to accept.

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
    /// On all courses together.
    told: Arc<Mutex<BTreeMap<Told, usize>>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// In one turn.
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
    /// Its producer refuses the next record.
    Refuse {
        owner: usize,
    },
    /// A record that is not ours.
    Litter,
    /// A record of another life of the topic.
    Haunt,
}

impl Step {
    /// Whether it is counted against the bound.
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
    /// The next one at each wish, where this one is just being made.
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
            // Of those that never did anything, one is as good as another.
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
            Property::always("what is acknowledged counts, once", |_, world: &World| !world.has(Flaw::Acknowledged)),
            Property::always("what counts is one chain, each decided on all before it", |_, world: &World| {
                !world.has(Flaw::Chain)
            }),
            Property::always("no key takes effect twice", |_, world: &World| !world.has(Flaw::Twice)),
            Property::always("what changed nothing was right between request and answer", |_, world: &World| {
                !world.has(Flaw::Untrue)
            }),
            Property::always("nobody hears of failure for what counts", |_, world: &World| !world.has(Flaw::Refused)),
            Property::always("every answer is the only one, and makes sense", |_, world: &World| {
                !world.has(Flaw::Nonsense)
            }),
            Property::always("every owner can read the log", |_, world: &World| !world.has(Flaw::Halted)),
            Property::always("reads end", |_, world: &World| !world.has(Flaw::Endless)),
            // A claim that stands twice ends its own epoch: another one follows.
            Property::always("claims end", |_, world: &World| world.log.claims() <= 1 + 2 * world.troubles),
            Property::always("where nothing is on its way, some owner accepts", |_, world: &World| {
                !world.is_quiet() || world.clone().comes_to_accept()
            }),
        ]
    }
}

/// How large the games are.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    owners: usize,
    /// So many bad things may happen.
    troubles: usize,
    /// How often each may be asked for, under the same key.
    restocks: usize,
    reserves: usize,
}

/// Each is searched in a few seconds. The variable `MODEL_BOUNDS`, the four numbers with commas between them, asks for
/// another search in place of these.
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

/// Returns what owners answered and doubted on the way.
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
fn no_course_of_a_few_owners_breaks_a_promise() {
    if let Ok(text) = std::env::var("MODEL_BOUNDS") {
        explore(bounds_of(&text));
        return;
    }
    let told: BTreeSet<_> = BOUNDS.into_iter().flat_map(|bounds| explore(bounds).into_keys()).collect();
    assert_eq!(told, Told::ALL.into(), "what never happened shows nothing");
}
