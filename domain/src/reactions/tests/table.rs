//! Single entries of the table of reactions.

use super::*;
use crate::product::Holder;

fn placed(quantity: u32, sale: Option<SaleId>) -> Event {
    let lines = vec![Line { product: ProductId("a".into()), quantity, amount_cents: 1 }];
    let placement = Placement { customer: CustomerId("c".into()), lines, sale, ordered_at: TimeMs(1) };
    Event::Order(OrderEvent::Placed(placement))
}

#[test]
fn an_order_that_a_claim_placed_needs_no_units_and_one_that_its_client_placed_does() {
    let steps = |is_caused| react("o", &placed(1, Some(SaleId("s".into()))), TimeMs(1), is_caused, WINDOW_MS).steps;
    assert_eq!(steps(true), []);
    assert!(matches!(&steps(false)[..], [Step::Hold { .. }]));
}

#[test]
fn as_many_units_as_the_limit_are_reserved_and_not_one_more() {
    let steps = |quantity| react("o", &placed(quantity, None), TimeMs(1), false, WINDOW_MS).steps;
    assert!(matches!(&steps(MAX_UNITS)[..], [Step::Reserve { quantity: MAX_UNITS, .. }]));
    assert!(matches!(&steps(MAX_UNITS + 1)[..], [Step::RejectLine { .. }]));
}

#[test]
fn the_end_of_a_sale_cancels_its_deadlines() {
    let closed = sale::Event::Closed { product: ProductId("a".into()), given_back: 3 };
    for event in [closed, sale::Event::Refused { reason: None }] {
        let deadlines = react("s", &Event::Sale(event), TimeMs(1), false, WINDOW_MS).deadlines;
        assert_eq!(deadlines, [(Deadline::OpenSale, None), (Deadline::CloseSale, None)]);
    }
}

#[test]
fn an_event_that_moves_the_alarm_of_the_holds_sets_their_deadline() {
    let reserved = |alarm_at| product::Event::Reserved {
        order: OrderId("o".into()),
        quantity: 1,
        by: Holder::Client,
        until: alarm_at,
        alarm_at,
    };
    let lapsed = |alarm_at| product::Event::HoldsLapsed { until: TimeMs(5), quantity: 1, alarm_at };
    let deadlines = |event| react("a", &Event::Product(event), TimeMs(1), false, WINDOW_MS).deadlines;
    let due = Some(TimeMs(9));
    assert_eq!(deadlines(reserved(due)), [(Deadline::LapseHolds, due)]);
    assert_eq!(deadlines(reserved(None)), []);
    assert_eq!(deadlines(lapsed(due)), [(Deadline::LapseHolds, due)]);
    assert_eq!(deadlines(lapsed(None)), [(Deadline::LapseHolds, None)]);
}

#[test]
fn steps_of_one_order_to_one_product_have_different_keys_and_a_repeated_step_has_its_own() {
    let (product, order) = (ProductId("a".into()), OrderId("o".into()));
    let steps = || {
        [
            Step::Reserve { product: product.clone(), order: order.clone(), quantity: 1, amount_cents: 1 },
            Step::Release { product: product.clone(), order: order.clone() },
            Step::Commit { product: product.clone(), order: order.clone(), amount_cents: 1 },
        ]
    };
    let keys: Vec<_> = steps().iter().map(Step::dedup_key).collect();
    assert_eq!(keys, ["reserve o", "release o", "commit o"]);
    assert_eq!(keys, steps().map(|step| step.dedup_key()));
}

#[test]
fn a_reservation_that_is_refused_for_too_long_rejects_its_line_and_other_steps_go_on() {
    let (product, order) = (ProductId("a".into()), OrderId("o".into()));
    let reserve = Step::Reserve { product: product.clone(), order: order.clone(), quantity: 1, amount_cents: 1 };
    let reject =
        Step::RejectLine { product: product.clone(), order: order.clone(), reason: NOT_CONFIRMED_IN_TIME.into() };
    assert_eq!(reserve.given_up(), Some(reject));
    assert_eq!(Step::Commit { product, order, amount_cents: 1 }.given_up(), None);
}
