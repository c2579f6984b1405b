//! Effects of each command on an order, and properties of all histories.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use proptest::collection::vec as vec_of;
use proptest::prelude::*;

use super::{
    Cancelled, Command, Ending, Event, Held, Line, MAX_LINES, MAX_TOTAL_CENTS, Open, Parcel, Payment, Placement,
    Placer, Rejection, Settled, State, decide, evolve,
};
use crate::TimeMs;
use crate::ids::{CustomerId, PaymentId, ProductId, SaleId};

const AT: TimeMs = TimeMs(1_000);
const LATER: TimeMs = TimeMs(2_000);

#[track_caller]
fn check(given: &[Event], when: Command, then: Result<Vec<Event>, Rejection>) {
    assert_eq!(decide(&fold(given), &when, AT), then, "given {given:?}, when {when:?}");
}

fn fold(events: &[Event]) -> State {
    events.iter().fold(State::default(), evolve)
}

fn product(id: &str) -> ProductId {
    ProductId(id.into())
}

fn customer() -> CustomerId {
    CustomerId("c-1".into())
}

fn line(id: &str, quantity: u32, amount_cents: u64) -> Line {
    Line { product: product(id), quantity, amount_cents }
}

/// Two lines: 2 of `p-1` and 1 of `p-2`, three units and 1,500 cents together.
fn lines() -> Vec<Line> {
    vec![line("p-1", 2, 1_000), line("p-2", 1, 500)]
}

fn place_lines(lines: Vec<Line>) -> Command {
    Command::Place { customer: customer(), lines, sale: None, by: Placer::Client { has_reserved_name: false } }
}

fn place() -> Command {
    place_lines(lines())
}

fn record(ordered_at: TimeMs) -> Command {
    Command::Record { customer: customer(), lines: lines(), ordered_at, has_reserved_name: false }
}

fn recorded(ordered_at: TimeMs) -> Event {
    Event::Recorded(Placement { customer: customer(), lines: lines(), sale: None, ordered_at })
}

fn placed_lines(lines: Vec<Line>) -> Event {
    Event::Placed(Placement { customer: customer(), lines, sale: None, ordered_at: AT })
}

fn placed() -> Event {
    placed_lines(lines())
}

fn confirm(id: &str) -> Command {
    Command::ConfirmLine { product: product(id) }
}

fn reject(id: &str) -> Command {
    Command::RejectLine { product: product(id), reason: Some("out_of_stock".into()) }
}

fn cancel() -> Command {
    Command::Cancel { reason: Some("changed my mind".into()) }
}

fn line_confirmed(id: &str) -> Event {
    Event::LineConfirmed { product: product(id) }
}

fn ending(reason: Option<&str>) -> Ending {
    Ending {
        reason: reason.map(Box::from),
        customer: customer(),
        units: 3,
        amount_cents: 1_500,
        ordered_at: AT,
        held: held(),
        sale: None,
    }
}

fn held() -> Vec<Held> {
    vec![Held { product: product("p-1"), quantity: 2 }, Held { product: product("p-2"), quantity: 1 }]
}

fn pay(payment: &str, amount_cents: u64) -> Command {
    Command::Pay { payment: PaymentId(payment.into()), amount_cents }
}

fn paid() -> Event {
    Event::Paid(Payment { payment: PaymentId("pay-1".into()), amount_cents: 1_500, lines: lines(), sale: None })
}

fn parcel() -> Parcel {
    Parcel { carrier: Some("by bike".into()), tracking: None }
}

fn after_payment() -> Vec<Event> {
    after_confirmation().into_iter().chain([paid()]).collect()
}

fn after_shipping() -> Vec<Event> {
    after_payment().into_iter().chain([Event::Shipped(parcel())]).collect()
}

fn after_delivery() -> Vec<Event> {
    after_shipping().into_iter().chain([Event::Delivered(Parcel::default())]).collect()
}

fn after_expiry() -> Vec<Event> {
    after_confirmation().into_iter().chain([Event::Expired(ending(None))]).collect()
}

fn rejection(id: &str) -> [Event; 2] {
    let reason = Some("out_of_stock");
    [Event::LineRejected { product: product(id), reason: reason.map(Box::from) }, Event::Rejected(ending(reason))]
}

