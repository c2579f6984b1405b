//! The views: what each shows, and what a reader may ask of it.
//!
//! The query tier serves every view of this list without code of its own.
//!
//! The folds, from events to rows, are the modules below, pure. A view fed by one aggregate folds its row from row and
//! event. A view fed by many turns events into deltas, which are added up, so that no row need be read.
//!
//! Invariant: every [`List`] has an index, so that a page costs what its rows cost, however many rows there are.

pub mod product;
pub mod order;
pub mod sale;
pub mod sums;
pub mod customer;
pub mod revenue;
pub mod revenue_by_minute;
pub mod best_sellers;
pub mod low_stock;

use std::str::FromStr;

use domain::{AggregateType, Event, TimeMs};
use jiff::civil::{Date, DateTime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::aggregate::check_id;
use crate::time::parse_rfc3339;
use order::OrderRow;
use product::ProductRow;
use sale::SaleRow;
use sums::Delta;

/// A view as its readers know it.
#[derive(Debug)]
pub struct View {
    pub name: &'static str,
    /// What it shows, for its readers.
    pub about: &'static str,
    /// The SQL view that has its rows.
    pub relation: &'static str,
    pub source: Source,
    pub natural: Natural,
    /// Set where a row names a customer or an order: no cache keeps it. A sale's row and the sums over many are
    /// everybody's.
    pub is_personal: bool,
    pub key: Key,
    pub fields: &'static [Field],
    /// Query parameters that bound the key, both inclusive.
    pub key_range: Option<(&'static str, &'static str)>,
    /// The table that has the lists' indexes, and every field that they name as a column of that name.
    pub table: &'static str,
    /// Fields that are written as columns, too. Others that lists name, the table makes of the row's JSON, which costs
    /// Postgres about as much each as a tenth of the whole write.
    pub columns: &'static [&'static str],
    /// The form of its fold: another one where the same events make other rows. Rows of another form are not folded
    /// further, but rebuilt.
    pub form: i32,
    /// The first of those with the filters that a reader gave is the one meant where no order is named.
    pub lists: &'static [List],
    pub nested: &'static [Nested],
}

/// An order in which rows can be walked, forwards or backwards; those of equal value by their keys.
///
/// It has an index of its own: the filters, then the order, then the key. A filter without an index would make a page
/// as slow as the rows that it leaves out are many.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct List {
    /// `key`, or a field.
    pub order: &'static str,
    /// Where the reader names no order.
    pub descending: bool,
    /// Fields of which the reader gives the values; with other filters it is another list.
    pub filters: &'static [&'static str],
}

/// A list under a row of another view: `customers/{id}/orders`.
#[derive(Debug, PartialEq, Eq)]
pub struct Nested {
    /// As in [`Natural::Row`].
    pub owner: &'static str,
    pub name: &'static str,
    /// The filter that the owner's id is the value of.
    pub filter: &'static str,
    /// Where the reader names none, as a reader would write it.
    pub order: &'static str,
}

/// The path under `/v1/` by which a view goes besides `views/{name}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Natural {
    /// Each row has a path: `products/{id}`.
    Row(&'static str),
    /// The list has one: `revenue`.
    List(&'static str),
}

/// What the keys of a view are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// As its client named it.
    Id,
    /// `YYYY-MM-DD` in UTC.
    Day,
    /// `YYYY-MM-DDTHH:MM` in UTC.
    Minute,
}

impl Key {
    /// What is wrong with a key, for a client.
    pub fn check(self, key: &str) -> Result<(), String> {
        match self {
            Self::Id => check_id(key).map_err(|error| error.to_string()),
            Self::Day if is_written::<Date>(key, "%Y-%m-%d") => Ok(()),
            Self::Day => Err("a day is written YYYY-MM-DD".to_owned()),
            Self::Minute if is_written::<DateTime>(key, "%Y-%m-%dT%H:%M") => Ok(()),
            Self::Minute => Err("a minute is written YYYY-MM-DDTHH:MM".to_owned()),
        }
    }
}

/// Whether it is a time in just this form: keys compare as text, so that another form would name another row.
fn is_written<T: FromStr + Into<DateTime>>(key: &str, form: &str) -> bool {
    key.parse::<T>().is_ok_and(|time| time.into().strftime(form).to_string() == key)
}

