//! Outcomes of commands, as instances exchange them and as clients receive them.

use std::borrow::Cow;

use domain::order::Rejection as OrderRejection;
use domain::product::Rejection as ProductRejection;
use domain::reactions::NOT_DUE;
use domain::sale::{Command as SaleCommand, Rejection as SaleRejection};
use domain::{Command, Rejection};
use serde::{Deserialize, Serialize};

use crate::problem::{Problem, ProblemKind, Rejected};

/// Seconds after which a refused client may retry.
pub const RETRY_AFTER_SECS: u32 = 1;

/// The outcome of one command. Positions are (partition, offset).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The command is durable in the log. `events` is empty if the aggregate already was in the requested state.
    Accepted {
        version: u64,
        events: Vec<Cow<'static, str>>,
        position: (u32, i64),
        replayed: bool,
        /// ID of the order that a claim created.
        order: Option<Box<str>>,
    },
    Rejected {
        rejection: Cow<'static, str>,
        version: u64,
        position: (u32, i64),
        /// Status of the aggregate.
        state: Option<Cow<'static, str>>,
        /// Unit price, if it differs from the one that the buyer agreed to.
        price_cents: Option<u64>,
    },
    PreconditionFailed {
        version: u64,
        position: (u32, i64),
    },
    KeyReused,
    KeyExpired {
        detail: String,
    },
    /// The body or a header violates the API contract.
    Invalid {
        detail: String,
    },
    NoSuchCommand,
    /// The command was not executed because too many are waiting or a required backend is unavailable.
    Overloaded {
        detail: Cow<'static, str>,
    },
    /// The domain logic failed on this aggregate, which accepts no commands until an operator has intervened.
    Quarantined,
    /// The partition has no owner, or its owner is unreachable.
    NoOwner,
    /// The command was forwarded to an instance that does not own the partition.
    Misdirected,
    /// The command was sent to the log but not confirmed in time.
    OutcomeUnknown,
}

impl Answer {
    /// Returns the answer to a command that the domain rules rejected in this state.
    pub fn rejected(rejection: &Rejection, state: &'static str, version: u64, position: (u32, i64)) -> Self {
        let price_cents = if let Rejection::Product(ProductRejection::WrongPrice { price_cents })
        | Rejection::Sale(SaleRejection::WrongPrice { price_cents }) = rejection
        {
            Some(*price_cents)
        } else {
            None
        };
        let rejection = rejection_name(rejection).into();
        Self::Rejected { rejection, version, position, state: Some(state.into()), price_cents }
    }

    /// Adds the ID of the order that an accepted claim creates; leaves other answers unchanged.
    pub fn naming_order(mut self, command: &Command) -> Self {
        if let (Self::Accepted { order, .. }, Command::Sale(SaleCommand::Claim(claim))) = (&mut self, command) {
            *order = Some(claim.order.0.clone());
        }
        self
    }

    /// Returns the problem to report; `None` for an accepted command.
    pub fn problem(&self) -> Option<Problem> {
        Some(match self {
            Self::Accepted { .. } => return None,
            Self::Rejected { rejection, state, price_cents, .. } => {
                let (rejection, state) = (rejection.clone(), state.clone());
                Problem::rejected(Rejected { rejection, state, price_cents: *price_cents })
            }
            Self::PreconditionFailed { version, .. } => {
                Problem::new(ProblemKind::PreconditionFailed, format!("the aggregate is at version {version}"))
            }
            Self::KeyReused => Problem::new(ProblemKind::KeyReused, "the key was already used with different data"),
            Self::KeyExpired { detail } => Problem::new(ProblemKind::KeyExpired, detail.clone()),
            Self::Invalid { detail } => Problem::new(ProblemKind::InvalidRequest, detail.clone()),
            Self::NoSuchCommand => Problem::new(ProblemKind::NotFound, "there is no such command"),
            Self::Overloaded { detail } => Problem::new(ProblemKind::Overloaded, detail.clone()),
            Self::Quarantined => Problem::new(ProblemKind::Quarantined, "the command was not executed"),
            Self::NoOwner => Problem::new(ProblemKind::NoOwner, "retry with the same Idempotency-Key"),
            Self::Misdirected => Problem::new(ProblemKind::Misdirected, "this instance does not own the partition"),
            Self::OutcomeUnknown => {
                Problem::new(ProblemKind::OutcomeUnknown, "retry with the same Idempotency-Key to learn the outcome")
            }
        })
    }

