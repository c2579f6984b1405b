#![doc = include_str!("../README.md")]
//!
//! # Invariants
//!
//! Invariant: `decide` is a pure function of a state, a command and a time. The crate is `no_std`, so the
//! compiler proves that there is no clock, no environment, no file and no socket behind it.
//!
//! Invariant: `evolve` is total. A fact cannot be refused, so every check belongs in `decide`.
//!
//! Invariant: an empty list of events means that the command's intent was already fulfilled. Repeating a command
//! immediately has no further effect, with one exception: two restocks are two deliveries, and only their keys,
//! which the domain does not see, distinguish a repeat from a second delivery.
//!
//! Absent on purpose: serialization (wire types are in `schemas` and versioned separately) and traits over
//! aggregates.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod growing_map;
pub mod ids;
pub mod order;
pub mod product;
pub mod sale;
pub mod reactions;

use alloc::vec::Vec;

/// Maximum memory of one aggregate's state, in bytes as estimated by [`State::heap_bytes`]: about 800,000 claims of a
/// sale, or 2.6 million open reservations of a product. Its owner holds it as a whole, and so does a snapshot.
pub const MAX_STATE_BYTES: usize = 256 * 1024 * 1024;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimeMs(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AggregateType {
    Product,
    Order,
    Sale,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Product(product::Command),
    Order(order::Command),
    Sale(sale::Command),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Product(product::Event),
    Order(order::Event),
    Sale(sale::Event),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Product(product::State),
    Order(order::State),
    Sale(sale::State),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    Product(product::Rejection),
    Order(order::Rejection),
    Sale(sale::Rejection),
    /// The aggregate's state has reached [`MAX_STATE_BYTES`]: only commands that add no entry are accepted.
    Full,
}

impl State {
    /// Returns the state of an aggregate before its first event.
    pub fn initial(aggregate: AggregateType) -> Self {
        match aggregate {
            AggregateType::Product => Self::Product(product::State::default()),
            AggregateType::Order => Self::Order(order::State::default()),
            AggregateType::Sale => Self::Sale(sale::State::default()),
        }
    }

    /// Returns the aggregate's status at this time in one word, the same as in its view.
    pub fn status(&self, at: TimeMs) -> &'static str {
        match self {
            Self::Product(state) => state.status(),
            Self::Order(state) => state.status(),
            Self::Sale(state) => state.status(at),
        }
    }

    /// Estimates the memory of the state beyond its own size, in bytes, in constant time.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Product(state) => state.heap_bytes(),
            Self::Order(state) => state.heap_bytes(),
            Self::Sale(state) => state.heap_bytes(),
        }
    }
}

impl Command {
    pub fn aggregate(&self) -> AggregateType {
        match self {
            Self::Product(_) => AggregateType::Product,
            Self::Order(_) => AggregateType::Order,
            Self::Sale(_) => AggregateType::Sale,
        }
    }
}

impl Event {
    pub fn aggregate(&self) -> AggregateType {
        match self {
            Self::Product(_) => AggregateType::Product,
            Self::Order(_) => AggregateType::Order,
            Self::Sale(_) => AggregateType::Sale,
        }
    }

    /// Returns whether each such event adds an entry to the state, so that many of them make it large.
    fn adds_an_entry(&self) -> bool {
        match self {
            Self::Product(event) => event.adds_an_entry(),
            // The number of an order's lines is fixed when it is placed.
            Self::Order(_) => false,
            Self::Sale(event) => event.adds_an_entry(),
        }
    }
}

/// Decides the events that `command`, accepted at `at`, causes for an aggregate in `state`. It borrows the command,
/// because one with an unknown outcome is decided again.
///
/// # Panics
/// Panics if state and command belong to different aggregates: the caller looked up the wrong state.
pub fn decide(state: &State, command: &Command, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    decide_within(MAX_STATE_BYTES, state, command, at)
}

fn decide_within(max_bytes: usize, state: &State, command: &Command, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    let events = decide_by_type(state, command, at)?;
    let is_full = || state.heap_bytes() >= max_bytes;
    if events.iter().any(Event::adds_an_entry) && is_full() { Err(Rejection::Full) } else { Ok(events) }
}

fn decide_by_type(state: &State, command: &Command, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (State::Product(state), Command::Product(command)) => product::decide(state, command, at)
            .map(|events| events.into_iter().map(Event::Product).collect())
            .map_err(Rejection::Product),
        (State::Order(state), Command::Order(command)) => order::decide(state, command, at)
            .map(|events| events.into_iter().map(Event::Order).collect())
            .map_err(Rejection::Order),
        (State::Sale(state), Command::Sale(command)) => sale::decide(state, command, at)
            .map(|events| events.into_iter().map(Event::Sale).collect())
            .map_err(Rejection::Sale),
        (State::Product(_) | State::Order(_) | State::Sale(_), _) => {
            panic!("state and command of different aggregates")
        }
    }
}

/// Returns the state after `event`.
///
/// # Panics
/// Panics if state and event belong to different aggregates: the caller looked up the wrong state.
pub fn evolve(state: State, event: &Event) -> State {
    match (state, event) {
        (State::Product(state), Event::Product(event)) => State::Product(product::evolve(state, event)),
        (State::Order(state), Event::Order(event)) => State::Order(order::evolve(state, event)),
        (State::Sale(state), Event::Sale(event)) => State::Sale(sale::evolve(state, event)),
        (State::Product(_) | State::Order(_) | State::Sale(_), _) => panic!("state and event of different aggregates"),
    }
}

#[cfg(test)]
mod tests;
