//! List queries: validation of their parameters, and the statement that answers them. Pure.
//!
//! Parameters, orders and columns come from the catalogue. Pagination is by keyset: the next page begins after the last
//! row of this one, by value and key, so that rows inserted or deleted elsewhere do not shift it.
//!
//! Invariant: a statement scans only the index of its list, and stops at its limit.

mod cursor;

use schemas::feeds::ViewId;
use schemas::views::{KEY_ORDER, List, View};

pub(crate) use cursor::Position;

/// A validated request for a page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListQuery {
    pub(crate) view: ViewId,
    list: &'static List,
    descending: bool,
    /// Filter values, in the order of the list's filters.
    filters: Vec<String>,
    from: Option<String>,
    to: Option<String>,
    after: Option<Position>,
    pub(crate) limit: i64,
}

impl ListQuery {
    /// Parses the parameters. `take` removes and returns a parameter's value; `order` is the default order. An error is
    /// worded for the client.
    pub(crate) fn parse(
        view: ViewId,
        limit: i64,
        order: Option<&str>,
        mut take: impl FnMut(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let declared = view.view();
        let mut given = Vec::new();
        for field in declared.fields.iter().filter(|field| is_filter(declared, field.name)) {
            if let Some(value) = take(field.name) {
                field.kind.check(&value).map_err(|error| format!("{}: {error}", field.name))?;
                given.push((field.name, value));
            }
        }
        let (list, descending) = chosen(declared, take("order").as_deref().or(order), &given)?;
        let filter = |name: &&str| given.iter().find(|(given, _)| given == name).map(|(_, value)| value.clone());
        let mut query = Self {
            view,
            list,
            descending,
            filters: list.filters.iter().filter_map(filter).collect(),
            from: None,
            to: None,
            after: None,
            limit,
        };
        if let Some((from, to)) = declared.key_range {
            for (name, bound) in [(from, &mut query.from), (to, &mut query.to)] {
                *bound = take(name);
                let checked = bound.as_deref().map_or(Ok(()), |key| declared.key.check(key));
                checked.map_err(|error| format!("{name}: {error}"))?;
            }
        }
        // Some clients send the bare name for the first page.
        if let Some(text) = take("after").filter(|text| !text.is_empty()) {
            query.after = Some(query.position(&text).map_err(|error| format!("after: {error}"))?);
        }
        Ok(query)
    }

    /// Returns the cursor with which a client requests the rows after `last`.
    pub(crate) fn cursor(&self, last: &Position) -> String {
        cursor::write(&self.name(), last)
    }

    fn position(&self, text: &str) -> Result<Position, String> {
        let position = cursor::read(&self.name(), text)?;
        let view = self.view.view();
        view.key.check(&position.key)?;
        view.field(self.list.order).map_or(Ok(()), |field| field.kind.check(&position.value))?;
        Ok(position)
    }

    /// Identifies this list, with its order, filters and range, independently of the page.
    fn name(&self) -> String {
        let mut name = format!("{}?order={}{}", self.view.name(), minus(self.descending), self.list.order);
        let filters = self.list.filters.iter().zip(&self.filters);
        let bounds = [("from", &self.from), ("to", &self.to)];
        let bounds = bounds.iter().filter_map(|(name, bound)| Some((name, bound.as_ref()?)));
        for (field, value) in filters.chain(bounds) {
            name.extend(["&", field, "=", value]);
        }
        name
    }

    /// Returns the statement and the values of `$3` and up; `$1` is the view's name, `$2` the limit.
    pub(crate) fn statement(&self) -> (String, Vec<&String>) {
        let mut values = Vec::new();
        let mut conditions = Vec::new();
        let mut place = |value| {
            values.push(value);
            format!("${}::text", values.len() + 2)
        };
        for (filter, value) in self.list.filters.iter().zip(&self.filters) {
            conditions.push(format!("{filter} = {}::{}", place(value), sql_of(self.view, filter)));
        }
        for (bound, than) in [(&self.from, ">="), (&self.to, "<=")] {
            conditions.extend(bound.as_ref().map(|bound| format!("key {than} {}", place(bound))));
        }
        let (behind, direction) = if self.descending { ("<", " DESC") } else { (">", "") };
        let order = self.list.order;
        if let Some(Position { value, key }) = &self.after {
            conditions.push(match order {
                KEY_ORDER => format!("key {behind} {}", place(key)),
                _ => {
                    format!("({order}, key) {behind} ({}::{}, {})", place(value), sql_of(self.view, order), place(key))
                }
            });
        }
        let View { table, relation, .. } = self.view.view();
        let columns = if order == KEY_ORDER { vec![KEY_ORDER] } else { vec![order, KEY_ORDER] };
        let and = if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
        let directed: Vec<_> = columns.iter().map(|column| format!("{column}{direction}")).collect();
        let sql = include_str!("lists/page.sql")
            .replace("{order}", order)
            .replace("{columns}", &columns.join(", "))
            .replace("{table}", table)
            .replace("{conditions}", &and)
            .replace("{direction}", &directed.join(", "))
            .replace("{relation}", relation);
        (sql, values)
    }
}

/// Returns the name and statement of every possible list, for first and later pages, both directions and every range,
/// so that their plans can be inspected. All parameters are text except the second, which is a bigint.
pub fn statements() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for view in ViewId::all() {
        let declared = view.view();
        for list in declared.lists {
            for choice in 0..16 {
                let bound = |bit: u8| (choice & bit != 0).then(String::new);
                if declared.key_range.is_none() && choice & 12 != 0 {
                    continue;
                }
                let query = ListQuery {
                    view,
                    list,
                    descending: choice & 1 != 0,
                    filters: list.filters.iter().map(|_| String::new()).collect(),
                    from: bound(4),
                    to: bound(8),
                    after: bound(2).map(|value| Position { key: value.clone(), value }),
                    limit: 1,
                };
                all.push((query.name(), query.statement().0));
            }
        }
    }
    all
}

