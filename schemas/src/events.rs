//! Every version of every event, as it is written to the log, and the way from each to the domain's event.
//!
//! Invariant: a version once written is never changed, only followed by another; its golden file under
//! `golden/` decodes for ever. A change is a new variant here and a new arm in [`WireEvent::upcast`].
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

/// `{"type": "product.reserved.v1", "data": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "data", deny_unknown_fields)]
pub enum WireEvent<'a> {
    /// A product is known and on sale.
    #[serde(rename = "product.registered.v1", borrow)]
    ProductRegisteredV1(ProductRegisteredV1<'a>),
    /// Units were added to a product's stock.
    #[serde(rename = "product.restocked.v1")]
    ProductRestockedV1(ProductRestockedV1),
    /// A product has another price.
    #[serde(rename = "product.repriced.v1")]
    ProductRepricedV1(ProductRepricedV1),
    /// Units of a product are held for an order.
    #[serde(rename = "product.reserved.v1", borrow)]
    ProductReservedV1(ProductReservedV1<'a>),
    /// Units that were held for an order are available again.
    #[serde(rename = "product.released.v1", borrow)]
    ProductReleasedV1(ProductReleasedV1<'a>),
    /// Units that were held for an order are sold.
    #[serde(rename = "product.committed.v1", borrow)]
    ProductCommittedV1(ProductCommittedV1<'a>),
    /// A product is not on sale any more.
    #[serde(rename = "product.discontinued.v1")]
    ProductDiscontinuedV1(ProductDiscontinuedV1),
    /// A customer wants something.
    #[serde(rename = "order.placed.v1", borrow)]
    OrderPlacedV1(OrderPlacedV1<'a>),
    /// What one line of an order asks for is held for it.
    #[serde(rename = "order.line-confirmed.v1", borrow)]
    OrderLineConfirmedV1(OrderLineConfirmedV1<'a>),
    /// Everything that an order asks for is held for it.
    #[serde(rename = "order.confirmed.v1")]
    OrderConfirmedV1(OrderConfirmedV1),
    /// What one line of an order asks for cannot be had.
    #[serde(rename = "order.line-rejected.v1", borrow)]
    OrderLineRejectedV1(OrderLineRejectedV1<'a>),
    /// An order ended, because something that it asks for cannot be had.
    #[serde(rename = "order.rejected.v1", borrow)]
    OrderRejectedV1(OrderRejectedV1<'a>),
    /// An order ended, because it is not wanted any more.
    #[serde(rename = "order.cancelled.v1", borrow)]
    OrderCancelledV1(OrderCancelledV1<'a>),
    /// An order ended, because something that it asks for cannot be had.
    #[serde(rename = "order.rejected.v2", borrow)]
    OrderRejectedV2(OrderEndedV2<'a>),
    /// An order ended, because it is not wanted any more.
    #[serde(rename = "order.cancelled.v2", borrow)]
    OrderCancelledV2(OrderEndedV2<'a>),
    /// An order ended, because it was not paid in time.
    #[serde(rename = "order.expired.v1", borrow)]
    OrderExpiredV1(OrderEndedV2<'a>),
    /// An order is paid.
    #[serde(rename = "order.paid.v1", borrow)]
    OrderPaidV1(OrderPaidV1<'a>),
    /// An order is on its way.
    #[serde(rename = "order.shipped.v1", borrow)]
    OrderShippedV1(ParcelV1<'a>),
    /// An order has arrived.
    #[serde(rename = "order.delivered.v1", borrow)]
    OrderDeliveredV1(ParcelV1<'a>),
    /// Units that were held for an order are sold.
    #[serde(rename = "product.committed.v2", borrow)]
    ProductCommittedV2(ProductCommittedV2<'a>),
    /// An order is paid.
    #[serde(rename = "order.paid.v2", borrow)]
    OrderPaidV2(OrderPaidV2<'a>),
    /// Units of a product are set aside for a sale.
    #[serde(rename = "product.allotted.v1", borrow)]
    ProductAllottedV1(ProductAllottedV1<'a>),
    /// Units that a sale did not sell are back.
    #[serde(rename = "product.taken-back.v1", borrow)]
    ProductTakenBackV1(ProductTakenBackV1<'a>),
    /// Units of a product are held.
    #[serde(rename = "product.reserved.v2", borrow)]
    ProductReservedV2(ProductReservedV2<'a>),
    /// Units that were held are available again.
    #[serde(rename = "product.released.v2", borrow)]
    ProductReleasedV2(ProductReleasedV2<'a>),
    /// What clients held for a while is available again.
    #[serde(rename = "product.holds-lapsed.v1")]
    ProductHoldsLapsedV1(ProductHoldsLapsedV1),
    /// A sale is known.
    #[serde(rename = "sale.scheduled.v1", borrow)]
    SaleScheduledV1(SaleScheduledV1<'a>),
    /// A sale has its units.
    #[serde(rename = "sale.stocked.v1")]
    SaleStockedV1(SaleStockedV1),
    /// A sale ended before it began.
    #[serde(rename = "sale.refused.v1", borrow)]
    SaleRefusedV1(SaleRefusedV1<'a>),
    /// A sale may sell, from its time on.
    #[serde(rename = "sale.opened.v1")]
    SaleOpenedV1(SaleOpenedV1),
    /// A sale ended.
    #[serde(rename = "sale.closed.v1", borrow)]
    SaleClosedV1(SaleClosedV1<'a>),
    /// Units of a sale are held for an order.
    #[serde(rename = "sale.claimed.v1", borrow)]
    SaleClaimedV1(SaleClaimedV1<'a>),
    /// Units that an order had claimed are given back.
    #[serde(rename = "sale.returned.v1", borrow)]
    SaleReturnedV1(SaleReturnedV1<'a>),
    /// Units that an order had claimed are sold.
    #[serde(rename = "sale.committed.v1", borrow)]
    SaleCommittedV1(SaleCommittedV1<'a>),
    /// An order that was served elsewhere counts here, too.
    #[serde(rename = "order.recorded.v1", borrow)]
    OrderRecordedV1(OrderRecordedV1<'a>),
}

/// Of every event, as [`WireEvent::name`] gives them.
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

/// The same name, kept for ever; `None`: this build knows no such event.
pub fn known_name(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|known| *known == name)
}

impl<'a> WireEvent<'a> {
    /// The newest version of `event`: what this build writes.
    pub fn newest(event: &'a Event) -> Self {
        match event {
            Event::Product(event) => product::newest(event),
            Event::Order(event) => order::newest(event),
            Event::Sale(event) => sale::newest(event),
        }
    }

    /// The domain's event, from whatever version was written.
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

    /// Returns the domain's event from its name and its data. Unknown names and other data are errors.
    pub fn upcast_parts(name: &str, data_json: &str) -> Result<Event, serde_json::Error> {
        let whole = format!(r#"{{"type":"{name}","data":{data_json}}}"#);
        serde_json::from_str(&whole).map(|event: WireEvent<'_>| event.upcast())
    }

    /// The event's name and version, e.g. `product.reserved.v1`.
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
