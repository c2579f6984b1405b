//! Effects of each command on a sale, and properties of all histories.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use proptest::collection::vec as vec_of;
use proptest::prelude::*;

use super::{Claim, Command, Event, Rejection, Sale, Schedule, State, Stock, decide, evolve};
use crate::TimeMs;
use crate::ids::{CustomerId, OrderId, ProductId};
use crate::order::MAX_TOTAL_CENTS;

mod orders;

const BEFORE: TimeMs = TimeMs(10);
const OPENS: TimeMs = TimeMs(100);
const DURING: TimeMs = TimeMs(150);
const CLOSES: TimeMs = TimeMs(200);

#[track_caller]
fn check(given: &[Event], at: TimeMs, when: Command, then: Result<Vec<Event>, Rejection>) {
    assert_eq!(decide(&fold(given), &when, at), then, "given {given:?}, when {when:?} at {at:?}");
}

fn fold(events: &[Event]) -> State {
    events.iter().fold(State::default(), evolve)
}

fn product() -> ProductId {
    ProductId("cd".into())
}

/// Ten units for 5 cents each, four for each customer.
fn schedule() -> Schedule {
    Schedule {
        product: product(),
        opens_at: OPENS,
        closes_at: CLOSES,
        price_cents: 5,
        units: 10,
        limit_per_customer: 4,
    }
}

fn claim(order: &str, customer: &str, quantity: u32) -> Command {
    let (order, customer) = (OrderId(order.into()), CustomerId(customer.into()));
    Command::Claim(Claim { customer, quantity, order })
}

fn claimed(order: &str, customer: &str, quantity: u32) -> Event {
    Event::Claimed {
        order: OrderId(order.into()),
        customer: CustomerId(customer.into()),
        quantity,
        product: product(),
        amount_cents: 5 * u64::from(quantity),
        is_first: true,
        is_ordered: false,
    }
}

fn returned(order: &str, customer: &str, quantity: u32, given_back: Option<u32>) -> Event {
    let (order, customer) = (OrderId(order.into()), CustomerId(customer.into()));
    Event::Returned { order, customer, quantity, product: product(), given_back, is_last: true }
}

fn committed(order: &str, quantity: u32) -> Event {
    let amount_cents = 5 * u64::from(quantity);
    Event::Committed { order: OrderId(order.into()), product: product(), quantity, amount_cents }
}

fn give_back(order: &str) -> Command {
    Command::Return { order: OrderId(order.into()), is_ordered: None }
}

fn commit(order: &str) -> Command {
    Command::Commit { order: OrderId(order.into()), amount_cents: None }
}

fn closed(given_back: u32) -> Event {
    Event::Closed { product: product(), given_back }
}

fn scheduled() -> Vec<Event> {
    vec![Event::Scheduled(schedule())]
}

fn stocked(more: &[Event]) -> Vec<Event> {
    [&scheduled()[..], &[Event::Stocked], more].concat()
}

fn refused() -> Vec<Event> {
    [&scheduled()[..], &[Event::Refused { reason: Some("out_of_stock".into()) }]].concat()
}

#[test]
fn a_sale_is_scheduled_once_for_a_time_that_is_to_come() {
    check(&[], BEFORE, Command::Schedule(schedule()), Ok(scheduled()));
    check(&scheduled(), DURING, Command::Schedule(schedule()), Ok(vec![]));
    for other in [
        Schedule { units: 11, ..schedule() },
        Schedule { price_cents: 6, ..schedule() },
        Schedule { product: ProductId("lp".into()), ..schedule() },
        Schedule { closes_at: TimeMs(201), ..schedule() },
        Schedule { limit_per_customer: 5, ..schedule() },
    ] {
        check(&scheduled(), BEFORE, Command::Schedule(other), Err(Rejection::AlreadyScheduled));
    }
    check(&[], BEFORE, Command::Schedule(Schedule { opens_at: CLOSES, ..schedule() }), Err(Rejection::BadWindow));
    check(&[], CLOSES, Command::Schedule(schedule()), Err(Rejection::BadWindow));
}

#[test]
fn the_status_of_a_sale_follows_its_times_and_its_events() {
    for (given, at, status) in [
        (vec![], DURING, "unscheduled"),
        (scheduled(), DURING, "scheduled"),
        (scheduled(), CLOSES, "closed"),
        (refused(), DURING, "refused"),
        (refused(), CLOSES, "refused"),
        (stocked(&[]), BEFORE, "stocked"),
        (stocked(&[Event::Opened]), BEFORE, "open"),
        (stocked(&[]), DURING, "open"),
        (stocked(&[]), CLOSES, "closed"),
        (stocked(&[closed(10)]), DURING, "closed"),
    ] {
        assert_eq!(fold(&given).status(at), status, "{given:?} at {at:?}");
    }
}

