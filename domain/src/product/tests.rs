//! What each command does to a product, and what holds after any history of them.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use proptest::collection::{hash_map, vec as vec_of};
use proptest::prelude::*;

use super::{Allotment, By, Command, Event, Holder, Product, Registration, Rejection, State, decide, evolve};
use crate::ids::{OrderId, SaleId};

#[track_caller]
fn check(given: &[Event], when: Command, then: Result<Vec<Event>, Rejection>) {
    assert_eq!(decide(&fold(given), &when), then, "given {given:?}, when {when:?}");
}

fn fold(events: &[Event]) -> State {
    events.iter().fold(State::default(), evolve)
}

fn order(id: &str) -> OrderId {
    OrderId(id.into())
}

/// Ten units at 500 cents, at most four to an order.
fn blue() -> Registration {
    Registration { name: "Blue".into(), price_cents: 500, stock: 10, limit_per_order: Some(4) }
}

fn registered() -> Event {
    Event::Registered(blue())
}

/// Three units without a limit.
fn scarce() -> Event {
    Event::Registered(Registration { stock: 3, limit_per_order: None, ..blue() })
}

fn sale(id: &str) -> SaleId {
    SaleId(id.into())
}

fn allot(units: u32) -> Command {
    Command::Allot { sale: sale("s-1"), units }
}

fn allotted(units: u32) -> Event {
    Event::Allotted { sale: sale("s-1"), units }
}

fn take_back(total: u32) -> Command {
    Command::TakeBack { sale: sale("s-1"), total }
}

fn taken_back(units: u32, total: u32) -> Event {
    Event::TakenBack { sale: sale("s-1"), units, total }
}

#[test]
fn a_sale_gets_units_once_if_they_are_there() {
    check(&[registered()], allot(10), Ok(vec![allotted(10)]));
    check(&[registered()], allot(11), Err(Rejection::OutOfStock));
    check(&[registered(), reserved("o-1", 1)], allot(10), Err(Rejection::OutOfStock));
    check(&[registered(), allotted(10)], allot(10), Ok(vec![]));
    check(&[registered(), allotted(10)], allot(9), Err(Rejection::AlreadyAllotted));
    check(&[registered(), allotted(8)], reserve("o-1", 3), Err(Rejection::OutOfStock));
    check(&[registered(), Event::Discontinued], allot(1), Err(Rejection::Discontinued));
    check(&[registered(), allotted(1), Event::Discontinued], allot(1), Ok(vec![]));
    check(&[], allot(1), Err(Rejection::NotRegistered));
}

#[test]
fn what_a_sale_gives_back_counts_once_in_whatever_order_it_is_told() {
    check(&[registered(), allotted(10)], take_back(4), Ok(vec![taken_back(4, 4)]));
    let given = [registered(), allotted(10), taken_back(4, 4)];
    check(&given, take_back(4), Ok(vec![]));
    check(&given, take_back(3), Ok(vec![]));
    check(&given, take_back(10), Ok(vec![taken_back(6, 10)]));
    check(&given, take_back(11), Err(Rejection::NotAllotted));
    check(&given, reserve("o-1", 4), Ok(vec![reserved("o-1", 4)]));
    check(&[registered()], take_back(1), Err(Rejection::NotAllotted));
    check(&[registered(), allotted(10), Event::Discontinued], take_back(4), Ok(vec![taken_back(4, 4)]));
    check(&[], take_back(1), Err(Rejection::NotRegistered));
}

fn reserve(id: &str, quantity: u32) -> Command {
    Command::Reserve { order: order(id), quantity, by: By::Order { amount_cents: None } }
}

fn release(id: &str) -> Command {
    Command::Release { order: order(id), by: Holder::Order }
}

fn commit(id: &str) -> Command {
    Command::Commit { order: order(id), amount_cents: 70 }
}

fn reserved(id: &str, quantity: u32) -> Event {
    Event::Reserved { order: order(id), quantity }
}

fn released(id: &str, quantity: u32) -> Event {
    Event::Released { order: order(id), quantity }
}

fn committed(id: &str, quantity: u32) -> Event {
    Event::Committed { order: order(id), quantity, amount_cents: 70 }
}