    /// Returns whether the command was not decided, or its outcome is unknown, so that a retry may get another answer.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Overloaded { .. } | Self::Quarantined | Self::NoOwner | Self::Misdirected | Self::OutcomeUnknown => {
                true
            }
            Self::Accepted { .. }
            | Self::Rejected { .. }
            | Self::PreconditionFailed { .. }
            | Self::KeyReused
            | Self::KeyExpired { .. }
            | Self::Invalid { .. }
            | Self::NoSuchCommand => false,
        }
    }

    /// Returns the version of the aggregate, if the answer carries it.
    pub fn version(&self) -> Option<u64> {
        match self {
            Self::Accepted { version, .. }
            | Self::Rejected { version, .. }
            | Self::PreconditionFailed { version, .. } => Some(*version),
            Self::KeyReused
            | Self::KeyExpired { .. }
            | Self::Invalid { .. }
            | Self::NoSuchCommand
            | Self::Overloaded { .. }
            | Self::Quarantined
            | Self::NoOwner
            | Self::Misdirected
            | Self::OutcomeUnknown => None,
        }
    }

    /// Returns the position of the last event that the decision took into account.
    pub fn position(&self) -> Option<(u32, i64)> {
        match self {
            Self::Accepted { position, .. }
            | Self::Rejected { position, .. }
            | Self::PreconditionFailed { position, .. } => Some(*position),
            Self::KeyReused
            | Self::KeyExpired { .. }
            | Self::Invalid { .. }
            | Self::NoSuchCommand
            | Self::Overloaded { .. }
            | Self::Quarantined
            | Self::NoOwner
            | Self::Misdirected
            | Self::OutcomeUnknown => None,
        }
    }
}

/// Name of the rule that both products and sales have.
const WRONG_PRICE: &str = "wrong_price";

/// Returns the name of a rejection on the wire.
pub fn rejection_name(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::Product(rejection) => match rejection {
            ProductRejection::AlreadyRegistered => "already_registered",
            ProductRejection::NotRegistered => "not_registered",
            ProductRejection::OutOfStock => "out_of_stock",
            ProductRejection::OverLimit => "over_limit",
            ProductRejection::Discontinued => "discontinued",
            ProductRejection::WrongPrice { .. } => WRONG_PRICE,
            ProductRejection::AlreadyReserved => "already_reserved",
            ProductRejection::NotReserved => "not_reserved",
            ProductRejection::HeldByOrder => "held_by_order",
            ProductRejection::NotDue => NOT_DUE,
            ProductRejection::AlreadyAllotted => "already_allotted",
            ProductRejection::NotAllotted => "not_allotted",
        },
        Rejection::Order(rejection) => match rejection {
            OrderRejection::AlreadyPlaced => "already_placed",
            OrderRejection::ReservedName => "reserved_name",
            OrderRejection::NoLines => "no_lines",
            OrderRejection::TooManyLines => "too_many_lines",
            OrderRejection::TotalTooLarge => "total_too_large",
            OrderRejection::OrderedInFuture => "ordered_in_future",
            OrderRejection::IsRecorded => "is_recorded",
            OrderRejection::NotPlaced => "not_placed",
            OrderRejection::NoSuchLine => "no_such_line",
            OrderRejection::NotConfirmed => "not_confirmed",
            OrderRejection::AlreadyConfirmed => "already_confirmed",
            OrderRejection::AlreadyRejected => "already_rejected",
            OrderRejection::AlreadyCancelled => "already_cancelled",
            OrderRejection::CancelledAfterPayment => "cancelled_after_payment",
            OrderRejection::WrongAmount => "wrong_amount",
            OrderRejection::Expired => "expired",
            OrderRejection::NotDue => NOT_DUE,
            OrderRejection::AlreadyPaid => "already_paid",
            OrderRejection::NotPaid => "not_paid",
            OrderRejection::NotShipped => "not_shipped",
            OrderRejection::AlreadyShipped => "already_shipped",
        },
        Rejection::Sale(rejection) => match rejection {
            SaleRejection::AlreadyScheduled => "already_scheduled",
            SaleRejection::BadWindow => "bad_window",
            SaleRejection::NotScheduled => "not_scheduled",
            SaleRejection::AlreadyClosed => "already_closed",
            SaleRejection::AlreadyRefused => "already_refused",
            SaleRejection::NotDue => NOT_DUE,
            SaleRejection::AlreadyStocked => "already_stocked",
            SaleRejection::SaleNotOpen => "sale_not_open",
            SaleRejection::SoldOut => "sold_out",
            SaleRejection::OverLimit => "over_limit",
            SaleRejection::AlreadyClaimed => "already_claimed",
            SaleRejection::OtherProduct => "other_product",
            SaleRejection::WrongPrice { .. } => WRONG_PRICE,
            SaleRejection::NotClaimed => "not_claimed",
        },
        Rejection::Full => "aggregate_full",
    }
}
