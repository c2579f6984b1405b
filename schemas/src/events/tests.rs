//! Compatibility tests: every published version must decode forever, and unknown events must be refused.

use std::collections::BTreeSet;
use std::path::Path;

use domain::ids::{CustomerId, OrderId, PaymentId, ProductId, SaleId};
use domain::order::{Ending, Event as OrderEvent, Held, Line, Parcel, Payment, Placement};
use domain::product::{Event as ProductEvent, Holder, Registration};
use domain::sale::{Event as SaleEvent, Schedule};
use domain::{Event, TimeMs};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{NAMES, WireEvent};
use crate::time::{MAX_TIME, parse_rfc3339};

/// Returns whether a member may be absent from an event.
fn is_optional(event: &str, member: &str) -> bool {
    match member {
        "limit_per_order" | "reason" | "carrier" | "tracking" => true,
        "sale" => event.starts_with("order."),
        "until" => event == "product.reserved.v2",
        "alarm_at" => true,
        "given_back" => event == "sale.returned.v1",
        _ => false,
    }
}

/// Returns the golden file of a version. A new version does not compile without an arm here, nor the arm without its
/// file, and a file without an event below fails the tests.
fn golden(version: &WireEvent<'_>) -> &'static str {
    match version {
        WireEvent::ProductRegisteredV1(_) => include_str!("../../golden/product.registered.v1.json"),
        WireEvent::ProductRestockedV1(_) => include_str!("../../golden/product.restocked.v1.json"),
        WireEvent::ProductRepricedV1(_) => include_str!("../../golden/product.repriced.v1.json"),
        WireEvent::ProductReservedV1(_) => include_str!("../../golden/product.reserved.v1.json"),
        WireEvent::ProductReleasedV1(_) => include_str!("../../golden/product.released.v1.json"),
        WireEvent::ProductCommittedV1(_) => include_str!("../../golden/product.committed.v1.json"),
        WireEvent::ProductDiscontinuedV1(_) => include_str!("../../golden/product.discontinued.v1.json"),
        WireEvent::OrderPlacedV1(_) => include_str!("../../golden/order.placed.v1.json"),
        WireEvent::OrderLineConfirmedV1(_) => include_str!("../../golden/order.line-confirmed.v1.json"),
        WireEvent::OrderConfirmedV1(_) => include_str!("../../golden/order.confirmed.v1.json"),
        WireEvent::OrderLineRejectedV1(_) => include_str!("../../golden/order.line-rejected.v1.json"),
        WireEvent::OrderRejectedV1(_) => include_str!("../../golden/order.rejected.v1.json"),
        WireEvent::OrderCancelledV1(_) => include_str!("../../golden/order.cancelled.v1.json"),
        WireEvent::OrderRejectedV2(_) => include_str!("../../golden/order.rejected.v2.json"),
        WireEvent::OrderCancelledV2(_) => include_str!("../../golden/order.cancelled.v2.json"),
        WireEvent::OrderExpiredV1(_) => include_str!("../../golden/order.expired.v1.json"),
        WireEvent::OrderPaidV1(_) => include_str!("../../golden/order.paid.v1.json"),
        WireEvent::OrderShippedV1(_) => include_str!("../../golden/order.shipped.v1.json"),
        WireEvent::OrderDeliveredV1(_) => include_str!("../../golden/order.delivered.v1.json"),
        WireEvent::ProductCommittedV2(_) => include_str!("../../golden/product.committed.v2.json"),
        WireEvent::OrderPaidV2(_) => include_str!("../../golden/order.paid.v2.json"),
        WireEvent::ProductAllottedV1(_) => include_str!("../../golden/product.allotted.v1.json"),
        WireEvent::ProductTakenBackV1(_) => include_str!("../../golden/product.taken-back.v1.json"),
        WireEvent::ProductReservedV2(_) => include_str!("../../golden/product.reserved.v2.json"),
        WireEvent::ProductReleasedV2(_) => include_str!("../../golden/product.released.v2.json"),
        WireEvent::ProductHoldsLapsedV1(_) => include_str!("../../golden/product.holds-lapsed.v1.json"),
        WireEvent::SaleScheduledV1(_) => include_str!("../../golden/sale.scheduled.v1.json"),
        WireEvent::SaleStockedV1(_) => include_str!("../../golden/sale.stocked.v1.json"),
        WireEvent::SaleRefusedV1(_) => include_str!("../../golden/sale.refused.v1.json"),
        WireEvent::SaleOpenedV1(_) => include_str!("../../golden/sale.opened.v1.json"),
        WireEvent::SaleClosedV1(_) => include_str!("../../golden/sale.closed.v1.json"),
        WireEvent::SaleClaimedV1(_) => include_str!("../../golden/sale.claimed.v1.json"),
        WireEvent::SaleReturnedV1(_) => include_str!("../../golden/sale.returned.v1.json"),
        WireEvent::SaleCommittedV1(_) => include_str!("../../golden/sale.committed.v1.json"),
        WireEvent::OrderRecordedV1(_) => include_str!("../../golden/order.recorded.v1.json"),
    }
}

/// Returns the domain event that each golden file represents.
fn meanings() -> Vec<(&'static str, Event)> {
    product_meanings().into_iter().chain(order_meanings()).chain(sale_meanings()).collect()
}

fn time_of(text: &str) -> TimeMs {
    parse_rfc3339(text).unwrap()
}

fn reserved(order: &str) -> ProductEvent {
    let (order, by) = (OrderId(order.into()), Holder::Order);
    ProductEvent::Reserved { order, quantity: 2, by, until: None, alarm_at: None }
}

fn released() -> ProductEvent {
    ProductEvent::Released { order: OrderId("o-17".into()), quantity: 2, by: Holder::Order }
}

fn product_meanings() -> Vec<(&'static str, Event)> {
    let product = |event| Event::Product(event);
    let sold = || OrderId("o-18".into());
    vec![
        (
            "product.registered.v1",
            product(ProductEvent::Registered(Registration {
                name: "Blue \"Tee\" – größe M".into(),
                price_cents: 1999,
                stock: 500,
                limit_per_order: Some(4),
            })),
        ),
        ("product.restocked.v1", product(ProductEvent::Restocked { quantity: 250 })),
        ("product.repriced.v1", product(ProductEvent::Repriced { price_cents: 1499 })),
        // Version 1 lacks the holder, which is taken to be the order.
        ("product.reserved.v1", product(reserved("o-17"))),
        ("product.released.v1", product(released())),
        (
            "product.reserved.v2",
            product(ProductEvent::Reserved {
                order: OrderId("basket-3".into()),
                quantity: 2,
                by: Holder::Client,
                until: Some(time_of("2026-11-27T08:10:00.25Z")),
                alarm_at: Some(time_of("2026-11-27T08:05:00Z")),
            }),
        ),
        ("product.released.v2", product(released())),
        (
            "product.holds-lapsed.v1",
            product(ProductEvent::HoldsLapsed {
                until: time_of("2026-11-27T08:05:00Z"),
                quantity: 7_000_000_000,
                alarm_at: Some(time_of("2026-11-27T08:10:00.25Z")),
            }),
        ),
        // Version 1 lacks the amount.
        ("product.committed.v1", product(ProductEvent::Committed { order: sold(), quantity: 1, amount_cents: 0 })),
        ("product.committed.v2", product(ProductEvent::Committed { order: sold(), quantity: 1, amount_cents: 1499 })),
        ("product.allotted.v1", product(ProductEvent::Allotted { sale: SaleId("black-friday".into()), units: 100 })),
        (
            "product.taken-back.v1",
            product(ProductEvent::TakenBack { sale: SaleId("black-friday".into()), units: 7, total: 12 }),
        ),
        ("product.discontinued.v1", product(ProductEvent::Discontinued)),
    ]
}

fn line(product: &str, quantity: u32, amount_cents: u64) -> Line {
    Line { product: ProductId(product.into()), quantity, amount_cents }
}

fn order_meanings() -> Vec<(&'static str, Event)> {
    let order = |event| Event::Order(event);
    let noon = parse_rfc3339("1997-01-01T12:30:00.25Z").unwrap();
    let ending = Ending {
        reason: Some("out_of_stock".into()),
        customer: CustomerId("c-9".into()),
        units: 3,
        amount_cents: 3998,
        ordered_at: noon,
        // Version 1 has neither.
        held: vec![],
        sale: None,
    };
    let held =
        || [("cd-1", 2), ("cd-2", 1)].map(|(id, quantity)| Held { product: ProductId(id.into()), quantity }).into();
    let sale = || Some(SaleId("black-friday".into()));
    let paid = |[first, second]: [u64; 2]| Payment {
        payment: PaymentId("pay-7".into()),
        amount_cents: 3998,
        lines: vec![line("cd-1", 2, first), line("cd-2", 1, second)],
        sale: sale(),
    };
    let told = Ending { held: held(), sale: sale(), ..ending.clone() };
    let cancelled = |ending| {
        let ordered_at = TimeMs(852_076_800_000);
        order(OrderEvent::Cancelled(Ending { reason: Some("changed my mind".into()), ordered_at, ..ending }))
    };
    vec![
        (
            "order.placed.v1",
            order(OrderEvent::Placed(Placement {
                customer: CustomerId("c-9".into()),
                lines: vec![line("cd-1", 2, 3998), line("cd-2", 1, 0)],
                sale: Some(SaleId("black-friday".into())),
                ordered_at: noon,
            })),
        ),
        (
            "order.recorded.v1",
            order(OrderEvent::Recorded(Placement {
                customer: CustomerId("c-9".into()),
                lines: vec![line("cd-1", 2, 3998), line("cd-2", 1, 0)],
                sale: None,
                ordered_at: noon,
            })),
        ),
        ("order.line-confirmed.v1", order(OrderEvent::LineConfirmed { product: ProductId("cd-1".into()) })),
        ("order.confirmed.v1", order(OrderEvent::Confirmed)),
        (
            "order.line-rejected.v1",
            order(OrderEvent::LineRejected { product: ProductId("cd-2".into()), reason: Some("out_of_stock".into()) }),
        ),
        ("order.rejected.v1", order(OrderEvent::Rejected(ending.clone()))),
        ("order.cancelled.v1", cancelled(ending)),
        ("order.rejected.v2", order(OrderEvent::Rejected(told.clone()))),
        ("order.cancelled.v2", cancelled(told.clone())),
        ("order.expired.v1", order(OrderEvent::Expired(Ending { reason: None, ..told }))),
        (
            "order.paid.v1",
            // Version 1 lacks the amount of each line.
            order(OrderEvent::Paid(paid([3998, 0]))),
        ),
        ("order.paid.v2", order(OrderEvent::Paid(paid([2999, 999])))),
        (
            "order.shipped.v1",
            order(OrderEvent::Shipped(Parcel { carrier: Some("by bike".into()), tracking: Some("BIKE-1".into()) })),
        ),
        (
            "order.delivered.v1",
            order(OrderEvent::Delivered(Parcel { carrier: Some("the neighbour".into()), tracking: None })),
        ),
    ]
}

fn sale_meanings() -> Vec<(&'static str, Event)> {
    let sale = |event| Event::Sale(event);
    let (order, customer) = (|| OrderId("o-17".into()), || CustomerId("c-9".into()));
    let product = || ProductId("cd-1".into());
    vec![
        (
            "sale.scheduled.v1",
            sale(SaleEvent::Scheduled(Schedule {
                product: product(),
                opens_at: parse_rfc3339("2026-11-27T08:00:00Z").unwrap(),
                closes_at: parse_rfc3339("2026-11-27T20:30:00.5Z").unwrap(),
                price_cents: 999,
                units: 100,
                limit_per_customer: 2,
            })),
        ),
        ("sale.stocked.v1", sale(SaleEvent::Stocked)),
        ("sale.refused.v1", sale(SaleEvent::Refused { reason: Some("out_of_stock".into()) })),
        ("sale.opened.v1", sale(SaleEvent::Opened)),
        ("sale.closed.v1", sale(SaleEvent::Closed { product: product(), given_back: 12 })),
        (
            "sale.claimed.v1",
            sale(SaleEvent::Claimed {
                order: order(),
                customer: customer(),
                quantity: 2,
                product: product(),
                amount_cents: 1998,
                is_first: true,
                is_ordered: false,
            }),
        ),
        (
            "sale.returned.v1",
            sale(SaleEvent::Returned {
                order: order(),
                customer: customer(),
                quantity: 2,
                product: product(),
                given_back: Some(14),
                is_last: false,
            }),
        ),
        (
            "sale.committed.v1",
            sale(SaleEvent::Committed { order: order(), product: product(), quantity: 2, amount_cents: 1998 }),
        ),
    ]
}

/// Returns the names and contents of all golden files of events.
fn files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let paths = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect()
}