/// What feeds a row.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// One aggregate, whose id is the key and whose version is the row's.
    Aggregate(RowFold),
    /// Many aggregates, in all partitions.
    Sum(SumFold),
    /// A row of the view of this name, shown otherwise. Redis has none of it.
    View(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub struct RowFold {
    pub aggregate: AggregateType,
    /// What an aggregate's next event, of a time, makes of its row. A first event that begins nothing makes none.
    pub fold: fn(Option<AggregateRow>, &Event, TimeMs) -> Option<AggregateRow>,
    /// From its JSON.
    pub read: fn(&str) -> Result<AggregateRow, serde_json::Error>,
}

#[derive(Debug, Clone, Copy)]
pub struct SumFold {
    /// The key of the row that an event of the aggregate with this id concerns, and what it adds.
    pub delta: fn(&str, &Event) -> Option<(String, Delta)>,
    /// The row as JSON: of its key and of all that was added.
    pub row: fn(&str, &Delta) -> String,
    pub table: SumTable,
}

/// What the table of a summed view is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SumTable {
    /// A row by key and partition, so that each has one writer.
    Parts,
    /// The same, with the first and the last time.
    DatedParts,
    /// A row by key, which several may add to: an index has the sums.
    Totals,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
}

const fn field(name: &'static str, kind: Kind) -> Field {
    Field { name, kind }
}

/// What the values of a field are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Id,
    Text,
    OneOf(&'static [&'static str]),
    /// Of 64 bits.
    Integer,
    /// An integer of any size: what many aggregates add up to.
    Sum,
    Boolean,
    /// As RFC 3339 in the row. Its column leaves out the `Z`, so that times compare as text does.
    Time,
    Array,
}

impl Kind {
    /// As in JSON Schema, with the format where there is one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Id | Self::Text | Self::OneOf(_) => "string",
            Self::Integer | Self::Sum => "integer",
            Self::Boolean => "boolean",
            Self::Time => "string date-time",
            Self::Array => "array",
        }
    }

    /// Of the field's column.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Id | Self::Text | Self::OneOf(_) | Self::Time => "text",
            Self::Integer => "bigint",
            Self::Sum => "numeric",
            Self::Boolean => "boolean",
            Self::Array => "json",
        }
    }

    /// What is wrong with a value of the field's column, for a client.
    pub fn check(self, value: &str) -> Result<(), String> {
        match self {
            Self::Id => check_id(value).map_err(|error| error.to_string()),
            Self::OneOf(values) if values.contains(&value) => Ok(()),
            Self::OneOf(values) => Err(format!("it is one of {}", values.join(", "))),
            Self::Text if value.contains('\0') => Err("text has no U+0000".to_owned()),
            Self::Text => Ok(()),
            Self::Integer => value.parse::<i64>().map(drop).map_err(|_| "it is an integer".to_owned()),
            Self::Sum => value.parse::<i128>().map(drop).map_err(|_| "it is an integer".to_owned()),
            Self::Boolean if matches!(value, "true" | "false") => Ok(()),
            Self::Boolean => Err("it is true or false".to_owned()),
            Self::Time => parse_rfc3339(&format!("{value}Z")).map(drop),
            Self::Array => Err("arrays do not compare".to_owned()),
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl View {
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

const fn list(order: &'static str, filters: &'static [&'static str]) -> List {
    List { order, descending: false, filters }
}

/// Not a field: what every row has.
pub const KEY_ORDER: &str = "key";

/// All views; those without rows of their own come last. Their ids are in [`crate::feeds`].
pub const VIEWS: [&View; 8] = [
    &product::VIEW,
    &order::VIEW,
    &customer::VIEW,
    &revenue::VIEW,
    &revenue_by_minute::VIEW,
    &sale::VIEW,
    &best_sellers::VIEW,
    &low_stock::VIEW,
];

/// The journal has checkpoints like a view, and rows of another kind.
pub const JOURNAL: &str = "journal";

/// How the row that an aggregate alone feeds comes of its events.
pub fn row_fold(aggregate: AggregateType) -> (&'static View, RowFold) {
    let of = |view: &&'static View| match view.source {
        Source::Aggregate(fold) if fold.aggregate == aggregate => Some((*view, fold)),
        Source::Aggregate(_) | Source::Sum(_) | Source::View(_) => None,
    };
    VIEWS.iter().find_map(of).expect("the tests look that each aggregate has one")
}

/// The most events that one request for a row of long ago may have folded.
pub const MAX_EVENTS_FOLDED: i64 = 10_000;

/// A row of a view that one aggregate alone feeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AggregateRow {
    Product(ProductRow),
    Order(OrderRow),
    Sale(SaleRow),
}

/// The bytes that are served for a row.
pub fn row_body(key: &str, version: u64, data: &str) -> String {
    // Keys are ids or days, which need no escapes.
    ["{\"key\":\"", key, "\",\"version\":", &version.to_string(), ",\"data\":", data, "}"].concat()
}

/// Returns the row's own JSON of the bytes that are served for it, see [`row_body`].
///
/// # Errors
/// If they are not what is served for a row.
pub fn row_data(body: &[u8]) -> Result<&str, serde_json::Error> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        data: &'a RawValue,
    }
    serde_json::from_slice::<Body<'_>>(body).map(|body| body.data.get())
}