#[test]
fn a_new_product_is_registered_as_it_was_asked() {
    check(&[], Command::Register(blue()), Ok(vec![registered()]));
}

#[test]
fn a_registration_is_repeated_harmlessly_whatever_happened_since() {
    let register = || Command::Register(blue());
    check(&[registered()], register(), Ok(vec![]));
    check(&[registered(), Event::Repriced { price_cents: 1 }], register(), Ok(vec![]));
    check(&[registered(), Event::Restocked { quantity: 5 }, reserved("o-1", 4)], register(), Ok(vec![]));
    check(&[registered(), Event::Discontinued], register(), Ok(vec![]));
}

#[test]
fn a_registration_with_any_other_datum_is_rejected() {
    for other in [
        Registration { name: "Red".into(), ..blue() },
        Registration { price_cents: 501, ..blue() },
        Registration { stock: 11, ..blue() },
        Registration { limit_per_order: None, ..blue() },
    ] {
        check(&[registered()], Command::Register(other.clone()), Err(Rejection::AlreadyRegistered));
        check(&[registered(), Event::Discontinued], Command::Register(other), Err(Rejection::AlreadyRegistered));
    }
}

#[test]
fn before_its_registration_a_product_takes_no_other_command() {
    for command in [
        Command::Restock { quantity: 1 },
        Command::Reprice { price_cents: 1 },
        reserve("o-1", 1),
        release("o-1"),
        commit("o-1"),
        Command::Discontinue,
    ] {
        check(&[], command, Err(Rejection::NotRegistered));
    }
}

#[test]
fn a_restock_adds_each_time_it_is_decided() {
    let restock = || Command::Restock { quantity: 2 };
    let restocked = || Event::Restocked { quantity: 2 };
    check(&[registered()], restock(), Ok(vec![restocked()]));
    check(&[registered(), restocked()], restock(), Ok(vec![restocked()]));
    check(&[scarce(), restocked()], reserve("o-1", 5), Ok(vec![reserved("o-1", 5)]));
    check(&[scarce(), restocked()], reserve("o-1", 6), Err(Rejection::OutOfStock));
}

#[test]
fn a_discontinued_product_is_still_restocked_and_repriced() {
    let given = [registered(), Event::Discontinued];
    check(&given, Command::Restock { quantity: 2 }, Ok(vec![Event::Restocked { quantity: 2 }]));
    check(&given, Command::Reprice { price_cents: 1 }, Ok(vec![Event::Repriced { price_cents: 1 }]));
}

#[test]
fn a_price_changes_only_to_another_one() {
    let repriced = |price_cents| Event::Repriced { price_cents };
    let reprice = |price_cents| Command::Reprice { price_cents };
    check(&[registered()], reprice(600), Ok(vec![repriced(600)]));
    check(&[registered()], reprice(500), Ok(vec![]));
    check(&[registered(), repriced(600)], reprice(600), Ok(vec![]));
    check(&[registered(), repriced(600)], reprice(500), Ok(vec![repriced(500)]));
}

#[test]
fn the_last_unit_can_be_reserved_and_not_one_more() {
    check(&[scarce()], reserve("o-1", 3), Ok(vec![reserved("o-1", 3)]));
    check(&[scarce()], reserve("o-1", 4), Err(Rejection::OutOfStock));
    check(&[scarce(), reserved("o-1", 2)], reserve("o-2", 1), Ok(vec![reserved("o-2", 1)]));
    check(&[scarce(), reserved("o-1", 2)], reserve("o-2", 2), Err(Rejection::OutOfStock));
}

#[test]
fn the_limit_binds_each_order_alone() {
    check(&[registered()], reserve("o-1", 4), Ok(vec![reserved("o-1", 4)]));
    check(&[registered()], reserve("o-1", 5), Err(Rejection::OverLimit));
    check(&[registered(), reserved("o-1", 4)], reserve("o-2", 4), Ok(vec![reserved("o-2", 4)]));
}