fn cancelled() -> Event {
    Event::Cancelled(ending(Some("changed my mind")))
}

/// Corrects sums, but releases no units: the holder of the units may not have seen the payment yet.
fn cancelled_after_payment() -> Event {
    Event::Cancelled(Ending { held: vec![], ..ending(Some("changed my mind")) })
}

fn after_confirmation() -> Vec<Event> {
    vec![placed(), line_confirmed("p-1"), line_confirmed("p-2"), Event::Confirmed]
}

fn after_rejection() -> Vec<Event> {
    let [line, order] = rejection("p-1");
    vec![placed(), line, order]
}

fn after_cancellation() -> Vec<Event> {
    vec![placed(), cancelled()]
}

#[test]
fn the_status_of_an_order_follows_its_events() {
    for (given, status) in [
        (vec![], "unplaced"),
        (vec![placed(), line_confirmed("p-1")], "placed"),
        (vec![recorded(AT)], "recorded"),
        (after_confirmation(), "confirmed"),
        (after_rejection(), "rejected"),
        (after_payment(), "paid"),
        (after_shipping(), "shipped"),
        (after_delivery(), "delivered"),
        (after_cancellation(), "cancelled"),
        (after_expiry(), "expired"),
    ] {
        let state = crate::State::Order(fold(&given));
        assert_eq!(state.status(AT), status, "{given:?}");
    }
}

#[test]
fn an_order_is_dated_when_it_is_placed() {
    check(&[], place(), Ok(vec![placed()]));
}

#[test]
fn an_order_from_elsewhere_is_recorded_once_with_the_date_of_then() {
    let before = TimeMs(1);
    check(&[], record(before), Ok(vec![recorded(before)]));
    check(&[], record(AT), Ok(vec![recorded(AT)]));
    check(&[], record(LATER), Err(Rejection::OrderedInFuture));
    for given in [vec![recorded(before)], vec![recorded(before), recorded_no_more()]] {
        check(&given, record(before), Ok(vec![]));
        check(&given, record(TimeMs(2)), Err(Rejection::AlreadyPlaced));
    }
    check(&[recorded(before)], place(), Err(Rejection::AlreadyPlaced));
    check(&[placed()], record(before), Err(Rejection::AlreadyPlaced));
}

#[test]
fn a_record_that_was_placed_before_there_were_records_is_known() {
    let of_old = |sale| Event::Placed(Placement { customer: customer(), lines: lines(), sale, ordered_at: TimeMs(1) });
    check(&[of_old(None)], record(TimeMs(1)), Ok(vec![]));
    check(&[of_old(Some(SaleId("s-1".into())))], record(TimeMs(1)), Err(Rejection::AlreadyPlaced));
}

#[test]
fn a_record_can_be_cancelled_and_nothing_else_happens_to_it() {
    let given = [recorded(TimeMs(1))];
    for command in [
        confirm("p-1"),
        reject("p-1"),
        pay("pay-1", 1_500),
        Command::Ship(parcel()),
        Command::Deliver(parcel()),
        Command::Expire { due_at: None },
    ] {
        check(&given, command, Err(Rejection::IsRecorded));
    }
    check(&given, cancel(), Ok(vec![recorded_no_more()]));
    check(&[recorded(TimeMs(1)), recorded_no_more()], cancel(), Ok(vec![]));
}

/// Corrects sums; there are no units to release.
fn recorded_no_more() -> Event {
    let ending = ending(Some("changed my mind"));
    Event::Cancelled(Ending { held: vec![], ordered_at: TimeMs(1), ..ending })
}

#[test]
fn an_order_has_a_total_that_sums_can_take() {
    let record = |lines| Command::Record { customer: customer(), lines, ordered_at: AT, has_reserved_name: false };
    let recorded = |lines| Event::Recorded(Placement { customer: customer(), lines, sale: None, ordered_at: AT });
    let most = [
        vec![line("p-1", 1, MAX_TOTAL_CENTS - 1), line("p-2", 1, 1)],
        vec![line("p-1", 999_999_999, 1), line("p-2", 1, 1)],
    ];
    for lines in most {
        check(&[], place_lines(lines.clone()), Ok(vec![placed_lines(lines.clone())]));
        check(&[], record(lines.clone()), Ok(vec![recorded(lines)]));
    }
    for lines in [
        vec![line("p-1", 1, MAX_TOTAL_CENTS), line("p-2", 1, 1)],
        vec![line("p-1", 1, u64::MAX), line("p-2", 1, u64::MAX)],
        vec![line("p-1", 1_000_000_000, 1), line("p-2", 1, 1)],
        vec![line("p-1", u32::MAX, 1); MAX_LINES],
    ] {
        check(&[], place_lines(lines.clone()), Err(Rejection::TotalTooLarge));
        check(&[], record(lines), Err(Rejection::TotalTooLarge));
    }
}

