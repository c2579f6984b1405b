//! The views: what each shows, and what a reader may ask of it.
//!
//! The query tier serves every view of this list without code of its own.

use std::borrow::Cow;

use domain::{AggregateType, TimeMs};
use serde::{Deserialize, Serialize};

/// A view as its readers know it.
#[derive(Debug, PartialEq, Eq)]
pub struct View {
    pub name: &'static str,
    /// The SQL view that has its rows.
    pub relation: &'static str,
    pub source: Source,
    pub key: &'static str,
    pub fields: &'static [Field],
    /// Query parameters that bound the key, both inclusive.
    pub key_range: Option<(&'static str, &'static str)>,
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
    key: "the product's id",
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
    key: "the order's id",
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
    key: "the customer's id",
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
    key: "the day of ordered_at in UTC, YYYY-MM-DD",
    fields: &[field("orders", "integer"), field("units", "integer"), field("amount_cents", "integer")],
    key_range: Some(("from", "to")),
};

pub const VIEWS: [&View; 4] = [&PRODUCT, &ORDER, &CUSTOMER, &REVENUE];

/// The journal has checkpoints like a view, and rows of another kind.
pub const JOURNAL: &str = "journal";

pub fn view_named(name: &str) -> Option<&'static View> {
    VIEWS.into_iter().find(|view| view.name == name)
}

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

/// A CloudEvent of the journal, in JSON.
#[derive(Debug, Clone, Serialize)]
pub struct CloudEvent<'a> {
    pub specversion: &'static str,
    /// The event's place in the log: `partition-offset-index`.
    pub id: String,
    pub source: Cow<'a, str>,
    pub r#type: &'a str,
    /// `type/id` of the aggregate.
    pub subject: &'a str,
    pub time: String,
    pub datacontenttype: &'static str,
    /// The aggregate's version after the event.
    pub version: u64,
    pub data: &'a serde_json::value::RawValue,
}
