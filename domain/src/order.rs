//! An order: what a customer wants, and how far it has come.
//!
//! Placed → confirmed, once every line is → paid → shipped → delivered. One refused line rejects a placed order; a
//! confirmed one that is not paid in time expires; until it is shipped it can be cancelled. What has ended stays so.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::TimeMs;
use crate::ids::{CustomerId, PaymentId, ProductId, SaleId};

/// The most lines that an order may have; it bounds the size of its events.
pub const MAX_LINES: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Place {
        customer: CustomerId,
        lines: Vec<Line>,
        sale: Option<SaleId>,
        ordered_at: Option<TimeMs>,
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
    /// `due_at`: not before.
    Expire {
        due_at: Option<TimeMs>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Placed(Placement),
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
    /// For the whole line, not for one unit.
    pub amount_cents: u64,
}

/// Why an order ended, and what its placement had added to sums over many orders: who keeps such sums takes
/// it back from this event alone. Likewise who holds something for it lets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub reason: Option<Box<str>>,
    pub customer: CustomerId,
    pub units: u64,
    pub amount_cents: u64,
    pub ordered_at: TimeMs,
    /// Empty of orders that ended before this was told.
    pub held: Vec<Held>,
    pub sale: Option<SaleId>,
}

/// Who holds something for the order hands it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    pub payment: PaymentId,
    pub amount_cents: u64,
    pub lines: Vec<Line>,
    pub sale: Option<SaleId>,
}

/// What is held of a product for an order.
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
    Confirmed(Box<Placement>),
    Rejected(Box<Placement>),
    Paid(Box<Settled>),
    Shipped(Box<Settled>),
    Delivered(Box<Settled>),
    Cancelled(Box<Placement>),
    Expired(Box<Placement>),
}

/// An order that was paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub placement: Placement,
    pub payment: PaymentId,
}

/// An order that waits for its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub placement: Placement,
    /// By the index of the line.
    pub confirmed: Vec<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Placed before, with other data.
    AlreadyPlaced,
    NoLines,
    TooManyLines,
    /// Not, or no longer, in the stage that the command belongs to.
    NotPlaced,
    NoSuchLine,
    NotConfirmed,
    WrongAmount,
    Expired,
    /// It is too early to expire.
    NotDue,
    /// By another payment; or it cannot expire any more.
    AlreadyPaid,
    NotPaid,
    NotShipped,
    AlreadyShipped,
}

impl State {
    /// About how much memory it takes beyond its own size, in bytes.
    pub fn heap_bytes(&self) -> usize {
        /// As long as a UUID, with the allocator's share.
        const ID: usize = 40;
        /// With its product's id.
        const LINE: usize = size_of::<Line>() + ID;
        // The customer, and perhaps a sale.
        let of = |placement: &Placement| 2 * ID + placement.lines.len() * LINE;
        match self {
            Self::New => 0,
            Self::Placed(open) => size_of::<Open>() + open.confirmed.len() + of(&open.placement),
            Self::Confirmed(placement)
            | Self::Rejected(placement)
            | Self::Cancelled(placement)
            | Self::Expired(placement) => size_of::<Placement>() + of(placement),
            Self::Paid(settled) | Self::Shipped(settled) | Self::Delivered(settled) => {
                size_of::<Settled>() + ID + of(&settled.placement)
            }
        }
    }
}

pub fn decide(state: &State, command: &Command, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Place { customer, lines, sale, ordered_at } => {
            let wish = Placement {
                customer: customer.clone(),
                lines: lines.clone(),
                sale: sale.clone(),
                ordered_at: ordered_at.unwrap_or(at),
            };
            place(state, wish, ordered_at.is_some())
        }
        Command::ConfirmLine { product } => confirm_line(state, product),
        Command::RejectLine { product, reason } => reject_line(state, product, reason.as_deref()),
        Command::Pay { payment, amount_cents } => pay(state, payment, *amount_cents),
        Command::Ship(parcel) => ship(state, parcel),
        Command::Deliver(parcel) => deliver(state, parcel),
        Command::Cancel { reason } => cancel(state, reason.as_deref()),
        Command::Expire { due_at } => expire(state, *due_at, at),
    }
}