fn decode(json: &str) -> Result<WireEvent<'_>, serde_json::Error> {
    serde_json::from_str(json)
}

#[test]
fn every_published_version_still_has_its_meaning() {
    let files = files();
    for (name, text) in &files {
        let version = decode(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let meaning = meanings().into_iter().find(|(meant, _)| meant == name);
        assert_eq!(Some(version.upcast()), meaning.map(|(_, event)| event), "{name}");
        assert_eq!(version.name(), name);
        assert_eq!(golden(&version), text, "{name}");
    }
    let names: BTreeSet<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    let meant: BTreeSet<_> = meanings().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, meant);
    assert_eq!(names, NAMES.into_iter().collect());
}

#[test]
fn a_version_is_written_under_its_own_name_with_its_data_beside_it() {
    for (name, text) in files() {
        let version = decode(&text).unwrap();
        let golden: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(&version).unwrap(), golden, "{name}");
    }
}

#[test]
fn the_order_of_members_does_not_matter() {
    let swapped = r#"{"data":{"quantity":2,"order":"o-\u0031"},"type":"product.reserved.v1"}"#;
    let meant = Event::Product(reserved("o-1"));
    assert_eq!(decode(swapped).unwrap().upcast(), meant);
}

#[test]
fn an_unknown_event_type_is_an_error() {
    for name in ["product.reserved.v3", "product.reserved", "Product.Reserved.v1", "ProductReservedV1", ""] {
        let text = json!({"type": name, "data": {"order": "o-17", "quantity": 2}}).to_string();
        assert!(decode(&text).is_err(), "{name:?}");
    }
}

