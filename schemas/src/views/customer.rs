//! `customer`: what a customer ordered in all. Counted when placed, taken back when an order ends unserved.

use domain::TimeMs;
use domain::order::Event;
use serde::Serialize;

use super::revenue::Sums;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomerDelta {
    /// Events folded into it.
    pub events: i64,
    pub sums: Sums,
    /// Of all orders ever placed: these are not taken back.
    pub first_order_at: TimeMs,
    pub last_order_at: TimeMs,
}

/// A row, of all its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CustomerRow {
    #[serde(flatten)]
    sums: Sums,
    #[serde(with = "crate::time::rfc3339")]
    first_order_at: TimeMs,
    #[serde(with = "crate::time::rfc3339")]
    last_order_at: TimeMs,
}

impl From<&CustomerDelta> for CustomerRow {
    fn from(whole: &CustomerDelta) -> Self {
        let CustomerDelta { events: _, sums, first_order_at, last_order_at } = whole;
        Self { sums: *sums, first_order_at: *first_order_at, last_order_at: *last_order_at }
    }
}

/// The customer whom the event concerns, and what it adds.
pub fn delta(event: &Event) -> Option<(&str, CustomerDelta)> {
    let (customer, at) = match event {
        Event::Placed(placement) => (&placement.customer, placement.ordered_at),
        Event::Rejected(ending) | Event::Cancelled(ending) | Event::Expired(ending) => {
            (&ending.customer, ending.ordered_at)
        }
        Event::LineConfirmed { .. }
        | Event::Confirmed
        | Event::LineRejected { .. }
        | Event::Paid(_)
        | Event::Shipped(_)
        | Event::Delivered(_) => return None,
    };
    let sums = Sums::of(event)?;
    Some((&customer.0, CustomerDelta { events: 1, sums, first_order_at: at, last_order_at: at }))
}

impl CustomerDelta {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.sums.add(&other.sums);
        self.first_order_at = self.first_order_at.min(other.first_order_at);
        self.last_order_at = self.last_order_at.max(other.last_order_at);
    }
}
