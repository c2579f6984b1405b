//! A product: its price, its stock, and which orders hold how much of it.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use hashbrown::HashMap;

use crate::ids::OrderId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Register(Registration),
    Restock { quantity: u32 },
    Reprice { price_cents: u64 },
    Reserve { order: OrderId, quantity: u32 },
    Release { order: OrderId },
    Commit { order: OrderId },
    Discontinue,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Registered(Registration),
    Restocked { quantity: u32 },
    Repriced { price_cents: u64 },
    Reserved { order: OrderId, quantity: u32 },
    Released { order: OrderId, quantity: u32 },
    Committed { order: OrderId, quantity: u32 },
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
    pub reservations: HashMap<OrderId, u32>,
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
}

impl State {
    /// About how much memory it takes beyond its own size, in bytes.
    pub fn heap_bytes(&self) -> usize {
        /// An id with the allocator's share, its place in the map, and the map's own byte.
        const RESERVATION: usize = 32 + size_of::<(OrderId, u32)>() + 1;
        match self {
            Self::Unregistered => 0,
            Self::OnSale(product) | Self::Discontinued(product) => {
                size_of::<Product>() + product.registration.name.len() + product.reservations.len() * RESERVATION
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
        (Command::Reserve { order, quantity }, state) => reserve(state, order, *quantity),
        (Command::Release { order }, State::OnSale(product) | State::Discontinued(product)) => {
            let quantity = held(product, order)?;
            Ok(vec![Event::Released { order: order.clone(), quantity }])
        }
        (Command::Commit { order }, State::OnSale(product) | State::Discontinued(product)) => {
            let quantity = held(product, order)?;
            Ok(vec![Event::Committed { order: order.clone(), quantity }])
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
            reservations: HashMap::new(),
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
        (Event::Committed { order, quantity: _ }, state) => update(state, |product| {
            product.reservations.remove(order);
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