#[test]
fn an_unknown_member_is_an_error() {
    for (name, text) in files() {
        let mut inside: Value = serde_json::from_str(&text).unwrap();
        let mut beside = inside.clone();
        inside["data"]["gift"] = json!(true);
        beside["gift"] = json!(true);
        for text in [inside.to_string(), beside.to_string()] {
            assert!(decode(&text).is_err(), "{name}: {text}");
        }
    }
    let line = r#"{"product":"cd-1","quantity":2,"amount_cents":1,"gift":true}"#;
    let placed = format!(
        r#"{{"type":"order.placed.v1","data":{{"customer":"c","lines":[{line}],"ordered_at":"1997-01-01T00:00:00Z"}}}}"#
    );
    assert!(decode(&placed).is_err());
}

#[test]
fn a_missing_member_is_an_error_unless_it_is_optional() {
    for (name, text) in files() {
        let whole: Value = serde_json::from_str(&text).unwrap();
        for member in ["type", "data"] {
            let mut rest = whole.clone();
            rest.as_object_mut().unwrap().remove(member).unwrap();
            assert!(decode(&rest.to_string()).is_err(), "{name} without {member}");
        }
        for member in whole["data"].as_object().unwrap().keys() {
            let mut rest = whole.clone();
            rest["data"].as_object_mut().unwrap().remove(member).unwrap();
            let decoded = decode(&rest.to_string()).is_ok();
            assert_eq!(decoded, is_optional(&name, member), "{name} without {member}");
        }
    }
}