#[test]
fn an_order_keeps_the_sale_it_belongs_to() {
    let sale = Some(SaleId("s-1".into()));
    let place = Command::Place {
        customer: customer(),
        lines: lines(),
        sale: sale.clone(),
        by: Placer::Client { has_reserved_name: false },
    };
    let placement = Placement { customer: customer(), lines: lines(), sale, ordered_at: AT };
    check(&[], place, Ok(vec![Event::Placed(placement)]));
}

#[test]
fn the_order_of_a_claim_is_confirmed_at_once_and_repeated_harmlessly() {
    let sale = Some(SaleId("s-1".into()));
    let lines = vec![line("p-1", 2, 1_000), line("p-2", 1, 500), line("p-1", 1, 500)];
    let place = Command::Place { customer: customer(), lines: lines.clone(), sale: sale.clone(), by: Placer::Claim };
    let placed = Event::Placed(Placement { customer: customer(), lines, sale, ordered_at: AT });
    let confirmed = |product: &str| Event::LineConfirmed { product: ProductId(product.into()) };
    let events = vec![placed.clone(), confirmed("p-1"), confirmed("p-2"), Event::Confirmed];
    check(&[], place.clone(), Ok(events.clone()));
    check(&events, place.clone(), Ok(vec![]));
    // Placed by an earlier version, which did not confirm claims' orders at once.
    check(&[placed], place, Ok(vec![]));
}

#[test]
fn a_placement_is_repeated_harmlessly_in_every_stage() {
    for given in [vec![placed()], after_confirmation(), after_rejection(), after_cancellation(), after_delivery()] {
        check(&given, place(), Ok(vec![]));
        assert_eq!(decide(&fold(&given), &place(), LATER), Ok(vec![]), "given {given:?}, repeated later");
    }
}

#[test]
fn a_placement_with_any_other_datum_is_rejected_in_every_stage() {
    let place = |customer: &str, lines, sale: Option<&str>| Command::Place {
        customer: CustomerId(customer.into()),
        lines,
        sale: sale.map(|sale| SaleId(sale.into())),
        by: Placer::Client { has_reserved_name: false },
    };
    for given in [vec![placed()], after_confirmation(), after_rejection(), after_cancellation(), after_delivery()] {
        for other in [
            place("c-2", lines(), None),
            place("c-1", vec![line("p-1", 2, 1_000)], None),
            place("c-1", vec![line("p-1", 2, 1_000), line("p-2", 1, 501)], None),
            place("c-1", lines(), Some("s-1")),
            place("c-1", vec![], None),
        ] {
            check(&given, other, Err(Rejection::AlreadyPlaced));
        }
    }
}

#[test]
fn a_name_that_claims_give_is_given_to_no_other_order() {
    let place = || Command::Place {
        customer: customer(),
        lines: lines(),
        sale: None,
        by: Placer::Client { has_reserved_name: true },
    };
    let record = || Command::Record { customer: customer(), lines: lines(), ordered_at: AT, has_reserved_name: true };
    check(&[], place(), Err(Rejection::ReservedName));
    check(&[], record(), Err(Rejection::ReservedName));
    // An order that already has such an id keeps it.
    check(&[placed()], place(), Ok(vec![]));
    check(&[recorded(AT)], record(), Ok(vec![]));
}

#[test]
fn an_order_has_at_least_one_line() {
    check(&[], place_lines(vec![]), Err(Rejection::NoLines));
}

#[test]
fn an_order_has_at_most_max_lines() {
    let most = vec![line("p-1", 1, 1); MAX_LINES];
    check(&[], place_lines(most.clone()), Ok(vec![placed_lines(most)]));
    check(&[], place_lines(vec![line("p-1", 1, 1); MAX_LINES + 1]), Err(Rejection::TooManyLines));
}

