//! `revenue`: what was ordered on a day. Counted when placed, taken back when an order ends unserved.

use crate::time::day_of;
use domain::order::Event;
use serde::Serialize;

/// Orders, units and money, with their sign. Added up they are a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Sums {
    pub orders: i64,
    pub units: i64,
    pub amount_cents: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevenueDelta {
    /// Events folded into it.
    pub events: i64,
    pub sums: Sums,
}

/// The day that the event concerns, and what it adds.
pub fn delta(event: &Event) -> Option<(String, RevenueDelta)> {
    let at = match event {
        Event::Placed(placement) => placement.ordered_at,
        Event::Rejected(ending) | Event::Cancelled(ending) | Event::Expired(ending) => ending.ordered_at,
        Event::LineConfirmed { .. }
        | Event::Confirmed
        | Event::LineRejected { .. }
        | Event::Paid(_)
        | Event::Shipped(_)
        | Event::Delivered(_) => return None,
    };
    Some((day_of(at), RevenueDelta { events: 1, sums: Sums::of(event)? }))
}

impl RevenueDelta {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.sums.add(&other.sums);
    }
}

impl Sums {
    pub fn of(event: &Event) -> Option<Self> {
        match event {
            Event::Placed(placement) => Some(Self {
                orders: 1,
                units: placement.lines.iter().map(|line| i64::from(line.quantity)).sum(),
                amount_cents: signed(placement.lines.iter().map(|line| line.amount_cents).sum()),
            }),
            Event::Rejected(ending) | Event::Cancelled(ending) | Event::Expired(ending) => {
                Some(Self { orders: -1, units: -signed(ending.units), amount_cents: -signed(ending.amount_cents) })
            }
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

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).expect("the border bounds what an order may cost")
}

#[cfg(test)]
mod tests {
    use domain::TimeMs;
    use domain::ids::{CustomerId, ProductId};
    use domain::order::{Ending, Line, Placement};

    use super::*;

    #[test]
    fn what_a_placement_adds_its_end_takes_back() {
        let line = |quantity, amount_cents| Line { product: ProductId("cd".into()), quantity, amount_cents };
        let customer = || CustomerId("c".into());
        let ordered_at = TimeMs(852_076_800_000);
        let placed = Event::Placed(Placement {
            customer: customer(),
            lines: vec![line(2, 300), line(1, 0)],
            sale: None,
            ordered_at,
        });
        let ending = Ending {
            reason: None,
            customer: customer(),
            units: 3,
            amount_cents: 300,
            ordered_at,
            held: vec![],
            sale: None,
        };
        let (day, mut sum) = delta(&placed).unwrap();
        assert_eq!(day, "1997-01-01");
        assert_eq!(sum.sums, Sums { orders: 1, units: 3, amount_cents: 300 });
        for end in [Event::Cancelled(ending.clone()), Event::Rejected(ending)] {
            let mut rest = sum.clone();
            rest.add(&delta(&end).unwrap().1);
            assert_eq!(rest, RevenueDelta { events: 2, sums: Sums::default() });
        }
        sum.add(&sum.clone());
        assert_eq!(sum.sums.orders, 2);
    }
}