#[test]
fn units_come_once_or_are_refused_once() {
    check(&scheduled(), BEFORE, Command::Stock, Ok(vec![Event::Stocked]));
    check(&stocked(&[]), BEFORE, Command::Stock, Ok(vec![]));
    check(&refused(), BEFORE, Command::Stock, Err(Rejection::AlreadyRefused));
    let refuse = Command::Refuse { reason: Some("out_of_stock".into()) };
    check(&scheduled(), BEFORE, refuse.clone(), Ok(vec![refused()[1].clone()]));
    check(&refused(), BEFORE, refuse.clone(), Ok(vec![]));
    check(&stocked(&[]), BEFORE, refuse, Err(Rejection::AlreadyStocked));
}

#[test]
fn nothing_happens_to_a_sale_that_is_not_scheduled() {
    for command in [
        Command::Stock,
        Command::Refuse { reason: None },
        Command::Open { due_at: None },
        Command::Close { due_at: None },
    ] {
        check(&[], DURING, command, Err(Rejection::NotScheduled));
    }
    check(&[], DURING, claim("o", "c", 1), Err(Rejection::SaleNotOpen));
    check(&[], DURING, give_back("o"), Err(Rejection::NotClaimed));
    check(&[], DURING, commit("o"), Err(Rejection::NotClaimed));
}

#[test]
fn a_claim_is_taken_while_the_sale_has_its_units_and_is_open() {
    check(&stocked(&[]), OPENS, claim("o", "c", 2), Ok(vec![claimed("o", "c", 2)]));
    for (given, at) in [
        (scheduled(), DURING),
        (refused(), DURING),
        (stocked(&[]), TimeMs(99)),
        (stocked(&[]), CLOSES),
        (stocked(&[Event::Opened]), CLOSES),
        (stocked(&[closed(10)]), DURING),
    ] {
        check(&given, at, claim("o", "c", 2), Err(Rejection::SaleNotOpen));
    }
    check(&stocked(&[Event::Opened]), BEFORE, claim("o", "c", 2), Ok(vec![claimed("o", "c", 2)]));
}

#[test]
fn an_order_claims_once_whenever_it_asks_again() {
    let given = stocked(&[claimed("o", "c", 2)]);
    for at in [DURING, CLOSES] {
        check(&given, at, claim("o", "c", 2), Ok(vec![]));
        check(&given, at, claim("o", "c", 3), Err(Rejection::AlreadyClaimed));
        check(&given, at, claim("o", "d", 2), Err(Rejection::AlreadyClaimed));
    }
    check(&stocked(&[claimed("o", "c", 2), committed("o", 2)]), DURING, claim("o", "c", 2), Ok(vec![]));
    let returned = stocked(&[claimed("o", "c", 2), returned("o", "c", 2, None)]);
    check(&returned, DURING, claim("o", "c", 2), Ok(vec![claimed("o", "c", 2)]));
}

#[test]
fn units_are_held_for_an_order_of_this_product_that_did_not_claim() {
    let hold = |product: &str| {
        let Command::Claim(claim) = claim("o", "c", 1) else { unreachable!() };
        Command::Hold { claim, product: ProductId(product.into()), amount_cents: None }
    };
    let held = || {
        let Event::Claimed { order, customer, quantity, product, amount_cents, is_first, .. } = claimed("o", "c", 1)
        else {
            unreachable!()
        };
        Event::Claimed { order, customer, quantity, product, amount_cents, is_first, is_ordered: true }
    };
    check(&stocked(&[]), DURING, hold("cd"), Ok(vec![held()]));
    check(&stocked(&[]), DURING, hold("lp"), Err(Rejection::OtherProduct));
    check(&stocked(&[held()]), DURING, hold("cd"), Ok(vec![]));
    check(&stocked(&[held()]), DURING, claim("o", "c", 1), Err(Rejection::AlreadyClaimed));
    check(&stocked(&[claimed("o", "c", 1)]), DURING, hold("cd"), Err(Rejection::AlreadyClaimed));
}

#[test]
fn no_more_than_its_units_are_claimed_and_by_no_customer_more_than_the_limit() {
    let given = stocked(&[claimed("o-1", "a", 4), claimed("o-2", "b", 4)]);
    check(&given, DURING, claim("o-3", "c", 3), Err(Rejection::SoldOut));
    check(&given, DURING, claim("o-3", "c", 2), Ok(vec![claimed("o-3", "c", 2)]));
    check(&given, DURING, claim("o-3", "a", 1), Err(Rejection::OverLimit));
    let again = [&given[..], &[returned("o-1", "a", 4, None)]].concat();
    check(&again, DURING, claim("o-3", "a", 4), Ok(vec![claimed("o-3", "a", 4)]));
    let sold = [&given[..], &[committed("o-1", 4)]].concat();
    check(&sold, DURING, claim("o-3", "a", 1), Err(Rejection::OverLimit));
    let partly = stocked(&[claimed("o-1", "a", 3), claimed("o-2", "a", 1), returned("o-2", "a", 1, None)]);
    check(&partly, DURING, claim("o-3", "a", 2), Err(Rejection::OverLimit));
}

