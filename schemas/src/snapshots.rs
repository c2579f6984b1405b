//! Snapshots of aggregate states, which save folding all events from the beginning.
//!
//! Invariant: [`FORM`] changes with every change of the encoding. Two builds store their forms side by side; an
//! aggregate without a snapshot in this build's form is folded from its first event.

use std::borrow::Cow;
use std::collections::BTreeMap;

use domain::ids::{CustomerId, Fingerprint, OrderId, PaymentId, ProductId, SaleId};
use domain::order::{Cancelled, Line, Open, Placement, Settled};
use domain::product::{Allotment, Hold, Holds, Product, Registration};
use domain::sale::{Claimed, Sale, Schedule, Stock};
use domain::{State, TimeMs, order, product, sale};
use serde::{Deserialize, Serialize};

/// The form that this build writes, and the only one that it reads.
pub const FORM: i16 = 5;

/// Snapshot in postcard encoding, which does not name fields: members must not be reordered within a form.
#[derive(Debug, Serialize, Deserialize)]
enum Snapshot<'a> {
    #[serde(borrow)]
    Product(ProductSnapshot<'a>),
    #[serde(borrow)]
    Order(OrderSnapshot<'a>),
    #[serde(borrow)]
    Sale(SaleSnapshot<'a>),
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
    /// Orders with their reserved units, sorted by order ID so that equal states have equal bytes.
    #[serde(borrow)]
    reservations: Vec<(&'a str, u32)>,
    /// Fingerprints of the names that clients chose, with the units and the end in milliseconds; sorted.
    holds: Vec<([u8; 16], u32, Option<u64>)>,
    alarm_at_ms: Option<u64>,
    /// Fingerprints of the orders whose units were sold, with the units; sorted.
    committed: Vec<([u8; 16], u32)>,
    /// Sales with the units allotted to each, and the units it gave back; sorted by sale ID.
    #[serde(borrow)]
    allotments: Vec<(&'a str, u32, u32)>,
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
    /// Confirmation of each line, while the order waits for its lines.
    confirmed: Vec<bool>,
    /// Payment of an order that was paid, even if it was cancelled afterwards.
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
    Recorded,
}

#[derive(Debug, Serialize, Deserialize)]
struct SaleSnapshot<'a> {
    #[serde(borrow)]
    product: &'a str,
    opens_at_ms: u64,
    closes_at_ms: u64,
    price_cents: u64,
    units: u32,
    limit_per_customer: u32,
    stock: SaleStock,
    is_opened: bool,
    is_closed: bool,
    given_back: u32,
    /// Order, customer, quantity, whether the order existed before the claim, and whether it is committed; sorted by
    /// order ID. The remaining state of a sale is derived from their sums.
    #[serde(borrow)]
    claims: Vec<(&'a str, &'a str, u32, bool, bool)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SaleStock {
    Awaited,
    Taken,
    Refused,
}

/// Encodes a state; `None` for one without events.
pub fn encode(state: &State) -> Option<Vec<u8>> {
    let snapshot = match state {
        State::Product(state) => Snapshot::Product(of_product(state)?),
        State::Order(state) => Snapshot::Order(of_order(state)?),
        State::Sale(state) => Snapshot::Sale(of_sale(state)?),
    };
    Some(postcard::to_allocvec(&snapshot).expect("it holds nothing that postcard cannot"))
}

/// Decodes a state; `None` if the form differs from [`FORM`] or the bytes are invalid.
pub fn decode(form: i16, bytes: &[u8]) -> Option<State> {
    if form != FORM {
        return None;
    }
    Some(match postcard::from_bytes(bytes).ok()? {
        Snapshot::Product(snapshot) => State::Product(to_product(snapshot)),
        Snapshot::Order(snapshot) => State::Order(to_order(snapshot)?),
        Snapshot::Sale(snapshot) => State::Sale(to_sale(&snapshot)),
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
    let hold = |(name, hold): (Fingerprint, Hold)| (name.0, hold.quantity, hold.until.map(|until| until.0));
    let mut holds: Vec<_> = product.holds.iter().map(hold).collect();
    holds.sort_unstable();
    let mut committed: Vec<_> = product.committed.iter().map(|(order, quantity)| (order.0, *quantity)).collect();
    committed.sort_unstable();
    let allotment = |(sale, allotment): (_, &Allotment)| (sale, (allotment.units, allotment.taken_back));
    let allotments: BTreeMap<&str, (u32, u32)> =
        product.allotments.iter().map(|(sale, held)| allotment((&*sale.0, held))).collect();
    Some(ProductSnapshot {
        stage,
        name: Cow::Borrowed(&product.registration.name),
        registered_price_cents: product.registration.price_cents,
        registered_stock: product.registration.stock,
        limit_per_order: product.registration.limit_per_order,
        price_cents: product.price_cents,
        available: product.available,
        reservations: reservations.into_iter().collect(),
        holds,
        alarm_at_ms: product.holds.alarm_at().map(|alarm_at| alarm_at.0),
        committed,
        allotments: allotments.into_iter().map(|(sale, (units, taken_back))| (sale, units, taken_back)).collect(),
    })
}

fn to_product(snapshot: ProductSnapshot<'_>) -> product::State {
    let registration = Registration {
        name: snapshot.name.into(),
        price_cents: snapshot.registered_price_cents,
        stock: snapshot.registered_stock,
        limit_per_order: snapshot.limit_per_order,
    };
    let hold = |(name, quantity, until): ([u8; 16], u32, Option<u64>)| {
        (Fingerprint(name), Hold { quantity, until: until.map(TimeMs) })
    };
    let held = snapshot.reservations.iter().map(|(order, quantity)| (OrderId((*order).into()), *quantity));
    let allotments = snapshot.allotments.iter().map(|(sale, units, taken_back)| {
        (SaleId((*sale).into()), Allotment { units: *units, taken_back: *taken_back })
    });
    let product = Box::new(Product {
        registration,
        price_cents: snapshot.price_cents,
        available: snapshot.available,
        reservations: held.collect(),
        holds: Holds::of(snapshot.holds.into_iter().map(hold), snapshot.alarm_at_ms.map(TimeMs)),
        committed: snapshot.committed.into_iter().map(|(order, quantity)| (Fingerprint(order), quantity)).collect(),
        allotments: allotments.collect(),
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
        order::State::Recorded(placement) => (OrderStage::Recorded, &**placement, vec![], None),
        order::State::Confirmed(placement) => (OrderStage::Confirmed, &**placement, vec![], None),
        order::State::Rejected(placement) => (OrderStage::Rejected, &**placement, vec![], None),
        order::State::Cancelled(cancelled) => {
            (OrderStage::Cancelled, &cancelled.placement, vec![], cancelled.payment.as_ref())
        }
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

/// Converts the snapshot of an order; `None` if it is paid but names no payment.
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
    let settled = |placement| Some(Box::new(Settled { placement, payment: payment.clone()? }));
    Some(match snapshot.stage {
        OrderStage::Placed => order::State::Placed(Box::new(Open { placement, confirmed: snapshot.confirmed })),
        OrderStage::Recorded => order::State::Recorded(Box::new(placement)),
        OrderStage::Confirmed => order::State::Confirmed(Box::new(placement)),
        OrderStage::Rejected => order::State::Rejected(Box::new(placement)),
        OrderStage::Cancelled => order::State::Cancelled(Box::new(Cancelled { placement, payment })),
        OrderStage::Expired => order::State::Expired(Box::new(placement)),
        OrderStage::Paid => order::State::Paid(settled(placement)?),
        OrderStage::Shipped => order::State::Shipped(settled(placement)?),
        OrderStage::Delivered => order::State::Delivered(settled(placement)?),
    })
}

fn of_sale(state: &sale::State) -> Option<SaleSnapshot<'_>> {
    let sale::State::Scheduled(sale) = state else { return None };
    let mut claims: Vec<_> = sale
        .claims
        .iter()
        .map(|(order, claimed)| {
            let Claimed { customer, quantity, is_ordered, is_committed } = claimed;
            (&*order.0, &*customer.0, *quantity, *is_ordered, *is_committed)
        })
        .collect();
    claims.sort_unstable();
    Some(SaleSnapshot {
        product: &sale.schedule.product.0,
        opens_at_ms: sale.schedule.opens_at.0,
        closes_at_ms: sale.schedule.closes_at.0,
        price_cents: sale.schedule.price_cents,
        units: sale.schedule.units,
        limit_per_customer: sale.schedule.limit_per_customer,
        stock: match sale.stock {
            Stock::Awaited => SaleStock::Awaited,
            Stock::Taken => SaleStock::Taken,
            Stock::Refused => SaleStock::Refused,
        },
        is_opened: sale.is_opened,
        is_closed: sale.is_closed,
        given_back: sale.given_back,
        claims,
    })
}

fn to_sale(snapshot: &SaleSnapshot<'_>) -> sale::State {
    let mut sale = Sale {
        schedule: Schedule {
            product: ProductId(snapshot.product.into()),
            opens_at: TimeMs(snapshot.opens_at_ms),
            closes_at: TimeMs(snapshot.closes_at_ms),
            price_cents: snapshot.price_cents,
            units: snapshot.units,
            limit_per_customer: snapshot.limit_per_customer,
        },
        stock: match snapshot.stock {
            SaleStock::Awaited => Stock::Awaited,
            SaleStock::Taken => Stock::Taken,
            SaleStock::Refused => Stock::Refused,
        },
        is_opened: snapshot.is_opened,
        is_closed: snapshot.is_closed,
        claimed: 0,
        claims: Default::default(),
        customers: Default::default(),
        given_back: snapshot.given_back,
    };
    for (order, customer, quantity, is_ordered, is_committed) in &snapshot.claims {
        let customer = CustomerId((*customer).into());
        sale.claimed = sale.claimed.saturating_add(*quantity);
        sale.add(&customer, *quantity);
        let (quantity, is_ordered, is_committed) = (*quantity, *is_ordered, *is_committed);
        let claimed = Claimed { customer, quantity, is_ordered, is_committed };
        sale.claims.insert(OrderId((*order).into()), claimed);
    }
    sale::State::Scheduled(Box::new(sale))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a sale with an open and a committed claim of the same customer.
    fn sale() -> sale::State {
        let customer = || CustomerId("c".into());
        let claimed =
            |quantity, is: bool| Claimed { customer: customer(), quantity, is_ordered: !is, is_committed: is };
        sale::State::Scheduled(Box::new(Sale {
            schedule: Schedule {
                product: ProductId("a".into()),
                opens_at: TimeMs(7),
                closes_at: TimeMs(1 << 40),
                price_cents: 900,
                units: 10,
                limit_per_customer: 5,
            },
            stock: Stock::Taken,
            is_opened: true,
            is_closed: true,
            claimed: 3,
            claims: [(OrderId("o-1".into()), claimed(2, false)), (OrderId("o-2".into()), claimed(1, true))].into(),
            customers: [(customer(), 3)].into(),
            given_back: 7,
        }))
    }

    fn product() -> product::State {
        let registration =
            Registration { name: "Kind of Blue".into(), price_cents: 1177, stock: 9, limit_per_order: Some(3) };
        let reservations = [("o-2", 1), ("o-1", 2)].map(|(order, quantity)| (OrderId(order.into()), quantity));
        let holds = [(9, None), (8, Some(TimeMs(300)))];
        let holds = holds.map(|(name, until)| (Fingerprint([name; 16]), Hold { quantity: 1, until }));
        product::State::OnSale(Box::new(Product {
            registration,
            price_cents: 999,
            available: 6,
            reservations: reservations.into_iter().collect(),
            holds: Holds::of(holds, Some(TimeMs(300))),
            committed: [(Fingerprint([2; 16]), 3), (Fingerprint([1; 16]), 1)].into(),
            allotments: [(SaleId("s".into()), Allotment { units: 5, taken_back: 1 })].into(),
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
    fn every_state_survives_a_round_trip() {
        let product::State::OnSale(on_sale) = product() else { unreachable!() };
        let open = Open { placement: *placement(), confirmed: vec![true, false] };
        for state in [
            State::Product(product()),
            State::Product(product::State::Discontinued(on_sale)),
            State::Order(order::State::Placed(Box::new(open))),
            State::Order(order::State::Recorded(placement())),
            State::Order(order::State::Confirmed(placement())),
            State::Order(order::State::Rejected(placement())),
            State::Order(order::State::Cancelled(Box::new(Cancelled { placement: *placement(), payment: None }))),
            State::Order(order::State::Cancelled(Box::new(Cancelled {
                placement: *placement(),
                payment: Some(PaymentId("pay-1".into())),
            }))),
            State::Order(order::State::Expired(placement())),
            State::Order(order::State::Paid(settled())),
            State::Order(order::State::Shipped(settled())),
            State::Order(order::State::Delivered(settled())),
            State::Sale(sale()),
        ] {
            assert_eq!(decode(FORM, &encode(&state).unwrap()), Some(state));
        }
    }

    #[test]
    fn a_state_without_events_has_no_snapshot() {
        assert_eq!(encode(&State::Product(product::State::Unregistered)), None);
        assert_eq!(encode(&State::Order(order::State::New)), None);
        assert_eq!(encode(&State::Sale(sale::State::Unscheduled)), None);
    }

    /// These bytes are stored in databases: if they change, [`FORM`] has to change.
    #[test]
    fn the_encoding_of_the_form_is_stable() {
        let bytes = encode(&State::Product(product())).unwrap();
        let mut expected = vec![0, 0, 12];
        expected.extend(b"Kind of Blue");
        expected.extend([0x99, 0x09, 9, 1, 3, 0xE7, 0x07, 6, 2, 3, b'o', b'-', b'1', 2, 3, b'o', b'-', b'2', 1]);
        expected.push(2);
        expected.extend([8; 16].into_iter().chain([1, 1, 0xAC, 2]));
        expected.extend([9; 16].into_iter().chain([1, 0]));
        expected.extend([1, 0xAC, 2, 2]);
        expected.extend([1; 16].into_iter().chain([1]));
        expected.extend([2; 16].into_iter().chain([3]));
        expected.extend([1, 1, b's', 5, 1]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn another_form_or_broken_bytes_are_not_decoded() {
        let bytes = encode(&State::Product(product())).unwrap();
        assert_eq!(decode(FORM + 1, &bytes), None);
        assert_eq!(decode(FORM, &bytes[..bytes.len() - 1]), None);
        assert_eq!(decode(FORM, &[9]), None);
    }
}
