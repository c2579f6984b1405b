//! `low_stock`: products on sale of which only a few units are available.

use super::{Key, Kind, List, Natural, Source, View, field};

pub const VIEW: View = View {
    name: "low_stock",
    relation: "view_low_stock",
    source: Source::View("product"),
    natural: Natural::List("low-stock"),
    key: Key::Id,
    fields: &[field("product", Kind::Id), field("available", Kind::Integer)],
    key_range: None,
    table: "low_stock_rows",
    form: 1,
    lists: &[List { order: "available", descending: false, filters: &[] }],
    nested: &[],
};
