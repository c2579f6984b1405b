//! `revenue_by_minute`: totals of the orders of a minute, counted as in `revenue`.

use domain::Event;

use super::sums::{Delta, Sums, json, ordered_at};
use super::{KEY_ORDER, Key, Kind, Natural, Source, SumFold, SumTable, View, field, list};
use crate::time::minute_of;

pub const VIEW: View = View {
    name: "revenue_by_minute",
    about: "Totals of the orders of a minute in UTC. An order is added when placed and subtracted if it ends unfulfilled.",
    relation: "view_revenue_by_minute",
    source: Source::Sum(SumFold { delta, row: |_, whole| json(&whole.sums), table: SumTable::Parts }),
    natural: Natural::List("revenue-by-minute"),
    is_personal: false,
    key: Key::Minute,
    fields: &[field("orders", Kind::Integer), field("units", Kind::Sum), field("amount_cents", Kind::Sum)],
    key_range: Some(("from", "to")),
    table: "revenue_by_minute_parts",
    columns: &[],
    form: 1,
    lists: &[list(KEY_ORDER, &[])],
    nested: &[],
};

fn delta(_: &str, event: &Event) -> Option<(String, Delta)> {
    // Only events of orders contribute.
    let Event::Order(event) = event else { return None };
    Some((minute_of(ordered_at(event)?), Delta::of(Sums::of(event)?)))
}
