//! Wire format of sale events.

use std::borrow::Cow;

use domain::ids::{CustomerId, OrderId, ProductId};
use domain::sale::{Event as SaleEvent, Schedule};
use domain::{Event, TimeMs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WireEvent;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaleScheduledV1<'a> {
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub opens_at: TimeMs,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub closes_at: TimeMs,
    /// Price of one unit.
    pub price_cents: u64,
    pub units: u32,
    pub limit_per_customer: u32,
}

/// Its units were taken out of the product's stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaleStockedV1 {}

/// The product could not provide the units, so the sale never opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaleRefusedV1<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaleOpenedV1 {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaleClosedV1<'a> {
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    /// Total number of units given back to the product.
    pub given_back: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaleClaimedV1<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    pub quantity: u32,
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    /// Amount for all units.
    pub amount_cents: u64,
    /// True if the customer had no other claim.
    pub is_first: bool,
    /// True if the order was placed before the claim; otherwise the claim causes it to be placed.
    pub is_ordered: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaleReturnedV1<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    #[serde(borrow)]
    pub customer: Cow<'a, str>,
    pub quantity: u32,
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    /// Total number of units given back to the product; absent while the sale is open and they can be claimed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_back: Option<u32>,
    /// True if the customer has no other claim.
    pub is_last: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaleCommittedV1<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    #[serde(borrow)]
    pub product: Cow<'a, str>,
    pub quantity: u32,
    /// Amount for all units.
    pub amount_cents: u64,
}

pub(super) fn newest(event: &SaleEvent) -> WireEvent<'_> {
    match event {
        SaleEvent::Scheduled(schedule) => WireEvent::SaleScheduledV1(schedule.into()),
        SaleEvent::Stocked => WireEvent::SaleStockedV1(SaleStockedV1 {}),
        SaleEvent::Refused { reason } => {
            WireEvent::SaleRefusedV1(SaleRefusedV1 { reason: reason.as_deref().map(Cow::Borrowed) })
        }
        SaleEvent::Opened => WireEvent::SaleOpenedV1(SaleOpenedV1 {}),
        SaleEvent::Closed { product, given_back } => {
            WireEvent::SaleClosedV1(SaleClosedV1 { product: Cow::Borrowed(&product.0), given_back: *given_back })
        }
        SaleEvent::Claimed { order, customer, quantity, product, amount_cents, is_first, is_ordered } => {
            WireEvent::SaleClaimedV1(SaleClaimedV1 {
                order: Cow::Borrowed(&order.0),
                customer: Cow::Borrowed(&customer.0),
                quantity: *quantity,
                product: Cow::Borrowed(&product.0),
                amount_cents: *amount_cents,
                is_first: *is_first,
                is_ordered: *is_ordered,
            })
        }
        SaleEvent::Returned { order, customer, quantity, product, given_back, is_last } => {
            WireEvent::SaleReturnedV1(SaleReturnedV1 {
                order: Cow::Borrowed(&order.0),
                customer: Cow::Borrowed(&customer.0),
                quantity: *quantity,
                product: Cow::Borrowed(&product.0),
                given_back: *given_back,
                is_last: *is_last,
            })
        }
        SaleEvent::Committed { order, product, quantity, amount_cents } => {
            WireEvent::SaleCommittedV1(SaleCommittedV1 {
                order: Cow::Borrowed(&order.0),
                product: Cow::Borrowed(&product.0),
                quantity: *quantity,
                amount_cents: *amount_cents,
            })
        }
    }
}

impl<'a> From<&'a Schedule> for SaleScheduledV1<'a> {
    fn from(schedule: &'a Schedule) -> Self {
        Self {
            product: Cow::Borrowed(&schedule.product.0),
            opens_at: schedule.opens_at,
            closes_at: schedule.closes_at,
            price_cents: schedule.price_cents,
            units: schedule.units,
            limit_per_customer: schedule.limit_per_customer,
        }
    }
}

impl From<&SaleScheduledV1<'_>> for Event {
    fn from(event: &SaleScheduledV1<'_>) -> Self {
        Self::Sale(SaleEvent::Scheduled(Schedule {
            product: product(&event.product),
            opens_at: event.opens_at,
            closes_at: event.closes_at,
            price_cents: event.price_cents,
            units: event.units,
            limit_per_customer: event.limit_per_customer,
        }))
    }
}

impl From<&SaleStockedV1> for Event {
    fn from(SaleStockedV1 {}: &SaleStockedV1) -> Self {
        Self::Sale(SaleEvent::Stocked)
    }
}

impl From<&SaleRefusedV1<'_>> for Event {
    fn from(event: &SaleRefusedV1<'_>) -> Self {
        Self::Sale(SaleEvent::Refused { reason: event.reason.as_deref().map(Box::from) })
    }
}

impl From<&SaleOpenedV1> for Event {
    fn from(SaleOpenedV1 {}: &SaleOpenedV1) -> Self {
        Self::Sale(SaleEvent::Opened)
    }
}

impl From<&SaleClosedV1<'_>> for Event {
    fn from(event: &SaleClosedV1<'_>) -> Self {
        Self::Sale(SaleEvent::Closed { product: product(&event.product), given_back: event.given_back })
    }
}

impl From<&SaleClaimedV1<'_>> for Event {
    fn from(event: &SaleClaimedV1<'_>) -> Self {
        Self::Sale(SaleEvent::Claimed {
            order: order(&event.order),
            customer: customer(&event.customer),
            quantity: event.quantity,
            product: product(&event.product),
            amount_cents: event.amount_cents,
            is_first: event.is_first,
            is_ordered: event.is_ordered,
        })
    }
}

impl From<&SaleReturnedV1<'_>> for Event {
    fn from(event: &SaleReturnedV1<'_>) -> Self {
        Self::Sale(SaleEvent::Returned {
            order: order(&event.order),
            customer: customer(&event.customer),
            quantity: event.quantity,
            product: product(&event.product),
            given_back: event.given_back,
            is_last: event.is_last,
        })
    }
}

impl From<&SaleCommittedV1<'_>> for Event {
    fn from(event: &SaleCommittedV1<'_>) -> Self {
        Self::Sale(SaleEvent::Committed {
            order: order(&event.order),
            product: product(&event.product),
            quantity: event.quantity,
            amount_cents: event.amount_cents,
        })
    }
}

fn order(id: &str) -> OrderId {
    OrderId(id.into())
}

fn customer(id: &str) -> CustomerId {
    CustomerId(id.into())
}

fn product(id: &str) -> ProductId {
    ProductId(id.into())
}
