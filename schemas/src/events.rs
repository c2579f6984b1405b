//! Every version of every event as written to the log, and its conversion to the domain event.
//!
//! Invariant: a published version never changes and is only superseded; its golden file under `golden/` must decode
//! forever. A change requires a new variant here and a new arm in [`WireEvent::upcast`].
//!
//! Invariant: an event type that this build does not know is an error, never something to skip.

pub mod order;
pub mod product;
pub mod sale;

use domain::Event;
use domain::order::Event as OrderEvent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use order::{
    OrderCancelledV1, OrderConfirmedV1, OrderEndedV2, OrderLineConfirmedV1, OrderLineRejectedV1, OrderPaidV1,
    OrderPaidV2, OrderPlacedV1, OrderRecordedV1, OrderRejectedV1, ParcelV1,
};
use product::{
    ProductAllottedV1, ProductCommittedV1, ProductCommittedV2, ProductDiscontinuedV1, ProductHoldsLapsedV1,
    ProductRegisteredV1, ProductReleasedV1, ProductReleasedV2, ProductRepricedV1, ProductReservedV1, ProductReservedV2,
    ProductRestockedV1, ProductTakenBackV1,
};
use sale::{
    SaleClaimedV1, SaleClosedV1, SaleCommittedV1, SaleOpenedV1, SaleRefusedV1, SaleReturnedV1, SaleScheduledV1,
    SaleStockedV1,
};