#[test]
fn an_absent_option_is_not_written() {
    let event = Event::Order(OrderEvent::LineRejected { product: ProductId("p".into()), reason: None });
    let written = serde_json::to_string(&WireEvent::newest(&event)).unwrap();
    assert_eq!(written, r#"{"type":"order.line-rejected.v1","data":{"product":"p"}}"#);
}

/// Generates text of any characters, because events contain whatever was valid when they were written.
fn text() -> impl Strategy<Value = Box<str>> {
    vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect::<String>().into())
}

fn time() -> impl Strategy<Value = TimeMs> {
    (0..=MAX_TIME.0).prop_map(TimeMs)
}

fn registered() -> impl Strategy<Value = ProductEvent> {
    (text(), any::<u64>(), any::<u32>(), any::<Option<u32>>()).prop_map(
        |(name, price_cents, stock, limit_per_order)| {
            ProductEvent::Registered(Registration { name, price_cents, stock, limit_per_order })
        },
    )
}

fn holder() -> impl Strategy<Value = Holder> {
    prop_oneof![Just(Holder::Order), Just(Holder::Client)]
}

fn any_product_event() -> impl Strategy<Value = ProductEvent> {
    let held = || (text().prop_map(OrderId), any::<u32>());
    prop_oneof![
        registered(),
        any::<u32>().prop_map(|quantity| ProductEvent::Restocked { quantity }),
        any::<u64>().prop_map(|price_cents| ProductEvent::Repriced { price_cents }),
        (held(), holder(), option::of(time()), option::of(time())).prop_map(
            |((order, quantity), by, until, alarm_at)| ProductEvent::Reserved { order, quantity, by, until, alarm_at }
        ),
        (held(), holder()).prop_map(|((order, quantity), by)| ProductEvent::Released { order, quantity, by }),
        (time(), any::<u64>(), option::of(time()))
            .prop_map(|(until, quantity, alarm_at)| { ProductEvent::HoldsLapsed { until, quantity, alarm_at } }),
        (held(), any::<u64>()).prop_map(|((order, quantity), amount_cents)| {
            ProductEvent::Committed { order, quantity, amount_cents }
        }),
        (text(), any::<u32>()).prop_map(|(sale, units)| ProductEvent::Allotted { sale: SaleId(sale), units }),
        (text(), any::<u32>(), any::<u32>()).prop_map(|(sale, units, total)| ProductEvent::TakenBack {
            sale: SaleId(sale),
            units,
            total
        }),
        Just(ProductEvent::Discontinued),
    ]
}

