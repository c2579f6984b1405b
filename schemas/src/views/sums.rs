//! What the views of many aggregates add up: orders, units and money, with their sign.

use domain::TimeMs;
use domain::order::Event;
use serde::Serialize;

/// What one or more events add to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delta {
    /// Events folded into it.
    pub events: i64,
    pub sums: Sums,
    /// The first and the last time that any of them named. They are not taken back.
    pub times: Option<(TimeMs, TimeMs)>,
}

/// Added up they are a row. Nothing bounds how many orders are: 64 bits may not hold their units and cents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Sums {
    pub orders: i64,
    pub units: i128,
    pub amount_cents: i128,
}

impl Delta {
    /// Of one event.
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
    /// Counts an order when it is placed or recorded, and takes it back when it ends unserved.
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

/// When the order was made that the event counts, one way or the other.
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

/// As a row's JSON.
pub(super) fn json(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("rows hold nothing that JSON cannot")
}
