//! A sale: a number of units of a product, at a price, for a limited time, with a limit for each customer.
//!
//! Its units are taken from the product's stock before any claim, so that a claim is decided here alone. Units that are
//! unclaimed at the close, or returned after it, go back to the product.

use alloc::boxed::Box;

use crate::TimeMs;
use crate::growing_map::GrowingMap;
use crate::ids::{CustomerId, OrderId, ProductId};

pub use decide::decide;

mod decide;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Schedule(Schedule),
    /// The product has allotted the units.
    Stock,
    /// The product refused the units.
    Refuse {
        reason: Option<Box<str>>,
    },
    /// `due_at`: earliest time.
    Open {
        due_at: Option<TimeMs>,
    },
    /// `due_at`: earliest time.
    Close {
        due_at: Option<TimeMs>,
    },
    Claim(Claim),
    /// Claims units for an order that was placed already. `amount_cents`: amount that the buyer agreed to pay for all
    /// units; `None` skips the check.
    Hold {
        claim: Claim,
        product: ProductId,
        amount_cents: Option<u64>,
    },
    /// `is_ordered`: return only a claim whose order was, or was not, placed before the claim.
    Return {
        order: OrderId,
        is_ordered: Option<bool>,
    },
    /// `amount_cents`: amount that the order pays for all units; `None` means their price in the sale.
    Commit {
        order: OrderId,
        amount_cents: Option<u64>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Scheduled(Schedule),
    Stocked,
    Refused {
        reason: Option<Box<str>>,
    },
    Opened,
    /// `given_back`: all units given back to the product so far.
    Closed {
        product: ProductId,
        given_back: u32,
    },
    Claimed {
        order: OrderId,
        customer: CustomerId,
        quantity: u32,
        product: ProductId,
        amount_cents: u64,
        /// The customer had no other claim.
        is_first: bool,
        /// The order was placed before the claim.
        is_ordered: bool,
    },
    /// `given_back`: all units given back so far if the sale is closed; before that, the units can be claimed again.
    Returned {
        order: OrderId,
        customer: CustomerId,
        quantity: u32,
        product: ProductId,
        given_back: Option<u32>,
        /// The customer has no other claim.
        is_last: bool,
    },
    Committed {
        order: OrderId,
        product: ProductId,
        quantity: u32,
        amount_cents: u64,
    },
}

