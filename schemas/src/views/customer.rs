//! `customer`: totals of a customer's orders. An order is added when placed and subtracted if it ends unfulfilled.

use domain::order::Event as OrderEvent;
use domain::{Event, TimeMs};
use serde::Serialize;

use super::sums::{Delta, Sums, json, ordered_at};
use super::{KEY_ORDER, Key, Kind, Natural, Source, SumFold, SumTable, View, field, list};

pub const VIEW: View = View {
    name: "customer",
    about: "Totals of a customer's orders. An order is added when placed and subtracted if it ends unfulfilled.",
    relation: "view_customer",
    source: Source::Sum(SumFold {
        delta,
        row: |_, whole| json(&CustomerRow::from(whole)),
        table: SumTable::DatedParts,
    }),
    natural: Natural::Row("customers"),
    is_personal: true,
    key: Key::Id,
    fields: &[
        field("orders", Kind::Integer),
        field("units", Kind::Sum),
        field("amount_cents", Kind::Sum),
        field("first_order_at", Kind::Time),
        field("last_order_at", Kind::Time),
    ],
    key_range: None,
    table: "customer_parts",
    columns: &[],
    form: 1,
    // The sums are computed on read, so they cannot be indexed.
    lists: &[list(KEY_ORDER, &[])],
    nested: &[],
};

/// A row, summed up from its parts.
#[derive(Serialize)]
struct CustomerRow {
    #[serde(flatten)]
    sums: Sums,
    /// Time of the customer's first order, whether or not it was fulfilled.
    #[serde(with = "crate::time::rfc3339")]
    first_order_at: TimeMs,
    #[serde(with = "crate::time::rfc3339")]
    last_order_at: TimeMs,
}

impl From<&Delta> for CustomerRow {
    fn from(whole: &Delta) -> Self {
        let (first_order_at, last_order_at) = whole.times.unwrap_or_default();
        Self { sums: whole.sums, first_order_at, last_order_at }
    }
}

fn delta(_: &str, event: &Event) -> Option<(String, Delta)> {
    // Only events of orders contribute.
    let Event::Order(event) = event else { return None };
    let at = ordered_at(event)?;
    let customer = match event {
        OrderEvent::Placed(placement) | OrderEvent::Recorded(placement) => &placement.customer,
        OrderEvent::Rejected(ending) | OrderEvent::Cancelled(ending) | OrderEvent::Expired(ending) => &ending.customer,
        OrderEvent::LineConfirmed { .. }
        | OrderEvent::Confirmed
        | OrderEvent::LineRejected { .. }
        | OrderEvent::Paid(_)
        | OrderEvent::Shipped(_)
        | OrderEvent::Delivered(_) => return None,
    };
    Some((customer.0.to_string(), Delta { times: Some((at, at)), ..Delta::of(Sums::of(event)?) }))
}
