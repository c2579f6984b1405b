//! `product`: price and stock of a product.

use domain::product::Event;
use domain::{AggregateType, Event as AnyEvent};
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{AggregateRow, KEY_ORDER, Key, Kind, Natural, RowFold, Source, View, field, list};

pub const VIEW: View = View {
    name: "product",
    about: "Price and stock of a product.",
    relation: "view_product",
    source: Source::Aggregate(RowFold {
        aggregate: AggregateType::Product,
        fold: |row, event, _| match (row, event) {
            (Some(AggregateRow::Product(row)), AnyEvent::Product(event)) => {
                fold(Some(row), event).map(AggregateRow::Product)
            }
            (None, AnyEvent::Product(event)) => fold(None, event).map(AggregateRow::Product),
            // Events of another aggregate type do not occur.
            (row, _) => row,
        },
        read: |json| serde_json::from_str(json).map(AggregateRow::Product),
        schema: SchemaGenerator::subschema_for::<ProductRow>,
    }),
    natural: Natural::Row("products"),
    is_personal: false,
    key: Key::Id,
    fields: &[
        field("name", Kind::Text),
        field("price_cents", Kind::Integer),
        field("stock", Kind::Integer),
        field("available", Kind::Integer),
        field("reserved", Kind::Integer),
        field("sold", Kind::Integer),
        field("discontinued", Kind::Boolean),
    ],
    key_range: None,
    table: "product_rows",
    columns: &["price_cents", "discontinued", "available"],
    form: 1,
    lists: &[
        list(KEY_ORDER, &[]),
        list("price_cents", &[]),
        list(KEY_ORDER, &["discontinued"]),
        list("price_cents", &["discontinued"]),
    ],
    nested: &[],
};

/// A row of `product`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProductRow {
    pub name: String,
    pub price_cents: u64,
    /// Units on hand, both available and reserved.
    pub stock: u64,
    pub available: u64,
    pub reserved: u64,
    pub sold: u64,
    pub discontinued: bool,
}

/// Folds an event into a row. A first event other than a registration yields no row.
pub fn fold(row: Option<ProductRow>, event: &Event) -> Option<ProductRow> {
    let Some(mut row) = row else { return first(event) };
    match event {
        Event::Registered(_) => {}
        Event::Restocked { quantity } => {
            row.stock += u64::from(*quantity);
            row.available += u64::from(*quantity);
        }
        Event::Repriced { price_cents } => row.price_cents = *price_cents,
        Event::Reserved { quantity, .. } => {
            row.available -= u64::from(*quantity);
            row.reserved += u64::from(*quantity);
        }
        Event::Released { quantity, .. } => {
            row.reserved -= u64::from(*quantity);
            row.available += u64::from(*quantity);
        }
        Event::HoldsLapsed { quantity, .. } => {
            row.reserved -= quantity;
            row.available += quantity;
        }
        Event::Committed { quantity, .. } => {
            row.reserved -= u64::from(*quantity);
            row.stock -= u64::from(*quantity);
            row.sold += u64::from(*quantity);
        }
        Event::Allotted { units, .. } => {
            row.stock -= u64::from(*units);
            row.available -= u64::from(*units);
        }
        Event::TakenBack { units, .. } => {
            row.stock += u64::from(*units);
            row.available += u64::from(*units);
        }
        Event::Discontinued => row.discontinued = true,
    }
    Some(row)
}

fn first(event: &Event) -> Option<ProductRow> {
    match event {
        Event::Registered(registration) => Some(ProductRow {
            name: registration.name.to_string(),
            price_cents: registration.price_cents,
            stock: registration.stock.into(),
            available: registration.stock.into(),
            reserved: 0,
            sold: 0,
            discontinued: false,
        }),
        Event::Restocked { .. }
        | Event::Repriced { .. }
        | Event::Reserved { .. }
        | Event::Released { .. }
        | Event::HoldsLapsed { .. }
        | Event::Committed { .. }
        | Event::Allotted { .. }
        | Event::TakenBack { .. }
        | Event::Discontinued => None,
    }
}

#[cfg(test)]
mod tests {
    use domain::TimeMs;
    use domain::ids::{OrderId, SaleId};
    use domain::product::{Holder, Registration};

    use super::*;

    fn folded(events: &[Event]) -> ProductRow {
        events.iter().fold(None, fold).unwrap()
    }

    fn registered(stock: u32) -> Event {
        Event::Registered(Registration { name: "Blue".into(), price_cents: 100, stock, limit_per_order: None })
    }

    fn reserved(by: Holder, quantity: u32) -> Event {
        Event::Reserved { order: OrderId("o-1".into()), quantity, by, until: None, alarm_at: None }
    }

    #[test]
    fn stock_is_what_is_on_hand_and_sold_is_what_was_committed() {
        let order = || OrderId("o-1".into());
        let row = folded(&[
            registered(10),
            reserved(Holder::Order, 4),
            Event::Committed { order: order(), quantity: 4, amount_cents: 0 },
            reserved(Holder::Client, 2),
            reserved(Holder::Client, 3),
            Event::Released { order: order(), quantity: 1, by: Holder::Client },
            Event::HoldsLapsed { until: TimeMs(7), quantity: 3, alarm_at: None },
            Event::Restocked { quantity: 5 },
        ]);
        assert_eq!((row.stock, row.available, row.reserved, row.sold), (11, 10, 1, 4));
    }

    #[test]
    fn a_sales_units_are_out_of_the_stock_until_they_come_back() {
        let sale = || SaleId("s".into());
        let allotted = [registered(10), Event::Allotted { sale: sale(), units: 6 }];
        assert_eq!((folded(&allotted).stock, folded(&allotted).available), (4, 4));
        let [registered, allotted] = allotted;
        let row = folded(&[registered, allotted, Event::TakenBack { sale: sale(), units: 2, total: 2 }]);
        assert_eq!((row.stock, row.available, row.sold), (6, 6, 0));
    }

    #[test]
    fn price_and_end_of_sale_show() {
        let row = folded(&[registered(0), Event::Repriced { price_cents: 7 }, Event::Discontinued]);
        assert_eq!((row.price_cents, row.discontinued), (7, true));
    }
}
