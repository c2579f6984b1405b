//! An order of a customer, from placement to delivery.
//!
//! Placed → confirmed, once every line is → paid → shipped → delivered. One refused line rejects a placed order; a
//! confirmed order that is not paid in time expires; an order can be cancelled until it is shipped. Final states are
//! final.
//!
//! An order from another system is recorded: it counts in views, but causes no reactions.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::TimeMs;
use crate::ids::{CustomerId, PaymentId, ProductId, SaleId};

pub use decide::decide;

mod decide;

/// Maximum number of lines of an order; it bounds the size of its events.
pub const MAX_LINES: usize = 100;
/// Maximum total of an order's lines, in cents, so that sums over many orders do not overflow.
pub const MAX_TOTAL_CENTS: u64 = 1_000_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Place {
        customer: CustomerId,
        lines: Vec<Line>,
        sale: Option<SaleId>,
        by: Placer,
    },
    /// Records an order that another system took and served, for the amounts paid there. `has_reserved_name`: see
    /// [`Placer`].
    Record {
        customer: CustomerId,
        lines: Vec<Line>,
        ordered_at: TimeMs,
        has_reserved_name: bool,
    },
    ConfirmLine {
        product: ProductId,
    },
    RejectLine {
        product: ProductId,
        reason: Option<Box<str>>,
    },
    Pay {
        payment: PaymentId,
        amount_cents: u64,
    },
    Ship(Parcel),
    Deliver(Parcel),
    Cancel {
        reason: Option<Box<str>>,
    },
    /// `due_at`: earliest time.
    Expire {
        due_at: Option<TimeMs>,
    },
}

/// The origin of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placer {
    /// A client. `has_reserved_name`: the id is one that only claims may give to their orders.
    Client { has_reserved_name: bool },
    /// The reaction to a claim that covers the whole order, which is therefore confirmed at once.
    Claim,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Placed(Placement),
    /// An order of another system was recorded; it belongs to no sale.
    Recorded(Placement),
    LineConfirmed {
        product: ProductId,
    },
    /// The last open line was confirmed.
    Confirmed,
    LineRejected {
        product: ProductId,
        reason: Option<Box<str>>,
    },
    Rejected(Ending),
    Paid(Payment),
    Shipped(Parcel),
    Delivered(Parcel),
    Cancelled(Ending),
    Expired(Ending),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub customer: CustomerId,
    pub lines: Vec<Line>,
    pub sale: Option<SaleId>,
    pub ordered_at: TimeMs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub product: ProductId,
    pub quantity: u32,
    /// Price of the whole line, not of one unit.
    pub amount_cents: u64,
}

/// The end of an order, with the amounts that its placement added to sums over many orders, so that such sums can be
/// corrected from this event alone. It likewise names the units held for the order, so that they can be released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub reason: Option<Box<str>>,
    pub customer: CustomerId,
    pub units: u64,
    pub amount_cents: u64,
    pub ordered_at: TimeMs,
    /// Empty for orders that ended before this field existed.
    pub held: Vec<Held>,
    pub sale: Option<SaleId>,
}

/// A payment of an order. Units held for the order are then committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    pub payment: PaymentId,
    pub amount_cents: u64,
    pub lines: Vec<Line>,
    pub sale: Option<SaleId>,
}

/// Units of a product that are held for an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub product: ProductId,
    pub quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parcel {
    pub carrier: Option<Box<str>>,
    pub tracking: Option<Box<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    New,
    Placed(Box<Open>),
    Recorded(Box<Placement>),
    Confirmed(Box<Placement>),
    Rejected(Box<Placement>),
    Paid(Box<Settled>),
    Shipped(Box<Settled>),
    Delivered(Box<Settled>),
    Cancelled(Box<Cancelled>),
    Expired(Box<Placement>),
}

/// An order that was paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub placement: Placement,
    pub payment: PaymentId,
}

/// An order that was cancelled, perhaps after it was paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancelled {
    pub placement: Placement,
    pub payment: Option<PaymentId>,
}

