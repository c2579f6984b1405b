//! Wire format of product events.

use std::borrow::Cow;

use domain::ids::{OrderId, SaleId};
use domain::product::{Event as ProductEvent, Holder, Registration};
use domain::{Event, TimeMs};
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

/// Version 2 adds the holder of the reservation, and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductReservedV2<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    pub quantity: u32,
    /// Holder: `order` if made by the order's reaction and ended only by its reactions, `client` if made by a client.
    pub by: HeldBy,
    /// End of the reservation, from which on the units are available again.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::time::rfc3339::option")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub until: Option<TimeMs>,
    /// Time of the next check for lapsed reservations, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::time::rfc3339::option")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub alarm_at: Option<TimeMs>,
}

/// Version 2 adds the holder of the reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductReleasedV2<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    pub quantity: u32,
    /// Holder, as in the reservation.
    pub by: HeldBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HeldBy {
    #[serde(rename = "order")]
    Order,
    #[serde(rename = "client")]
    Client,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductHoldsLapsedV1 {
    /// All reservations of clients that ended by this time have lapsed.
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub until: TimeMs,
    /// Total number of units in these reservations.
    pub quantity: u64,
    /// Time of the next check for lapsed reservations; absent if no remaining reservation has an end.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::time::rfc3339::option")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub alarm_at: Option<TimeMs>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductCommittedV1<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    pub quantity: u32,
}

/// Version 2 adds the amount that the order pays for all units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductCommittedV2<'a> {
    #[serde(borrow)]
    pub order: Cow<'a, str>,
    pub quantity: u32,
    pub amount_cents: u64,
}

/// They are taken out of the stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductAllottedV1<'a> {
    #[serde(borrow)]
    pub sale: Cow<'a, str>,
    pub units: u32,
}

/// They are put back into the stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductTakenBackV1<'a> {
    #[serde(borrow)]
    pub sale: Cow<'a, str>,
    pub units: u32,
    /// Total number of units that the sale has given back.
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
        ProductEvent::Reserved { order, quantity, by, until, alarm_at } => {
            WireEvent::ProductReservedV2(ProductReservedV2 {
                order: Cow::Borrowed(&order.0),
                quantity: *quantity,
                by: (*by).into(),
                until: *until,
                alarm_at: *alarm_at,
            })
        }
        ProductEvent::Released { order, quantity, by } => WireEvent::ProductReleasedV2(ProductReleasedV2 {
            order: Cow::Borrowed(&order.0),
            quantity: *quantity,
            by: (*by).into(),
        }),
        ProductEvent::HoldsLapsed { until, quantity, alarm_at } => {
            let (until, quantity, alarm_at) = (*until, *quantity, *alarm_at);
            WireEvent::ProductHoldsLapsedV1(ProductHoldsLapsedV1 { until, quantity, alarm_at })
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
        // Version 1 lacks the holder. It is taken to be the order, so that only the order can end the reservation.
        let (order, quantity, by) = (order(&event.order), event.quantity, Holder::Order);
        Self::Product(ProductEvent::Reserved { order, quantity, by, until: None, alarm_at: None })
    }
}

impl From<&ProductReleasedV1<'_>> for Event {
    fn from(event: &ProductReleasedV1<'_>) -> Self {
        let (order, quantity, by) = (order(&event.order), event.quantity, Holder::Order);
        Self::Product(ProductEvent::Released { order, quantity, by })
    }
}

impl From<&ProductReservedV2<'_>> for Event {
    fn from(event: &ProductReservedV2<'_>) -> Self {
        let (order, quantity, by) = (order(&event.order), event.quantity, event.by.into());
        let (until, alarm_at) = (event.until, event.alarm_at);
        Self::Product(ProductEvent::Reserved { order, quantity, by, until, alarm_at })
    }
}

impl From<&ProductReleasedV2<'_>> for Event {
    fn from(event: &ProductReleasedV2<'_>) -> Self {
        let (order, quantity, by) = (order(&event.order), event.quantity, event.by.into());
        Self::Product(ProductEvent::Released { order, quantity, by })
    }
}

impl From<&ProductHoldsLapsedV1> for Event {
    fn from(event: &ProductHoldsLapsedV1) -> Self {
        let (until, quantity, alarm_at) = (event.until, event.quantity, event.alarm_at);
        Self::Product(ProductEvent::HoldsLapsed { until, quantity, alarm_at })
    }
}

impl From<&ProductCommittedV1<'_>> for Event {
    fn from(event: &ProductCommittedV1<'_>) -> Self {
        let (order, quantity) = (order(&event.order), event.quantity);
        // Version 1 lacks the amount.
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

impl From<Holder> for HeldBy {
    fn from(holder: Holder) -> Self {
        match holder {
            Holder::Order => Self::Order,
            Holder::Client => Self::Client,
        }
    }
}

impl From<HeldBy> for Holder {
    fn from(by: HeldBy) -> Self {
        match by {
            HeldBy::Order => Self::Order,
            HeldBy::Client => Self::Client,
        }
    }
}

fn order(id: &str) -> OrderId {
    OrderId(id.into())
}
