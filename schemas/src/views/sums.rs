//! Signed sums of orders, units and amounts, for views fed by many aggregates.

use domain::TimeMs;
use domain::order::Event;
use serde::Serialize;

/// Contribution of one or more events to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delta {
    /// Number of events included.
    pub events: i64,
    pub sums: Sums,
    /// First and last time named by any of the events. Times are never subtracted again.
    pub times: Option<(TimeMs, TimeMs)>,
}

/// Sums that add up to a row. The number of orders is unbounded, so their units and cents may exceed 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Sums {
    pub orders: i64,
    pub units: i128,
    pub amount_cents: i128,
}

impl Delta {
    /// Creates the delta of one event.
    pub fn of(sums: Sums) -> Self {
        Self { events: 1, sums, times: None }
    }

    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.sums.add(&other.sums);
        self.times = match (self.times, other.times) {
            (Some((first, last)), Some((other_first, other_last))) => {
                Some((first.min(other_first), last.max(other_last)))
            }
            (times, None) | (None, times) => times,
        };
    }
}

impl Sums {
    /// Adds an order when it is placed or recorded, and subtracts it when it ends without being fulfilled.
    pub fn of(event: &Event) -> Option<Self> {
        match event {
            Event::Placed(placement) | Event::Recorded(placement) => Some(Self {
                orders: 1,
                units: placement.lines.iter().map(|line| i128::from(line.quantity)).sum(),
                amount_cents: placement.lines.iter().map(|line| i128::from(line.amount_cents)).sum(),
            }),
            Event::Rejected(ending) | Event::Cancelled(ending) | Event::Expired(ending) => Some(Self {
                orders: -1,
                units: -i128::from(ending.units),
                amount_cents: -i128::from(ending.amount_cents),
            }),
            Event::LineConfirmed { .. }
            | Event::Confirmed
            | Event::LineRejected { .. }
            | Event::Paid(_)
            | Event::Shipped(_)
            | Event::Delivered(_) => None,
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.orders += other.orders;
        self.units += other.units;
        self.amount_cents += other.amount_cents;
    }
}

/// Returns the time of the order that an event adds or subtracts.
pub(super) fn ordered_at(event: &Event) -> Option<TimeMs> {
    match event {
        Event::Placed(placement) | Event::Recorded(placement) => Some(placement.ordered_at),
        Event::Rejected(ending) | Event::Cancelled(ending) | Event::Expired(ending) => Some(ending.ordered_at),
        Event::LineConfirmed { .. }
        | Event::Confirmed
        | Event::LineRejected { .. }
        | Event::Paid(_)
        | Event::Shipped(_)
        | Event::Delivered(_) => None,
    }
}

/// Serializes a row as JSON.
pub(super) fn json(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("rows consist of values that JSON can represent")
}