#[test]
fn what_a_restock_cannot_mend_is_told_before_the_stock() {
    check(&[registered()], reserve("o-1", 11), Err(Rejection::OverLimit));
    check(&[registered(), Event::Discontinued], reserve("o-1", 11), Err(Rejection::Discontinued));
}

#[test]
fn a_discontinued_product_takes_no_new_reservation() {
    check(&[registered(), Event::Discontinued], reserve("o-1", 1), Err(Rejection::Discontinued));
}

#[test]
fn a_repeated_reservation_is_not_judged_anew() {
    check(&[scarce(), reserved("o-1", 3)], reserve("o-1", 3), Ok(vec![]));
    check(&[scarce(), reserved("o-1", 3), Event::Discontinued], reserve("o-1", 3), Ok(vec![]));
}

#[test]
fn an_order_cannot_hold_a_product_twice() {
    check(&[registered(), reserved("o-1", 2)], reserve("o-1", 3), Err(Rejection::AlreadyReserved));
    check(&[registered(), reserved("o-1", 2)], reserve("o-1", 5), Err(Rejection::AlreadyReserved));
    check(&[registered(), reserved("o-1", 2), Event::Discontinued], reserve("o-1", 1), Err(Rejection::AlreadyReserved));
}

#[test]
fn a_release_gives_back_what_the_order_holds() {
    let given = [scarce(), reserved("o-1", 2)];
    check(&given, release("o-1"), Ok(vec![released("o-1", 2)]));
    let given = [scarce(), reserved("o-1", 2), released("o-1", 2)];
    check(&given, reserve("o-2", 3), Ok(vec![reserved("o-2", 3)]));
}

#[test]
fn a_commit_takes_what_the_order_holds_for_good() {
    let given = [scarce(), reserved("o-1", 2)];
    check(&given, commit("o-1"), Ok(vec![committed("o-1", 2)]));
    let given = [scarce(), reserved("o-1", 2), committed("o-1", 2)];
    check(&given, reserve("o-2", 2), Err(Rejection::OutOfStock));
}

#[test]
fn open_reservations_of_a_discontinued_product_can_end() {
    let given = [registered(), reserved("o-1", 2), Event::Discontinued];
    check(&given, release("o-1"), Ok(vec![released("o-1", 2)]));
    check(&given, commit("o-1"), Ok(vec![committed("o-1", 2)]));
}

#[test]
fn only_a_reservation_that_is_open_can_end() {
    let committed = vec![registered(), reserved("o-1", 1), committed("o-1", 1)];
    for end in [release("o-1"), commit("o-1")] {
        for given in [
            vec![registered()],
            vec![registered(), reserved("o-2", 1)],
            vec![registered(), reserved("o-1", 1), released("o-1", 1)],
            vec![registered(), Event::Discontinued],
        ] {
            check(&given, end.clone(), Err(Rejection::NotReserved));
        }
    }
    check(&committed, release("o-1"), Err(Rejection::NotReserved));
}

#[test]
fn an_order_gets_its_units_once_however_late_it_asks_again() {
    let given = [registered(), reserved("o-1", 1), committed("o-1", 1)];
    check(&given, commit("o-1"), Ok(vec![]));
    check(&given, reserve("o-1", 1), Ok(vec![]));
    check(&given, reserve("o-2", 1), Ok(vec![reserved("o-2", 1)]));
}

#[test]
fn a_product_is_discontinued_once() {
    check(&[registered()], Command::Discontinue, Ok(vec![Event::Discontinued]));
    check(&[registered(), Event::Discontinued], Command::Discontinue, Ok(vec![]));
}

/// Few orders, so that histories meet the same one again.
fn any_order() -> impl Strategy<Value = OrderId> {
    prop_oneof![Just("o-1"), Just("o-2"), Just("o-3")].prop_map(order)
}

