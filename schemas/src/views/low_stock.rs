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
    columns: &[],
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
        // The last that was migrated to holds.
        let mut tests = MIGRATIONS.iter().flat_map(|(_, sql)| sql.lines()).map(str::trim);
        let last = tests.rfind(|line| line.contains("WHEN") && line.contains("available"));
        let wanted = format!("CASE WHEN available <= {FEW_UNITS} AND NOT discontinued THEN available END");
        assert_eq!(last, Some(&*wanted));
        assert!(VIEW.about.contains(&format!(" {FEW_UNITS} units or fewer ")));
    }
}
