//! Every version of every event, as it is written to the log, and the way from each to the domain's event.
//!
//! Invariant: a version once written is never changed, only followed by another; its golden file under
//! `golden/` decodes for ever. A change is a new variant here and a new arm in [`WireEvent::upcast`].
//!
//! Invariant: an event type that this build does not know is an error, never something to skip.

pub mod order;
pub mod product;

use domain::Event;
use serde::{Deserialize, Serialize};

use order::{
    OrderCancelledV1, OrderConfirmedV1, OrderLineConfirmedV1, OrderLineRejectedV1, OrderPlacedV1, OrderRejectedV1,
};
use product::{
    ProductCommittedV1, ProductDiscontinuedV1, ProductRegisteredV1, ProductReleasedV1, ProductRepricedV1,
    ProductReservedV1, ProductRestockedV1,
};

/// `{"type": "product.reserved.v1", "data": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", deny_unknown_fields)]
pub enum WireEvent<'a> {
    #[serde(rename = "product.registered.v1", borrow)]
    ProductRegisteredV1(ProductRegisteredV1<'a>),
    #[serde(rename = "product.restocked.v1")]
    ProductRestockedV1(ProductRestockedV1),
    #[serde(rename = "product.repriced.v1")]
    ProductRepricedV1(ProductRepricedV1),
    #[serde(rename = "product.reserved.v1", borrow)]
    ProductReservedV1(ProductReservedV1<'a>),
    #[serde(rename = "product.released.v1", borrow)]
    ProductReleasedV1(ProductReleasedV1<'a>),
    #[serde(rename = "product.committed.v1", borrow)]
    ProductCommittedV1(ProductCommittedV1<'a>),
    #[serde(rename = "product.discontinued.v1")]
    ProductDiscontinuedV1(ProductDiscontinuedV1),
    #[serde(rename = "order.placed.v1", borrow)]
    OrderPlacedV1(OrderPlacedV1<'a>),
    #[serde(rename = "order.line-confirmed.v1", borrow)]
    OrderLineConfirmedV1(OrderLineConfirmedV1<'a>),
    #[serde(rename = "order.confirmed.v1")]
    OrderConfirmedV1(OrderConfirmedV1),
    #[serde(rename = "order.line-rejected.v1", borrow)]
    OrderLineRejectedV1(OrderLineRejectedV1<'a>),
    #[serde(rename = "order.rejected.v1", borrow)]
    OrderRejectedV1(OrderRejectedV1<'a>),
    #[serde(rename = "order.cancelled.v1", borrow)]
    OrderCancelledV1(OrderCancelledV1<'a>),
}

/// Of every event, as [`WireEvent::name`] gives them.
pub const NAMES: [&str; 13] = [
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
        }
    }

    /// The event's data alone, as JSON.
    pub fn data_json(&self) -> String {
        let whole = serde_json::to_string(self).expect("events hold nothing that JSON cannot");
        // {"type":"…","data":…}
        let before = r#"{"type":"","data":"#.len() + self.name().len();
        whole[before..whole.len() - 1].to_owned()
    }

    /// The domain's event from the parts in which the journal keeps it. Unknown names and other data are errors.
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
        }
    }
}

#[cfg(test)]
mod tests;
