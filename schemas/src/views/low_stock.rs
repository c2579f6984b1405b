//! `low_stock`: products on sale of which only a few units are available.

use super::{Key, Kind, List, Natural, Source, View, field};

/// The most units that are few. It is written out where it cannot be named: in the table's SQL and in what readers are
/// told.
pub const FEW_UNITS: u32 = 20;

pub const VIEW: View = View {
    name: "low_stock",
    about: "A product that is not discontinued, and of which 20 units or fewer are available.",
    relation: "view_low_stock",
    source: Source::View("product"),
    natural: Natural::List("low-stock"),
    is_personal: false,
    key: Key::Id,
    fields: &[field("product", Kind::Id), field("available", Kind::Integer)],
    key_range: None,
    table: "low_stock_rows",
    form: 1,
    lists: &[List { order: "available", descending: false, filters: &[] }],
    nested: &[],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::MIGRATIONS;

    #[test]
    fn the_sql_and_the_readers_have_the_same_number() {
        let tests = MIGRATIONS.iter().flat_map(|(_, sql)| sql.lines()).filter(|line| line.contains("'available'"));
        let tests: Vec<_> = tests.filter(|line| line.contains("WHEN")).map(str::trim).collect();
        let wanted =
            format!("WHEN (data ->> 'available')::bigint <= {FEW_UNITS} AND NOT (data ->> 'discontinued')::boolean");
        assert_eq!(tests, [wanted]);
        assert!(VIEW.about.contains(&format!(" {FEW_UNITS} units or fewer ")));
    }
}
