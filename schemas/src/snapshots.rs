//! States of aggregates as they are kept: a shortcut to what their events add up to.
//!
//! Invariant: [`FORM`] changes with every change of what is written here. A form that this build does not read is
//! no error: the events are folded from the beginning.

use std::borrow::Cow;
use std::collections::BTreeMap;

use domain::ids::{CustomerId, OrderId, PaymentId, ProductId, SaleId};
use domain::order::{Line, Open, Placement, Settled};
use domain::product::{Product, Registration};
use domain::{State, TimeMs, order, product};
use serde::{Deserialize, Serialize};

/// The form that this build writes, and the only one that it reads.
pub const FORM: i16 = 2;

/// In postcard's encoding, which names no field: members are never reordered within a form.
#[derive(Debug, Serialize, Deserialize)]
enum Snapshot<'a> {
    #[serde(borrow)]
    Product(ProductSnapshot<'a>),
    #[serde(borrow)]
    Order(OrderSnapshot<'a>),
}

#[derive(Debug, Serialize, Deserialize)]
struct ProductSnapshot<'a> {
    stage: ProductStage,
    #[serde(borrow)]
    name: Cow<'a, str>,
    registered_price_cents: u64,
    registered_stock: u32,
    limit_per_order: Option<u32>,
    price_cents: u64,
    available: u64,
    /// In the order of their names, so that equal states have equal bytes.
    #[serde(borrow)]
    reservations: Vec<(&'a str, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum ProductStage {
    OnSale,
    Discontinued,
}

#[derive(Debug, Serialize, Deserialize)]
struct OrderSnapshot<'a> {
    stage: OrderStage,
    #[serde(borrow)]
    customer: &'a str,
    #[serde(borrow)]
    lines: Vec<(&'a str, u32, u64)>,
    sale: Option<&'a str>,
    ordered_at_ms: u64,
    /// Of an order that waits for its lines.
    confirmed: Vec<bool>,
    /// Of one that was paid.
    payment: Option<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum OrderStage {
    Placed,
    Confirmed,
    Rejected,
    Cancelled,
    Paid,
    Shipped,
    Delivered,
    Expired,
}

/// `None` for a state without events: there is nothing to keep.
pub fn encode(state: &State) -> Option<Vec<u8>> {
    let snapshot = match state {
        State::Product(state) => Snapshot::Product(of_product(state)?),
        State::Order(state) => Snapshot::Order(of_order(state)?),
    };
    Some(postcard::to_allocvec(&snapshot).expect("it holds nothing that postcard cannot"))
}

/// `None`: another form, or bytes that are not of it.
pub fn decode(form: i16, bytes: &[u8]) -> Option<State> {
    if form != FORM {
        return None;
    }
    Some(match postcard::from_bytes(bytes).ok()? {
        Snapshot::Product(snapshot) => State::Product(to_product(snapshot)),
        Snapshot::Order(snapshot) => State::Order(to_order(snapshot)?),
    })
}

fn of_product(state: &product::State) -> Option<ProductSnapshot<'_>> {
    let (stage, product) = match state {
        product::State::Unregistered => return None,
        product::State::OnSale(product) => (ProductStage::OnSale, product),
        product::State::Discontinued(product) => (ProductStage::Discontinued, product),
    };
    let reservations: BTreeMap<&str, u32> =
        product.reservations.iter().map(|(order, quantity)| (&*order.0, *quantity)).collect();
    Some(ProductSnapshot {
        stage,
        name: Cow::Borrowed(&product.registration.name),
        registered_price_cents: product.registration.price_cents,
        registered_stock: product.registration.stock,
        limit_per_order: product.registration.limit_per_order,
        price_cents: product.price_cents,
        available: product.available,
        reservations: reservations.into_iter().collect(),
    })
}

fn to_product(snapshot: ProductSnapshot<'_>) -> product::State {
    let registration = Registration {
        name: snapshot.name.into(),
        price_cents: snapshot.registered_price_cents,
        stock: snapshot.registered_stock,
        limit_per_order: snapshot.limit_per_order,
    };
    let held = snapshot.reservations.iter().map(|(order, quantity)| (OrderId((*order).into()), *quantity));
    let product = Box::new(Product {
        registration,
        price_cents: snapshot.price_cents,
        available: snapshot.available,
        reservations: held.collect(),
    });
    match snapshot.stage {
        ProductStage::OnSale => product::State::OnSale(product),
        ProductStage::Discontinued => product::State::Discontinued(product),
    }
}

fn of_order(state: &order::State) -> Option<OrderSnapshot<'_>> {
    let (stage, placement, confirmed, payment) = match state {
        order::State::New => return None,
        order::State::Placed(open) => (OrderStage::Placed, &open.placement, open.confirmed.clone(), None),
        order::State::Confirmed(placement) => (OrderStage::Confirmed, &**placement, vec![], None),
        order::State::Rejected(placement) => (OrderStage::Rejected, &**placement, vec![], None),
        order::State::Cancelled(placement) => (OrderStage::Cancelled, &**placement, vec![], None),
        order::State::Expired(placement) => (OrderStage::Expired, &**placement, vec![], None),
        order::State::Paid(settled) => (OrderStage::Paid, &settled.placement, vec![], Some(&settled.payment)),
        order::State::Shipped(settled) => (OrderStage::Shipped, &settled.placement, vec![], Some(&settled.payment)),
        order::State::Delivered(settled) => (OrderStage::Delivered, &settled.placement, vec![], Some(&settled.payment)),
    };
    Some(OrderSnapshot {
        stage,
        customer: &placement.customer.0,
        lines: placement.lines.iter().map(|line| (&*line.product.0, line.quantity, line.amount_cents)).collect(),
        sale: placement.sale.as_ref().map(|sale| &*sale.0),
        ordered_at_ms: placement.ordered_at.0,
        confirmed,
        payment: payment.map(|payment| &*payment.0),
    })
}

