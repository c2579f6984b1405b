//! Events of orders on the wire.

use std::borrow::Cow;

use domain::ids::{CustomerId, ProductId, SaleId};
use domain::order::{Ending, Event as OrderEvent, Line, Placement};
use domain::{Event, TimeMs};
use serde::{Deserialize, Serialize};

use super::WireEvent;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderPlacedV1<'a> {
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    #[serde(borrow)]
    pub lines: Vec<LineV1<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sale: Option<Cow<'a, str>>,
    #[serde(with = "crate::time::rfc3339")]
    pub ordered_at: TimeMs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineV1<'a> {
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    pub quantity: u32,
    pub amount_cents: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderLineConfirmedV1<'a> {
    #[serde(borrow)]
    pub product: Cow<'a, str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderConfirmedV1 {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderLineRejectedV1<'a> {
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
}

/// With what the order's placement had added to sums over many orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderRejectedV1<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    pub units: u64,
    pub amount_cents: u64,
    #[serde(with = "crate::time::rfc3339")]
    pub ordered_at: TimeMs,
}

/// With what the order's placement had added to sums over many orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderCancelledV1<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    pub units: u64,
    pub amount_cents: u64,
    #[serde(with = "crate::time::rfc3339")]
    pub ordered_at: TimeMs,
}

pub(super) fn newest(event: &OrderEvent) -> WireEvent<'_> {
    match event {
        OrderEvent::Placed(placement) => WireEvent::OrderPlacedV1(OrderPlacedV1 {
            customer: Cow::Borrowed(&placement.customer.0),
            lines: placement.lines.iter().map(LineV1::from).collect(),
            sale: placement.sale.as_ref().map(|sale| Cow::Borrowed(&*sale.0)),
            ordered_at: placement.ordered_at,
        }),
        OrderEvent::LineConfirmed { product } => {
            WireEvent::OrderLineConfirmedV1(OrderLineConfirmedV1 { product: Cow::Borrowed(&product.0) })
        }
        OrderEvent::Confirmed => WireEvent::OrderConfirmedV1(OrderConfirmedV1 {}),
        OrderEvent::LineRejected { product, reason } => WireEvent::OrderLineRejectedV1(OrderLineRejectedV1 {
            product: Cow::Borrowed(&product.0),
            reason: reason.as_deref().map(Cow::Borrowed),
        }),
        OrderEvent::Rejected(ending) => WireEvent::OrderRejectedV1(OrderRejectedV1 {
            reason: ending.reason.as_deref().map(Cow::Borrowed),
            customer: Cow::Borrowed(&ending.customer.0),
            units: ending.units,
            amount_cents: ending.amount_cents,
            ordered_at: ending.ordered_at,
        }),
        OrderEvent::Cancelled(ending) => WireEvent::OrderCancelledV1(OrderCancelledV1 {
            reason: ending.reason.as_deref().map(Cow::Borrowed),
            customer: Cow::Borrowed(&ending.customer.0),
            units: ending.units,
            amount_cents: ending.amount_cents,
            ordered_at: ending.ordered_at,
        }),
    }
}

impl<'a> From<&'a Line> for LineV1<'a> {
    fn from(line: &'a Line) -> Self {
        Self { product: Cow::Borrowed(&line.product.0), quantity: line.quantity, amount_cents: line.amount_cents }
    }
}

impl From<&LineV1<'_>> for Line {
    fn from(line: &LineV1<'_>) -> Self {
        Self { product: product(&line.product), quantity: line.quantity, amount_cents: line.amount_cents }
    }
}

impl From<&OrderPlacedV1<'_>> for Event {
    fn from(event: &OrderPlacedV1<'_>) -> Self {
        Self::Order(OrderEvent::Placed(Placement {
            customer: CustomerId(event.customer.as_ref().into()),
            lines: event.lines.iter().map(Line::from).collect(),
            sale: event.sale.as_ref().map(|sale| SaleId(sale.as_ref().into())),
            ordered_at: event.ordered_at,
        }))
    }
}

impl From<&OrderLineConfirmedV1<'_>> for Event {
    fn from(event: &OrderLineConfirmedV1<'_>) -> Self {
        Self::Order(OrderEvent::LineConfirmed { product: product(&event.product) })
    }
}

impl From<&OrderConfirmedV1> for Event {
    fn from(OrderConfirmedV1 {}: &OrderConfirmedV1) -> Self {
        Self::Order(OrderEvent::Confirmed)
    }
}

impl From<&OrderLineRejectedV1<'_>> for Event {
    fn from(event: &OrderLineRejectedV1<'_>) -> Self {
        let reason = event.reason.as_deref().map(Box::from);
        Self::Order(OrderEvent::LineRejected { product: product(&event.product), reason })
    }
}

impl From<&OrderRejectedV1<'_>> for Event {
    fn from(event: &OrderRejectedV1<'_>) -> Self {
        Self::Order(OrderEvent::Rejected(Ending {
            reason: event.reason.as_deref().map(Box::from),
            customer: CustomerId(event.customer.as_ref().into()),
            units: event.units,
            amount_cents: event.amount_cents,
            ordered_at: event.ordered_at,
        }))
    }
}

impl From<&OrderCancelledV1<'_>> for Event {
    fn from(event: &OrderCancelledV1<'_>) -> Self {
        Self::Order(OrderEvent::Cancelled(Ending {
            reason: event.reason.as_deref().map(Box::from),
            customer: CustomerId(event.customer.as_ref().into()),
            units: event.units,
            amount_cents: event.amount_cents,
            ordered_at: event.ordered_at,
        }))
    }
}

fn product(id: &str) -> ProductId {
    ProductId(id.into())
}
