//! Wire format of order events.

use std::borrow::Cow;

use domain::ids::{CustomerId, PaymentId, ProductId, SaleId};
use domain::order::{Ending, Event as OrderEvent, Held, Line, Parcel, Payment, Placement};
use domain::{Event, TimeMs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WireEvent;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderPlacedV1<'a> {
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    #[serde(borrow)]
    pub lines: Vec<LineV1<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sale: Option<Cow<'a, str>>,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub ordered_at: TimeMs,
}

/// It counts in totals over many orders but triggers no reactions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderRecordedV1<'a> {
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    /// Lines with the amounts that were paid.
    #[serde(borrow)]
    pub lines: Vec<LineV1<'a>>,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub ordered_at: TimeMs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LineV1<'a> {
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    pub quantity: u32,
    pub amount_cents: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderLineConfirmedV1<'a> {
    #[serde(borrow)]
    pub product: Cow<'a, str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderConfirmedV1 {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderLineRejectedV1<'a> {
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
}

/// The event repeats the amounts that the placement added to totals over many orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderRejectedV1<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    pub units: u64,
    pub amount_cents: u64,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub ordered_at: TimeMs,
}

/// The event includes the units held for the order, and its sale, if any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderEndedV2<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    pub units: u64,
    pub amount_cents: u64,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub ordered_at: TimeMs,
    #[serde(borrow)]
    pub held: Vec<HeldV1<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sale: Option<Cow<'a, str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldV1<'a> {
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    pub quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderPaidV1<'a> {
    #[serde(borrow)]
    pub payment: Cow<'a, str>,
    pub amount_cents: u64,
    #[serde(borrow)]
    pub held: Vec<HeldV1<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sale: Option<Cow<'a, str>>,
}

/// Version 2 adds the amount paid for each line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderPaidV2<'a> {
    #[serde(borrow)]
    pub payment: Cow<'a, str>,
    pub amount_cents: u64,
    #[serde(borrow)]
    pub lines: Vec<LineV1<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sale: Option<Cow<'a, str>>,
}

/// The carrier and the tracking number are optional.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParcelV1<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Cow<'a, str>>,
}

/// The event repeats the amounts that the placement added to totals over many orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderCancelledV1<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    pub units: u64,
    pub amount_cents: u64,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
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
        OrderEvent::Recorded(placement) => WireEvent::OrderRecordedV1(OrderRecordedV1 {
            customer: Cow::Borrowed(&placement.customer.0),
            lines: placement.lines.iter().map(LineV1::from).collect(),
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
        OrderEvent::Rejected(ending) => WireEvent::OrderRejectedV2(ending.into()),
        OrderEvent::Paid(Payment { payment, amount_cents, lines, sale }) => WireEvent::OrderPaidV2(OrderPaidV2 {
            payment: Cow::Borrowed(&payment.0),
            amount_cents: *amount_cents,
            lines: lines.iter().map(LineV1::from).collect(),
            sale: sale.as_ref().map(|sale| Cow::Borrowed(&*sale.0)),
        }),
        OrderEvent::Shipped(parcel) => WireEvent::OrderShippedV1(parcel.into()),
        OrderEvent::Delivered(parcel) => WireEvent::OrderDeliveredV1(parcel.into()),
        OrderEvent::Cancelled(ending) => WireEvent::OrderCancelledV2(ending.into()),
        OrderEvent::Expired(ending) => WireEvent::OrderExpiredV1(ending.into()),
    }
}

impl<'a> From<&'a Ending> for OrderEndedV2<'a> {
    fn from(ending: &'a Ending) -> Self {
        Self {
            reason: ending.reason.as_deref().map(Cow::Borrowed),
            customer: Cow::Borrowed(&ending.customer.0),
            units: ending.units,
            amount_cents: ending.amount_cents,
            ordered_at: ending.ordered_at,
            held: ending.held.iter().map(HeldV1::from).collect(),
            sale: ending.sale.as_ref().map(|sale| Cow::Borrowed(&*sale.0)),
        }
    }
}

impl From<&OrderEndedV2<'_>> for Ending {
    fn from(event: &OrderEndedV2<'_>) -> Self {
        Self {
            reason: event.reason.as_deref().map(Box::from),
            customer: CustomerId(event.customer.as_ref().into()),
            units: event.units,
            amount_cents: event.amount_cents,
            ordered_at: event.ordered_at,
            held: event.held.iter().map(Held::from).collect(),
            sale: event.sale.as_deref().map(sale),
        }
    }
}

impl<'a> From<&'a Held> for HeldV1<'a> {
    fn from(held: &'a Held) -> Self {
        Self { product: Cow::Borrowed(&held.product.0), quantity: held.quantity }
    }
}

impl From<&HeldV1<'_>> for Held {
    fn from(held: &HeldV1<'_>) -> Self {
        Self { product: product(&held.product), quantity: held.quantity }
    }
}

impl<'a> From<&'a Parcel> for ParcelV1<'a> {
    fn from(parcel: &'a Parcel) -> Self {
        Self {
            carrier: parcel.carrier.as_deref().map(Cow::Borrowed),
            tracking: parcel.tracking.as_deref().map(Cow::Borrowed),
        }
    }
}

impl From<&ParcelV1<'_>> for Parcel {
    fn from(parcel: &ParcelV1<'_>) -> Self {
        Self { carrier: parcel.carrier.as_deref().map(Box::from), tracking: parcel.tracking.as_deref().map(Box::from) }
    }
}

impl From<&OrderPaidV1<'_>> for Event {
    fn from(event: &OrderPaidV1<'_>) -> Self {
        Self::Order(OrderEvent::Paid(Payment {
            payment: PaymentId(event.payment.as_ref().into()),
            amount_cents: event.amount_cents,
            lines: paid_lines(event),
            sale: event.sale.as_deref().map(sale),
        }))
    }
}

/// Returns the lines of a version 1 payment, which lacks the amount of each line: the first line gets the whole amount,
/// so that the sum is correct.
fn paid_lines(event: &OrderPaidV1<'_>) -> Vec<Line> {
    let amounts = std::iter::once(event.amount_cents).chain(std::iter::repeat(0));
    let line = |(held, amount_cents): (&HeldV1<'_>, u64)| Line {
        product: product(&held.product),
        quantity: held.quantity,
        amount_cents,
    };
    event.held.iter().zip(amounts).map(line).collect()
}

impl From<&OrderPaidV2<'_>> for Event {
    fn from(event: &OrderPaidV2<'_>) -> Self {
        Self::Order(OrderEvent::Paid(Payment {
            payment: PaymentId(event.payment.as_ref().into()),
            amount_cents: event.amount_cents,
            lines: event.lines.iter().map(Line::from).collect(),
            sale: event.sale.as_deref().map(sale),
        }))
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
            sale: event.sale.as_deref().map(sale),
            ordered_at: event.ordered_at,
        }))
    }
}

impl From<&OrderRecordedV1<'_>> for Event {
    fn from(event: &OrderRecordedV1<'_>) -> Self {
        Self::Order(OrderEvent::Recorded(Placement {
            customer: CustomerId(event.customer.as_ref().into()),
            lines: event.lines.iter().map(Line::from).collect(),
            sale: None,
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
            // Version 1 was written before units were reserved for orders automatically.
            held: vec![],
            sale: None,
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
            // Version 1 was written before units were reserved for orders automatically.
            held: vec![],
            sale: None,
        }))
    }
}

fn sale(id: &str) -> SaleId {
    SaleId(id.into())
}

fn product(id: &str) -> ProductId {
    ProductId(id.into())
}