/// Data of a sale's schedule; a repeated schedule is compared with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub product: ProductId,
    pub opens_at: TimeMs,
    pub closes_at: TimeMs,
    /// Price of one unit.
    pub price_cents: u64,
    pub units: u32,
    pub limit_per_customer: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub customer: CustomerId,
    pub quantity: u32,
    /// Id prefixed with the sale's id, unless the order was placed before.
    pub order: OrderId,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    Unscheduled,
    Scheduled(Box<Sale>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sale {
    pub schedule: Schedule,
    pub stock: Stock,
    /// Whether the sale was opened by hand, before its time.
    pub is_opened: bool,
    pub is_closed: bool,
    /// Units of open and of committed claims.
    pub claimed: u32,
    pub claims: GrowingMap<OrderId, Claimed>,
    /// Units that each customer claimed and did not return.
    pub customers: GrowingMap<CustomerId, u32>,
    /// Units given back to the product.
    pub given_back: u32,
}

impl Sale {
    /// Adds units to a customer's total.
    pub fn add(&mut self, customer: &CustomerId, quantity: u32) {
        match self.customers.get_mut(customer) {
            Some(units) => *units = units.saturating_add(quantity),
            None => drop(self.customers.insert(customer.clone(), quantity)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stock {
    Awaited,
    Taken,
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    pub customer: CustomerId,
    pub quantity: u32,
    /// Whether the order was placed before the claim.
    pub is_ordered: bool,
    /// Whether the units were sold. A sold claim is kept, so that its order does not claim again, however late.
    pub is_committed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The sale was scheduled before, with other data.
    AlreadyScheduled,
    BadWindow,
    NotScheduled,
    AlreadyClosed,
    /// The product refused the units.
    AlreadyRefused,
    /// The time of the automatic opening or closing has not come yet.
    NotDue,
    AlreadyStocked,
    SaleNotOpen,
    SoldOut,
    /// The claim exceeds the limit of a customer, or the maximum total of an order.
    OverLimit,
    /// The order has claimed before, with other data.
    AlreadyClaimed,
    /// The sale sells another product.
    OtherProduct,
    /// The price differs from the one that the buyer agreed to. `price_cents`: price of one unit in the sale.
    WrongPrice {
        price_cents: u64,
    },
    NotClaimed,
}

impl Event {
    /// Returns whether the event adds an entry to one of the state's maps.
    pub(crate) fn adds_an_entry(&self) -> bool {
        match self {
            Self::Claimed { .. } => true,
            Self::Scheduled(_) | Self::Stocked | Self::Refused { .. } | Self::Opened | Self::Closed { .. } => false,
            Self::Returned { .. } | Self::Committed { .. } => false,
        }
    }
}

impl State {
    /// Returns the status of the sale in one word. A sale opens and closes at its times, even before an event says so.
    pub fn status(&self, at: TimeMs) -> &'static str {
        let Self::Scheduled(sale) = self else { return "unscheduled" };
        match sale.stock {
            Stock::Refused => "refused",
            Stock::Awaited | Stock::Taken if sale.is_closed || at >= sale.schedule.closes_at => "closed",
            Stock::Awaited => "scheduled",
            Stock::Taken if sale.is_open(at) => "open",
            Stock::Taken => "stocked",
        }
    }

    /// Estimates the memory of the state beyond its own size, in bytes.
    pub fn heap_bytes(&self) -> usize {
        /// Bytes of three ids as long as a UUID (customer, sale and order, as most customers claim once) with their
        /// slots in two maps. Measured like a product's reservations.
        const CLAIM: usize = 330;
        match self {
            Self::Unscheduled => 0,
            Self::Scheduled(sale) => size_of::<Sale>() + sale.claims.len() * CLAIM,
        }
    }
}

impl Sale {
    fn is_open(&self, at: TimeMs) -> bool {
        let Schedule { opens_at, closes_at, .. } = self.schedule;
        self.stock == Stock::Taken && !self.is_closed && at < closes_at && (self.is_opened || at >= opens_at)
    }

    /// Returns whether no further claim can be accepted.
    fn has_ended(&self) -> bool {
        self.is_closed || self.stock == Stock::Refused
    }
}

pub fn evolve(state: State, event: &Event) -> State {
    let mut sale = match (event, state) {
        (Event::Scheduled(schedule), State::Unscheduled) => {
            return State::Scheduled(Box::new(Sale {
                schedule: schedule.clone(),
                stock: Stock::Awaited,
                is_opened: false,
                is_closed: false,
                claimed: 0,
                claims: GrowingMap::default(),
                customers: GrowingMap::default(),
                given_back: 0,
            }));
        }
        // No decision leads here.
        (_, State::Unscheduled) => return State::Unscheduled,
        (_, State::Scheduled(sale)) => sale,
    };
    match event {
        // No decision leads here.
        Event::Scheduled(_) => {}
        Event::Stocked => sale.stock = Stock::Taken,
        Event::Refused { .. } => sale.stock = Stock::Refused,
        Event::Opened => sale.is_opened = true,
        Event::Closed { given_back, .. } => {
            sale.is_closed = true;
            sale.given_back = *given_back;
        }
        Event::Claimed { order, customer, quantity, is_ordered, .. } => {
            sale.claimed = sale.claimed.saturating_add(*quantity);
            let (quantity, is_ordered) = (*quantity, *is_ordered);
            let claimed = Claimed { customer: customer.clone(), quantity, is_ordered, is_committed: false };
            sale.claims.insert(order.clone(), claimed);
            sale.add(customer, quantity);
        }
        Event::Returned { order, customer, quantity, given_back, .. } => {
            sale.claimed = sale.claimed.saturating_sub(*quantity);
            sale.claims.remove(order);
            if let Some(units) = sale.customers.get_mut(customer) {
                *units = units.saturating_sub(*quantity);
                if *units == 0 {
                    sale.customers.remove(customer);
                }
            }
            sale.given_back = given_back.unwrap_or(sale.given_back);
        }
        Event::Committed { order, .. } => {
            if let Some(claimed) = sale.claims.get_mut(order) {
                claimed.is_committed = true;
            }
        }
    }
    State::Scheduled(sale)
}

#[cfg(test)]
mod tests;