pub fn evolve(state: State, event: &Event) -> State {
    match (event, state) {
        (Event::Placed(placement), State::New) => State::Placed(Box::new(Open {
            confirmed: vec![false; placement.lines.len()],
            placement: placement.clone(),
        })),
        (Event::LineConfirmed { product }, State::Placed(mut open)) => {
            for (line, confirmed) in open.placement.lines.iter().zip(&mut open.confirmed) {
                *confirmed |= line.product == *product;
            }
            State::Placed(open)
        }
        (Event::Confirmed, State::Placed(open)) => State::Confirmed(Box::new(open.placement)),
        // `Rejected`, which comes with it, ends the order.
        (Event::LineRejected { .. }, state) => state,
        (Event::Rejected(_), State::Placed(open)) => State::Rejected(Box::new(open.placement)),
        (Event::Cancelled(_), State::Placed(open)) => State::Cancelled(Box::new(open.placement)),
        (Event::Cancelled(_), State::Confirmed(placement)) => State::Cancelled(placement),
        (Event::Cancelled(_), State::Paid(settled)) => State::Cancelled(Box::new(settled.placement)),
        (Event::Expired(_), State::Confirmed(placement)) => State::Expired(placement),
        (Event::Paid(Payment { payment, .. }), State::Confirmed(placement)) => {
            State::Paid(Box::new(Settled { placement: *placement, payment: payment.clone() }))
        }
        (Event::Shipped(_), State::Paid(settled)) => State::Shipped(settled),
        (Event::Delivered(_), State::Shipped(settled)) => State::Delivered(settled),
        // No decision leads here.
        (Event::Placed(_) | Event::LineConfirmed { .. } | Event::Confirmed, state) => state,
        (Event::Rejected(_) | Event::Cancelled(_) | Event::Expired(_), state) => state,
        (Event::Paid(_) | Event::Shipped(_) | Event::Delivered(_), state) => state,
    }
}

fn place(state: &State, wish: Placement, dated: bool) -> Result<Vec<Event>, Rejection> {
    if let Some(placed) = placement(state) {
        // An order without a date of its own was dated when it was first placed.
        let same = Placement { ordered_at: if dated { wish.ordered_at } else { placed.ordered_at }, ..wish } == *placed;
        return if same { Ok(vec![]) } else { Err(Rejection::AlreadyPlaced) };
    }
    match wish.lines.len() {
        0 => Err(Rejection::NoLines),
        1..=MAX_LINES => Ok(vec![Event::Placed(wish)]),
        _ => Err(Rejection::TooManyLines),
    }
}

fn confirm_line(state: &State, product: &ProductId) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Placed(open) => confirm_open_line(open, product),
        State::Confirmed(_) | State::Paid(_) | State::Shipped(_) | State::Delivered(_) => {
            let has_line = placement(state).is_some_and(|placement| has_line(placement, product));
            if has_line { Ok(vec![]) } else { Err(Rejection::NoSuchLine) }
        }
        State::New | State::Rejected(_) | State::Cancelled(_) | State::Expired(_) => Err(Rejection::NotPlaced),
    }
}

fn confirm_open_line(open: &Open, product: &ProductId) -> Result<Vec<Event>, Rejection> {
    if !has_line(&open.placement, product) {
        return Err(Rejection::NoSuchLine);
    }
    let lines = || open.placement.lines.iter().zip(&open.confirmed);
    if lines().all(|(line, confirmed)| line.product != *product || *confirmed) {
        return Ok(vec![]);
    }
    let mut events = vec![Event::LineConfirmed { product: product.clone() }];
    if lines().all(|(line, confirmed)| line.product == *product || *confirmed) {
        events.push(Event::Confirmed);
    }
    Ok(events)
}

/// One refused line ends the order: all lines or nothing.
fn reject_line(state: &State, product: &ProductId, reason: Option<&str>) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Placed(open) if has_line(&open.placement, product) => Ok(vec![
            Event::LineRejected { product: product.clone(), reason: reason.map(Box::from) },
            Event::Rejected(ending(&open.placement, reason)),
        ]),
        State::Rejected(placement) if has_line(placement, product) => Ok(vec![]),
        State::Placed(_) | State::Rejected(_) => Err(Rejection::NoSuchLine),
        State::New
        | State::Confirmed(_)
        | State::Paid(_)
        | State::Shipped(_)
        | State::Delivered(_)
        | State::Cancelled(_)
        | State::Expired(_) => Err(Rejection::NotPlaced),
    }
}