#[test]
fn the_last_confirmed_line_confirms_the_order() {
    check(&[placed()], confirm("p-1"), Ok(vec![line_confirmed("p-1")]));
    check(&[placed(), line_confirmed("p-1")], confirm("p-2"), Ok(vec![line_confirmed("p-2"), Event::Confirmed]));
    check(&[placed(), line_confirmed("p-2")], confirm("p-1"), Ok(vec![line_confirmed("p-1"), Event::Confirmed]));
}

#[test]
fn lines_of_one_product_are_confirmed_together() {
    let given = [placed_lines(vec![line("p-1", 1, 1), line("p-1", 2, 2)])];
    check(&given, confirm("p-1"), Ok(vec![line_confirmed("p-1"), Event::Confirmed]));
}

#[test]
fn a_line_is_confirmed_once() {
    check(&[placed(), line_confirmed("p-1")], confirm("p-1"), Ok(vec![]));
    check(&after_confirmation(), confirm("p-1"), Ok(vec![]));
}

#[test]
fn a_line_that_the_order_lacks_is_neither_confirmed_nor_rejected() {
    check(&[placed()], confirm("p-3"), Err(Rejection::NoSuchLine));
    check(&after_confirmation(), confirm("p-3"), Err(Rejection::NoSuchLine));
    check(&[placed()], reject("p-3"), Err(Rejection::NoSuchLine));
    check(&after_rejection(), reject("p-3"), Err(Rejection::NoSuchLine));
}

#[test]
fn only_an_open_order_confirms_a_line_and_others_report_how_they_ended() {
    check(&[], confirm("p-1"), Err(Rejection::NotPlaced));
    check(&after_rejection(), confirm("p-1"), Err(Rejection::AlreadyRejected));
    check(&after_cancellation(), confirm("p-1"), Err(Rejection::AlreadyCancelled));
}

#[test]
fn one_rejected_line_ends_the_whole_order() {
    check(&[placed()], reject("p-1"), Ok(rejection("p-1").into()));
    check(&[placed(), line_confirmed("p-1")], reject("p-2"), Ok(rejection("p-2").into()));
}

#[test]
fn a_rejection_may_come_without_a_reason() {
    let reject = Command::RejectLine { product: product("p-1"), reason: None };
    let then = vec![Event::LineRejected { product: product("p-1"), reason: None }, Event::Rejected(ending(None))];
    check(&[placed()], reject, Ok(then));
}

#[test]
fn an_order_is_rejected_once_whichever_lines_follow() {
    check(&after_rejection(), reject("p-1"), Ok(vec![]));
    check(&after_rejection(), reject("p-2"), Ok(vec![]));
}

#[test]
fn only_an_order_that_waits_for_lines_is_rejected() {
    check(&[], reject("p-1"), Err(Rejection::NotPlaced));
    check(&after_confirmation(), reject("p-1"), Err(Rejection::AlreadyConfirmed));
    check(&after_cancellation(), reject("p-1"), Err(Rejection::AlreadyCancelled));
}

#[test]
fn an_order_is_cancelled_while_it_waits_and_after_it_was_confirmed() {
    check(&[placed()], cancel(), Ok(vec![cancelled()]));
    check(&[placed(), line_confirmed("p-1")], cancel(), Ok(vec![cancelled()]));
    check(&after_confirmation(), cancel(), Ok(vec![cancelled()]));
}

#[test]
fn a_cancellation_may_come_without_a_reason() {
    check(&[placed()], Command::Cancel { reason: None }, Ok(vec![Event::Cancelled(ending(None))]));
}

#[test]
fn an_order_is_cancelled_once_whatever_the_reason() {
    check(&after_cancellation(), cancel(), Ok(vec![]));
    check(&after_cancellation(), Command::Cancel { reason: None }, Ok(vec![]));
}

#[test]
fn an_order_that_never_was_or_was_rejected_is_not_cancelled() {
    check(&[], cancel(), Err(Rejection::NotPlaced));
    check(&after_rejection(), cancel(), Err(Rejection::AlreadyRejected));
}

