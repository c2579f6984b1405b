//! Units that a sale holds for orders that were placed first, and returns restricted to one kind of claim.

use super::*;

fn hold_for(order: &str, customer: &str, quantity: u32, amount_cents: Option<u64>) -> Command {
    let (order, customer) = (OrderId(order.into()), CustomerId(customer.into()));
    Command::Hold { claim: Claim { customer, quantity, order }, product: product(), amount_cents }
}

fn hold(order: &str, customer: &str, quantity: u32) -> Command {
    hold_for(order, customer, quantity, None)
}

/// Returns a hold that is the only claim of its customer.
fn held(order: &str, customer: &str, quantity: u32) -> Event {
    let Event::Claimed { order, customer, quantity, product, amount_cents, is_first, .. } =
        claimed(order, customer, quantity)
    else {
        unreachable!()
    };
    Event::Claimed { order, customer, quantity, product, amount_cents, is_first, is_ordered: true }
}

fn give_back_if(order: &str, is_ordered: bool) -> Command {
    Command::Return { order: OrderId(order.into()), is_ordered: Some(is_ordered) }
}

#[test]
fn a_return_of_one_kind_of_claim_leaves_the_other_alone() {
    let (of_claim, of_order) = (stocked(&[claimed("o", "c", 2)]), stocked(&[held("o", "c", 2)]));
    let returned = || Ok(vec![returned("o", "c", 2, None)]);
    check(&of_claim, DURING, give_back_if("o", false), returned());
    check(&of_claim, DURING, give_back_if("o", true), Err(Rejection::NotClaimed));
    check(&of_order, DURING, give_back_if("o", true), returned());
    check(&of_order, DURING, give_back_if("o", false), Err(Rejection::NotClaimed));
    // A return without a restriction returns both.
    check(&of_claim, DURING, give_back("o"), returned());
    check(&of_order, DURING, give_back("o"), returned());
}

#[test]
fn a_return_of_either_kind_returns_an_open_claim_once() {
    for is_ordered in [false, true] {
        let made = if is_ordered { held("o", "c", 2) } else { claimed("o", "c", 2) };
        let give_back = || give_back_if("o", is_ordered);
        for given in [
            vec![],
            scheduled(),
            refused(),
            stocked(&[]),
            stocked(&[made.clone(), returned("o", "c", 2, None)]),
            stocked(&[made.clone(), committed("o", 2)]),
            stocked(&[held("other", "d", 2), claimed("another", "e", 2)]),
        ] {
            check(&given, DURING, give_back(), Err(Rejection::NotClaimed));
        }
        // After the close the units go back to the product.
        let ended = stocked(&[made, closed(8)]);
        check(&ended, CLOSES, give_back(), Ok(vec![returned("o", "c", 2, Some(10))]));
    }
}

#[test]
fn a_hold_is_refused_by_the_same_rules_as_a_claim() {
    for (given, at) in [
        (vec![], DURING),
        (scheduled(), DURING),
        (refused(), DURING),
        (stocked(&[]), TimeMs(99)),
        (stocked(&[]), CLOSES),
        (stocked(&[Event::Opened]), CLOSES),
        (stocked(&[closed(10)]), DURING),
    ] {
        check(&given, at, hold("o", "c", 1), Err(Rejection::SaleNotOpen));
    }
    let given = stocked(&[held("o-1", "a", 4), claimed("o-2", "b", 4)]);
    check(&given, DURING, hold("o-3", "c", 3), Err(Rejection::SoldOut));
    check(&given, DURING, hold("o-3", "c", 2), Ok(vec![held("o-3", "c", 2)]));
    check(&given, DURING, hold("o-3", "a", 1), Err(Rejection::OverLimit));
    check(&given, DURING, hold("o-3", "b", 1), Err(Rejection::OverLimit));
    check(&stocked(&[]), DURING, hold("o", "c", 5), Err(Rejection::OverLimit));
}

#[test]
fn an_order_that_has_its_units_keeps_them_whatever_the_sale_is_now() {
    let given = stocked(&[held("o", "c", 2), closed(8)]);
    check(&given, CLOSES, hold("o", "c", 2), Ok(vec![]));
    check(&given, CLOSES, hold("o", "c", 3), Err(Rejection::AlreadyClaimed));
    check(&given, CLOSES, hold("o", "d", 2), Err(Rejection::AlreadyClaimed));
    let sold = stocked(&[held("o", "c", 2), committed("o", 2)]);
    check(&sold, DURING, hold("o", "c", 2), Ok(vec![]));
    // A claim for another product would not belong to the same order.
    let other = Command::Hold {
        claim: Claim { customer: CustomerId("c".into()), quantity: 2, order: OrderId("o".into()) },
        product: ProductId("lp".into()),
        amount_cents: None,
    };
    check(&given, DURING, other, Err(Rejection::OtherProduct));
}

#[test]
fn an_order_holds_units_at_the_sales_price_alone_and_keeps_them_at_whatever_it_names() {
    for amount_cents in [0, 9, 11, u64::MAX] {
        let wrong = hold_for("o", "c", 2, Some(amount_cents));
        check(&stocked(&[]), DURING, wrong, Err(Rejection::WrongPrice { price_cents: 5 }));
        check(&stocked(&[held("o", "c", 2)]), DURING, hold_for("o", "c", 2, Some(amount_cents)), Ok(vec![]));
    }
    check(&stocked(&[]), DURING, hold_for("o", "c", 2, Some(10)), Ok(vec![held("o", "c", 2)]));
}

#[test]
fn units_are_sold_for_what_their_order_paid() {
    let given = stocked(&[held("o", "c", 2)]);
    let sold = |amount_cents| {
        Ok(vec![Event::Committed { order: OrderId("o".into()), product: product(), quantity: 2, amount_cents }])
    };
    let pay = |amount_cents| Command::Commit { order: OrderId("o".into()), amount_cents };
    check(&given, DURING, pay(Some(7)), sold(7));
    check(&given, DURING, pay(None), sold(10));
}