/// Finds the list with this order and these filters, and its direction.
fn chosen(view: &View, order: Option<&str>, given: &[(&str, String)]) -> Result<(&'static List, bool), String> {
    let descending = order.map(|order| order.starts_with('-'));
    let order = order.map(|order| order.strip_prefix('-').unwrap_or(order));
    let fits =
        |list: &&List| list.filters.len() == given.len() && given.iter().all(|(name, _)| list.filters.contains(name));
    let lists = view.lists;
    if let Some(list) = lists.iter().find(|list| fits(list) && order.is_none_or(|order| list.order == order)) {
        return Ok((list, descending.unwrap_or(list.descending)));
    }
    let given: Vec<_> = given.iter().map(|(name, _)| *name).collect();
    let with = if given.is_empty() { String::new() } else { format!(" with the filter {}", given.join(" and ")) };
    let known: Vec<_> = lists.iter().filter(fits).map(|list| list.order).collect();
    Err(match order {
        Some(order) if !known.is_empty() => {
            let known = known.join(", ");
            format!("unknown order {order:?}{with}; the orders are {known}, each reversed by a leading -")
        }
        _ => format!("there is no list{with}; /v1/views shows the available lists"),
    })
}

fn is_filter(view: &View, field: &str) -> bool {
    view.lists.iter().any(|list| list.filters.contains(&field))
}

/// Returns the parameters by which a view's rows can be filtered.
pub(crate) fn filters(view: &View) -> impl Iterator<Item = &'static str> {
    view.fields.iter().map(|field| field.name).filter(|name| is_filter(view, name))
}

fn minus(descending: bool) -> &'static str {
    if descending { "-" } else { "" }
}

