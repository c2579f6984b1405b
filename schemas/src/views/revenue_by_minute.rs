//! `revenue_by_minute`: what was ordered in a minute, as `revenue` tells it of a day.

use domain::Event;

use super::sums::{Delta, Sums, json, ordered_at};
use super::{KEY_ORDER, Key, Kind, Natural, Source, SumFold, SumTable, View, field, list};
use crate::time::minute_of;

pub const VIEW: View = View {
    name: "revenue_by_minute",
    about: "What was ordered in a minute, in UTC: counted when placed, taken back when an order ends unserved.",
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
    // Orders alone are counted: whatever else happens adds nothing.
    let Event::Order(event) = event else { return None };
    Some((minute_of(ordered_at(event)?), Delta::of(Sums::of(event)?)))
}
