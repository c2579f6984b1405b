//! `best_sellers`: what was sold for good of each product, in sales and out of them.

use domain::Event;
use domain::product::Event as ProductEvent;
use domain::sale::Event as SaleEvent;
use serde::Serialize;

use super::sums::{Delta, Sums, json, signed};
use super::{KEY_ORDER, Key, Kind, List, Natural, Source, SumFold, SumTable, View, field, list};

pub const VIEW: View = View {
    name: "best_sellers",
    relation: "view_best_sellers",
    source: Source::Sum(SumFold { delta, row: |key, whole| json(&Row::new(key, whole)), table: SumTable::Totals }),
    natural: Natural::List("best-sellers"),
    key: Key::Id,
    fields: &[field("product", Kind::Id), field("units", Kind::Integer), field("amount_cents", Kind::Integer)],
    key_range: None,
    table: "best_sellers_rows",
    form: 1,
    lists: &[
        List { order: "units", descending: true, filters: &[] },
        List { order: "amount_cents", descending: true, filters: &[] },
        list(KEY_ORDER, &[]),
    ],
    nested: &[],
};

#[derive(Serialize)]
struct Row<'a> {
    product: &'a str,
    units: i64,
    amount_cents: i64,
}

impl<'a> Row<'a> {
    fn new(product: &'a str, whole: &Delta) -> Self {
        Self { product, units: whole.sums.units, amount_cents: whole.sums.amount_cents }
    }
}

fn delta(id: &str, event: &Event) -> Option<(String, Delta)> {
    let (product, quantity, amount_cents) = match event {
        Event::Product(ProductEvent::Committed { quantity, amount_cents, .. }) => (id, *quantity, *amount_cents),
        Event::Sale(SaleEvent::Committed { product, quantity, amount_cents, .. }) => {
            (&*product.0, *quantity, *amount_cents)
        }
        Event::Product(_) | Event::Order(_) | Event::Sale(_) => return None,
    };
    let sums = Sums { orders: 0, units: i64::from(quantity), amount_cents: signed(amount_cents) };
    Some((product.to_owned(), Delta::of(sums)))
}