fn sql_of(view: ViewId, field: &str) -> &'static str {
    view.view().field(field).map_or("text", |field| field.kind.sql())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCT: &str = "product";
    const ORDER: &str = "order";
    const REVENUE: &str = "revenue";
    const REVENUE_BY_MINUTE: &str = "revenue_by_minute";

    fn parse(view: &str, query: &str) -> Result<ListQuery, String> {
        let pairs: Vec<_> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let value = |name: &str| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned());
        ListQuery::parse(ViewId::named(view).unwrap(), 10, None, value)
    }

    #[test]
    fn the_filters_choose_a_list_and_its_first_order() {
        let order = |query| parse(ORDER, query).map(|query| (query.list.order, query.descending));
        assert_eq!(order(""), Ok(("key", false)));
        assert_eq!(order("order=-key"), Ok(("key", true)));
        assert_eq!(order("customer=ann"), Ok(("ordered_at", false)));
        assert_eq!(order("status=placed&order=-ordered_at"), Ok(("ordered_at", true)));
    }

    #[test]
    fn a_parameter_that_no_index_serves_is_refused_by_name() {
        for (view, query, named) in [
            (PRODUCT, "order=colour", "\"colour\""),
            (PRODUCT, "order=", "\"\""),
            (PRODUCT, "order=--key", "\"-key\""),
            (PRODUCT, "discontinued=yes", "discontinued"),
            (ORDER, "status=lost", "status"),
            (ORDER, "customer=a b", "customer"),
            (ORDER, "customer=ann&order=key", "\"key\" with the filter customer"),
            (ORDER, "customer=ann&status=placed", "customer and status"),
            (REVENUE, "from=1997-1-1", "from"),
            (REVENUE_BY_MINUTE, "from=1997-01-01 10:00", "from"),
            (REVENUE_BY_MINUTE, "to=1997-01-01t10:00", "to"),
            (REVENUE, "after=1997-01-01", "after"),
        ] {
            let error = parse(view, query).unwrap_err();
            assert!(error.contains(named), "{query}: {error}");
        }
    }

    #[test]
    fn a_cursor_is_valid_for_its_own_list_only() {
        let last = Position { value: "1997-01-01T12:00:00".to_owned(), key: "o-1".to_owned() };
        let after = |query: &str| parse(ORDER, query).unwrap().cursor(&last);
        let own = after("customer=ann");
        assert_eq!(parse(ORDER, &format!("customer=ann&after={own}")).unwrap().after, Some(last.clone()));
        for other in ["", "customer=bob&", "customer=ann&order=-ordered_at&", "order=ordered_at&"] {
            assert!(parse(ORDER, &format!("{other}after={own}")).is_err(), "{other}");
        }
        assert!(parse(PRODUCT, &format!("after={own}")).is_err());
        let range = parse(REVENUE, "from=1997-01-01").unwrap();
        let cursor = range.cursor(&Position { value: "1997-01-02".to_owned(), key: "1997-01-02".to_owned() });
        assert!(parse(REVENUE, &format!("after={cursor}")).is_err());
    }

    #[test]
    fn a_cursor_with_values_that_the_list_cannot_hold_is_refused() {
        let list = parse(PRODUCT, "order=price_cents").unwrap();
        for (value, key) in [("x", "a"), ("7", "a b"), ("7", "")] {
            let cursor = list.cursor(&Position { value: value.to_owned(), key: key.to_owned() });
            assert!(parse(PRODUCT, &format!("order=price_cents&after={cursor}")).is_err(), "{value} {key}");
        }
    }

    #[test]
    fn a_statement_has_a_placeholder_for_each_of_its_values() {
        let query = parse(ORDER, "customer=ann&order=-ordered_at").unwrap();
        let last = Position { value: "1997-01-01T12:00:00".to_owned(), key: "o-1".to_owned() };
        let query = ListQuery { after: Some(last), ..query };
        let (sql, values) = query.statement();
        assert_eq!(values, ["ann", "1997-01-01T12:00:00", "o-1"]);
        let walked = "WHERE customer = $3::text::text AND (ordered_at, key) < ($4::text::text, $5::text) \
                      ORDER BY ordered_at DESC, key DESC LIMIT $2";
        assert!(sql.contains(walked), "{sql}");
        assert!(!sql.contains('{'), "{sql}");
    }
}
