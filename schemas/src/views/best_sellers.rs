//! `best_sellers`: units and revenue of each product that were finally sold, in sales and outside of them.

use domain::Event;
use domain::product::Event as ProductEvent;
use domain::sale::Event as SaleEvent;
use serde::Serialize;

use super::sums::{Delta, Sums, json};
use super::{KEY_ORDER, Key, Kind, List, Natural, Source, SumFold, SumTable, View, field, list};

pub const VIEW: View = View {
    name: "best_sellers",
    about: "Units and revenue of a product that were finally sold, in sales and outside of them.",
    relation: "view_best_sellers",
    source: Source::Sum(SumFold { delta, row: |key, whole| json(&Row::new(key, whole)), table: SumTable::Totals }),
    natural: Natural::List("best-sellers"),
    is_personal: false,
    key: Key::Id,
    fields: &[field("product", Kind::Id), field("units", Kind::Sum), field("amount_cents", Kind::Sum)],
    key_range: None,
    table: "best_sellers_rows",
    columns: &[],
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
    units: i128,
    amount_cents: i128,
}

impl<'a> Row<'a> {
    fn new(product: &'a str, whole: &Delta) -> Self {
        Self { product, units: whole.sums.units, amount_cents: whole.sums.amount_cents }
    }
}

fn delta(id: &str, event: &Event) -> Option<(String, Delta)> {
    let (product, quantity, amount_cents) = match event {
        Event::Product(event) => of_product(id, event)?,
        Event::Sale(event) => of_sale(event)?,
        // The product or sale that held the units reports their sale.
        Event::Order(_) => return None,
    };
    let sums = Sums { orders: 0, units: i128::from(quantity), amount_cents: i128::from(amount_cents) };
    Some((product.to_owned(), Delta::of(sums)))
}

/// Product, number of units sold, and amount paid for them.
type Sold<'a> = (&'a str, u32, u64);

fn of_product<'a>(id: &'a str, event: &ProductEvent) -> Option<Sold<'a>> {
    match event {
        ProductEvent::Committed { quantity, amount_cents, .. } => Some((id, *quantity, *amount_cents)),
        ProductEvent::Registered(_)
        | ProductEvent::Restocked { .. }
        | ProductEvent::Repriced { .. }
        | ProductEvent::Reserved { .. }
        | ProductEvent::Released { .. }
        | ProductEvent::HoldsLapsed { .. }
        | ProductEvent::Allotted { .. }
        | ProductEvent::TakenBack { .. }
        | ProductEvent::Discontinued => None,
    }
}

fn of_sale(event: &SaleEvent) -> Option<Sold<'_>> {
    match event {
        SaleEvent::Committed { product, quantity, amount_cents, .. } => Some((&product.0, *quantity, *amount_cents)),
        SaleEvent::Scheduled(_)
        | SaleEvent::Stocked
        | SaleEvent::Refused { .. }
        | SaleEvent::Opened
        | SaleEvent::Closed { .. }
        | SaleEvent::Claimed { .. }
        | SaleEvent::Returned { .. } => None,
    }
}
