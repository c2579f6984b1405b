//! Decides the commands of an order.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use super::{
    Command, Ending, Event, Held, Line, MAX_LINES, MAX_TOTAL_CENTS, Open, Parcel, Payment, Placement, Placer,
    Rejection, State,
};
use crate::TimeMs;
use crate::ids::{PaymentId, ProductId};

/// Maximum total of an order's lines, in units.
const MAX_TOTAL_UNITS: u64 = 1_000_000_000;

pub fn decide(state: &State, command: &Command, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Place { by: Placer::Client { has_reserved_name: true }, .. }
        | Command::Record { has_reserved_name: true, .. }
            if matches!(state, State::New) =>
        {
            Err(Rejection::ReservedName)
        }
        Command::Place { customer, lines, sale, by } => {
            let (customer, lines, sale) = (customer.clone(), lines.clone(), sale.clone());
            place(state, Placement { customer, lines, sale, ordered_at: at }, *by)
        }
        Command::Record { customer, lines, ordered_at, .. } => {
            let (customer, lines, ordered_at) = (customer.clone(), lines.clone(), *ordered_at);
            record(state, Placement { customer, lines, sale: None, ordered_at }, at)
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

fn place(state: &State, wish: Placement, by: Placer) -> Result<Vec<Event>, Rejection> {
    if let Some(placed) = placement(state) {
        // Compare without the date, which was set when the order was first placed.
        let is_same = Placement { ordered_at: placed.ordered_at, ..wish } == *placed;
        let is_repeat = is_same && !matches!(state, State::Recorded(_));
        return if is_repeat { Ok(vec![]) } else { Err(Rejection::AlreadyPlaced) };
    }
    check_size(&wish.lines)?;
    let confirmed = match by {
        Placer::Client { .. } => vec![],
        Placer::Claim => confirmation(&wish.lines),
    };
    Ok([Event::Placed(wish)].into_iter().chain(confirmed).collect())
}

/// Confirms each product once, and then the order.
fn confirmation(lines: &[Line]) -> Vec<Event> {
    let is_first = |at: usize| lines[..at].iter().all(|line| line.product != lines[at].product);
    let products = (0..lines.len()).filter(|at| is_first(*at)).map(|at| lines[at].product.clone());
    products.map(|product| Event::LineConfirmed { product }).chain([Event::Confirmed]).collect()
}

/// Records an order. Earlier versions placed orders of other systems with their dates; such an order counts as known.
fn record(state: &State, wish: Placement, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    if let Some(known) = placement(state) {
        return if wish == *known { Ok(vec![]) } else { Err(Rejection::AlreadyPlaced) };
    }
    check_size(&wish.lines)?;
    if wish.ordered_at > at {
        return Err(Rejection::OrderedInFuture);
    }
    Ok(vec![Event::Recorded(wish)])
}

fn check_size(lines: &[Line]) -> Result<(), Rejection> {
    match lines.len() {
        0 => return Err(Rejection::NoLines),
        1..=MAX_LINES => {}
        _ => return Err(Rejection::TooManyLines),
    }
    if total_cents(lines) > MAX_TOTAL_CENTS || total_units(lines) > MAX_TOTAL_UNITS {
        return Err(Rejection::TotalTooLarge);
    }
    Ok(())
}

/// Confirms a line. A line of a paid order is already confirmed, even if the order was cancelled afterwards: rejecting
/// the command would release paid units if it arrived before the holder of the units has seen the payment.
fn confirm_line(state: &State, product: &ProductId) -> Result<Vec<Event>, Rejection> {
    let was_confirmed = |placement| if has_line(placement, product) { Ok(vec![]) } else { Err(Rejection::NoSuchLine) };
    match state {
        State::Placed(open) => confirm_open_line(open, product),
        State::Confirmed(placement) => was_confirmed(placement),
        State::Paid(settled) | State::Shipped(settled) | State::Delivered(settled) => was_confirmed(&settled.placement),
        State::Cancelled(cancelled) if cancelled.payment.is_some() => was_confirmed(&cancelled.placement),
        State::New => Err(Rejection::NotPlaced),
        State::Recorded(_) => Err(Rejection::IsRecorded),
        State::Rejected(_) => Err(Rejection::AlreadyRejected),
        State::Cancelled(_) => Err(Rejection::AlreadyCancelled),
        State::Expired(_) => Err(Rejection::Expired),
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

/// Rejects the order because of one refused line: an order gets all of its lines or none.
fn reject_line(state: &State, product: &ProductId, reason: Option<&str>) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Placed(open) if has_line(&open.placement, product) => Ok(vec![
            Event::LineRejected { product: product.clone(), reason: reason.map(Box::from) },
            Event::Rejected(ending(&open.placement, reason)),
        ]),
        State::Rejected(placement) if has_line(placement, product) => Ok(vec![]),
        State::Placed(_) | State::Rejected(_) => Err(Rejection::NoSuchLine),
        State::New => Err(Rejection::NotPlaced),
        State::Recorded(_) => Err(Rejection::IsRecorded),
        State::Confirmed(_) | State::Paid(_) | State::Shipped(_) | State::Delivered(_) => {
            Err(Rejection::AlreadyConfirmed)
        }
        State::Cancelled(_) => Err(Rejection::AlreadyCancelled),
        State::Expired(_) => Err(Rejection::Expired),
    }
}

fn pay(state: &State, payment: &PaymentId, amount_cents: u64) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Confirmed(placement) if amount_cents == total_cents(&placement.lines) => {
            Ok(vec![Event::Paid(Payment {
                payment: payment.clone(),
                amount_cents,
                lines: placement.lines.clone(),
                sale: placement.sale.clone(),
            })])
        }
        State::Confirmed(_) => Err(Rejection::WrongAmount),
        State::Paid(settled) | State::Shipped(settled) | State::Delivered(settled) if settled.payment == *payment => {
            Ok(vec![])
        }
        State::Paid(_) | State::Shipped(_) | State::Delivered(_) => Err(Rejection::AlreadyPaid),
        State::Expired(_) => Err(Rejection::Expired),
        State::Recorded(_) => Err(Rejection::IsRecorded),
        State::Rejected(_) => Err(Rejection::AlreadyRejected),
        // The taker of this payment has to refund it.
        State::Cancelled(cancelled) if cancelled.payment.as_ref() == Some(payment) => {
            Err(Rejection::CancelledAfterPayment)
        }
        State::Cancelled(_) => Err(Rejection::AlreadyCancelled),
        State::New | State::Placed(_) => Err(Rejection::NotConfirmed),
    }
}