#[test]
fn a_confirmed_order_is_paid_once_with_its_whole_amount() {
    check(&after_confirmation(), pay("pay-1", 1_500), Ok(vec![paid()]));
    for amount_cents in [0, 1_499, 1_501] {
        check(&after_confirmation(), pay("pay-1", amount_cents), Err(Rejection::WrongAmount));
    }
    for given in [after_payment(), after_shipping(), after_delivery()] {
        check(&given, pay("pay-1", 1_500), Ok(vec![]));
        check(&given, pay("pay-2", 1_500), Err(Rejection::AlreadyPaid));
    }
}

#[test]
fn only_a_confirmed_order_is_paid() {
    check(&after_expiry(), pay("pay-1", 1_500), Err(Rejection::Expired));
    for given in [vec![], vec![placed()]] {
        check(&given, pay("pay-1", 1_500), Err(Rejection::NotConfirmed));
    }
    check(&after_rejection(), pay("pay-1", 1_500), Err(Rejection::AlreadyRejected));
    check(&after_cancellation(), pay("pay-1", 1_500), Err(Rejection::AlreadyCancelled));
}

#[test]
fn a_payment_that_was_taken_before_its_order_was_cancelled_is_told_so() {
    let given: Vec<_> = after_payment().into_iter().chain([cancelled_after_payment()]).collect();
    check(&given, pay("pay-1", 1_500), Err(Rejection::CancelledAfterPayment));
    // A repeated confirmation of a line releases nothing: its units were paid for.
    check(&given, confirm("p-1"), Ok(vec![]));
    check(&given, confirm("p-9"), Err(Rejection::NoSuchLine));
    check(&given, pay("pay-2", 1_500), Err(Rejection::AlreadyCancelled));
    for command in [Command::Ship(parcel()), Command::Deliver(parcel())] {
        check(&given, command, Err(Rejection::AlreadyCancelled));
    }
}

#[test]
fn a_paid_order_is_shipped_and_then_delivered_each_once() {
    check(&after_payment(), Command::Ship(parcel()), Ok(vec![Event::Shipped(parcel())]));
    check(&after_shipping(), Command::Ship(Parcel::default()), Ok(vec![]));
    check(&after_shipping(), Command::Deliver(Parcel::default()), Ok(vec![Event::Delivered(Parcel::default())]));
    check(&after_delivery(), Command::Deliver(parcel()), Ok(vec![]));
    check(&after_delivery(), Command::Ship(parcel()), Ok(vec![]));
    check(&after_payment(), Command::Deliver(parcel()), Err(Rejection::NotShipped));
    for given in [vec![], vec![placed()], after_confirmation(), after_rejection(), after_expiry()] {
        check(&given, Command::Ship(parcel()), Err(Rejection::NotPaid));
        check(&given, Command::Deliver(parcel()), Err(Rejection::NotPaid));
    }
}

#[test]
fn a_confirmed_order_expires_once_unless_it_is_paid() {
    check(&after_confirmation(), Command::Expire { due_at: None }, Ok(vec![Event::Expired(ending(None))]));
    check(&after_expiry(), Command::Expire { due_at: None }, Ok(vec![]));
    let due_in = |ms| Command::Expire { due_at: Some(TimeMs(AT.0 + ms)) };
    check(&after_confirmation(), due_in(0), Ok(vec![Event::Expired(ending(None))]));
    check(&after_confirmation(), due_in(1), Err(Rejection::NotDue));
    for given in [after_payment(), after_shipping(), after_delivery()] {
        check(&given, Command::Expire { due_at: None }, Err(Rejection::AlreadyPaid));
    }
    for given in [vec![], vec![placed()]] {
        check(&given, Command::Expire { due_at: None }, Err(Rejection::NotConfirmed));
    }
    check(&after_rejection(), Command::Expire { due_at: None }, Err(Rejection::AlreadyRejected));
    check(&after_cancellation(), Command::Expire { due_at: None }, Err(Rejection::AlreadyCancelled));
}

#[test]
fn a_cancelled_order_returns_its_claim_to_the_sale_unless_it_was_paid() {
    let sale = SaleId("s-1".into());
    let of_sale = Placement { customer: customer(), lines: lines(), sale: Some(sale.clone()), ordered_at: AT };
    let given = [&[Event::Placed(of_sale)], &after_confirmation()[1..]].concat();
    let returned_to = |given: &[Event]| match decide(&fold(given), &cancel(), AT).as_deref() {
        Ok([Event::Cancelled(ending)]) => ending.sale.clone(),
        other => panic!("not cancelled: {other:?}"),
    };
    assert_eq!(returned_to(&given), Some(sale));
    assert_eq!(returned_to(&[&given[..], &[paid()]].concat()), None);
}