/// A CloudEvent of the journal, in JSON: <https://github.com/cloudevents/spec>.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct CloudEvent<'a> {
    #[schemars(extend("const" = "1.0"))]
    pub specversion: &'static str,
    /// `{partition}-{offset}-{version}`.
    pub id: String,
    /// The log.
    pub source: &'a str,
    pub r#type: &'a str,
    /// `type/id` of the aggregate.
    pub subject: &'a str,
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    pub datacontenttype: &'static str,
    /// Where the JSON Schema of `data` is served.
    #[schemars(extend("format" = "uri"))]
    pub dataschema: String,
    /// The aggregate's version after the event. This and the following are extensions of ours.
    pub version: u64,
    /// The idempotency key of the command, which with the subject is the command's name.
    pub commandid: &'a str,
    /// The event that the command reacted to, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<&'a str>,
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub data: &'a RawValue,
}

#[cfg(test)]
mod tests {
    use super::order::OrderStatus;
    use super::sale::SaleStatus;
    use super::*;
    use crate::aggregate::TYPES;

    #[test]
    fn a_list_names_fields_of_its_view_and_no_two_are_the_same() {
        for view in VIEWS {
            for (index, list) in view.lists.iter().enumerate() {
                let known = |name: &&str| *name == KEY_ORDER || view.field(name).is_some();
                assert!(list.filters.iter().chain([&list.order]).all(known), "{}: {list:?}", view.name);
                assert!(!view.lists[..index].contains(list), "{}: {list:?}", view.name);
            }
            for Nested { filter, order, .. } in view.nested {
                let order = order.trim_start_matches('-');
                let serves = |list: &List| list.order == order && list.filters == [*filter];
                assert!(view.lists.iter().any(serves), "{}", view.name);
            }
        }
    }

    #[test]
    fn a_view_that_names_a_customer_or_an_order_is_personal() {
        for view in VIEWS {
            let is_a_persons = |name: &str| ["customer", "order"].contains(&name);
            let names = is_a_persons(view.name) || view.fields.iter().any(|field| is_a_persons(field.name));
            assert_eq!(view.is_personal, names, "{}", view.name);
        }
    }

    #[test]
    fn the_catalogue_names_every_status() {
        let all = [
            OrderStatus::Placed,
            OrderStatus::Recorded,
            OrderStatus::Confirmed,
            OrderStatus::Rejected,
            OrderStatus::Cancelled,
            OrderStatus::Paid,
            OrderStatus::Shipped,
            OrderStatus::Delivered,
            OrderStatus::Expired,
        ];
        let names = all.map(|status| serde_json::to_value(status).unwrap());
        let field = order::VIEW.field("status").unwrap();
        assert!(matches!(field.kind, Kind::OneOf(values) if names.iter().eq(values.iter())));
        let all =
            [SaleStatus::Scheduled, SaleStatus::Stocked, SaleStatus::Open, SaleStatus::Closed, SaleStatus::Refused];
        let names = all.map(|status| serde_json::to_value(status).unwrap());
        let field = sale::VIEW.field("status").unwrap();
        assert!(matches!(field.kind, Kind::OneOf(values) if names.iter().eq(values.iter())));
    }

    #[test]
    fn each_aggregate_has_a_view_of_its_own() {
        for aggregate in TYPES {
            assert_eq!(row_fold(aggregate).1.aggregate, aggregate);
        }
    }

    #[test]
    fn a_key_is_written_in_one_form() {
        for (key, good, bad) in [
            (Key::Id, "a-1", &["", "a b"][..]),
            (Key::Day, "1997-01-31", &["1997-1-1", "1997-02-30", "19970101", "1997-W01-3", "1997-01-01T10:00"]),
            (
                Key::Minute,
                "1997-01-01T10:00",
                &["1997-01-01 10:00", "1997-01-01t10:00", "1997-01-01T24:00", "1997-01-01T10:0", "1997-01-01T10:00:00"],
            ),
        ] {
            assert_eq!(key.check(good), Ok(()), "{key:?}");
            for bad in bad {
                assert!(key.check(bad).is_err(), "{key:?}: {bad}");
            }
        }
    }

    #[test]
    fn a_value_that_is_none_of_its_kind_is_refused() {
        for (kind, good, bad) in [
            (Kind::Id, "a-1", "a b"),
            (Kind::Text, "a b", "\0"),
            (Kind::OneOf(&["x"]), "x", "y"),
            (Kind::Integer, "-7", "7.0"),
            (Kind::Integer, "9223372036854775807", "9223372036854775808"),
            (Kind::Sum, "9223372036854775808", "7.0"),
            (Kind::Boolean, "true", "1"),
            (Kind::Time, "1997-01-01T00:00:00.25", "1997-01-01"),
        ] {
            assert_eq!(kind.check(good), Ok(()), "{kind:?}");
            assert!(kind.check(bad).is_err(), "{kind:?}");
        }
    }
}
