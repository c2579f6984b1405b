//! Catalogue of the views: the content of each, and the queries that it supports.
//!
//! The query tier serves every view in this list without view-specific code.
//!
//! The modules below contain the pure functions that fold events into rows. A view fed by one aggregate folds each
//! event into the previous row. A view fed by many aggregates turns events into deltas to add up, so that no row has to
//! be read.
//!
//! Invariant: every [`List`] has an index, so the cost of a page depends only on its own rows.

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
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::aggregate::check_id;
use crate::time::parse_rfc3339;
use order::OrderRow;
use product::ProductRow;
use sale::SaleRow;
use sums::Delta;

/// Definition of a view, from its API to its tables.
#[derive(Debug)]
pub struct View {
    pub name: &'static str,
    /// API documentation of the view.
    pub about: &'static str,
    /// SQL view that returns the rows.
    pub relation: &'static str,
    pub source: Source,
    pub natural: Natural,
    /// Set if a row names a customer or an order, so that shared caches must not store it. Rows of sales and sums over
    /// many aggregates are public.
    pub is_personal: bool,
    pub key: Key,
    pub fields: &'static [Field],
    /// Query parameters for the lower and the upper bound of the key, both inclusive.
    pub key_range: Option<(&'static str, &'static str)>,
    /// Table with the indexes of the lists, and a column for every field that they use.
    pub table: &'static str,
    /// Fields that the projector also writes as columns. For other fields used by lists, the table generates columns
    /// from the row's JSON, each of which costs Postgres about a tenth of the whole write.
    pub columns: &'static [&'static str],
    /// Version of the fold, which changes whenever the same events lead to different rows. Rows of another form are not
    /// folded further but rebuilt.
    pub form: i32,
    /// Supported lists. If a request names no order, the first list with the given filters is used.
    pub lists: &'static [List],
    pub nested: &'static [Nested],
}

/// An order in which rows can be listed, forwards or backwards, with ties broken by key.
///
/// Each list has its own index over the filters, the order and the key. Without it, the cost of a page would grow with
/// the number of rows that the filter excludes.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct List {
    /// `key` or the name of a field.
    pub order: &'static str,
    /// Direction that applies if the request names no order.
    pub descending: bool,
    /// Fields whose values the request must give; a different set of filters is a different list.
    pub filters: &'static [&'static str],
}

/// A list below a row of another view, such as `customers/{id}/orders`.
#[derive(Debug, PartialEq, Eq)]
pub struct Nested {
    /// Path of the owning view, as in [`Natural::Row`].
    pub owner: &'static str,
    pub name: &'static str,
    /// Filter that takes the owner's ID.
    pub filter: &'static str,
    /// Default order, in the syntax of a request.
    pub order: &'static str,
}

/// Path of a view under `/v1/`, in addition to `views/{name}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Natural {
    /// Path of each row, e.g. `products` in `products/{id}`.
    Row(&'static str),
    /// Path of the list, e.g. `revenue`.
    List(&'static str),
}

/// Type of the keys of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// ID assigned by a client.
    Id,
    /// `YYYY-MM-DD` in UTC.
    Day,
    /// `YYYY-MM-DDTHH:MM` in UTC.
    Minute,
}

impl Key {
    /// Checks a key.
    ///
    /// # Errors
    /// A message for the client that explains why the key is invalid.
    pub fn check(self, key: &str) -> Result<(), String> {
        match self {
            Self::Id => check_id(key).map_err(|error| error.to_string()),
            Self::Day if is_written::<Date>(key, "%Y-%m-%d") => Ok(()),
            Self::Day => Err("a day has the form YYYY-MM-DD".to_owned()),
            Self::Minute if is_written::<DateTime>(key, "%Y-%m-%dT%H:%M") => Ok(()),
            Self::Minute => Err("a minute has the form YYYY-MM-DDTHH:MM".to_owned()),
        }
    }
}

/// Returns whether `key` is a time in exactly this form. Keys compare as text, so another form would name another row.
fn is_written<T: FromStr + Into<DateTime>>(key: &str, form: &str) -> bool {
    key.parse::<T>().is_ok_and(|time| time.into().strftime(form).to_string() == key)
}

/// Source of a view's rows.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// One aggregate per row, whose ID is the key and whose version is that of the row.
    Aggregate(RowFold),
    /// Many aggregates, in all partitions.
    Sum(SumFold),
    /// Rows of the view of this name in another presentation, which are not cached in Redis.
    View(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub struct RowFold {
    pub aggregate: AggregateType,
    /// Folds the next event of an aggregate, with its time, into its row. A first event that creates nothing yields no
    /// row.
    pub fold: fn(Option<AggregateRow>, &Event, TimeMs) -> Option<AggregateRow>,
    /// Parses a row from its JSON.
    pub read: fn(&str) -> Result<AggregateRow, serde_json::Error>,
    /// Schema of a row.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

#[derive(Debug, Clone, Copy)]
pub struct SumFold {
    /// Returns the key of the row that an event of the aggregate with this ID affects, and the delta to add to it.
    pub delta: fn(&str, &Event) -> Option<(String, Delta)>,
    /// Returns the row as JSON, from its key and the sum of its deltas.
    pub row: fn(&str, &Delta) -> String,
    pub table: SumTable,
}

/// Layout of the table of a summed view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SumTable {
    /// One row per key and partition, so that each has a single writer.
    Parts,
    /// Like [`Self::Parts`], with the first and the last time.
    DatedParts,
    /// One row per key, to which several writers may add, so that the sums can be indexed.
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

/// Type of the values of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Id,
    Text,
    OneOf(&'static [&'static str]),
    /// Integer of 64 bits.
    Integer,
    /// Integer of any size, summed up over many aggregates.
    Sum,
    Boolean,
    /// Time, in RFC 3339 in the row. Its column omits the `Z`, so that times sort correctly as text.
    Time,
    Array,
}