#[test]
fn a_paid_order_is_cancelled_until_it_is_shipped() {
    check(&after_payment(), cancel(), Ok(vec![cancelled_after_payment()]));
    for given in [after_shipping(), after_delivery()] {
        check(&given, cancel(), Err(Rejection::AlreadyShipped));
    }
    check(&after_expiry(), cancel(), Err(Rejection::Expired));
}

#[test]
fn lines_of_an_order_that_went_on_are_confirmed_already() {
    for given in [after_payment(), after_shipping(), after_delivery()] {
        check(&given, confirm("p-1"), Ok(vec![]));
        check(&given, confirm("p-3"), Err(Rejection::NoSuchLine));
        check(&given, reject("p-1"), Err(Rejection::AlreadyConfirmed));
    }
    check(&after_expiry(), confirm("p-1"), Err(Rejection::Expired));
    check(&after_expiry(), reject("p-1"), Err(Rejection::Expired));
}

#[test]
fn a_sum_that_no_border_let_in_neither_wraps_nor_panics() {
    let given = [placed_lines(vec![line("p-1", u32::MAX, u64::MAX), line("p-2", u32::MAX, 1)])];
    let held = [("p-1", u32::MAX), ("p-2", u32::MAX)].map(|(id, quantity)| Held { product: product(id), quantity });
    let sums = Ending { units: 2 * u64::from(u32::MAX), amount_cents: u64::MAX, ..ending(None) };
    let ending = Ending { held: held.into(), ..sums };
    check(&given, Command::Cancel { reason: None }, Ok(vec![Event::Cancelled(ending)]));
}

/// Generates few products, so that histories meet the same one again.
fn any_product() -> impl Strategy<Value = ProductId> {
    prop_oneof![Just("p-1"), Just("p-2"), Just("p-3")].prop_map(product)
}

fn any_lines(count: core::ops::Range<usize>) -> impl Strategy<Value = Vec<Line>> {
    let amount_cents = prop_oneof![19 => 0..20_u64, 1 => Just(u64::MAX)];
    let quantity = prop_oneof![19 => 0..20_u32, 1 => any::<u32>()];
    let line = (any_product(), quantity, amount_cents).prop_map(|(product, quantity, amount_cents)| Line {
        product,
        quantity,
        amount_cents,
    });
    vec_of(line, count)
}

fn any_place(count: core::ops::Range<usize>) -> impl Strategy<Value = Command> {
    any_lines(count).prop_map(place_lines)
}

fn any_record() -> impl Strategy<Value = Command> {
    let record =
        |(lines, at)| Command::Record { customer: customer(), lines, ordered_at: TimeMs(at), has_reserved_name: false };
    (any_lines(0..4), 0..3_u64).prop_map(record)
}

fn any_reason() -> impl Strategy<Value = Option<Box<str>>> {
    proptest::option::of(Just(Box::from("because")))
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        2 => any_place(0..4),
        1 => any_record(),
        12 => any_product().prop_map(|product| Command::ConfirmLine { product }),
        2 => (any_product(), any_reason()).prop_map(|(product, reason)| Command::RejectLine { product, reason }),
        1 => any_reason().prop_map(|reason| Command::Cancel { reason }),
        1 => Just(Command::Expire { due_at: None }),
        // Lines cost so little that one of these amounts is sometimes right.
        4 => (0..3_u8, 0..40_u64).prop_map(|(payment, cents)| pay(if payment == 0 { "pay-2" } else { "pay-1" }, cents)),
        2 => Just(Command::Ship(parcel())),
        2 => Just(Command::Deliver(parcel())),
    ]
}

/// Generates histories. Most begin with a placement, since little happens without one. Each command has its time.
fn any_history() -> impl Strategy<Value = Vec<(Command, TimeMs)>> {
    let first = prop_oneof![9 => any_place(1..4), 1 => any_record()];
    (proptest::option::weighted(0.9, first), vec_of(any_command(), 0..30))
        .prop_map(|(first, rest)| first.into_iter().chain(rest).zip((0..).map(TimeMs)).collect())
}

