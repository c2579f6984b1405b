//! Decides the commands of a sale.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use super::{Claim, Claimed, Command, Event, Rejection, Sale, Schedule, State, Stock};
use crate::TimeMs;
use crate::ids::OrderId;
use crate::order::MAX_TOTAL_CENTS;

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
