//! A product: its price, its stock, and which orders hold how much of it.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use hashbrown::HashMap;

use crate::growing_map::GrowingMap;
use crate::ids::{OrderId, SaleId};

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
    /// `amount_cents`: what the order pays for all units.
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
    Discontinue,
}

/// Who reserves, and on which terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The order's own reaction. `amount_cents`: what the buyer agreed to pay for all units; `None` is not checked.
    Order { amount_cents: Option<u64> },
    /// A client, under a name that it chose.
    Client,
}

/// Whose reservation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The order's, made by its own reaction.
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
    Reserved {
        order: OrderId,
        quantity: u32,
    },
    Released {
        order: OrderId,
        quantity: u32,
    },
    Committed {
        order: OrderId,
        quantity: u32,
        amount_cents: u64,
    },
    /// Units of a sale: nobody else may have them.
    Allotted {
        sale: SaleId,
        units: u32,
    },
    /// `total`: of all that the sale gave back.
    TakenBack {
        sale: SaleId,
        units: u32,
        total: u32,
    },
    Discontinued,
}

/// What a product is registered with; a second registration is compared with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub name: Box<str>,
    pub price_cents: u64,
    pub stock: u32,
    /// The most units that one order may reserve.
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
    /// Units that an order may still reserve.
    pub available: u64,
    /// Units that open orders hold, each until it is released or committed.
    pub reservations: GrowingMap<OrderId, u32>,
    /// Orders that got theirs, by their fingerprints: they get it once, however late they ask again.
    pub committed: GrowingMap<u128, ()>,
    pub allotments: HashMap<SaleId, Allotment>,
}

/// Units that a sale got, and those of them that it gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allotment {
    pub units: u32,
    pub taken_back: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Registered before, with other data.
    AlreadyRegistered,
    NotRegistered,
    OutOfStock,
    OverLimit,
    Discontinued,
    /// The order holds this product already, with another quantity.
    AlreadyReserved,
    NotReserved,
    /// The sale has units of this product already, in another number.
    AlreadyAllotted,
    /// Or not as many as it would give back.
    NotAllotted,
}

impl State {
    /// About how much memory it takes beyond its own size, in bytes.
    pub fn heap_bytes(&self) -> usize {
        /// An id as long as a UUID, and its place in a map that is between half full and full and was smaller before:
        /// as measured, since it depends on the allocator. The domain's test of memory tells by how much.
        const RESERVATION: usize = 100;
        /// A place alone.
        const COMMITTED: usize = 48;
        match self {
            Self::Unregistered => 0,
            Self::OnSale(product) | Self::Discontinued(product) => {
                let held = product.reservations.len() + product.allotments.len();
                let sold = product.committed.len() * COMMITTED;
                size_of::<Product>() + product.registration.name.len() + held * RESERVATION + sold
            }
        }
    }
}

pub fn decide(state: &State, command: &Command) -> Result<Vec<Event>, Rejection> {
    match (command, state) {
        (Command::Register(registration), state) => register(state, registration),
        (_, State::Unregistered) => Err(Rejection::NotRegistered),
        (Command::Restock { quantity }, State::OnSale(_) | State::Discontinued(_)) => {
            Ok(vec![Event::Restocked { quantity: *quantity }])
        }
        (Command::Reprice { price_cents }, State::OnSale(product) | State::Discontinued(product)) => {
            Ok(reprice(product, *price_cents))
        }
        (Command::Reserve { order, quantity, .. }, state) => reserve(state, order, *quantity),
        (Command::Release { order, .. }, State::OnSale(product) | State::Discontinued(product)) => {
            let quantity = held(product, order)?;
            Ok(vec![Event::Released { order: order.clone(), quantity }])
        }
        (Command::Commit { order, amount_cents }, State::OnSale(product) | State::Discontinued(product)) => {
            if product.committed.contains_key(&order.fingerprint()) {
                return Ok(vec![]);
            }
            let quantity = held(product, order)?;
            Ok(vec![Event::Committed { order: order.clone(), quantity, amount_cents: *amount_cents }])
        }
        (Command::Allot { sale, units }, state) => allot(state, sale, *units),
        (Command::TakeBack { sale, total }, State::OnSale(product) | State::Discontinued(product)) => {
            take_back(product, sale, *total)
        }
        (Command::Discontinue, State::OnSale(_)) => Ok(vec![Event::Discontinued]),
        (Command::Discontinue, State::Discontinued(_)) => Ok(vec![]),
    }
}