fn any_registration() -> impl Strategy<Value = Registration> {
    (prop_oneof![Just("Blue"), Just("Red")], 0..3_u64, 0..20_u32, proptest::option::of(1..6_u32)).prop_map(
        |(name, price_cents, stock, limit_per_order)| Registration {
            name: name.into(),
            price_cents,
            stock,
            limit_per_order,
        },
    )
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        1 => any_registration().prop_map(Command::Register),
        2 => (0..6_u32).prop_map(|quantity| Command::Restock { quantity }),
        2 => (0..3_u64).prop_map(|price_cents| Command::Reprice { price_cents }),
        8 => (any_order(), 0..8_u32).prop_map(|(order, quantity)| Command::Reserve {
            order,
            quantity,
            by: By::Order { amount_cents: None }
        }),
        4 => any_order().prop_map(|order| Command::Release { order, by: Holder::Order }),
        4 => (any_order(), any_u64()).prop_map(|(order, amount_cents)| Command::Commit { order, amount_cents }),
        2 => (any_sale(), 0..8_u32).prop_map(|(sale, units)| Command::Allot { sale, units }),
        3 => (any_sale(), 0..8_u32).prop_map(|(sale, total)| Command::TakeBack { sale, total }),
        1 => Just(Command::Discontinue),
    ]
}

/// Most begin with a registration: without one there is little to see.
fn any_history() -> impl Strategy<Value = Vec<Command>> {
    (proptest::option::weighted(0.9, any_registration()), vec_of(any_command(), 0..50))
        .prop_map(|(first, rest)| first.map(Command::Register).into_iter().chain(rest).collect())
}

fn any_u64() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), any::<u64>()]
}

fn any_u32() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(u32::MAX), any::<u32>()]
}

fn any_sale() -> impl Strategy<Value = SaleId> {
    prop_oneof![Just("s-1"), Just("s-2")].prop_map(sale)
}

/// Also events that no decision leads to.
fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any_registration().prop_map(Event::Registered),
        any_u32().prop_map(|quantity| Event::Restocked { quantity }),
        any_u64().prop_map(|price_cents| Event::Repriced { price_cents }),
        (any_order(), any_u32()).prop_map(|(order, quantity)| Event::Reserved { order, quantity }),
        (any_order(), any_u32()).prop_map(|(order, quantity)| Event::Released { order, quantity }),
        (any_order(), any_u32(), any_u64()).prop_map(|(order, quantity, amount_cents)| Event::Committed {
            order,
            quantity,
            amount_cents
        }),
        (any_sale(), any_u32()).prop_map(|(sale, units)| Event::Allotted { sale, units }),
        (any_sale(), any_u32(), any_u32()).prop_map(|(sale, units, total)| Event::TakenBack { sale, units, total }),
        Just(Event::Discontinued),
    ]
}

/// Also products that no history leads to.
fn any_product() -> impl Strategy<Value = Box<Product>> {
    (any_registration(), any_u64(), any_u64(), hash_map(any_order(), any_u32(), 0..4)).prop_map(
        |(registration, price_cents, available, reservations)| {
            let reservations = reservations.into_iter().collect();
            let allotments = [(sale("s-1"), Allotment { units: 3, taken_back: 1 })].into_iter().collect();
            let committed = [(OrderId("o-3".into()).fingerprint(), ())].into();
            Box::new(Product { registration, price_cents, available, reservations, committed, allotments })
        },
    )
}

fn any_state() -> impl Strategy<Value = State> {
    prop_oneof![
        1 => Just(State::Unregistered),
        4 => any_product().prop_map(State::OnSale),
        4 => any_product().prop_map(State::Discontinued),
    ]
}

/// The state after each accepted command, with the command and its events. What was rejected is left out.
fn accepted(history: &[Command]) -> Vec<(&Command, Vec<Event>, State)> {
    let mut state = State::default();
    let mut steps = vec![];
    for command in history {
        if let Ok(events) = decide(&state, command) {
            state = events.iter().fold(state, evolve);
            steps.push((command, events, state.clone()));
        }
    }
    steps
}

/// Units, counted from the events alone and with a sign, so that a shortage would show.
#[derive(Default)]
struct Ledger {
    supplied: i128,
    reserved: i128,
    committed: i128,
    allotted: i128,
}

