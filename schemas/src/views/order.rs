//! `order`: lines and status of an order.

use domain::order::{Ending, Event, Line, Placement};
use domain::{AggregateType, Event as AnyEvent, TimeMs};
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{AggregateRow, KEY_ORDER, Key, Kind, Natural, Nested, RowFold, Source, View, field, list};

pub const VIEW: View = View {
    name: "order",
    about: "Lines and status of an order.",
    relation: "view_order",
    source: Source::Aggregate(RowFold {
        aggregate: AggregateType::Order,
        fold: |row, event, _| match (row, event) {
            (Some(AggregateRow::Order(row)), AnyEvent::Order(event)) => fold(Some(row), event).map(AggregateRow::Order),
            (None, AnyEvent::Order(event)) => fold(None, event).map(AggregateRow::Order),
            // Events of another aggregate type do not occur.
            (row, _) => row,
        },
        read: |json| serde_json::from_str(json).map(AggregateRow::Order),
        schema: SchemaGenerator::subschema_for::<OrderRow>,
    }),
    natural: Natural::Row("orders"),
    is_personal: true,
    key: Key::Id,
    fields: &[
        field("customer", Kind::Id),
        field("lines", Kind::Array),
        field(
            "status",
            Kind::OneOf(&[
                "placed",
                "recorded",
                "confirmed",
                "rejected",
                "cancelled",
                "paid",
                "shipped",
                "delivered",
                "expired",
            ]),
        ),
        field("total_cents", Kind::Integer),
        field("ordered_at", Kind::Time),
        field("reason", Kind::Text),
    ],
    key_range: None,
    table: "order_rows",
    columns: &["customer", "status", "ordered_at"],
    form: 1,
    lists: &[
        list(KEY_ORDER, &[]),
        list("ordered_at", &[]),
        list("ordered_at", &["customer"]),
        list("ordered_at", &["status"]),
    ],
    nested: &[Nested { owner: "customers", name: "orders", filter: "customer", order: "-ordered_at" }],
};

/// A row of `order`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderRow {
    pub customer: String,
    pub lines: Vec<OrderLine>,
    pub status: OrderStatus,
    pub total_cents: u64,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub ordered_at: TimeMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderLine {
    pub product: String,
    pub quantity: u32,
    pub amount_cents: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OrderStatus {
    #[serde(rename = "placed")]
    Placed,
    /// The order was fulfilled outside of this system.
    #[serde(rename = "recorded")]
    Recorded,
    #[serde(rename = "confirmed")]
    Confirmed,
    #[serde(rename = "rejected")]
    Rejected,
    #[serde(rename = "cancelled")]
    Cancelled,
    #[serde(rename = "paid")]
    Paid,
    #[serde(rename = "shipped")]
    Shipped,
    #[serde(rename = "delivered")]
    Delivered,
    #[serde(rename = "expired")]
    Expired,
}

/// Folds an event into a row. A first event other than a placement yields no row.
pub fn fold(row: Option<OrderRow>, event: &Event) -> Option<OrderRow> {
    match (row, event) {
        (None, Event::Placed(placement)) => Some(first(placement, OrderStatus::Placed)),
        (None, Event::Recorded(placement)) => Some(first(placement, OrderStatus::Recorded)),
        (Some(row), Event::Confirmed) => Some(OrderRow { status: OrderStatus::Confirmed, ..row }),
        (Some(row), Event::Rejected(ending)) => Some(ended(row, OrderStatus::Rejected, ending)),
        (Some(row), Event::Cancelled(ending)) => Some(ended(row, OrderStatus::Cancelled, ending)),
        (Some(row), Event::Expired(ending)) => Some(ended(row, OrderStatus::Expired, ending)),
        (Some(row), Event::Paid(_)) => Some(OrderRow { status: OrderStatus::Paid, ..row }),
        (Some(row), Event::Shipped(_)) => Some(OrderRow { status: OrderStatus::Shipped, ..row }),
        (Some(row), Event::Delivered(_)) => Some(OrderRow { status: OrderStatus::Delivered, ..row }),
        (row @ Some(_), Event::Placed(_) | Event::Recorded(_)) => row,
        (row @ Some(_), Event::LineConfirmed { .. } | Event::LineRejected { .. }) => row,
        (
            None,
            Event::LineConfirmed { .. }
            | Event::Confirmed
            | Event::LineRejected { .. }
            | Event::Rejected(_)
            | Event::Paid(_)
            | Event::Shipped(_)
            | Event::Delivered(_)
            | Event::Cancelled(_)
            | Event::Expired(_),
        ) => None,
    }
}

fn first(placement: &Placement, status: OrderStatus) -> OrderRow {
    let line = |line: &Line| OrderLine {
        product: line.product.0.to_string(),
        quantity: line.quantity,
        amount_cents: line.amount_cents,
    };
    OrderRow {
        customer: placement.customer.0.to_string(),
        total_cents: placement.lines.iter().map(|line| line.amount_cents).sum(),
        lines: placement.lines.iter().map(line).collect(),
        status,
        ordered_at: placement.ordered_at,
        reason: None,
    }
}

fn ended(row: OrderRow, status: OrderStatus, ending: &Ending) -> OrderRow {
    OrderRow { status, reason: ending.reason.as_deref().map(str::to_owned), ..row }
}