fn placed() -> impl Strategy<Value = OrderEvent> {
    (text().prop_map(CustomerId), lines(), option::of(text().prop_map(SaleId)), time()).prop_map(
        |(customer, lines, sale, ordered_at)| OrderEvent::Placed(Placement { customer, lines, sale, ordered_at }),
    )
}

fn recorded() -> impl Strategy<Value = OrderEvent> {
    (text().prop_map(CustomerId), lines(), time()).prop_map(|(customer, lines, ordered_at)| {
        OrderEvent::Recorded(Placement { customer, lines, sale: None, ordered_at })
    })
}

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let line = (text().prop_map(ProductId), any::<u32>(), any::<u64>())
        .prop_map(|(product, quantity, amount_cents)| Line { product, quantity, amount_cents });
    vec(line, 0..4)
}

fn ending() -> impl Strategy<Value = Ending> {
    let sums = (any::<u64>(), any::<u64>());
    (option::of(text()), text().prop_map(CustomerId), sums, time(), held(), option::of(text().prop_map(SaleId)))
        .prop_map(|(reason, customer, (units, amount_cents), ordered_at, held, sale)| Ending {
            reason,
            customer,
            units,
            amount_cents,
            ordered_at,
            held,
            sale,
        })
}

fn held() -> impl Strategy<Value = Vec<Held>> {
    vec((text().prop_map(ProductId), any::<u32>()).prop_map(|(product, quantity)| Held { product, quantity }), 0..4)
}