#[test]
fn no_claim_is_larger_than_the_order_that_it_becomes_may_be() {
    let dear = Schedule { price_cents: MAX_TOTAL_CENTS / 2, ..schedule() };
    let given = vec![Event::Scheduled(dear), Event::Stocked];
    check(&given, DURING, claim("o", "c", 3), Err(Rejection::OverLimit));
    let state = given.iter().fold(State::default(), evolve);
    let events = decide(&state, &claim("o", "c", 2), DURING).unwrap();
    assert!(matches!(&events[..], [Event::Claimed { amount_cents: MAX_TOTAL_CENTS, .. }]), "{events:?}");
}

#[test]
fn a_claim_is_returned_or_committed_once() {
    let given = stocked(&[claimed("o", "c", 2)]);
    check(&given, DURING, give_back("o"), Ok(vec![returned("o", "c", 2, None)]));
    check(&given, DURING, commit("o"), Ok(vec![committed("o", 2)]));
    let gone = stocked(&[claimed("o", "c", 2), returned("o", "c", 2, None)]);
    let sold = stocked(&[claimed("o", "c", 2), committed("o", 2)]);
    check(&gone, DURING, give_back("o"), Err(Rejection::NotClaimed));
    check(&gone, DURING, commit("o"), Err(Rejection::NotClaimed));
    check(&sold, DURING, give_back("o"), Err(Rejection::NotClaimed));
    check(&sold, DURING, commit("o"), Ok(vec![]));
}

#[test]
fn nothing_opens_or_closes_by_itself_before_its_time() {
    let given = stocked(&[]);
    let due = |ms| Some(TimeMs(DURING.0 + ms));
    check(&given, DURING, Command::Open { due_at: due(1) }, Err(Rejection::NotDue));
    check(&given, DURING, Command::Open { due_at: due(0) }, Ok(vec![Event::Opened]));
    check(&given, DURING, Command::Close { due_at: due(1) }, Err(Rejection::NotDue));
    check(&given, DURING, Command::Close { due_at: due(0) }, Ok(vec![closed(10)]));
    let ended = [&given[..], &[closed(10)]].concat();
    check(&ended, DURING, Command::Close { due_at: due(1) }, Ok(vec![]));
}

#[test]
fn unclaimed_units_go_back_at_the_close_and_returned_ones_afterwards_too() {
    let given = stocked(&[claimed("o-1", "a", 4), claimed("o-2", "b", 3)]);
    check(&given, DURING, Command::Close { due_at: None }, Ok(vec![closed(3)]));
    let ended = [&given[..], &[closed(3)]].concat();
    check(&ended, DURING, Command::Close { due_at: None }, Ok(vec![]));
    check(&ended, DURING, Command::Open { due_at: None }, Err(Rejection::AlreadyClosed));
    check(&ended, CLOSES, give_back("o-1"), Ok(vec![returned("o-1", "a", 4, Some(7))]));
    let later = [&ended[..], &[returned("o-1", "a", 4, Some(7))]].concat();
    check(&later, CLOSES, give_back("o-2"), Ok(vec![returned("o-2", "b", 3, Some(10))]));
    check(&later, CLOSES, commit("o-2"), Ok(vec![committed("o-2", 3)]));
}

#[test]
fn a_sale_that_closed_before_its_units_came_gives_them_back_when_they_do() {
    check(&scheduled(), BEFORE, Command::Close { due_at: None }, Ok(vec![closed(0)]));
    let ended = [&scheduled()[..], &[closed(0)]].concat();
    check(&ended, BEFORE, Command::Stock, Ok(vec![Event::Stocked, closed(10)]));
    check(&refused(), BEFORE, Command::Close { due_at: None }, Ok(vec![]));
    check(&refused(), BEFORE, Command::Open { due_at: None }, Err(Rejection::AlreadyRefused));
}

#[test]
fn a_sale_is_opened_by_hand_once() {
    check(&stocked(&[]), BEFORE, Command::Open { due_at: None }, Ok(vec![Event::Opened]));
    check(&stocked(&[Event::Opened]), BEFORE, Command::Open { due_at: None }, Ok(vec![]));
    check(&scheduled(), BEFORE, Command::Open { due_at: None }, Ok(vec![Event::Opened]));
}

