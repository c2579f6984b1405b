//! Steps and deadlines that the events of an order cause.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::{Deadline, Reaction, Step};
use crate::TimeMs;
use crate::ids::{OrderId, ProductId};
use crate::order::{Ending, Event, Held, Payment, Placement};
use crate::sale::Claim;

/// Maximum number of units of one product that are reserved for an order, however many of its lines name it.
pub(super) const MAX_UNITS: u32 = 1_000_000_000;

/// Age above which a placed order counts as a record of another system. Earlier versions placed such orders with their
/// dates; an order that is dated when it is placed is never that old.
const RECORD_AFTER_MS: u64 = 24 * 60 * 60 * 1000;

pub(super) fn react(id: &OrderId, event: &Event, at: TimeMs, is_caused: bool, payment_window_ms: u64) -> Reaction {
    let expire = |due| vec![(Deadline::ExpireOrder, due)];
    match event {
        Event::Recorded(_) => Reaction::default(),
        Event::Placed(placement) if is_record(placement, at) => Reaction::default(),
        // The step that placed the order also confirmed its lines.
        Event::Placed(placement) if placement.sale.is_some() && is_caused => Reaction::default(),
        Event::Placed(placement) => placed(id, placement).into(),
        Event::Confirmed => {
            Reaction { steps: vec![], deadlines: expire(Some(TimeMs(at.0.saturating_add(payment_window_ms)))) }
        }
        Event::Paid(payment) => Reaction { steps: paid(id, payment), deadlines: expire(None) },
        Event::Rejected(ending) => ended(id, ending).into(),
        Event::Cancelled(ending) | Event::Expired(ending) => {
            Reaction { steps: ended(id, ending), deadlines: expire(None) }
        }
        Event::LineConfirmed { .. } | Event::LineRejected { .. } | Event::Shipped(_) | Event::Delivered(_) => {
            Reaction::default()
        }
    }
}

fn is_record(placement: &Placement, at: TimeMs) -> bool {
    placement.ordered_at.0.saturating_add(RECORD_AFTER_MS) < at.0
}

fn placed(id: &OrderId, placement: &Placement) -> Vec<Step> {
    let Placement { customer, lines, sale, .. } = placement;
    let mut sums: BTreeMap<&ProductId, (u32, u64)> = BTreeMap::new();
    for line in lines {
        let (quantity, amount_cents) = sums.entry(&line.product).or_default();
        *quantity = quantity.saturating_add(line.quantity);
        *amount_cents = amount_cents.saturating_add(line.amount_cents);
    }
    let step = |(product, (quantity, amount_cents)): (&ProductId, (u32, u64))| {
        let (order, product) = (id.clone(), product.clone());
        match sale {
            _ if quantity > MAX_UNITS => Step::RejectLine { order, product, reason: "over_limit".into() },
            None => Step::Reserve { product, order, quantity, amount_cents },
            Some(sale) => {
                let claim = Claim { customer: customer.clone(), quantity, order };
                Step::Hold { sale: sale.clone(), product, claim, amount_cents }
            }
        }
    };
    sums.into_iter().map(step).collect()
}

fn paid(id: &OrderId, Payment { amount_cents, lines, sale, .. }: &Payment) -> Vec<Step> {
    if let Some(sale) = sale {
        let (sale, order) = (sale.clone(), id.clone());
        return vec![Step::CommitClaim { sale, order, amount_cents: *amount_cents }];
    }
    let mut amounts: BTreeMap<&ProductId, u64> = BTreeMap::new();
    for line in lines {
        let sum = amounts.entry(&line.product).or_default();
        *sum = sum.saturating_add(line.amount_cents);
    }
    let commit = |(product, amount_cents): (&ProductId, u64)| Step::Commit {
        product: product.clone(),
        order: id.clone(),
        amount_cents,
    };
    amounts.into_iter().map(commit).collect()
}

fn ended(id: &OrderId, Ending { held, sale, .. }: &Ending) -> Vec<Step> {
    if let Some(sale) = sale {
        return vec![Step::Return { sale: sale.clone(), order: id.clone(), is_ordered: None }];
    }
    let mut products: Vec<&ProductId> = held.iter().map(|Held { product, .. }| product).collect();
    products.sort_unstable();
    products.dedup();
    products.into_iter().map(|product| Step::Release { product: product.clone(), order: id.clone() }).collect()
}