/// `None`: it was paid, and by nothing.
fn to_order(snapshot: OrderSnapshot<'_>) -> Option<order::State> {
    let line = |(product, quantity, amount_cents): &(&str, u32, u64)| Line {
        product: ProductId((*product).into()),
        quantity: *quantity,
        amount_cents: *amount_cents,
    };
    let placement = Placement {
        customer: CustomerId(snapshot.customer.into()),
        lines: snapshot.lines.iter().map(line).collect(),
        sale: snapshot.sale.map(|sale| SaleId(sale.into())),
        ordered_at: TimeMs(snapshot.ordered_at_ms),
    };
    let payment = snapshot.payment.map(|payment| PaymentId(payment.into()));
    let settled = |placement| Some(Box::new(Settled { placement, payment: payment? }));
    Some(match snapshot.stage {
        OrderStage::Placed => order::State::Placed(Box::new(Open { placement, confirmed: snapshot.confirmed })),
        OrderStage::Confirmed => order::State::Confirmed(Box::new(placement)),
        OrderStage::Rejected => order::State::Rejected(Box::new(placement)),
        OrderStage::Cancelled => order::State::Cancelled(Box::new(placement)),
        OrderStage::Expired => order::State::Expired(Box::new(placement)),
        OrderStage::Paid => order::State::Paid(settled(placement)?),
        OrderStage::Shipped => order::State::Shipped(settled(placement)?),
        OrderStage::Delivered => order::State::Delivered(settled(placement)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product() -> product::State {
        let registration =
            Registration { name: "Kind of Blue".into(), price_cents: 1177, stock: 9, limit_per_order: Some(3) };
        let reservations = [("o-2", 1), ("o-1", 2)].map(|(order, quantity)| (OrderId(order.into()), quantity));
        product::State::OnSale(Box::new(Product {
            registration,
            price_cents: 999,
            available: 6,
            reservations: reservations.into_iter().collect(),
        }))
    }

    fn placement() -> Box<Placement> {
        let line = |product: &str| Line { product: ProductId(product.into()), quantity: 2, amount_cents: 500 };
        Box::new(Placement {
            customer: CustomerId("c".into()),
            lines: vec![line("a"), line("b")],
            sale: Some(SaleId("s".into())),
            ordered_at: TimeMs(7),
        })
    }

    fn settled() -> Box<Settled> {
        Box::new(Settled { placement: *placement(), payment: PaymentId("pay-1".into()) })
    }

    #[test]
    fn every_state_comes_back_as_it_was() {
        let product::State::OnSale(on_sale) = product() else { unreachable!() };
        let open = Open { placement: *placement(), confirmed: vec![true, false] };
        for state in [
            State::Product(product()),
            State::Product(product::State::Discontinued(on_sale)),
            State::Order(order::State::Placed(Box::new(open))),
            State::Order(order::State::Confirmed(placement())),
            State::Order(order::State::Rejected(placement())),
            State::Order(order::State::Cancelled(placement())),
            State::Order(order::State::Expired(placement())),
            State::Order(order::State::Paid(settled())),
            State::Order(order::State::Shipped(settled())),
            State::Order(order::State::Delivered(settled())),
        ] {
            assert_eq!(decode(FORM, &encode(&state).unwrap()), Some(state));
        }
    }

    #[test]
    fn a_state_without_events_is_not_kept() {
        assert_eq!(encode(&State::Product(product::State::Unregistered)), None);
        assert_eq!(encode(&State::Order(order::State::New)), None);
    }

    /// These bytes lie in databases: where they change, [`FORM`] has to.
    #[test]
    fn the_form_is_what_it_says() {
        let bytes = encode(&State::Product(product())).unwrap();
        let mut expected = vec![0, 0, 12];
        expected.extend(b"Kind of Blue");
        expected.extend([0x99, 0x09, 9, 1, 3, 0xE7, 0x07, 6, 2, 3, b'o', b'-', b'1', 2, 3, b'o', b'-', b'2', 1]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn another_form_or_broken_bytes_are_as_good_as_none() {
        let bytes = encode(&State::Product(product())).unwrap();
        assert_eq!(decode(FORM + 1, &bytes), None);
        assert_eq!(decode(FORM, &bytes[..bytes.len() - 1]), None);
        assert_eq!(decode(FORM, &[9]), None);
    }
}