fn ship(state: &State, parcel: &Parcel) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Paid(_) => Ok(vec![Event::Shipped(parcel.clone())]),
        State::Shipped(_) | State::Delivered(_) => Ok(vec![]),
        State::Recorded(_) => Err(Rejection::IsRecorded),
        // It may have been paid before.
        State::Cancelled(_) => Err(Rejection::AlreadyCancelled),
        State::New | State::Placed(_) | State::Confirmed(_) | State::Rejected(_) | State::Expired(_) => {
            Err(Rejection::NotPaid)
        }
    }
}

fn deliver(state: &State, parcel: &Parcel) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Shipped(_) => Ok(vec![Event::Delivered(parcel.clone())]),
        State::Delivered(_) => Ok(vec![]),
        State::Paid(_) => Err(Rejection::NotShipped),
        State::Recorded(_) => Err(Rejection::IsRecorded),
        // It may have been paid.
        State::Cancelled(_) => Err(Rejection::AlreadyCancelled),
        State::New | State::Placed(_) | State::Confirmed(_) | State::Rejected(_) | State::Expired(_) => {
            Err(Rejection::NotPaid)
        }
    }
}

fn expire(state: &State, due_at: Option<TimeMs>, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Confirmed(_) if due_at.is_some_and(|due_at| at < due_at) => Err(Rejection::NotDue),
        State::Confirmed(placement) => Ok(vec![Event::Expired(ending(placement, None))]),
        State::Expired(_) => Ok(vec![]),
        State::Recorded(_) => Err(Rejection::IsRecorded),
        State::Paid(_) | State::Shipped(_) | State::Delivered(_) => Err(Rejection::AlreadyPaid),
        State::Rejected(_) => Err(Rejection::AlreadyRejected),
        State::Cancelled(_) => Err(Rejection::AlreadyCancelled),
        State::New | State::Placed(_) => Err(Rejection::NotConfirmed),
    }
}

/// Cancels an order. No units are released for a paid order, whether they were committed yet or not: a release that
/// arrived before the payment would give paid units away. No units were ever held for a recorded order.
fn cancel(state: &State, reason: Option<&str>) -> Result<Vec<Event>, Rejection> {
    let nothing_back = |placement| Event::Cancelled(Ending { held: vec![], sale: None, ..ending(placement, reason) });
    match state {
        State::Placed(open) => Ok(vec![Event::Cancelled(ending(&open.placement, reason))]),
        State::Confirmed(placement) => Ok(vec![Event::Cancelled(ending(placement, reason))]),
        State::Paid(settled) => Ok(vec![nothing_back(&settled.placement)]),
        State::Recorded(placement) => Ok(vec![nothing_back(placement)]),
        State::Shipped(_) | State::Delivered(_) => Err(Rejection::AlreadyShipped),
        State::Cancelled(_) => Ok(vec![]),
        State::New => Err(Rejection::NotPlaced),
        State::Rejected(_) => Err(Rejection::AlreadyRejected),
        State::Expired(_) => Err(Rejection::Expired),
    }
}

fn placement(state: &State) -> Option<&Placement> {
    match state {
        State::New => None,
        State::Placed(open) => Some(&open.placement),
        State::Cancelled(cancelled) => Some(&cancelled.placement),
        State::Recorded(placement)
        | State::Confirmed(placement)
        | State::Rejected(placement)
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
        units: total_units(&placement.lines),
        amount_cents: total_cents(&placement.lines),
        ordered_at: placement.ordered_at,
        held: held(placement),
        sale: placement.sale.clone(),
    }
}

fn held(placement: &Placement) -> Vec<Held> {
    let of = |line: &Line| Held { product: line.product.clone(), quantity: line.quantity };
    placement.lines.iter().map(of).collect()
}

fn total_cents(lines: &[Line]) -> u64 {
    // Even lines that no rule would accept must not make the sum wrap or panic.
    lines.iter().fold(0, |sum, line| sum.saturating_add(line.amount_cents))
}

fn total_units(lines: &[Line]) -> u64 {
    lines.iter().map(|line| u64::from(line.quantity)).sum()
}
