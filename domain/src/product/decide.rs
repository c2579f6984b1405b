//! Decides the commands of a product.

use alloc::vec;
use alloc::vec::Vec;

use super::{By, Command, Event, Holder, Product, Registration, Rejection, State};
use crate::TimeMs;
use crate::ids::{Fingerprint, OrderId, SaleId};

pub fn decide(state: &State, command: &Command, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    match (command, state) {
        (Command::Register(registration), state) => register(state, registration),
        (_, State::Unregistered) => Err(Rejection::NotRegistered),
        (Command::Restock { quantity }, State::OnSale(_) | State::Discontinued(_)) => {
            Ok(vec![Event::Restocked { quantity: *quantity }])
        }
        (Command::Reprice { price_cents }, State::OnSale(product) | State::Discontinued(product)) => {
            Ok(reprice(product, *price_cents))
        }
        (Command::Reserve { order, quantity, by }, state) => reserve(state, order, *quantity, *by, at),
        (Command::Release { order, by }, State::OnSale(product) | State::Discontinued(product)) => {
            release(product, order, *by, at)
        }
        (Command::Commit { order, amount_cents }, State::OnSale(product) | State::Discontinued(product)) => {
            if product.committed.contains_key(&order.fingerprint()) {
                return Ok(vec![]);
            }
            let quantity = held(product, order)?;
            Ok(vec![Event::Committed { order: order.clone(), quantity, amount_cents: *amount_cents }])
        }
        (Command::Allot { sale, units }, state) => allot(state, sale, *units, at),
        (Command::TakeBack { sale, total }, State::OnSale(product) | State::Discontinued(product)) => {
            take_back(product, sale, *total)
        }
        (Command::LapseHolds { due_at: Some(due_at) }, _) if at < *due_at => Err(Rejection::NotDue),
        (Command::LapseHolds { .. }, State::OnSale(product) | State::Discontinued(product)) => {
            Ok(product.holds.lapse(at).into_iter().collect())
        }
        (Command::Discontinue, State::OnSale(_)) => Ok(vec![Event::Discontinued]),
        (Command::Discontinue, State::Discontinued(_)) => Ok(vec![]),
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

/// Reserves units. A repeated reservation is accepted whatever the price, stock and limit are now.
fn reserve(state: &State, order: &OrderId, quantity: u32, by: By, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    let product = match state {
        State::Unregistered => return Err(Rejection::NotRegistered),
        State::OnSale(product) | State::Discontinued(product) => product,
    };
    let name = order.fingerprint();
    match reserved(product, order, &name, by, at) {
        Some(reserved) if reserved == quantity => return Ok(vec![]),
        Some(_) => return Err(Rejection::AlreadyReserved),
        None if matches!(state, State::Discontinued(_)) => return Err(Rejection::Discontinued),
        None => {}
    }
    check_price(by, quantity, product.price_cents)?;
    if product.registration.limit_per_order.is_some_and(|limit| quantity > limit) {
        return Err(Rejection::OverLimit);
    }
    let (holder, hold_secs) = match by {
        By::Order { .. } => (Holder::Order, None),
        By::Client { hold_secs } => (Holder::Client, hold_secs),
    };
    let missing = u64::from(quantity).saturating_sub(product.available);
    let lapsed = product.holds.make_room(missing, (holder == Holder::Client).then_some(&name), at)?;
    let until = hold_secs.map(|secs| TimeMs(at.0.saturating_add(u64::from(secs) * 1000)));
    let alarm_at = until.and_then(|until| product.holds.alarm_with(until, at, lapsed));
    let reserved = Event::Reserved { order: order.clone(), quantity, by: holder, until, alarm_at };
    Ok(lapsed.map(Event::from).into_iter().chain([reserved]).collect())
}

/// Returns the quantity that is reserved, or was committed, under this id for `by`. A client also sees the order's
/// reservation; clients' holds do not concern an order.
fn reserved(product: &Product, order: &OrderId, name: &Fingerprint, by: By, at: TimeMs) -> Option<u32> {
    let own = match by {
        By::Order { .. } => None,
        By::Client { .. } => product.holds.get(name, at).map(|hold| hold.quantity),
    };
    own.or_else(|| product.reservations.get(order).copied()).or_else(|| product.committed.get(name).copied())
}

fn release(product: &Product, order: &OrderId, by: Holder, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    let quantity = match by {
        Holder::Order => held(product, order)?,
        Holder::Client => match product.holds.get(&order.fingerprint(), at) {
            Some(hold) => hold.quantity,
            None if product.reservations.contains_key(order) => return Err(Rejection::HeldByOrder),
            None => return Err(Rejection::NotReserved),
        },
    };
    Ok(vec![Event::Released { order: order.clone(), quantity, by }])
}

/// Compares the amount that the buyer agreed to with the current price.
fn check_price(by: By, quantity: u32, price_cents: u64) -> Result<(), Rejection> {
    match by {
        By::Order { amount_cents: Some(agreed) } if price_cents.checked_mul(quantity.into()) != Some(agreed) => {
            Err(Rejection::WrongPrice { price_cents })
        }
        By::Order { .. } | By::Client { .. } => Ok(()),
    }
}

/// Allots units to a sale. As with reservations, a repeated allotment is accepted whatever the stock is now.
fn allot(state: &State, sale: &SaleId, units: u32, at: TimeMs) -> Result<Vec<Event>, Rejection> {
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
    let lapsed = product.holds.make_room(u64::from(units).saturating_sub(product.available), None, at)?;
    Ok(lapsed.map(Event::from).into_iter().chain([Event::Allotted { sale: sale.clone(), units }]).collect())
}

/// Takes units back from a sale. `total` only grows, so an older total that arrives late, or again, has no effect.
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