/// Event in the log: `{"type": "product.reserved.v1", "data": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "data", deny_unknown_fields)]
pub enum WireEvent<'a> {
    /// A product was registered and is on sale.
    #[serde(rename = "product.registered.v1", borrow)]
    ProductRegisteredV1(ProductRegisteredV1<'a>),
    /// Units were added to a product's stock.
    #[serde(rename = "product.restocked.v1")]
    ProductRestockedV1(ProductRestockedV1),
    /// The price of a product changed.
    #[serde(rename = "product.repriced.v1")]
    ProductRepricedV1(ProductRepricedV1),
    /// Units of a product were reserved for an order.
    #[serde(rename = "product.reserved.v1", borrow)]
    ProductReservedV1(ProductReservedV1<'a>),
    /// Units reserved for an order were released.
    #[serde(rename = "product.released.v1", borrow)]
    ProductReleasedV1(ProductReleasedV1<'a>),
    /// Units reserved for an order were sold.
    #[serde(rename = "product.committed.v1", borrow)]
    ProductCommittedV1(ProductCommittedV1<'a>),
    /// A product was discontinued.
    #[serde(rename = "product.discontinued.v1")]
    ProductDiscontinuedV1(ProductDiscontinuedV1),
    /// A customer placed an order.
    #[serde(rename = "order.placed.v1", borrow)]
    OrderPlacedV1(OrderPlacedV1<'a>),
    /// The units of one line of an order were reserved.
    #[serde(rename = "order.line-confirmed.v1", borrow)]
    OrderLineConfirmedV1(OrderLineConfirmedV1<'a>),
    /// The units of all lines of an order were reserved.
    #[serde(rename = "order.confirmed.v1")]
    OrderConfirmedV1(OrderConfirmedV1),
    /// One line of an order cannot be fulfilled.
    #[serde(rename = "order.line-rejected.v1", borrow)]
    OrderLineRejectedV1(OrderLineRejectedV1<'a>),
    /// An order was rejected because one of its lines cannot be fulfilled.
    #[serde(rename = "order.rejected.v1", borrow)]
    OrderRejectedV1(OrderRejectedV1<'a>),
    /// An order was cancelled.
    #[serde(rename = "order.cancelled.v1", borrow)]
    OrderCancelledV1(OrderCancelledV1<'a>),
    /// An order was rejected because one of its lines cannot be fulfilled.
    #[serde(rename = "order.rejected.v2", borrow)]
    OrderRejectedV2(OrderEndedV2<'a>),
    /// An order was cancelled.
    #[serde(rename = "order.cancelled.v2", borrow)]
    OrderCancelledV2(OrderEndedV2<'a>),
    /// An order expired because it was not paid in time.
    #[serde(rename = "order.expired.v1", borrow)]
    OrderExpiredV1(OrderEndedV2<'a>),
    /// An order was paid.
    #[serde(rename = "order.paid.v1", borrow)]
    OrderPaidV1(OrderPaidV1<'a>),
    /// An order was shipped.
    #[serde(rename = "order.shipped.v1", borrow)]
    OrderShippedV1(ParcelV1<'a>),
    /// An order was delivered.
    #[serde(rename = "order.delivered.v1", borrow)]
    OrderDeliveredV1(ParcelV1<'a>),
    /// Units reserved for an order were sold.
    #[serde(rename = "product.committed.v2", borrow)]
    ProductCommittedV2(ProductCommittedV2<'a>),
    /// An order was paid.
    #[serde(rename = "order.paid.v2", borrow)]
    OrderPaidV2(OrderPaidV2<'a>),
    /// Units of a product were allotted to a sale.
    #[serde(rename = "product.allotted.v1", borrow)]
    ProductAllottedV1(ProductAllottedV1<'a>),
    /// A product took back units that a sale did not sell.
    #[serde(rename = "product.taken-back.v1", borrow)]
    ProductTakenBackV1(ProductTakenBackV1<'a>),
    /// Units of a product were reserved.
    #[serde(rename = "product.reserved.v2", borrow)]
    ProductReservedV2(ProductReservedV2<'a>),
    /// Reserved units were released.
    #[serde(rename = "product.released.v2", borrow)]
    ProductReleasedV2(ProductReleasedV2<'a>),
    /// Reservations of clients lapsed, and their units are available again.
    #[serde(rename = "product.holds-lapsed.v1")]
    ProductHoldsLapsedV1(ProductHoldsLapsedV1),
    /// A sale was scheduled.
    #[serde(rename = "sale.scheduled.v1", borrow)]
    SaleScheduledV1(SaleScheduledV1<'a>),
    /// A sale received its units.
    #[serde(rename = "sale.stocked.v1")]
    SaleStockedV1(SaleStockedV1),
    /// A sale was refused before it opened.
    #[serde(rename = "sale.refused.v1", borrow)]
    SaleRefusedV1(SaleRefusedV1<'a>),
    /// A sale opened.
    #[serde(rename = "sale.opened.v1")]
    SaleOpenedV1(SaleOpenedV1),
    /// A sale closed.
    #[serde(rename = "sale.closed.v1", borrow)]
    SaleClosedV1(SaleClosedV1<'a>),
    /// Units of a sale were claimed for an order.
    #[serde(rename = "sale.claimed.v1", borrow)]
    SaleClaimedV1(SaleClaimedV1<'a>),
    /// Units claimed for an order were returned.
    #[serde(rename = "sale.returned.v1", borrow)]
    SaleReturnedV1(SaleReturnedV1<'a>),
    /// Units claimed for an order were sold.
    #[serde(rename = "sale.committed.v1", borrow)]
    SaleCommittedV1(SaleCommittedV1<'a>),
    /// An order that was fulfilled outside of this system was recorded.
    #[serde(rename = "order.recorded.v1", borrow)]
    OrderRecordedV1(OrderRecordedV1<'a>),
}

/// Names of all events, as returned by [`WireEvent::name`].
pub const NAMES: [&str; 35] = [
    "product.registered.v1",
    "product.restocked.v1",
    "product.repriced.v1",
    "product.reserved.v1",
    "product.released.v1",
    "product.committed.v1",
    "product.discontinued.v1",
    "order.placed.v1",
    "order.line-confirmed.v1",
    "order.confirmed.v1",
    "order.line-rejected.v1",
    "order.rejected.v1",
    "order.cancelled.v1",
    "order.rejected.v2",
    "order.cancelled.v2",
    "order.expired.v1",
    "order.paid.v1",
    "order.shipped.v1",
    "order.delivered.v1",
    "product.committed.v2",
    "order.paid.v2",
    "product.allotted.v1",
    "product.taken-back.v1",
    "product.reserved.v2",
    "product.released.v2",
    "product.holds-lapsed.v1",
    "sale.scheduled.v1",
    "sale.stocked.v1",
    "sale.refused.v1",
    "sale.opened.v1",
    "sale.closed.v1",
    "sale.claimed.v1",
    "sale.returned.v1",
    "sale.committed.v1",
    "order.recorded.v1",
];

/// Returns the static copy of a name; `None` if this build does not know the event.
pub fn known_name(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|known| *known == name)
}

impl<'a> WireEvent<'a> {
    /// Returns the newest version of `event`, which is the one that this build writes.
    pub fn newest(event: &'a Event) -> Self {
        match event {
            Event::Product(event) => product::newest(event),
            Event::Order(event) => order::newest(event),
            Event::Sale(event) => sale::newest(event),
        }
    }

    /// Converts the event from the version in which it was written to the domain event.
    pub fn upcast(&self) -> Event {
        match self {
            Self::ProductRegisteredV1(event) => event.into(),
            Self::ProductRestockedV1(event) => event.into(),
            Self::ProductRepricedV1(event) => event.into(),
            Self::ProductReservedV1(event) => event.into(),
            Self::ProductReleasedV1(event) => event.into(),
            Self::ProductCommittedV1(event) => event.into(),
            Self::ProductDiscontinuedV1(event) => event.into(),
            Self::OrderPlacedV1(event) => event.into(),
            Self::OrderLineConfirmedV1(event) => event.into(),
            Self::OrderConfirmedV1(event) => event.into(),
            Self::OrderLineRejectedV1(event) => event.into(),
            Self::OrderRejectedV1(event) => event.into(),
            Self::OrderCancelledV1(event) => event.into(),
            Self::OrderRejectedV2(event) => Event::Order(OrderEvent::Rejected(event.into())),
            Self::OrderCancelledV2(event) => Event::Order(OrderEvent::Cancelled(event.into())),
            Self::OrderExpiredV1(event) => Event::Order(OrderEvent::Expired(event.into())),
            Self::OrderPaidV1(event) => event.into(),
            Self::OrderShippedV1(event) => Event::Order(OrderEvent::Shipped(event.into())),
            Self::OrderDeliveredV1(event) => Event::Order(OrderEvent::Delivered(event.into())),
            Self::ProductCommittedV2(event) => event.into(),
            Self::OrderPaidV2(event) => event.into(),
            Self::ProductAllottedV1(event) => event.into(),
            Self::ProductTakenBackV1(event) => event.into(),
            Self::ProductReservedV2(event) => event.into(),
            Self::ProductReleasedV2(event) => event.into(),
            Self::ProductHoldsLapsedV1(event) => event.into(),
            Self::SaleScheduledV1(event) => event.into(),
            Self::SaleStockedV1(event) => event.into(),
            Self::SaleRefusedV1(event) => event.into(),
            Self::SaleOpenedV1(event) => event.into(),
            Self::SaleClosedV1(event) => event.into(),
            Self::SaleClaimedV1(event) => event.into(),
            Self::SaleReturnedV1(event) => event.into(),
            Self::SaleCommittedV1(event) => event.into(),
            Self::OrderRecordedV1(event) => event.into(),
        }
    }

    /// Returns the domain event from its name and its data.
    ///
    /// # Errors
    /// If the name is unknown or the data does not match it.
    pub fn upcast_parts(name: &str, data_json: &str) -> Result<Event, serde_json::Error> {
        let whole = format!(r#"{{"type":"{name}","data":{data_json}}}"#);
        serde_json::from_str(&whole).map(|event: WireEvent<'_>| event.upcast())
    }

    /// Returns the event's name including its version, e.g. `product.reserved.v1`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ProductRegisteredV1(_) => "product.registered.v1",
            Self::ProductRestockedV1(_) => "product.restocked.v1",
            Self::ProductRepricedV1(_) => "product.repriced.v1",
            Self::ProductReservedV1(_) => "product.reserved.v1",
            Self::ProductReleasedV1(_) => "product.released.v1",
            Self::ProductCommittedV1(_) => "product.committed.v1",
            Self::ProductDiscontinuedV1(_) => "product.discontinued.v1",
            Self::OrderPlacedV1(_) => "order.placed.v1",
            Self::OrderLineConfirmedV1(_) => "order.line-confirmed.v1",
            Self::OrderConfirmedV1(_) => "order.confirmed.v1",
            Self::OrderLineRejectedV1(_) => "order.line-rejected.v1",
            Self::OrderRejectedV1(_) => "order.rejected.v1",
            Self::OrderCancelledV1(_) => "order.cancelled.v1",
            Self::OrderRejectedV2(_) => "order.rejected.v2",
            Self::OrderCancelledV2(_) => "order.cancelled.v2",
            Self::OrderExpiredV1(_) => "order.expired.v1",
            Self::OrderPaidV1(_) => "order.paid.v1",
            Self::OrderShippedV1(_) => "order.shipped.v1",
            Self::OrderDeliveredV1(_) => "order.delivered.v1",
            Self::ProductCommittedV2(_) => "product.committed.v2",
            Self::OrderPaidV2(_) => "order.paid.v2",
            Self::ProductAllottedV1(_) => "product.allotted.v1",
            Self::ProductTakenBackV1(_) => "product.taken-back.v1",
            Self::ProductReservedV2(_) => "product.reserved.v2",
            Self::ProductReleasedV2(_) => "product.released.v2",
            Self::ProductHoldsLapsedV1(_) => "product.holds-lapsed.v1",
            Self::SaleScheduledV1(_) => "sale.scheduled.v1",
            Self::SaleStockedV1(_) => "sale.stocked.v1",
            Self::SaleRefusedV1(_) => "sale.refused.v1",
            Self::SaleOpenedV1(_) => "sale.opened.v1",
            Self::SaleClosedV1(_) => "sale.closed.v1",
            Self::SaleClaimedV1(_) => "sale.claimed.v1",
            Self::SaleReturnedV1(_) => "sale.returned.v1",
            Self::SaleCommittedV1(_) => "sale.committed.v1",
            Self::OrderRecordedV1(_) => "order.recorded.v1",
        }
    }
}

#[cfg(test)]
mod tests;
