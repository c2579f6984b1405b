//! `low_stock`: products on sale with few available units.

use super::{Key, Kind, List, Natural, Source, View, field};

/// Maximum number of available units of a product in this view. The SQL of the table and the view's documentation
/// cannot refer to the constant and repeat the number.
pub const FEW_UNITS: u32 = 20;

pub const VIEW: View = View {
    name: "low_stock",
    about: "A product that is not discontinued and has 20 units or fewer available.",
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
    fn the_sql_and_the_documentation_have_the_same_number() {
        // The last migration determines the definition.
        let mut tests = MIGRATIONS.iter().flat_map(|(_, sql)| sql.lines()).map(str::trim);
        let last = tests.rfind(|line| line.contains("WHEN") && line.contains("available"));
        let wanted = format!("CASE WHEN available <= {FEW_UNITS} AND NOT discontinued THEN available END");
        assert_eq!(last, Some(&*wanted));
        assert!(VIEW.about.contains(&format!(" {FEW_UNITS} units or fewer ")));
    }
}
