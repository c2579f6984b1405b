//! A product: its price, its stock, and the units held of it.
//!
//! A reservation belongs to an order, made by the order's own reaction, or to a client (a hold). Both take units and
//! are otherwise independent: units reserved for an order are released or committed only by that order's reactions,
//! whatever clients do under the order's id.

use alloc::boxed::Box;

use crate::TimeMs;
use crate::growing_map::GrowingMap;
use crate::ids::{Fingerprint, OrderId, SaleId};

pub use decide::decide;
pub use holds::{Hold, Holds};

mod decide;
mod holds;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Register(Registration),
    Restock {
        quantity: u32,
    },
    Reprice {
        price_cents: u64,
    },
    Reserve {
        order: OrderId,
        quantity: u32,
        by: By,
    },
    Release {
        order: OrderId,
        by: Holder,
    },
    /// `amount_cents`: amount that the order pays for all units.
    Commit {
        order: OrderId,
        amount_cents: u64,
    },
    Allot {
        sale: SaleId,
        units: u32,
    },
    TakeBack {
        sale: SaleId,
        total: u32,
    },
    /// Returns the units of lapsed holds to the stock. `due_at`: earliest time.
    LapseHolds {
        due_at: Option<TimeMs>,
    },
    Discontinue,
}

/// The party that reserves, and its terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The order's own reaction. `amount_cents`: amount that the buyer agreed to pay for all units; `None` skips the
    /// check.
    Order { amount_cents: Option<u64> },
    /// A client, under an id of its choice, for this many seconds, or until it releases the units.
    Client { hold_secs: Option<u32> },
}

/// The owner of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The order; its own reaction made the reservation.
    Order,
    Client,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Registered(Registration),
    Restocked {
        quantity: u32,
    },
    Repriced {
        price_cents: u64,
    },
    /// `until`: end of a client's hold, from which its units are free. `alarm_at`: time at which the product is to be
    /// asked for lapsed holds, replacing the time set before.
    Reserved {
        order: OrderId,
        quantity: u32,
        by: Holder,
        until: Option<TimeMs>,
        alarm_at: Option<TimeMs>,
    },
    Released {
        order: OrderId,
        quantity: u32,
        by: Holder,
    },
    /// Holds that ended by this time have lapsed, and their units are available again. `alarm_at`: time of the next
    /// such command; `None` cancels it.
    HoldsLapsed {
        until: TimeMs,
        quantity: u64,
        alarm_at: Option<TimeMs>,
    },
    Committed {
        order: OrderId,
        quantity: u32,
        amount_cents: u64,
    },
    /// Units were set aside for a sale.
    Allotted {
        sale: SaleId,
        units: u32,
    },
    /// `total`: all units that the sale has given back so far.
    TakenBack {
        sale: SaleId,
        units: u32,
        total: u32,
    },
    Discontinued,
}

/// Data of a product's registration; a repeated registration is compared with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub name: Box<str>,
    pub price_cents: u64,
    pub stock: u32,
    /// Maximum number of units that one order may reserve.
    pub limit_per_order: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    Unregistered,
    OnSale(Box<Product>),
    Discontinued(Box<Product>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    pub registration: Registration,
    pub price_cents: u64,
    /// Units that can still be reserved.
    pub available: u64,
    /// Units reserved for open orders, each until released or committed.
    pub reservations: GrowingMap<OrderId, u32>,
    pub holds: Holds,
    /// Units of orders that were committed: an order gets them once, however late it is repeated.
    pub committed: GrowingMap<Fingerprint, u32>,
    pub allotments: GrowingMap<SaleId, Allotment>,
}

/// Units that a sale received, and how many of them it gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allotment {
    pub units: u32,
    pub taken_back: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The product was registered before, with other data.
    AlreadyRegistered,
    NotRegistered,
    OutOfStock,
    OverLimit,
    Discontinued,
    /// The price differs from the one that the buyer agreed to. `price_cents`: current price of one unit.
    WrongPrice {
        price_cents: u64,
    },
    /// The order has already reserved or received this product, in another quantity.
    AlreadyReserved,
    NotReserved,
    /// The reservation belongs to the order, so a client cannot release it.
    HeldByOrder,
    /// The deadline has not passed yet.
    NotDue,
    /// The sale already has units of this product, in another number.
    AlreadyAllotted,
    /// The sale holds no units of this product, or fewer than it returns.
    NotAllotted,
}