pub fn evolve(state: State, event: &Event) -> State {
    match (event, state) {
        (Event::Registered(registration), State::Unregistered) => State::OnSale(Box::new(Product {
            registration: registration.clone(),
            price_cents: registration.price_cents,
            available: registration.stock.into(),
            reservations: GrowingMap::default(),
            committed: GrowingMap::default(),
            allotments: HashMap::new(),
        })),
        (Event::Restocked { quantity }, state) => update(state, |product| put_back(product, *quantity)),
        (Event::Repriced { price_cents }, state) => update(state, |product| product.price_cents = *price_cents),
        (Event::Reserved { order, quantity }, state) => update(state, |product| {
            product.available = product.available.saturating_sub(u64::from(*quantity));
            product.reservations.insert(order.clone(), *quantity);
        }),
        (Event::Released { order, quantity }, state) => update(state, |product| {
            put_back(product, *quantity);
            product.reservations.remove(order);
        }),
        (Event::Committed { order, .. }, state) => update(state, |product| {
            product.reservations.remove(order);
            product.committed.insert(order.fingerprint(), ());
        }),
        (Event::Allotted { sale, units }, state) => update(state, |product| {
            product.available = product.available.saturating_sub(u64::from(*units));
            product.allotments.insert(sale.clone(), Allotment { units: *units, taken_back: 0 });
        }),
        (Event::TakenBack { sale, units, total }, state) => update(state, |product| {
            put_back(product, *units);
            if let Some(allotment) = product.allotments.get_mut(sale) {
                allotment.taken_back = *total;
            }
        }),
        (Event::Discontinued, State::OnSale(product)) => State::Discontinued(product),
        // No decision leads here.
        (Event::Registered(_) | Event::Discontinued, state) => state,
    }
}

fn register(state: &State, registration: &Registration) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Unregistered => Ok(vec![Event::Registered(registration.clone())]),
        State::OnSale(product) | State::Discontinued(product) if product.registration == *registration => Ok(vec![]),
        State::OnSale(_) | State::Discontinued(_) => Err(Rejection::AlreadyRegistered),
    }
}

fn reprice(product: &Product, price_cents: u64) -> Vec<Event> {
    if product.price_cents == price_cents {
        return vec![];
    }
    vec![Event::Repriced { price_cents }]
}

/// What the order holds already comes first: a repeat is not judged by a stock or a limit that changed since.
fn reserve(state: &State, order: &OrderId, quantity: u32) -> Result<Vec<Event>, Rejection> {
    let product = match state {
        State::Unregistered => return Err(Rejection::NotRegistered),
        State::OnSale(product) | State::Discontinued(product) => product,
    };
    match product.reservations.get(order) {
        Some(held) if *held == quantity => return Ok(vec![]),
        Some(_) => return Err(Rejection::AlreadyReserved),
        None if product.committed.contains_key(&order.fingerprint()) => return Ok(vec![]),
        None => {}
    }
    if matches!(state, State::Discontinued(_)) {
        return Err(Rejection::Discontinued);
    }
    if product.registration.limit_per_order.is_some_and(|limit| quantity > limit) {
        return Err(Rejection::OverLimit);
    }
    if u64::from(quantity) > product.available {
        return Err(Rejection::OutOfStock);
    }
    Ok(vec![Event::Reserved { order: order.clone(), quantity }])
}

/// As with a reservation, what the sale has already comes first.
fn allot(state: &State, sale: &SaleId, units: u32) -> Result<Vec<Event>, Rejection> {
    let product = match state {
        State::Unregistered => return Err(Rejection::NotRegistered),
        State::OnSale(product) | State::Discontinued(product) => product,
    };
    match product.allotments.get(sale) {
        Some(allotment) if allotment.units == units => return Ok(vec![]),
        Some(_) => return Err(Rejection::AlreadyAllotted),
        None => {}
    }
    if matches!(state, State::Discontinued(_)) {
        return Err(Rejection::Discontinued);
    }
    if u64::from(units) > product.available {
        return Err(Rejection::OutOfStock);
    }
    Ok(vec![Event::Allotted { sale: sale.clone(), units }])
}

/// `total` only grows: an older one that comes late, or again, changes nothing.
fn take_back(product: &Product, sale: &SaleId, total: u32) -> Result<Vec<Event>, Rejection> {
    let allotment = product.allotments.get(sale).filter(|allotment| total <= allotment.units);
    let taken_back = allotment.ok_or(Rejection::NotAllotted)?.taken_back;
    match total.checked_sub(taken_back) {
        None | Some(0) => Ok(vec![]),
        Some(units) => Ok(vec![Event::TakenBack { sale: sale.clone(), units, total }]),
    }
}

fn held(product: &Product, order: &OrderId) -> Result<u32, Rejection> {
    product.reservations.get(order).copied().ok_or(Rejection::NotReserved)
}

/// Before the registration there is nothing to update, and no decision leads there.
fn update(mut state: State, change: impl FnOnce(&mut Product)) -> State {
    match &mut state {
        State::Unregistered => {}
        State::OnSale(product) | State::Discontinued(product) => change(product),
    }
    state
}

fn put_back(product: &mut Product, quantity: u32) {
    product.available = product.available.saturating_add(u64::from(quantity));
}

#[cfg(test)]
mod tests;