fn pay(state: &State, payment: &PaymentId, amount_cents: u64) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Confirmed(placement) if amount_cents == total_cents(placement) => Ok(vec![Event::Paid(Payment {
            payment: payment.clone(),
            amount_cents,
            lines: placement.lines.clone(),
            sale: placement.sale.clone(),
        })]),
        State::Confirmed(_) => Err(Rejection::WrongAmount),
        State::Paid(settled) | State::Shipped(settled) | State::Delivered(settled) if settled.payment == *payment => {
            Ok(vec![])
        }
        State::Paid(_) | State::Shipped(_) | State::Delivered(_) => Err(Rejection::AlreadyPaid),
        State::Expired(_) => Err(Rejection::Expired),
        State::New | State::Placed(_) | State::Rejected(_) | State::Cancelled(_) => Err(Rejection::NotConfirmed),
    }
}

fn ship(state: &State, parcel: &Parcel) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Paid(_) => Ok(vec![Event::Shipped(parcel.clone())]),
        State::Shipped(_) | State::Delivered(_) => Ok(vec![]),
        State::New
        | State::Placed(_)
        | State::Confirmed(_)
        | State::Rejected(_)
        | State::Cancelled(_)
        | State::Expired(_) => Err(Rejection::NotPaid),
    }
}

fn deliver(state: &State, parcel: &Parcel) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Shipped(_) => Ok(vec![Event::Delivered(parcel.clone())]),
        State::Delivered(_) => Ok(vec![]),
        State::Paid(_) => Err(Rejection::NotShipped),
        State::New
        | State::Placed(_)
        | State::Confirmed(_)
        | State::Rejected(_)
        | State::Cancelled(_)
        | State::Expired(_) => Err(Rejection::NotPaid),
    }
}

fn expire(state: &State, due_at: Option<TimeMs>, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Confirmed(_) if due_at.is_some_and(|due_at| at < due_at) => Err(Rejection::NotDue),
        State::Confirmed(placement) => Ok(vec![Event::Expired(ending(placement, None))]),
        State::Expired(_) => Ok(vec![]),
        State::Paid(_) | State::Shipped(_) | State::Delivered(_) => Err(Rejection::AlreadyPaid),
        State::New | State::Placed(_) | State::Rejected(_) | State::Cancelled(_) => Err(Rejection::NotConfirmed),
    }
}

/// A paid order that is cancelled keeps what it paid for out of the stock: its units were handed out before.
fn cancel(state: &State, reason: Option<&str>) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Placed(open) => Ok(vec![Event::Cancelled(ending(&open.placement, reason))]),
        State::Confirmed(placement) => Ok(vec![Event::Cancelled(ending(placement, reason))]),
        State::Paid(settled) => Ok(vec![Event::Cancelled(ending(&settled.placement, reason))]),
        State::Shipped(_) | State::Delivered(_) => Err(Rejection::AlreadyShipped),
        State::Cancelled(_) => Ok(vec![]),
        State::New | State::Rejected(_) | State::Expired(_) => Err(Rejection::NotPlaced),
    }
}

fn placement(state: &State) -> Option<&Placement> {
    match state {
        State::New => None,
        State::Placed(open) => Some(&open.placement),
        State::Confirmed(placement)
        | State::Rejected(placement)
        | State::Cancelled(placement)
        | State::Expired(placement) => Some(placement),
        State::Paid(settled) | State::Shipped(settled) | State::Delivered(settled) => Some(&settled.placement),
    }
}

fn has_line(placement: &Placement, product: &ProductId) -> bool {
    placement.lines.iter().any(|line| line.product == *product)
}

fn ending(placement: &Placement, reason: Option<&str>) -> Ending {
    Ending {
        reason: reason.map(Box::from),
        customer: placement.customer.clone(),
        units: placement.lines.iter().map(|line| u64::from(line.quantity)).sum(),
        amount_cents: total_cents(placement),
        ordered_at: placement.ordered_at,
        held: held(placement),
        sale: placement.sale.clone(),
    }
}

fn held(placement: &Placement) -> Vec<Held> {
    let of = |line: &Line| Held { product: line.product.clone(), quantity: line.quantity };
    placement.lines.iter().map(of).collect()
}

fn total_cents(placement: &Placement) -> u64 {
    // The border's limits keep the sum far from the end of u64; without them it must not wrap or panic.
    placement.lines.iter().fold(0, |sum, line| sum.saturating_add(line.amount_cents))
}

#[cfg(test)]
mod tests;
