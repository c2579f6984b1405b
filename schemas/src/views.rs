//! The views: what each shows, and what a reader may ask of it.
//!
//! The query tier serves every view of this list without code of its own.

use domain::{AggregateType, TimeMs};
use serde::{Deserialize, Serialize};

use crate::aggregate::check_id;

/// A view as its readers know it.
#[derive(Debug, PartialEq, Eq)]
pub struct View {
    pub name: &'static str,
    /// The SQL view that has its rows.
    pub relation: &'static str,
    pub source: Source,
    pub natural: Natural,
    pub key: Key,
    pub fields: &'static [Field],
    /// Query parameters that bound the key, both inclusive.
    pub key_range: Option<(&'static str, &'static str)>,
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
}

impl Key {
    /// What is wrong with a key, for a client.
    pub fn check(self, key: &str) -> Result<(), String> {
        match self {
            Self::Id => check_id(key).map_err(|error| error.to_string()),
            Self::Day if key.len() == 10 && key.parse::<jiff::civil::Date>().is_ok() => Ok(()),
            Self::Day => Err("a day is written YYYY-MM-DD".to_owned()),
        }
    }
}

/// What feeds a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// One aggregate, whose id is the key and whose version is the row's.
    Aggregate(AggregateType),
    /// Many aggregates, in all partitions.
    Sum,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    pub name: &'static str,
    /// As in JSON Schema, with the format where there is one: `string date-time`.
    pub kind: &'static str,
}

const fn field(name: &'static str, kind: &'static str) -> Field {
    Field { name, kind }
}

pub const PRODUCT: View = View {
    name: "product",
    relation: "view_product",
    source: Source::Aggregate(AggregateType::Product),
    natural: Natural::Row("products"),
    key: Key::Id,
    fields: &[
        field("name", "string"),
        field("price_cents", "integer"),
        field("stock", "integer"),
        field("available", "integer"),
        field("reserved", "integer"),
        field("sold", "integer"),
        field("discontinued", "boolean"),
    ],
    key_range: None,
};

pub const ORDER: View = View {
    name: "order",
    relation: "view_order",
    source: Source::Aggregate(AggregateType::Order),
    natural: Natural::Row("orders"),
    key: Key::Id,
    fields: &[
        field("customer", "string"),
        field("lines", "array"),
        field("status", "string"),
        field("total_cents", "integer"),
        field("ordered_at", "string date-time"),
        field("reason", "string"),
    ],
    key_range: None,
};

pub const CUSTOMER: View = View {
    name: "customer",
    relation: "view_customer",
    source: Source::Sum,
    natural: Natural::Row("customers"),
    key: Key::Id,
    fields: &[
        field("orders", "integer"),
        field("units", "integer"),
        field("amount_cents", "integer"),
        field("first_order_at", "string date-time"),
        field("last_order_at", "string date-time"),
    ],
    key_range: None,
};

pub const REVENUE: View = View {
    name: "revenue",
    relation: "view_revenue",
    source: Source::Sum,
    natural: Natural::List("revenue"),
    key: Key::Day,
    fields: &[field("orders", "integer"), field("units", "integer"), field("amount_cents", "integer")],
    key_range: Some(("from", "to")),
};

pub const VIEWS: [&View; 4] = [&PRODUCT, &ORDER, &CUSTOMER, &REVENUE];

/// The journal has checkpoints like a view, and rows of another kind.
pub const JOURNAL: &str = "journal";

/// All that have checkpoints and applied positions: the views in the order of [`VIEWS`], then the journal.
pub const FEEDS: [&str; 5] = [PRODUCT.name, ORDER.name, CUSTOMER.name, REVENUE.name, JOURNAL];

/// A row of `product`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductRow {
    pub name: String,
    pub price_cents: u64,
    /// Units on hand: available and reserved.
    pub stock: u64,
    pub available: u64,
    pub reserved: u64,
    pub sold: u64,
    pub discontinued: bool,
}

/// A row of `order`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderRow {
    pub customer: String,
    pub lines: Vec<OrderLine>,
    pub status: OrderStatus,
    pub total_cents: u64,
    #[serde(with = "crate::time::rfc3339")]
    pub ordered_at: TimeMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderLine {
    pub product: String,
    pub quantity: u32,
    pub amount_cents: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderStatus {
    #[serde(rename = "placed")]
    Placed,
    #[serde(rename = "confirmed")]
    Confirmed,
    #[serde(rename = "rejected")]
    Rejected,
    #[serde(rename = "cancelled")]
    Cancelled,
}

/// The bytes that are served for a row.
pub fn row_body(key: &str, version: u64, data: &str) -> String {
    // Keys are ids or days, which need no escapes.
    ["{\"key\":\"", key, "\",\"version\":", &version.to_string(), ",\"data\":", data, "}"].concat()
}

/// A CloudEvent of the journal, in JSON: <https://github.com/cloudevents/spec>.
#[derive(Debug, Clone, Serialize)]
pub struct CloudEvent<'a> {
    pub specversion: &'static str,
    /// `{partition}-{offset}-{version}`.
    pub id: String,
    /// The log.
    pub source: &'a str,
    pub r#type: &'a str,
    /// `type/id` of the aggregate.
    pub subject: &'a str,
    pub time: String,
    pub datacontenttype: &'static str,
    /// The aggregate's version after the event. This and the following are extensions of ours.
    pub version: u64,
    /// The idempotency key of the command, which with the subject is the command's name.
    pub commandid: &'a str,
    /// The event that the command reacted to, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<&'a str>,
    pub data: &'a serde_json::value::RawValue,
}