fn any_order() -> impl Strategy<Value = OrderId> {
    (0..6_u8).prop_map(|order| OrderId(format!("o-{order}").into()))
}

fn any_claim() -> impl Strategy<Value = Claim> {
    (any_order(), 0..3_u8, 1..5_u32).prop_map(|(order, customer, quantity)| {
        let customer = CustomerId(format!("c-{customer}").into());
        Claim { customer, quantity, order }
    })
}

fn any_command() -> impl Strategy<Value = Command> {
    let product = prop_oneof![4 => Just(product()), 1 => Just(ProductId("lp".into()))];
    prop_oneof![
        1 => Just(Command::Schedule(schedule())),
        1 => Just(Command::Stock),
        1 => Just(Command::Refuse { reason: None }),
        1 => Just(Command::Open { due_at: None }),
        1 => Just(Command::Close { due_at: None }),
        8 => any_claim().prop_map(Command::Claim),
        4 => (any_claim(), product).prop_map(|(claim, product)| Command::Hold { claim, product, amount_cents: None }),
        4 => (any_order(), any::<Option<bool>>())
            .prop_map(|(order, is_ordered)| Command::Return { order, is_ordered }),
        4 => any_order().prop_map(|order| Command::Commit { order, amount_cents: None }),
    ]
}

/// Generates histories with increasing times. Most begin with a sale that has its units.
fn any_history() -> impl Strategy<Value = Vec<(Command, TimeMs)>> {
    let begin = prop_oneof![4 => Just(vec![Command::Schedule(schedule()), Command::Stock]), 1 => Just(vec![])];
    (begin, vec_of(any_command(), 0..40), 1..8_u64).prop_map(|(begin, rest, step)| {
        begin.into_iter().chain(rest).zip((0..).map(move |n| TimeMs(BEFORE.0 + n * step))).collect()
    })
}

fn run(history: &[(Command, TimeMs)]) -> (State, Vec<Event>) {
    let (mut state, mut log) = (State::default(), vec![]);
    for (command, at) in history {
        if let Ok(events) = decide(&state, command, *at) {
            state = events.iter().fold(state, evolve);
            log.extend(events);
        }
    }
    (state, log)
}

fn sale(state: State) -> Option<Box<Sale>> {
    match state {
        State::Unscheduled => None,
        State::Scheduled(sale) => Some(sale),
    }
}

proptest! {
    #[test]
    fn units_are_claimed_given_back_or_left_and_no_customer_is_over_the_limit(history in any_history()) {
        let (state, log) = run(&history);
        let Some(sale) = sale(state) else { return Ok(()) };
        let claimed: u32 = sale.claims.values().map(|claimed| claimed.quantity).sum();
        prop_assert_eq!(claimed, sale.claimed);
        prop_assert!(sale.claimed <= sale.schedule.units, "{log:?}");
        for (customer, units) in sale.customers.iter() {
            let of = |claimed: &&super::Claimed| claimed.customer == *customer;
            prop_assert_eq!(sale.claims.values().filter(of).map(|claimed| claimed.quantity).sum::<u32>(), *units);
            prop_assert!(*units > 0 && *units <= sale.schedule.limit_per_customer, "{log:?}");
        }
        // Once the sale is closed, all allotted units are claimed or given back.
        if sale.is_closed && sale.stock == Stock::Taken {
            prop_assert_eq!(sale.claimed + sale.given_back, sale.schedule.units, "{:?}", log);
        } else {
            prop_assert_eq!(sale.given_back, 0);
        }
    }

    #[test]
    fn every_claim_is_returned_or_committed_at_most_once(history in any_history()) {
        let (_, log) = run(&history);
        let mut open: Vec<&OrderId> = vec![];
        for event in &log {
            match event {
                Event::Claimed { order, .. } => {
                    prop_assert!(!open.contains(&order), "{log:?}");
                    open.push(order);
                }
                Event::Returned { order, .. } | Event::Committed { order, .. } => {
                    let place = open.iter().position(|known| *known == order);
                    prop_assert!(place.is_some(), "{log:?}");
                    open.remove(place.unwrap());
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_command_that_is_accepted_and_repeated_changes_nothing_more(history in any_history()) {
        let mut state = State::default();
        for (command, at) in &history {
            let Ok(events) = decide(&state, command, *at) else { continue };
            state = events.iter().fold(state, evolve);
            let again = decide(&state, command, CLOSES);
            let is_return = matches!(command, Command::Return { .. });
            prop_assert!(again == Ok(vec![]) || is_return && again == Err(Rejection::NotClaimed), "{command:?}: {again:?}");
        }
    }

    #[test]
    fn a_fold_of_the_log_is_the_state_it_was_decided_on(history in any_history()) {
        let (state, log) = run(&history);
        prop_assert_eq!(fold(&log), state);
    }
}
