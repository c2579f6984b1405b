//! Effects of each command on a product, and properties of all histories.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use proptest::collection::{hash_map, vec as vec_of};
use proptest::prelude::*;

use super::{
    Allotment, By, Command, Event, Hold, Holder, Holds, Product, Registration, Rejection, State, decide, evolve,
};
use crate::TimeMs;
use crate::ids::{Fingerprint, OrderId, SaleId};

#[track_caller]
fn check(given: &[Event], when: Command, then: Result<Vec<Event>, Rejection>) {
    check_at(NOW, given, when, then);
}

#[track_caller]
fn check_at(at: TimeMs, given: &[Event], when: Command, then: Result<Vec<Event>, Rejection>) {
    assert_eq!(decide(&fold(given), &when, at), then, "given {given:?}, when {when:?}, at {at:?}");
}

const NOW: TimeMs = TimeMs(1_000_000);

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
fn the_status_of_a_product_follows_its_events() {
    for (given, status) in [
        (vec![], "unregistered"),
        (vec![registered()], "on_sale"),
        (vec![registered(), Event::Discontinued], "discontinued"),
    ] {
        assert_eq!(fold(&given).status(), status, "{given:?}");
    }
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
fn units_that_a_sale_gives_back_count_once_in_whatever_order_totals_arrive() {
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

fn reserve_for(id: &str, quantity: u32, amount_cents: u64) -> Command {
    Command::Reserve { order: order(id), quantity, by: By::Order { amount_cents: Some(amount_cents) } }
}

fn release(id: &str) -> Command {
    Command::Release { order: order(id), by: Holder::Order }
}

fn commit(id: &str) -> Command {
    Command::Commit { order: order(id), amount_cents: 70 }
}

fn reserved(id: &str, quantity: u32) -> Event {
    Event::Reserved { order: order(id), quantity, by: Holder::Order, until: None, alarm_at: None }
}

fn released(id: &str, quantity: u32) -> Event {
    Event::Released { order: order(id), quantity, by: Holder::Order }
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
fn an_order_gets_its_units_for_their_price_at_that_moment_alone() {
    check(&[registered()], reserve_for("o-1", 2, 1_000), Ok(vec![reserved("o-1", 2)]));
    let repriced = Event::Repriced { price_cents: 501 };
    check(&[registered(), repriced.clone()], reserve_for("o-1", 2, 1_002), Ok(vec![reserved("o-1", 2)]));
    for amount_cents in [0, 1, 999, 1_001, u64::MAX] {
        let wrong = || reserve_for("o-1", 2, amount_cents);
        check(&[registered()], wrong(), Err(Rejection::WrongPrice { price_cents: 500 }));
        // The order has them already.
        check(&[registered(), reserved("o-1", 2), repriced.clone()], wrong(), Ok(vec![]));
        check(&[registered(), reserved("o-1", 2), committed("o-1", 2)], wrong(), Ok(vec![]));
    }
    let dear = Event::Registered(Registration { price_cents: u64::MAX, ..blue() });
    let wrong = Err(Rejection::WrongPrice { price_cents: u64::MAX });
    check(&[dear], reserve_for("o-1", 2, u64::MAX - 1), wrong);
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
fn the_limit_is_checked_before_the_stock() {
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

/// Returns a client's command to hold units.
fn hold(id: &str, quantity: u32, hold_secs: Option<u32>) -> Command {
    Command::Reserve { order: order(id), quantity, by: By::Client { hold_secs } }
}

fn let_go(id: &str) -> Command {
    Command::Release { order: order(id), by: Holder::Client }
}

fn own(id: &str, quantity: u32) -> Event {
    Event::Reserved { order: order(id), quantity, by: Holder::Client, until: None, alarm_at: None }
}

/// Returns a hold that ends `secs` after [`NOW`].
fn own_until(id: &str, quantity: u32, secs: u64, alarm: Option<u64>) -> Event {
    let (until, alarm_at) = (Some(after(secs)), alarm.map(after));
    Event::Reserved { order: order(id), quantity, by: Holder::Client, until, alarm_at }
}

fn own_released(id: &str, quantity: u32) -> Event {
    Event::Released { order: order(id), quantity, by: Holder::Client }
}

/// Returns a lapse of the holds that ended `secs` after [`NOW`].
fn lapsed(secs: u64, quantity: u64, alarm: Option<u64>) -> Event {
    Event::HoldsLapsed { until: after(secs), quantity, alarm_at: alarm.map(after) }
}

fn after(secs: u64) -> TimeMs {
    TimeMs(NOW.0 + secs * 1000)
}

#[test]
fn holds_are_put_together_again_from_their_entries() {
    let state = fold(&[scarce(), own("o-1", 2), own_until("o-2", 1, 5, Some(5))]);
    let State::OnSale(product) = state else { unreachable!() };
    let again = Holds::of(product.holds.iter(), product.holds.alarm_at());
    assert_eq!((again.alarm_at(), again.iter().count()), (Some(after(5)), 2));
    assert_eq!(again, product.holds);
}

#[test]
fn a_client_cannot_release_the_reservation_of_an_order() {
    check(&[scarce(), reserved("o-1", 2)], let_go("o-1"), Err(Rejection::HeldByOrder));
    check(&[scarce(), reserved("o-1", 2), committed("o-1", 2)], let_go("o-1"), Err(Rejection::NotReserved));
    check(&[scarce()], let_go("o-1"), Err(Rejection::NotReserved));
    check(&[scarce(), own("o-1", 2)], let_go("o-1"), Ok(vec![own_released("o-1", 2)]));
    // If both exist, the client releases its own.
    check(&[scarce(), reserved("o-1", 2), own("o-1", 1)], let_go("o-1"), Ok(vec![own_released("o-1", 1)]));
    check(&[scarce(), reserved("o-1", 2), own("o-1", 1)], release("o-1"), Ok(vec![released("o-1", 2)]));
}

#[test]
fn a_clients_hold_under_an_orders_name_does_not_affect_the_order() {
    let given = [scarce(), own("o-1", 1)];
    check(&given, reserve("o-1", 2), Ok(vec![reserved("o-1", 2)]));
    check(&given, reserve("o-1", 3), Err(Rejection::OutOfStock));
    check(&given, release("o-1"), Err(Rejection::NotReserved));
    check(&given, commit("o-1"), Err(Rejection::NotReserved));
    check(&[scarce(), own("o-1", 1), reserved("o-1", 2)], commit("o-1"), Ok(vec![committed("o-1", 2)]));
}

#[test]
fn a_client_that_reserves_for_an_order_learns_what_it_has_and_gets_no_more() {
    for given in [
        vec![registered(), reserved("o-1", 1)],
        vec![registered(), reserved("o-1", 1), committed("o-1", 1)],
        vec![registered(), own("o-1", 1)],
    ] {
        check(&given, hold("o-1", 1, None), Ok(vec![]));
        check(&given, hold("o-1", 3, None), Err(Rejection::AlreadyReserved));
    }
    check(&[registered(), reserved("o-1", 1), committed("o-1", 1)], reserve("o-1", 3), Err(Rejection::AlreadyReserved));
}

#[test]
fn a_hold_ends_by_itself_and_its_units_are_free_at_that_moment() {
    check(&[scarce()], hold("c-1", 3, Some(10)), Ok(vec![own_until("c-1", 3, 10, Some(10))]));
    let given = [scarce(), own_until("c-1", 3, 10, Some(10))];
    check_at(TimeMs(after(10).0 - 1), &given, hold("c-2", 1, None), Err(Rejection::OutOfStock));
    check_at(TimeMs(after(10).0 - 1), &given, let_go("c-1"), Ok(vec![own_released("c-1", 3)]));
    check_at(after(10), &given, hold("c-2", 1, None), Ok(vec![lapsed(10, 3, None), own("c-2", 1)]));
    check_at(after(10), &given, reserve("o-1", 3), Ok(vec![lapsed(10, 3, None), reserved("o-1", 3)]));
    check_at(after(10), &given, allot(3), Ok(vec![lapsed(10, 3, None), allotted(3)]));
    check_at(after(10), &given, hold("c-2", 4, None), Err(Rejection::OutOfStock));
    check_at(after(10), &given, let_go("c-1"), Err(Rejection::NotReserved));
    // The same name can hold again.
    let again = Ok(vec![lapsed(10, 3, None), own_until("c-1", 2, 15, Some(15))]);
    check_at(after(10), &given, hold("c-1", 2, Some(5)), again);
}

#[test]
fn ended_holds_wait_for_their_alarm_while_there_are_units() {
    let given = [registered(), own_until("c-1", 3, 10, Some(10))];
    check_at(after(10), &given, hold("c-2", 4, None), Ok(vec![own("c-2", 4)]));
}

#[test]
fn a_product_has_one_alarm_that_follows_the_first_end() {
    let given = [registered(), own_until("c-1", 1, 10, Some(10))];
    check(&given, hold("c-2", 1, Some(20)), Ok(vec![own_until("c-2", 1, 20, None)]));
    check(&given, hold("c-2", 1, Some(5)), Ok(vec![own_until("c-2", 1, 5, Some(5))]));
    let lapse = |secs| Command::LapseHolds { due_at: Some(after(secs)) };
    check_at(after(9), &given, lapse(10), Err(Rejection::NotDue));
    check_at(after(11), &given, lapse(10), Ok(vec![lapsed(10, 1, None)]));
    let given = [&given[..], &[own_until("c-2", 2, 20, None), own_until("c-3", 1, 10, None)]].concat();
    check_at(after(10), &given, lapse(10), Ok(vec![lapsed(10, 2, Some(20))]));
    // At most one alarm a second.
    check_at(
        TimeMs(after(20).0 - 400),
        &given,
        lapse(10),
        Ok(vec![Event::HoldsLapsed { until: after(10), quantity: 2, alarm_at: Some(TimeMs(after(20).0 + 600)) }]),
    );
    // The alarm was for a hold that has been released.
    let given =
        [registered(), own_until("c-1", 1, 10, Some(10)), own_until("c-2", 2, 20, None), own_released("c-1", 1)];
    check_at(after(12), &given, lapse(10), Ok(vec![lapsed(12, 0, Some(20))]));
    check_at(after(12), &given, hold("c-3", 1, Some(30)), Ok(vec![own_until("c-3", 1, 42, Some(20))]));
    let given = [registered(), own_until("c-1", 1, 10, Some(10)), own_released("c-1", 1)];
    check_at(after(12), &given, lapse(10), Ok(vec![]));
    check_at(after(12), &given, hold("c-3", 1, Some(30)), Ok(vec![own_until("c-3", 1, 42, Some(42))]));
    check(&[registered()], Command::LapseHolds { due_at: None }, Ok(vec![]));
    check(&[], Command::LapseHolds { due_at: None }, Err(Rejection::NotRegistered));
}

#[test]
fn a_product_is_discontinued_once() {
    check(&[registered()], Command::Discontinue, Ok(vec![Event::Discontinued]));
    check(&[registered(), Event::Discontinued], Command::Discontinue, Ok(vec![]));
}

/// Generates few orders, so that histories meet the same one again.
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
        8 => (any_order(), 0..8_u32, any_by()).prop_map(|(order, quantity, by)| Command::Reserve { order, quantity, by }),
        4 => (any_order(), any_holder()).prop_map(|(order, by)| Command::Release { order, by }),
        1 => Just(Command::LapseHolds { due_at: None }),
        4 => (any_order(), any_u64()).prop_map(|(order, amount_cents)| Command::Commit { order, amount_cents }),
        2 => (any_sale(), 0..8_u32).prop_map(|(sale, units)| Command::Allot { sale, units }),
        3 => (any_sale(), 0..8_u32).prop_map(|(sale, total)| Command::TakeBack { sale, total }),
        1 => Just(Command::Discontinue),
    ]
}

fn any_by() -> impl Strategy<Value = By> {
    prop_oneof![
        Just(By::Order { amount_cents: None }),
        Just(By::Client { hold_secs: None }),
        (1..5_u32).prop_map(|secs| By::Client { hold_secs: Some(secs) }),
    ]
}

fn any_holder() -> impl Strategy<Value = Holder> {
    prop_oneof![Just(Holder::Order), Just(Holder::Client)]
}

/// Generates commands, each with the milliseconds since the previous one. Most histories begin with a registration,
/// since little happens without one.
fn any_history() -> impl Strategy<Value = Vec<(u64, Command)>> {
    let pause = prop_oneof![2 => Just(0), 1 => 0..2_000_u64];
    (proptest::option::weighted(0.9, any_registration()), vec_of((pause, any_command()), 0..50))
        .prop_map(|(first, rest)| first.map(|first| (0, Command::Register(first))).into_iter().chain(rest).collect())
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

/// Generates events, including some that no decision produces.
fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any_registration().prop_map(Event::Registered),
        any_u32().prop_map(|quantity| Event::Restocked { quantity }),
        any_u64().prop_map(|price_cents| Event::Repriced { price_cents }),
        (any_order(), any_u32(), any_holder(), any_time(), any_time()).prop_map(
            |(order, quantity, by, until, alarm_at)| Event::Reserved { order, quantity, by, until, alarm_at }
        ),
        (any_order(), any_u32(), any_holder()).prop_map(|(order, quantity, by)| Event::Released {
            order,
            quantity,
            by
        }),
        (any_u64(), any_u64(), any_time()).prop_map(|(until, quantity, alarm_at)| Event::HoldsLapsed {
            until: TimeMs(until),
            quantity,
            alarm_at
        }),
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

fn any_time() -> impl Strategy<Value = Option<TimeMs>> {
    proptest::option::of(any_u64().prop_map(TimeMs))
}

/// Generates products, including some that no history reaches.
fn any_product() -> impl Strategy<Value = Box<Product>> {
    (any_registration(), any_u64(), any_u64(), hash_map(any_order(), any_u32(), 0..4)).prop_map(
        |(registration, price_cents, available, reservations)| {
            let reservations = reservations.into_iter().collect();
            let allotments = [(sale("s-1"), Allotment { units: 3, taken_back: 1 })].into_iter().collect();
            let committed = [(order("o-3").fingerprint(), 2)].into();
            let hold = |id, until| (order(id).fingerprint(), Hold { quantity: 1, until });
            let holds = Holds::of([hold("o-1", None), hold("o-2", Some(TimeMs(5)))], Some(TimeMs(5)));
            Box::new(Product { registration, price_cents, available, reservations, holds, committed, allotments })
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

/// An accepted command, its time and events, and the state after it.
struct Step<'a> {
    command: &'a Command,
    at: TimeMs,
    events: Vec<Event>,
    state: State,
}

/// Decides a history. Rejected commands are omitted.
fn accepted(history: &[(u64, Command)]) -> Vec<Step<'_>> {
    let (mut state, mut at) = (State::default(), NOW);
    let mut steps = vec![];
    for (pause_ms, command) in history {
        at.0 += pause_ms;
        if let Ok(events) = decide(&state, command, at) {
            state = events.iter().fold(state, evolve);
            steps.push(Step { command, at, events, state: state.clone() });
        }
    }
    steps
}

/// Units, counted from the events alone, signed so that a shortage is visible.
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
            Event::HoldsLapsed { quantity, .. } => self.reserved -= i128::from(*quantity),
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

/// Returns the available and the reserved units of a state.
fn units(state: &State) -> (i128, i128) {
    match state {
        State::Unregistered => (0, 0),
        State::OnSale(product) | State::Discontinued(product) => {
            let held = product.reservations.values().map(|held| i128::from(*held));
            let own = product.holds.iter().map(|(_, hold)| i128::from(hold.quantity));
            (product.available.into(), held.chain(own).sum())
        }
    }
}

fn is_reserved(state: &State, order: &OrderId) -> bool {
    of_orders(state).keys().any(|(name, is_committed)| !is_committed && *name == order.fingerprint())
}

/// Returns the units of orders, by whether they are committed.
fn of_orders(state: &State) -> BTreeMap<(Fingerprint, bool), u32> {
    match state {
        State::Unregistered => BTreeMap::new(),
        State::OnSale(product) | State::Discontinued(product) => {
            let held = product.reservations.iter().map(|(order, quantity)| ((order.fingerprint(), false), *quantity));
            held.chain(product.committed.iter().map(|(name, quantity)| ((*name, true), *quantity))).collect()
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
        for Step { events, state, .. } in accepted(&history) {
            for event in &events {
                ledger.book(event);
                prop_assert!(ledger.available() >= 0, "{event:?} took units that were not available");
            }
            let (available, reserved) = units(&state);
            prop_assert_eq!(ledger.supplied, available + reserved + ledger.committed + ledger.allotted);
            prop_assert_eq!((ledger.available(), ledger.reserved), (available, reserved));
        }
    }

    #[test]
    fn no_order_holds_more_than_its_limit(history in any_history()) {
        for Step { state, .. } in accepted(&history) {
            if let State::OnSale(product) | State::Discontinued(product) = state {
                let limit = product.registration.limit_per_order.unwrap_or(u32::MAX);
                prop_assert!(product.reservations.values().all(|held| *held <= limit));
                prop_assert!(product.holds.iter().all(|(_, hold)| hold.quantity <= limit));
            }
        }
    }

    #[test]
    fn a_command_repeated_at_once_changes_nothing_more(history in any_history()) {
        for Step { command, at, events, state } in accepted(&history) {
            let expected = match command {
                Command::Register(_)
                | Command::Reprice { .. }
                | Command::Reserve { .. }
                | Command::Commit { .. }
                | Command::Allot { .. }
                | Command::TakeBack { .. }
                | Command::LapseHolds { .. }
                | Command::Discontinue => Ok(vec![]),
                // Released reservations are forgotten, or the state would grow with every order ever made.
                Command::Release { order, by: Holder::Client } if is_reserved(&state, order) => {
                    Err(Rejection::HeldByOrder)
                }
                Command::Release { .. } => Err(Rejection::NotReserved),
                // Two restocks are two deliveries; only their keys, which the domain does not see, distinguish a
                // repeat from a second one.
                Command::Restock { .. } => Ok(events),
            };
            prop_assert_eq!(decide(&state, command, at), expected);
        }
    }

    /// Clients may use the ids of orders, but reservations of orders change only by the orders' own reactions.
    /// them.
    #[test]
    fn nothing_that_a_client_does_changes_what_an_order_has(history in any_history()) {
        let is_clients = |command: &Command| {
            matches!(
                command,
                Command::Reserve { by: By::Client { .. }, .. } | Command::Release { by: Holder::Client, .. }
            )
        };
        let mut before = BTreeMap::new();
        for Step { command, state, .. } in accepted(&history) {
            let after = of_orders(&state);
            prop_assert!(!is_clients(command) || before == after, "{command:?}: {before:?} became {after:?}");
            before = after;
        }
    }

    /// A reservation finds the units of ended holds, whether an event has returned them or not.
    #[test]
    fn units_of_an_ended_hold_are_free_from_that_moment(history in any_history(), later_ms in 0..5_000_u64) {
        for Step { at, state, .. } in accepted(&history) {
            let at = TimeMs(at.0 + later_ms);
            let State::OnSale(product) = &state else { continue };
            let ended = product.holds.iter().filter(|(_, hold)| hold.until.is_some_and(|until| until <= at));
            let free = product.available + ended.map(|(_, hold)| u64::from(hold.quantity)).sum::<u64>();
            let all = Command::Allot { sale: sale("all"), units: u32::try_from(free).unwrap() };
            prop_assert!(decide(&state, &all, at).is_ok());
            let more = Command::Allot { sale: sale("all"), units: u32::try_from(free + 1).unwrap() };
            prop_assert_eq!(decide(&state, &more, at), Err(Rejection::OutOfStock));
        }
    }

    /// One alarm per product is enough. It fires in time or late, and is gone once handled, unless another was set.
    /// set.
    #[test]
    fn ended_holds_lapse_by_alarms_alone(history in any_history(), late in vec_of(any::<bool>(), 50)) {
        let (mut state, mut at, mut alarm) = (State::default(), NOW, None);
        // In the end every alarm fires in time.
        let late = late.into_iter().take(history.len()).chain(core::iter::repeat(false));
        let idle = core::iter::repeat_n((1_100, Command::LapseHolds { due_at: Some(TimeMs(u64::MAX)) }), 12);
        for ((pause_ms, command), is_late) in history.into_iter().chain(idle).zip(late) {
            at.0 += pause_ms;
            let fired = alarm.filter(|due| *due <= at && !is_late).map(|due| Command::LapseHolds { due_at: Some(due) });
            if fired.is_some() {
                alarm = None;
            }
            for command in fired.into_iter().chain([command]) {
                for event in decide(&state, &command, at).unwrap_or_default() {
                    match &event {
                        Event::Reserved { alarm_at: Some(due), .. } => alarm = Some(*due),
                        Event::HoldsLapsed { alarm_at, .. } => alarm = *alarm_at,
                        _ => {}
                    }
                    state = evolve(state, &event);
                }
            }
        }
        if let State::OnSale(product) | State::Discontinued(product) = state {
            prop_assert!(product.holds.iter().all(|(_, hold)| hold.until.is_none()), "{product:?}");
        }
    }

    #[test]
    fn any_event_has_a_state_after_it_in_any_state(state in any_state(), events in vec_of(any_event(), 0..20)) {
        let mut state = state;
        for event in &events {
            let before = stage(&state);
            state = evolve(state, event);
            prop_assert!(stage(&state) >= before, "{event:?} led back to an earlier stage");
        }
    }

    #[test]
    fn any_command_has_an_answer_in_any_state(state in any_state(), command in any_command(), at in any_u64()) {
        let _ = decide(&state, &command, TimeMs(at));
    }

    #[test]
    fn a_fold_of_the_log_is_the_state_it_was_decided_on(
        history in any_history(),
        cut in any::<prop::sample::Index>(),
        next in any_command(),
    ) {
        let steps = accepted(&history);
        let last = steps.last().map_or_else(State::default, |step| step.state.clone());
        let at = steps.last().map_or(NOW, |step| step.at);
        let log: Vec<Event> = steps.into_iter().flat_map(|step| step.events).collect();
        prop_assert_eq!(&fold(&log), &last);
        prop_assert_eq!(decide(&fold(&log), &next, at), decide(&last, &next, at));
        // Fold a snapshot at any position and the tail after it.
        let (before, after) = log.split_at(cut.index(log.len() + 1));
        prop_assert_eq!(after.iter().fold(fold(before), evolve), last);
    }
}