fn any_placement() -> impl Strategy<Value = Placement> {
    (any_lines(0..4), any::<u64>()).prop_map(|(lines, ordered_at)| Placement {
        customer: customer(),
        lines,
        sale: None,
        ordered_at: TimeMs(ordered_at),
    })
}

/// Generates events, including some that no decision produces.
fn any_event() -> impl Strategy<Value = Event> {
    let any_ending = || {
        (any_reason(), any::<u64>(), any::<u64>()).prop_map(|(reason, units, amount_cents)| Ending {
            reason,
            customer: customer(),
            units,
            amount_cents,
            ordered_at: AT,
            held: held(),
            sale: None,
        })
    };
    prop_oneof![
        any_placement().prop_map(Event::Placed),
        any_placement().prop_map(Event::Recorded),
        any_product().prop_map(|product| Event::LineConfirmed { product }),
        Just(Event::Confirmed),
        (any_product(), any_reason()).prop_map(|(product, reason)| Event::LineRejected { product, reason }),
        any_ending().prop_map(Event::Rejected),
        any_ending().prop_map(Event::Cancelled),
        any_ending().prop_map(Event::Expired),
        Just(paid()),
        Just(Event::Shipped(parcel())),
        Just(Event::Delivered(parcel())),
    ]
}

fn any_settled() -> impl Strategy<Value = Settled> {
    let payment = PaymentId("pay-1".into());
    any_placement().prop_map(move |placement| Settled { placement, payment: payment.clone() })
}

/// Generates states, including some that no history reaches: the confirmed lines need not match the lines.
fn any_state() -> impl Strategy<Value = State> {
    let open = (any_placement(), vec_of(any::<bool>(), 0..6))
        .prop_map(|(placement, confirmed)| State::Placed(Box::new(Open { placement, confirmed })));
    prop_oneof![
        1 => Just(State::New),
        4 => open,
        1 => any_placement().prop_map(|placement| State::Recorded(Box::new(placement))),
        1 => any_placement().prop_map(|placement| State::Confirmed(Box::new(placement))),
        1 => any_placement().prop_map(|placement| State::Rejected(Box::new(placement))),
        1 => (any_placement(), any::<bool>()).prop_map(|(placement, is_paid)| {
            let payment = is_paid.then(|| PaymentId("pay-1".into()));
            State::Cancelled(Box::new(Cancelled { placement, payment }))
        }),
        1 => any_placement().prop_map(|placement| State::Expired(Box::new(placement))),
        1 => any_settled().prop_map(|settled| State::Paid(Box::new(settled))),
        1 => any_settled().prop_map(|settled| State::Shipped(Box::new(settled))),
        1 => any_settled().prop_map(|settled| State::Delivered(Box::new(settled))),
    ]
}

/// Returns each accepted command with its events and the state after it. Rejected commands are omitted.
fn accepted(history: &[(Command, TimeMs)]) -> Vec<(&Command, Vec<Event>, State)> {
    let mut state = State::default();
    let mut steps = vec![];
    for (command, at) in history {
        if let Ok(events) = decide(&state, command, *at) {
            state = events.iter().fold(state, evolve);
            steps.push((command, events, state.clone()));
        }
    }
    steps
}

fn log(history: &[(Command, TimeMs)]) -> Vec<Event> {
    accepted(history).into_iter().flat_map(|(_, events, _)| events).collect()
}

/// Returns whether the state is final.
fn has_ended(state: &State) -> bool {
    match state {
        State::New | State::Placed(_) | State::Recorded(_) => false,
        State::Confirmed(_) | State::Paid(_) | State::Shipped(_) => false,
        State::Rejected(_) | State::Cancelled(_) | State::Expired(_) | State::Delivered(_) => true,
    }
}

fn count(log: &[Event], which: impl Fn(&Event) -> bool) -> usize {
    log.iter().filter(|event| which(event)).count()
}