impl Ledger {
    fn book(&mut self, event: &Event) {
        match event {
            Event::Registered(registration) => self.supplied += i128::from(registration.stock),
            Event::Restocked { quantity } => self.supplied += i128::from(*quantity),
            Event::Reserved { quantity, .. } => self.reserved += i128::from(*quantity),
            Event::Released { quantity, .. } => self.reserved -= i128::from(*quantity),
            Event::Committed { quantity, .. } => {
                self.reserved -= i128::from(*quantity);
                self.committed += i128::from(*quantity);
            }
            Event::Allotted { units, .. } => self.allotted += i128::from(*units),
            Event::TakenBack { units, .. } => self.allotted -= i128::from(*units),
            Event::Repriced { .. } | Event::Discontinued => {}
        }
    }

    fn available(&self) -> i128 {
        self.supplied - self.reserved - self.committed - self.allotted
    }
}

/// Of the state, in units: available, reserved.
fn units(state: &State) -> (i128, i128) {
    match state {
        State::Unregistered => (0, 0),
        State::OnSale(product) | State::Discontinued(product) => {
            (product.available.into(), product.reservations.values().map(|held| i128::from(*held)).sum())
        }
    }
}

fn stage(state: &State) -> u8 {
    match state {
        State::Unregistered => 0,
        State::OnSale(_) => 1,
        State::Discontinued(_) => 2,
    }
}

proptest! {
    #[test]
    fn stock_is_conserved_and_never_below_zero(history in any_history()) {
        let mut ledger = Ledger::default();
        for (_, events, state) in accepted(&history) {
            for event in &events {
                ledger.book(event);
                prop_assert!(ledger.available() >= 0, "{event:?} took what was not there");
            }
            let (available, reserved) = units(&state);
            prop_assert_eq!(ledger.supplied, available + reserved + ledger.committed + ledger.allotted);
            prop_assert_eq!((ledger.available(), ledger.reserved), (available, reserved));
        }
    }

    #[test]
    fn no_order_holds_more_than_its_limit(history in any_history()) {
        for (_, _, state) in accepted(&history) {
            if let State::OnSale(product) | State::Discontinued(product) = state {
                let limit = product.registration.limit_per_order.unwrap_or(u32::MAX);
                prop_assert!(product.reservations.values().all(|held| *held <= limit));
            }
        }
    }

    #[test]
    fn a_command_repeated_at_once_changes_nothing_more(history in any_history()) {
        for (command, events, state) in accepted(&history) {
            let expected = match command {
                Command::Register(_)
                | Command::Reprice { .. }
                | Command::Reserve { .. }
                | Command::Commit { .. }
                | Command::Allot { .. }
                | Command::TakeBack { .. }
                | Command::Discontinue => Ok(vec![]),
                // What was released is forgotten, or the state would grow with every order ever made.
                Command::Release { .. } => Err(Rejection::NotReserved),
                // Two restocks are two deliveries; only their keys, which the domain does not see, tell a
                // repeat from a second one.
                Command::Restock { .. } => Ok(events),
            };
            prop_assert_eq!(decide(&state, command), expected);
        }
    }

    #[test]
    fn any_event_has_a_state_after_it_in_any_state(state in any_state(), events in vec_of(any_event(), 0..20)) {
        let mut state = state;
        for event in &events {
            let before = stage(&state);
            state = evolve(state, event);
            prop_assert!(stage(&state) >= before, "{event:?} led back");
        }
    }

    #[test]
    fn any_command_has_an_answer_in_any_state(state in any_state(), command in any_command()) {
        let _ = decide(&state, &command);
    }

    #[test]
    fn a_fold_of_the_log_is_the_state_it_was_decided_on(
        history in any_history(),
        cut in any::<prop::sample::Index>(),
        next in any_command(),
    ) {
        let steps = accepted(&history);
        let last = steps.last().map_or_else(State::default, |(_, _, state)| state.clone());
        let log: Vec<Event> = steps.into_iter().flat_map(|(_, events, _)| events).collect();
        prop_assert_eq!(&fold(&log), &last);
        prop_assert_eq!(decide(&fold(&log), &next), decide(&last, &next));
        // A snapshot anywhere and the tail after it.
        let (before, after) = log.split_at(cut.index(log.len() + 1));
        prop_assert_eq!(after.iter().fold(fold(before), evolve), last);
    }
}
