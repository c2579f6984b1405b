//! Reactions: the commands to other aggregates that an event of one aggregate causes.
//!
//! An order with its reservations is a saga: a transaction over several aggregates without locks. Each [`Step`] is a
//! command to one of them, and its outcome leads to the next step, or ends the saga. Compensations are steps, too.
//!
//! Invariant: every step is idempotent and harmless when late. The receiver remembers its effects for the order or
//! sale; and units taken for an order that has meanwhile ended are given back, because the order refuses to be
//! confirmed.
//!
//! Invariant: an event's steps depend only on the event, so that they can be repeated from the log.

mod order;
mod sale;
mod product;
mod edges;
mod open;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::ids::{CustomerId, OrderId, ProductId, SaleId};
use crate::order::Line;
use crate::sale::Claim;
use crate::{AggregateType, Command, Event, TimeMs};

pub use open::is_open;

/// Name of the rule that rejects a command sent before its time.
pub const NOT_DUE: &str = "not_due";

/// Reason of an order that was rejected because the command to reserve a line was refused for too long.
const NOT_CONFIRMED_IN_TIME: &str = "not_confirmed_in_time";

/// A command that an event, or the outcome of another step, causes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `amount_cents`: amount that the buyer agreed to pay for all units.
    Reserve {
        product: ProductId,
        order: OrderId,
        quantity: u32,
        amount_cents: u64,
    },
    /// Reserves units of a sale. `amount_cents`: amount that the buyer agreed to pay for all units.
    Hold {
        sale: SaleId,
        product: ProductId,
        claim: Claim,
        amount_cents: u64,
    },
    ConfirmLine {
        order: OrderId,
        product: ProductId,
        /// The sale that the units are taken from, if not from the product itself.
        sale: Option<SaleId>,
    },
    RejectLine {
        order: OrderId,
        product: ProductId,
        reason: Box<str>,
    },
    Release {
        product: ProductId,
        order: OrderId,
    },
    Return {
        sale: SaleId,
        order: OrderId,
        /// See [`crate::sale::Command::Return`].
        is_ordered: Option<bool>,
    },
    Commit {
        product: ProductId,
        order: OrderId,
        amount_cents: u64,
    },
    CommitClaim {
        sale: SaleId,
        order: OrderId,
        amount_cents: u64,
    },
    /// Places the order of a claim.
    Place {
        order: OrderId,
        customer: CustomerId,
        line: Line,
        sale: SaleId,
    },
    Allot {
        product: ProductId,
        sale: SaleId,
        units: u32,
    },
    Stock {
        sale: SaleId,
        product: ProductId,
        units: u32,
    },
    Refuse {
        sale: SaleId,
        reason: Box<str>,
    },
    TakeBack {
        product: ProductId,
        sale: SaleId,
        total: u32,
    },
    Due {
        deadline: Deadline,
        id: Box<str>,
        due_at: TimeMs,
    },
}

/// A command that is sent at a set time unless it is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deadline {
    /// An order that is not paid in time expires.
    ExpireOrder,
    OpenSale,
    CloseSale,
    /// Lapses the holds on a product that have ended by then.
    LapseHolds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// `is_confirmed`: the command confirmed its order, so that nothing is left to do.
    Accepted { is_confirmed: bool },
    /// The name of the rule that rejected the command.
    Rejected(&'a str),
}

/// The continuation after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Step(Step),
    /// The saga ends.
    Done,
    /// The step must be retried once its time has come.
    NotDue,
    /// A promise cannot be kept: operator intervention is required.
    Stuck,
}

/// The effects of an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reaction {
    pub steps: Vec<Step>,
    /// Deadlines of the event's own aggregate to set; `None` cancels one.
    pub deadlines: Vec<(Deadline, Option<TimeMs>)>,
}

/// Returns the effects of an event of the aggregate `id`. `is_caused`: a reaction's step caused the event.
/// `payment_window_ms`: how long an order waits to be paid.
pub fn react(id: &str, event: &Event, at: TimeMs, is_caused: bool, payment_window_ms: u64) -> Reaction {
    match event {
        Event::Product(event) => product::react(event),
        Event::Order(event) => order::react(&OrderId(id.into()), event, at, is_caused, payment_window_ms),
        Event::Sale(event) => sale::react(&SaleId(id.into()), event),
    }
}

impl Step {
    /// Returns the aggregate that receives the step, and the command.
    pub fn command(&self) -> (AggregateType, &str, Command) {
        self.edge("").command
    }

    /// Returns a key that is unique among the steps to one aggregate, and the same for a repetition of the step.
    pub fn dedup_key(&self) -> String {
        self.edge("").dedup_key
    }

    /// Returns the continuation after an outcome.
    pub fn next(&self, outcome: Outcome<'_>) -> Next {
        match outcome {
            Outcome::Accepted { is_confirmed: true } => Next::Done,
            Outcome::Accepted { is_confirmed: false } => self.edge("").if_accepted,
            // Only the command of a deadline can be early.
            Outcome::Rejected(NOT_DUE) => Next::NotDue,
            Outcome::Rejected(rule) => self.edge(rule).if_rejected,
        }
    }

    /// Returns whether the step only gives back what an earlier one took.
    pub fn gives_back(&self) -> bool {
        match self {
            Self::Release { .. } | Self::Return { .. } | Self::TakeBack { .. } => true,
            Self::Reserve { .. } | Self::Hold { .. } | Self::ConfirmLine { .. } | Self::RejectLine { .. } => false,
            Self::Commit { .. } | Self::CommitClaim { .. } | Self::Place { .. } | Self::Allot { .. } => false,
            Self::Stock { .. } | Self::Refuse { .. } | Self::Due { .. } => false,
        }
    }

    /// Returns the step that rejects the order if this step, which should lead to a line's confirmation, is refused for
    /// too long.
    pub fn given_up(&self) -> Option<Self> {
        match self.edge(NOT_CONFIRMED_IN_TIME).if_rejected {
            Next::Step(step @ Self::RejectLine { .. }) => Some(step),
            Next::Step(_) | Next::Done | Next::NotDue | Next::Stuck => None,
        }
    }
}

impl From<Vec<Step>> for Reaction {
    fn from(steps: Vec<Step>) -> Self {
        Self { steps, deadlines: vec![] }
    }
}

#[cfg(test)]
mod tests;
