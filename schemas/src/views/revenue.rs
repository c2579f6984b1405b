//! `revenue`: totals of the orders of a day. An order is added when placed and subtracted if it ends unfulfilled.

use domain::Event;

use super::sums::{Delta, Sums, json, ordered_at};
use super::{KEY_ORDER, Key, Kind, Natural, Source, SumFold, SumTable, View, field, list};
use crate::time::day_of;

pub const VIEW: View = View {
    name: "revenue",
    about: "Totals of the orders of a day in UTC. An order is added when placed and subtracted if it ends unfulfilled.",
    relation: "view_revenue",
    source: Source::Sum(SumFold { delta, row: |_, whole| json(&whole.sums), table: SumTable::Parts }),
    natural: Natural::List("revenue"),
    is_personal: false,
    key: Key::Day,
    fields: &[field("orders", Kind::Integer), field("units", Kind::Sum), field("amount_cents", Kind::Sum)],
    key_range: Some(("from", "to")),
    table: "revenue_parts",
    columns: &[],
    form: 1,
    lists: &[list(KEY_ORDER, &[])],
    nested: &[],
};

fn delta(_: &str, event: &Event) -> Option<(String, Delta)> {
    // Only events of orders contribute.
    let Event::Order(event) = event else { return None };
    Some((day_of(ordered_at(event)?), Delta::of(Sums::of(event)?)))
}

#[cfg(test)]
mod tests {
    use domain::TimeMs;
    use domain::ids::{CustomerId, ProductId};
    use domain::order::{Ending, Event as OrderEvent, Line, Placement};

    use super::*;

    #[test]
    fn the_end_of_an_order_subtracts_its_placement() {
        let line = |quantity, amount_cents| Line { product: ProductId("cd".into()), quantity, amount_cents };
        let customer = || CustomerId("c".into());
        let ordered_at = TimeMs(852_076_800_000);
        let placed = Event::Order(OrderEvent::Placed(Placement {
            customer: customer(),
            lines: vec![line(2, 300), line(1, 0)],
            sale: None,
            ordered_at,
        }));
        let ending = Ending {
            reason: None,
            customer: customer(),
            units: 3,
            amount_cents: 300,
            ordered_at,
            held: vec![],
            sale: None,
        };
        let (day, mut sum) = delta("o", &placed).unwrap();
        assert_eq!(day, "1997-01-01");
        assert_eq!(sum.sums, Sums { orders: 1, units: 3, amount_cents: 300 });
        for end in [OrderEvent::Cancelled(ending.clone()), OrderEvent::Rejected(ending)] {
            let mut rest = sum;
            rest.add(&delta("o", &Event::Order(end)).unwrap().1);
            assert_eq!(rest, Delta { events: 2, sums: Sums::default(), times: None });
        }
        let twice = sum;
        sum.add(&twice);
        assert_eq!(sum.sums.orders, 2);
    }
}