/// An order that waits for its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub placement: Placement,
    /// Confirmed lines, by line index.
    pub confirmed: Vec<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The order was placed before, with other data.
    AlreadyPlaced,
    /// The id is one that only claims may give to their orders.
    ReservedName,
    NoLines,
    TooManyLines,
    /// The lines cost more than [`MAX_TOTAL_CENTS`], or have too many units.
    TotalTooLarge,
    /// A recorded order must lie in the past.
    OrderedInFuture,
    /// The order is a record of another system, which alone serves it.
    IsRecorded,
    NotPlaced,
    NoSuchLine,
    NotConfirmed,
    /// All lines are confirmed.
    AlreadyConfirmed,
    AlreadyRejected,
    AlreadyCancelled,
    /// This payment was accepted before the order was cancelled.
    CancelledAfterPayment,
    WrongAmount,
    Expired,
    /// The deadline has not passed yet.
    NotDue,
    /// The order was paid with another payment, or can no longer expire because it was paid.
    AlreadyPaid,
    NotPaid,
    NotShipped,
    AlreadyShipped,
}

impl State {
    /// Returns the status of the order in one word.
    pub fn status(&self) -> &'static str {
        match self {
            Self::New => "unplaced",
            Self::Placed(_) => "placed",
            Self::Recorded(_) => "recorded",
            Self::Confirmed(_) => "confirmed",
            Self::Rejected(_) => "rejected",
            Self::Paid(_) => "paid",
            Self::Shipped(_) => "shipped",
            Self::Delivered(_) => "delivered",
            Self::Cancelled(_) => "cancelled",
            Self::Expired(_) => "expired",
        }
    }

    /// Estimates the memory of the state beyond its own size, in bytes.
    pub fn heap_bytes(&self) -> usize {
        /// Bytes of an id as long as a UUID, with the allocator's overhead.
        const ID: usize = 40;
        /// Bytes of a line with its product's id.
        const LINE: usize = size_of::<Line>() + ID;
        // The customer, and perhaps a sale.
        let of = |placement: &Placement| 2 * ID + placement.lines.len() * LINE;
        match self {
            Self::New => 0,
            Self::Placed(open) => size_of::<Open>() + open.confirmed.len() + of(&open.placement),
            Self::Cancelled(cancelled) => size_of::<Cancelled>() + ID + of(&cancelled.placement),
            Self::Recorded(placement)
            | Self::Confirmed(placement)
            | Self::Rejected(placement)
            | Self::Expired(placement) => size_of::<Placement>() + of(placement),
            Self::Paid(settled) | Self::Shipped(settled) | Self::Delivered(settled) => {
                size_of::<Settled>() + ID + of(&settled.placement)
            }
        }
    }
}

pub fn evolve(state: State, event: &Event) -> State {
    match (event, state) {
        (Event::Placed(placement), State::New) => State::Placed(Box::new(Open {
            confirmed: vec![false; placement.lines.len()],
            placement: placement.clone(),
        })),
        (Event::Recorded(placement), State::New) => State::Recorded(Box::new(placement.clone())),
        (Event::LineConfirmed { product }, State::Placed(mut open)) => {
            for (line, confirmed) in open.placement.lines.iter().zip(&mut open.confirmed) {
                *confirmed |= line.product == *product;
            }
            State::Placed(open)
        }
        (Event::Confirmed, State::Placed(open)) => State::Confirmed(Box::new(open.placement)),
        // The `Rejected` event that follows ends the order.
        (Event::LineRejected { .. }, state) => state,
        (Event::Rejected(_), State::Placed(open)) => State::Rejected(Box::new(open.placement)),
        (Event::Cancelled(_), State::Placed(open)) => cancelled(open.placement, None),
        (Event::Cancelled(_), State::Confirmed(placement) | State::Recorded(placement)) => cancelled(*placement, None),
        (Event::Cancelled(_), State::Paid(settled)) => cancelled(settled.placement, Some(settled.payment)),
        (Event::Expired(_), State::Confirmed(placement)) => State::Expired(placement),
        (Event::Paid(Payment { payment, .. }), State::Confirmed(placement)) => {
            State::Paid(Box::new(Settled { placement: *placement, payment: payment.clone() }))
        }
        (Event::Shipped(_), State::Paid(settled)) => State::Shipped(settled),
        (Event::Delivered(_), State::Shipped(settled)) => State::Delivered(settled),
        // No decision leads here.
        (Event::Placed(_) | Event::Recorded(_) | Event::LineConfirmed { .. } | Event::Confirmed, state) => state,
        (Event::Rejected(_) | Event::Cancelled(_) | Event::Expired(_), state) => state,
        (Event::Paid(_) | Event::Shipped(_) | Event::Delivered(_), state) => state,
    }
}

fn cancelled(placement: Placement, payment: Option<PaymentId>) -> State {
    State::Cancelled(Box::new(Cancelled { placement, payment }))
}

#[cfg(test)]
mod tests;
