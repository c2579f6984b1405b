//! Clients that send any command the interface accepts, under any ids: no unit is sold twice, and every payment gets
//! its units.

use super::interleavings::{Network, Sent, Turn};
use super::*;
use crate::product::{By, Holder};

#[derive(Debug, Clone)]
enum Act {
    Client(AggregateType, String, Command),
    Turn(Turn),
}

/// Generates every public command of every aggregate.
fn any_public() -> impl Strategy<Value = Act> {
    let of_product = |(id, command): (&str, product::Command)| {
        Act::Client(AggregateType::Product, id.to_string(), Command::Product(command))
    };
    let order = || order_id().prop_map(|id| OrderId(id.into()));
    let own = prop_oneof![
        4 => (order(), 1..5_u32, proptest::option::of(1..100_u32)).prop_map(|(order, quantity, hold_secs)| {
            product::Command::Reserve { order, quantity, by: By::Client { hold_secs } }
        }),
        4 => order().prop_map(|order| product::Command::Release { order, by: Holder::Client }),
        1 => (4..6_u64).prop_map(|price_cents| product::Command::Reprice { price_cents }),
        1 => (1..20_u32).prop_map(|stock| {
            let name = "another".into();
            product::Command::Register(Registration { name, price_cents: PRICE_CENTS, stock, limit_per_order: None })
        }),
    ];
    let of_sale = prop_oneof![
        Just(sale::Command::Open { due_at: None }),
        (1..9_u32).prop_map(|units| sale::Command::Schedule(Schedule {
            product: ProductId("b".into()),
            opens_at: TimeMs(0),
            closes_at: CLOSES,
            price_cents: SALE_PRICE_CENTS,
            units,
            limit_per_customer: 2,
        })),
    ];
    prop_oneof![
        30 => any_client().prop_map(|client| match client {
            Move::Client(aggregate, id, command) => Act::Client(aggregate, id, command),
            Move::Step(_) | Move::Again(_) | Move::Die(_) => unreachable!("it is no client's"),
        }),
        10 => (prop::sample::select(&PRODUCTS[..]), own).prop_map(of_product),
        1 => of_sale.prop_map(|command| Act::Client(AggregateType::Sale, String::from("s"), Command::Sale(command))),
    ]
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => any_public(),
        10 => any::<Index>().prop_map(|index| Act::Turn(Turn::Next(index))),
        1 => any::<Index>().prop_map(|index| Act::Turn(Turn::Again(index))),
    ]
}

/// Returns the units that orders paid for, by product or sale.
fn paid(shop: &Shop) -> BTreeMap<String, u64> {
    let mut paid: BTreeMap<String, u64> = BTreeMap::new();
    for entry in &shop.log {
        if let Event::Order(OrderEvent::Paid(Payment { lines, sale, .. })) = &entry.event {
            for line in lines {
                let from = sale.as_ref().map_or(&line.product.0, |sale| &sale.0);
                *paid.entry(from.to_string()).or_default() += u64::from(line.quantity);
            }
        }
    }
    paid
}

fn check_sold(shop: &Shop) {
    shop.check();
    assert_eq!(shop.stuck, [], "paid units could not be committed");
    let sold: BTreeMap<_, _> =
        shop.committed.iter().filter(|(_, units)| **units > 0).map(|(from, units)| (from.clone(), *units)).collect();
    assert_eq!(sold, paid(shop), "each paid unit is sold once");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_clients_send_no_unit_is_sold_twice_and_every_payment_gets_its_units(
        acts in vec_of(any_act(), 0..200)
    ) {
        let mut network = Network::of(Shop::open(), &[]);
        for act in acts {
            match act {
                Act::Client(aggregate, id, command) => network.send((aggregate, id), Sent::Client(command)),
                Act::Turn(turn) => network.make(&turn),
            }
        }
        network.end();
        let mut shop = network.shop;
        shop.settle();
        check_sold(&shop);
        shop.pass(TimeMs(WINDOW_MS));
        shop.pass(CLOSES);
        check_sold(&shop);
    }
}