impl Event {
    /// Returns whether the event adds an entry to one of the state's maps.
    pub(crate) fn adds_an_entry(&self) -> bool {
        match self {
            Self::Reserved { .. } | Self::Allotted { .. } => true,
            // The commitment replaces the reservation.
            Self::Committed { .. } => false,
            Self::Registered(_) | Self::Restocked { .. } | Self::Repriced { .. } | Self::Discontinued => false,
            Self::Released { .. } | Self::HoldsLapsed { .. } | Self::TakenBack { .. } => false,
        }
    }
}

impl State {
    /// Returns the status of the product in one word.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::OnSale(_) => "on_sale",
            Self::Discontinued(_) => "discontinued",
        }
    }

    /// Estimates the memory of the state beyond its own size, in bytes.
    pub fn heap_bytes(&self) -> usize {
        /// Bytes of an id as long as a UUID, with its slot in a map that is between half full and full and was smaller
        /// before. Measured, because it depends on the allocator; the domain's memory test shows the error.
        const RESERVATION: usize = 100;
        /// Bytes of a map slot alone.
        const COMMITTED: usize = 57;
        match self {
            Self::Unregistered => 0,
            Self::OnSale(product) | Self::Discontinued(product) => {
                let held = product.reservations.len() + product.allotments.len();
                let sold = product.committed.len() * COMMITTED;
                let holds = product.holds.heap_bytes();
                size_of::<Product>() + product.registration.name.len() + held * RESERVATION + sold + holds
            }
        }
    }
}

pub fn evolve(state: State, event: &Event) -> State {
    match (event, state) {
        (Event::Registered(registration), State::Unregistered) => State::OnSale(Box::new(Product {
            registration: registration.clone(),
            price_cents: registration.price_cents,
            available: registration.stock.into(),
            reservations: GrowingMap::default(),
            holds: Holds::default(),
            committed: GrowingMap::default(),
            allotments: GrowingMap::default(),
        })),
        (Event::Restocked { quantity }, state) => update(state, |product| put_back(product, (*quantity).into())),
        (Event::Repriced { price_cents }, state) => update(state, |product| product.price_cents = *price_cents),
        (Event::Reserved { order, quantity, by, until, alarm_at }, state) => update(state, |product| {
            product.available = product.available.saturating_sub(u64::from(*quantity));
            match by {
                Holder::Order => drop(product.reservations.insert(order.clone(), *quantity)),
                Holder::Client => {
                    product.holds.insert(order.fingerprint(), Hold { quantity: *quantity, until: *until });
                    product.holds.set_alarm(alarm_at.or(product.holds.alarm_at()));
                }
            }
        }),
        (Event::Released { order, quantity, by }, state) => update(state, |product| {
            put_back(product, (*quantity).into());
            match by {
                Holder::Order => drop(product.reservations.remove(order)),
                Holder::Client => product.holds.remove(&order.fingerprint()),
            }
        }),
        (Event::HoldsLapsed { until, quantity, alarm_at }, state) => update(state, |product| {
            put_back(product, *quantity);
            product.holds.remove_until(*until);
            product.holds.set_alarm(*alarm_at);
        }),
        (Event::Committed { order, quantity, .. }, state) => update(state, |product| {
            product.reservations.remove(order);
            product.committed.insert(order.fingerprint(), *quantity);
        }),
        (Event::Allotted { sale, units }, state) => update(state, |product| {
            product.available = product.available.saturating_sub(u64::from(*units));
            product.allotments.insert(sale.clone(), Allotment { units: *units, taken_back: 0 });
        }),
        (Event::TakenBack { sale, units, total }, state) => update(state, |product| {
            put_back(product, (*units).into());
            if let Some(allotment) = product.allotments.get_mut(sale) {
                allotment.taken_back = *total;
            }
        }),
        (Event::Discontinued, State::OnSale(product)) => State::Discontinued(product),
        // No decision leads here.
        (Event::Registered(_) | Event::Discontinued, state) => state,
    }
}

/// Applies `change` to a registered product. No decision updates a product before its registration.
fn update(mut state: State, change: impl FnOnce(&mut Product)) -> State {
    match &mut state {
        State::Unregistered => {}
        State::OnSale(product) | State::Discontinued(product) => change(product),
    }
    state
}

fn put_back(product: &mut Product, quantity: u64) {
    product.available = product.available.saturating_add(quantity);
}

#[cfg(test)]
mod tests;
