//! Events of products on the wire.

use std::borrow::Cow;

use domain::Event;
use domain::ids::{OrderId, SaleId};
use domain::product::{Event as ProductEvent, Registration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WireEvent;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductRegisteredV1<'a> {
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    pub price_cents: u64,
    pub stock: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_per_order: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductRestockedV1 {
    pub quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductRepricedV1 {
    pub price_cents: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductReservedV1<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    pub quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductReleasedV1<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    pub quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductCommittedV1<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    pub quantity: u32,
}

/// The second form: also what the order pays for all units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductCommittedV2<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    pub quantity: u32,
    pub amount_cents: u64,
}

/// Out of the stock for a sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductAllottedV1<'a> {
    #[serde(borrow)]
    pub sale: Cow<'a, str>,
    pub units: u32,
}

/// Back into the stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductTakenBackV1<'a> {
    #[serde(borrow)]
    pub sale: Cow<'a, str>,
    pub units: u32,
    /// Of all that the sale gave back.
    pub total: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductDiscontinuedV1 {}

pub(super) fn newest(event: &ProductEvent) -> WireEvent<'_> {
    match event {
        ProductEvent::Registered(registration) => WireEvent::ProductRegisteredV1(ProductRegisteredV1 {
            name: Cow::Borrowed(&registration.name),
            price_cents: registration.price_cents,
            stock: registration.stock,
            limit_per_order: registration.limit_per_order,
        }),
        ProductEvent::Restocked { quantity } => {
            WireEvent::ProductRestockedV1(ProductRestockedV1 { quantity: *quantity })
        }
        ProductEvent::Repriced { price_cents } => {
            WireEvent::ProductRepricedV1(ProductRepricedV1 { price_cents: *price_cents })
        }
        ProductEvent::Reserved { order, quantity } => {
            WireEvent::ProductReservedV1(ProductReservedV1 { order: Cow::Borrowed(&order.0), quantity: *quantity })
        }
        ProductEvent::Released { order, quantity } => {
            WireEvent::ProductReleasedV1(ProductReleasedV1 { order: Cow::Borrowed(&order.0), quantity: *quantity })
        }
        ProductEvent::Committed { order, quantity, amount_cents } => {
            WireEvent::ProductCommittedV2(ProductCommittedV2 {
                order: Cow::Borrowed(&order.0),
                quantity: *quantity,
                amount_cents: *amount_cents,
            })
        }
        ProductEvent::Allotted { sale, units } => {
            WireEvent::ProductAllottedV1(ProductAllottedV1 { sale: Cow::Borrowed(&sale.0), units: *units })
        }
        ProductEvent::TakenBack { sale, units, total } => WireEvent::ProductTakenBackV1(ProductTakenBackV1 {
            sale: Cow::Borrowed(&sale.0),
            units: *units,
            total: *total,
        }),
        ProductEvent::Discontinued => WireEvent::ProductDiscontinuedV1(ProductDiscontinuedV1 {}),
    }
}

impl From<&ProductRegisteredV1<'_>> for Event {
    fn from(event: &ProductRegisteredV1<'_>) -> Self {
        Self::Product(ProductEvent::Registered(Registration {
            name: event.name.as_ref().into(),
            price_cents: event.price_cents,
            stock: event.stock,
            limit_per_order: event.limit_per_order,
        }))
    }
}

impl From<&ProductRestockedV1> for Event {
    fn from(event: &ProductRestockedV1) -> Self {
        Self::Product(ProductEvent::Restocked { quantity: event.quantity })
    }
}

impl From<&ProductRepricedV1> for Event {
    fn from(event: &ProductRepricedV1) -> Self {
        Self::Product(ProductEvent::Repriced { price_cents: event.price_cents })
    }
}

impl From<&ProductReservedV1<'_>> for Event {
    fn from(event: &ProductReservedV1<'_>) -> Self {
        Self::Product(ProductEvent::Reserved { order: order(&event.order), quantity: event.quantity })
    }
}

impl From<&ProductReleasedV1<'_>> for Event {
    fn from(event: &ProductReleasedV1<'_>) -> Self {
        Self::Product(ProductEvent::Released { order: order(&event.order), quantity: event.quantity })
    }
}

impl From<&ProductCommittedV1<'_>> for Event {
    fn from(event: &ProductCommittedV1<'_>) -> Self {
        let (order, quantity) = (order(&event.order), event.quantity);
        // It did not tell.
        Self::Product(ProductEvent::Committed { order, quantity, amount_cents: 0 })
    }
}

impl From<&ProductCommittedV2<'_>> for Event {
    fn from(event: &ProductCommittedV2<'_>) -> Self {
        let (order, quantity) = (order(&event.order), event.quantity);
        Self::Product(ProductEvent::Committed { order, quantity, amount_cents: event.amount_cents })
    }
}

impl From<&ProductAllottedV1<'_>> for Event {
    fn from(event: &ProductAllottedV1<'_>) -> Self {
        Self::Product(ProductEvent::Allotted { sale: SaleId(event.sale.as_ref().into()), units: event.units })
    }
}

impl From<&ProductTakenBackV1<'_>> for Event {
    fn from(event: &ProductTakenBackV1<'_>) -> Self {
        let sale = SaleId(event.sale.as_ref().into());
        Self::Product(ProductEvent::TakenBack { sale, units: event.units, total: event.total })
    }
}

impl From<&ProductDiscontinuedV1> for Event {
    fn from(ProductDiscontinuedV1 {}: &ProductDiscontinuedV1) -> Self {
        Self::Product(ProductEvent::Discontinued)
    }
}

fn order(id: &str) -> OrderId {
    OrderId(id.into())
}