fn parcel() -> impl Strategy<Value = Parcel> {
    (option::of(text()), option::of(text())).prop_map(|(carrier, tracking)| Parcel { carrier, tracking })
}

fn payment() -> impl Strategy<Value = Payment> {
    (text().prop_map(PaymentId), any::<u64>(), lines(), option::of(text().prop_map(SaleId)))
        .prop_map(|(payment, amount_cents, lines, sale)| Payment { payment, amount_cents, lines, sale })
}

fn any_order_event() -> impl Strategy<Value = OrderEvent> {
    prop_oneof![
        placed(),
        recorded(),
        text().prop_map(|product| OrderEvent::LineConfirmed { product: ProductId(product) }),
        Just(OrderEvent::Confirmed),
        (text().prop_map(ProductId), option::of(text()))
            .prop_map(|(product, reason)| OrderEvent::LineRejected { product, reason }),
        ending().prop_map(OrderEvent::Rejected),
        ending().prop_map(OrderEvent::Cancelled),
        ending().prop_map(OrderEvent::Expired),
        payment().prop_map(OrderEvent::Paid),
        parcel().prop_map(OrderEvent::Shipped),
        parcel().prop_map(OrderEvent::Delivered),
    ]
}

fn scheduled() -> impl Strategy<Value = SaleEvent> {
    let numbers = (any::<u64>(), any::<u32>(), any::<u32>());
    (text(), time(), time(), numbers).prop_map(|(product, opens_at, closes_at, numbers)| {
        let (price_cents, units, limit_per_customer) = numbers;
        let product = ProductId(product);
        SaleEvent::Scheduled(Schedule { product, opens_at, closes_at, price_cents, units, limit_per_customer })
    })
}

fn any_sale_event() -> impl Strategy<Value = SaleEvent> {
    let ids = || (text().prop_map(OrderId), text().prop_map(CustomerId), text().prop_map(ProductId));
    prop_oneof![
        scheduled(),
        Just(SaleEvent::Stocked),
        option::of(text()).prop_map(|reason| SaleEvent::Refused { reason }),
        Just(SaleEvent::Opened),
        (text().prop_map(ProductId), any::<u32>())
            .prop_map(|(product, given_back)| SaleEvent::Closed { product, given_back }),
        (ids(), any::<u32>(), any::<u64>(), any::<(bool, bool)>()).prop_map(
            |((order, customer, product), quantity, amount_cents, (is_first, is_ordered))| {
                SaleEvent::Claimed { order, customer, quantity, product, amount_cents, is_first, is_ordered }
            }
        ),
        (ids(), any::<u32>(), any::<Option<u32>>(), any::<bool>()).prop_map(
            |((order, customer, product), quantity, given_back, is_last)| {
                SaleEvent::Returned { order, customer, quantity, product, given_back, is_last }
            }
        ),
        (ids(), any::<u32>(), any::<u64>()).prop_map(|((order, _, product), quantity, amount_cents)| {
            SaleEvent::Committed { order, product, quantity, amount_cents }
        }),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any_product_event().prop_map(Event::Product),
        any_order_event().prop_map(Event::Order),
        any_sale_event().prop_map(Event::Sale),
    ]
}

proptest! {
    #[test]
    fn an_event_survives_a_round_trip(event in any_event()) {
        let written = WireEvent::newest(&event);
        prop_assert_eq!(&written.upcast(), &event);
        let json = serde_json::to_string(&written).unwrap();
        let read = decode(&json).unwrap();
        prop_assert_eq!(&read, &written);
        prop_assert_eq!(read.upcast(), event);
    }
}

#[test]
fn the_newest_version_of_every_event_means_that_event() {
    for (name, event) in meanings() {
        assert_eq!(WireEvent::newest(&event).upcast(), event, "{name}");
    }
}
