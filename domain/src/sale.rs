//! A sale: a number of units of a product, at a price, for a limited time, with a limit for each customer.
//!
//! Its units are taken from the product's stock before any claim, so that a claim is decided here alone. Units that are
//! unclaimed at the close, or returned after it, go back to the product.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::TimeMs;
use crate::growing_map::GrowingMap;
use crate::ids::{CustomerId, OrderId, ProductId};
use crate::order::MAX_TOTAL_CENTS;

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

pub fn decide(state: &State, command: &Command, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    let sale = match (state, command) {
        (state, Command::Schedule(schedule)) => return self::schedule(state, schedule, at),
        (State::Scheduled(sale), _) => sale,
        (State::Unscheduled, Command::Claim(_) | Command::Hold { .. }) => return Err(Rejection::SaleNotOpen),
        (State::Unscheduled, Command::Return { .. } | Command::Commit { .. }) => return Err(Rejection::NotClaimed),
        (
            State::Unscheduled,
            Command::Stock | Command::Refuse { .. } | Command::Open { .. } | Command::Close { .. },
        ) => {
            return Err(Rejection::NotScheduled);
        }
    };
    match command {
        Command::Schedule(_) => Err(Rejection::AlreadyScheduled),
        Command::Stock => stock(sale),
        Command::Refuse { reason } => refuse(sale, reason.as_deref()),
        Command::Open { .. } if sale.stock == Stock::Refused => Err(Rejection::AlreadyRefused),
        Command::Open { .. } if sale.is_closed => Err(Rejection::AlreadyClosed),
        Command::Open { .. } if sale.is_opened => Ok(vec![]),
        Command::Close { .. } if sale.has_ended() => Ok(vec![]),
        Command::Open { due_at: Some(due_at) } | Command::Close { due_at: Some(due_at) } if at < *due_at => {
            Err(Rejection::NotDue)
        }
        Command::Open { .. } => Ok(vec![Event::Opened]),
        Command::Close { .. } => {
            let left = if sale.stock == Stock::Taken { sale.schedule.units - sale.claimed } else { 0 };
            Ok(vec![closed(sale, left)])
        }
        Command::Claim(claim) => self::claim(sale, claim, Claimer::Buyer, at),
        Command::Hold { product, .. } if *product != sale.schedule.product => Err(Rejection::OtherProduct),
        Command::Hold { claim, amount_cents, .. } => {
            self::claim(sale, claim, Claimer::Order { amount_cents: *amount_cents }, at)
        }
        Command::Return { order, is_ordered } => give_back(sale, order, *is_ordered),
        Command::Commit { order, amount_cents } => commit(sale, order, *amount_cents),
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

fn schedule(state: &State, wish: &Schedule, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Scheduled(sale) if sale.schedule == *wish => Ok(vec![]),
        State::Scheduled(_) => Err(Rejection::AlreadyScheduled),
        State::Unscheduled if wish.opens_at >= wish.closes_at || wish.closes_at <= at => Err(Rejection::BadWindow),
        State::Unscheduled => Ok(vec![Event::Scheduled(wish.clone())]),
    }
}

/// Accepts the allotted units. A sale that was closed while it waited gives all of them back at once.
fn stock(sale: &Sale) -> Result<Vec<Event>, Rejection> {
    match sale.stock {
        Stock::Awaited if sale.is_closed => Ok(vec![Event::Stocked, closed(sale, sale.schedule.units)]),
        Stock::Awaited => Ok(vec![Event::Stocked]),
        Stock::Taken => Ok(vec![]),
        Stock::Refused => Err(Rejection::AlreadyRefused),
    }
}

fn refuse(sale: &Sale, reason: Option<&str>) -> Result<Vec<Event>, Rejection> {
    match sale.stock {
        Stock::Awaited => Ok(vec![Event::Refused { reason: reason.map(Box::from) }]),
        Stock::Refused => Ok(vec![]),
        Stock::Taken => Err(Rejection::AlreadyStocked),
    }
}

fn closed(sale: &Sale, given_back: u32) -> Event {
    Event::Closed { product: sale.schedule.product.clone(), given_back }
}

/// The origin of a claim.
#[derive(Debug, Clone, Copy)]
enum Claimer {
    /// A buyer, before the order is placed.
    Buyer,
    /// An order that was placed, with its amount if known.
    Order { amount_cents: Option<u64> },
}

/// Claims units. A repeated claim is accepted whatever the sale's state is now. An order either claims or is placed
/// first, not both.
fn claim(sale: &Sale, claim: &Claim, by: Claimer, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    let Claim { customer, quantity, order } = claim;
    let (is_ordered, agreed) = match by {
        Claimer::Buyer => (false, None),
        Claimer::Order { amount_cents } => (true, amount_cents),
    };
    if let Some(claimed) = sale.claims.get(order) {
        let same = claimed.customer == *customer && claimed.quantity == *quantity && claimed.is_ordered == is_ordered;
        return if same { Ok(vec![]) } else { Err(Rejection::AlreadyClaimed) };
    }
    if !sale.is_open(at) {
        return Err(Rejection::SaleNotOpen);
    }
    let price_cents = sale.schedule.price_cents;
    if agreed.is_some_and(|agreed| price_cents.checked_mul((*quantity).into()) != Some(agreed)) {
        return Err(Rejection::WrongPrice { price_cents });
    }
    if *quantity > sale.schedule.units - sale.claimed {
        return Err(Rejection::SoldOut);
    }
    let before = sale.customers.get(customer).copied().unwrap_or_default();
    // A claim becomes an order, so it must not promise one that could not be placed.
    let amount_cents = amount_cents(sale, *quantity);
    if before.saturating_add(*quantity) > sale.schedule.limit_per_customer || amount_cents > MAX_TOTAL_CENTS {
        return Err(Rejection::OverLimit);
    }
    Ok(vec![Event::Claimed {
        order: order.clone(),
        customer: customer.clone(),
        quantity: *quantity,
        product: sale.schedule.product.clone(),
        amount_cents,
        is_first: before == 0,
        is_ordered,
    }])
}

fn give_back(sale: &Sale, order: &OrderId, is_ordered: Option<bool>) -> Result<Vec<Event>, Rejection> {
    let is_meant = |claimed: &&Claimed| {
        !claimed.is_committed && is_ordered.is_none_or(|is_ordered| is_ordered == claimed.is_ordered)
    };
    let claimed = sale.claims.get(order).filter(is_meant).ok_or(Rejection::NotClaimed)?;
    Ok(vec![Event::Returned {
        order: order.clone(),
        customer: claimed.customer.clone(),
        quantity: claimed.quantity,
        product: sale.schedule.product.clone(),
        given_back: sale.is_closed.then(|| sale.given_back.saturating_add(claimed.quantity)),
        is_last: sale.customers.get(&claimed.customer).is_none_or(|units| *units <= claimed.quantity),
    }])
}

fn commit(sale: &Sale, order: &OrderId, paid_cents: Option<u64>) -> Result<Vec<Event>, Rejection> {
    let claimed = sale.claims.get(order).ok_or(Rejection::NotClaimed)?;
    if claimed.is_committed {
        return Ok(vec![]);
    }
    Ok(vec![Event::Committed {
        order: order.clone(),
        product: sale.schedule.product.clone(),
        quantity: claimed.quantity,
        amount_cents: paid_cents.unwrap_or_else(|| amount_cents(sale, claimed.quantity)),
    }])
}

fn amount_cents(sale: &Sale, quantity: u32) -> u64 {
    sale.schedule.price_cents.saturating_mul(u64::from(quantity))
}

#[cfg(test)]
mod tests;