impl Kind {
    /// Returns the type's name in JSON Schema, followed by the format, if any.
    pub fn name(self) -> &'static str {
        match self {
            Self::Id | Self::Text | Self::OneOf(_) => "string",
            Self::Integer | Self::Sum => "integer",
            Self::Boolean => "boolean",
            Self::Time => "string date-time",
            Self::Array => "array",
        }
    }

    /// Returns the SQL type of the field's column.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Id | Self::Text | Self::OneOf(_) | Self::Time => "text",
            Self::Integer => "bigint",
            Self::Sum => "numeric",
            Self::Boolean => "boolean",
            Self::Array => "json",
        }
    }

    /// Checks a value of the field's column.
    ///
    /// # Errors
    /// A message for the client that explains why the value is invalid.
    pub fn check(self, value: &str) -> Result<(), String> {
        match self {
            Self::Id => check_id(value).map_err(|error| error.to_string()),
            Self::OneOf(values) if values.contains(&value) => Ok(()),
            Self::OneOf(values) => Err(format!("must be one of {}", values.join(", "))),
            Self::Text if value.contains('\0') => Err("text must not contain U+0000".to_owned()),
            Self::Text => Ok(()),
            Self::Integer => value.parse::<i64>().map(drop).map_err(|_| "must be an integer".to_owned()),
            Self::Sum => value.parse::<i128>().map(drop).map_err(|_| "must be an integer".to_owned()),
            Self::Boolean if matches!(value, "true" | "false") => Ok(()),
            Self::Boolean => Err("must be true or false".to_owned()),
            Self::Time => parse_rfc3339(&format!("{value}Z")).map(drop),
            Self::Array => Err("arrays cannot be compared".to_owned()),
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

/// Order by row key. Every view has keys, although `key` is not a field.
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

/// Name of the journal, which has checkpoints like a view but rows of another kind.
pub const JOURNAL: &str = "journal";

/// Returns the view whose rows are fed by one aggregate of this type, and its fold.
pub fn row_fold(aggregate: AggregateType) -> (&'static View, RowFold) {
    let of = |view: &&'static View| match view.source {
        Source::Aggregate(fold) if fold.aggregate == aggregate => Some((*view, fold)),
        Source::Aggregate(_) | Source::Sum(_) | Source::View(_) => None,
    };
    VIEWS.iter().find_map(of).expect("a test checks that each aggregate has a view")
}

/// Maximum number of events that a request for a past state of a row may fold.
pub const MAX_EVENTS_FOLDED: i64 = 10_000;

/// A row of a view fed by one aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AggregateRow {
    Product(ProductRow),
    Order(OrderRow),
    Sale(SaleRow),
}

/// Returns the response body for a row.
pub fn row_body(key: &str, version: u64, data: &str) -> String {
    // Keys are IDs, days or minutes, which need no escaping.
    ["{\"key\":\"", key, "\",\"version\":", &version.to_string(), ",\"data\":", data, "}"].concat()
}

/// Returns the row's own JSON from its response body, see [`row_body`].
///
/// # Errors
/// If `body` is not the response body for a row.
pub fn row_data(body: &[u8]) -> Result<&str, serde_json::Error> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        data: &'a RawValue,
    }
    serde_json::from_slice::<Body<'_>>(body).map(|body| body.data.get())
}

/// An event of the journal as a CloudEvent in JSON: <https://github.com/cloudevents/spec>.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct CloudEvent<'a> {
    #[schemars(extend("const" = "1.0"))]
    pub specversion: &'static str,
    /// `{partition}-{offset}-{version}`.
    pub id: String,
    /// The log that the event was written to.
    pub source: String,
    pub r#type: &'a str,
    /// `type/id` of the aggregate.
    pub subject: &'a str,
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    pub datacontenttype: &'static str,
    /// URL of the JSON Schema of `data`.
    #[schemars(extend("format" = "uri"))]
    pub dataschema: String,
    /// Version of the aggregate after the event. This attribute and the following ones are extensions.
    pub version: u64,
    /// Idempotency key of the command, which together with the subject identifies it.
    pub commandid: &'a str,
    /// `id` of the event that caused the command, if it was a reaction. If the `source` of that event is another one, it
    /// comes first: `k7x2.3-1042-7` is the event `3-1042-7` of `/logs/k7x2`.
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
    fn a_value_of_another_kind_is_refused() {
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