proptest! {
    #[test]
    fn an_order_is_confirmed_at_most_once_and_ends_at_most_once(history in any_history()) {
        let log = log(&history);
        let confirmed = count(&log, |event| matches!(event, Event::Confirmed));
        let rejected = count(&log, |event| matches!(event, Event::Rejected(_)));
        let cancelled = count(&log, |event| matches!(event, Event::Cancelled(_)));
        let expired = count(&log, |event| matches!(event, Event::Expired(_)));
        let paid = count(&log, |event| matches!(event, Event::Paid(_)));
        let shipped = count(&log, |event| matches!(event, Event::Shipped(_)));
        prop_assert!(rejected + cancelled + expired <= 1, "ended twice: {log:?}");
        prop_assert!(paid + expired <= 1 && shipped <= paid, "paid twice, paid after expiry, or shipped unpaid: {log:?}");
        prop_assert!(shipped + cancelled <= 1, "cancelled and shipped: {log:?}");
        prop_assert!(confirmed + rejected <= 1, "confirmed twice, or confirmed and rejected: {log:?}");
        let end = log.iter().position(|event| matches!(event, Event::Rejected(_) | Event::Cancelled(_) | Event::Expired(_)));
        prop_assert!(end.is_none_or(|end| end + 1 == log.len()), "events after the end: {log:?}");
    }

    #[test]
    fn an_order_is_confirmed_exactly_when_its_last_line_is(history in any_history()) {
        let log = log(&history);
        let Some(Event::Placed(placement)) = log.first() else {
            let is_recorded = matches!(log.first(), None | Some(Event::Recorded(_)));
            prop_assert!(is_recorded && !log.contains(&Event::Confirmed), "confirmed without a placement: {log:?}");
            return Ok(());
        };
        let is_confirmed = |line: &Line| log.contains(&Event::LineConfirmed { product: line.product.clone() });
        prop_assert_eq!(log.contains(&Event::Confirmed), placement.lines.iter().all(is_confirmed));
    }

    #[test]
    fn an_ending_takes_back_what_its_placement_added(history in any_history()) {
        let log = log(&history);
        if let Some(Event::Rejected(ending) | Event::Cancelled(ending) | Event::Expired(ending)) = log.last() {
            let Some(Event::Placed(placement) | Event::Recorded(placement)) = log.first() else {
                panic!("an end without a beginning: {log:?}")
            };
            let units: u64 = placement.lines.iter().map(|line| u64::from(line.quantity)).sum();
            let amount_cents: u128 = placement.lines.iter().map(|line| u128::from(line.amount_cents)).sum();
            prop_assert_eq!(&ending.customer, &placement.customer);
            prop_assert_eq!(ending.ordered_at, placement.ordered_at);
            prop_assert_eq!(ending.units, units);
            prop_assert_eq!(u128::from(ending.amount_cents), amount_cents.min(u64::MAX.into()));
        }
    }

    #[test]
    fn a_command_repeated_at_once_changes_nothing_more(history in any_history()) {
        for (command, _, state) in accepted(&history) {
            // A repeat always arrives at a later time.
            prop_assert_eq!(decide(&state, command, LATER), Ok(vec![]));
        }
    }

    #[test]
    fn any_event_has_a_state_after_it_in_any_state(state in any_state(), events in vec_of(any_event(), 0..20)) {
        let mut state = state;
        for event in &events {
            let before = state.clone();
            state = evolve(state, event);
            prop_assert!(!has_ended(&before) || state == before, "{event:?} changed an order that had ended");
            prop_assert!(before == State::New || state != State::New, "{event:?} led back to the initial state");
        }
    }

    #[test]
    fn any_command_has_an_answer_in_any_state(state in any_state(), command in any_command()) {
        let _ = decide(&state, &command, AT);
    }

    #[test]
    fn a_fold_of_the_log_is_the_state_it_was_decided_on(
        history in any_history(),
        cut in any::<prop::sample::Index>(),
        next in any_command(),
    ) {
        let last = accepted(&history).pop().map_or_else(State::default, |(_, _, state)| state);
        let log = log(&history);
        prop_assert_eq!(&fold(&log), &last);
        prop_assert_eq!(decide(&fold(&log), &next, LATER), decide(&last, &next, LATER));
        // Fold a snapshot at any position and the tail after it.
        let (before, after) = log.split_at(cut.index(log.len() + 1));
        prop_assert_eq!(after.iter().fold(fold(before), evolve), last);
    }
}
