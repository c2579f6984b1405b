//! Tests of commands and of the proof of their answers.

use std::time::Duration;

use domain::TimeMs;
use domain::ids::OrderId;
use domain::product::{Command, Holder};
use schemas::answers::Answer;
use schemas::commands::Precondition;

use super::{
    Kind, NOW, PARTITION, ParsedRequest, REGISTERED, RESERVED, RESTOCKED, Shop, WINDOW, accepted, register, rejected,
    replayed, request, reserve,
};

#[test]
fn an_accepted_command_is_answered_when_its_record_counts() {
    let mut shop = Shop::open();
    shop.ask_for("a", register(1));
    assert_eq!(shop.out.sent[0].key, "product/p");
    let carried = shop.carry();
    assert_eq!(shop.answers(), []);
    shop.report(carried);
    assert_eq!(shop.answers(), [("a", accepted(1, REGISTERED, 1))]);
    assert_eq!((shop.machine.pending(), shop.sent()), (0, vec![]));
}

#[test]
fn a_command_is_decided_on_the_records_in_flight_and_answered_after_them() {
    let mut shop = Shop::open();
    shop.ask_for("a", register(1));
    shop.ask_for("b", reserve("o-1"));
    assert_eq!(shop.sent(), [(1, Kind::Commit), (2, Kind::Commit)]);
    let (first, second) = (shop.carry(), shop.carry());
    shop.report(second);
    assert_eq!(shop.answers(), [], "the record before it may be lost");
    shop.report(first);
    assert_eq!(shop.answers(), [("a", accepted(1, REGISTERED, 1)), ("b", accepted(2, RESERVED, 2))]);
}

#[test]
fn a_rejection_is_answered_when_a_record_that_was_sent_after_it_counts() {
    let mut shop = Shop::stocked(1);
    shop.ask_for("last", reserve("o-1"));
    shop.ask_for("late", reserve("o-2"));
    assert_eq!(shop.sent(), [(2, Kind::Commit), (3, Kind::Fence)]);
    let carried = shop.carry();
    shop.report(carried);
    assert_eq!(shop.answers(), [("last", accepted(2, RESERVED, 2))]);
    shop.settle();
    assert_eq!(shop.answers(), [("late", rejected("out_of_stock", 2, 2))]);
}

#[test]
fn a_fence_proves_nothing_that_was_decided_after_it_was_sent() {
    let mut shop = Shop::stocked(0);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", reserve("o-2"));
    assert_eq!(shop.sent(), [(2, Kind::Fence)]);
    let carried = shop.carry();
    shop.report(carried);
    assert_eq!(shop.answers(), [("a", rejected("out_of_stock", 1, 1))]);
    assert_eq!(shop.sent(), [(3, Kind::Fence)]);
    shop.settle();
    assert_eq!(shop.answers(), [("b", rejected("out_of_stock", 1, 1))]);
}

#[test]
fn a_storm_of_rejections_shares_a_fence_every_few_milliseconds() {
    let mut shop = Shop::stocked(0);
    for passed_ms in [0, 4, 4] {
        for _ in 0..100 {
            shop.ask("storm", "storm", reserve("o-1"));
        }
        shop.now.0 += passed_ms;
        shop.end_turn();
        assert_eq!(shop.sent().len(), 1, "more than one fence in flight, or none");
        let carried = shop.carry();
        shop.report(carried);
    }
    shop.settle();
    assert_eq!((shop.answers().len(), shop.log.len()), (300, 2 + 4));
}

#[test]
fn a_crowd_waits_for_company_though_the_last_fence_is_acknowledged_and_a_lone_rejection_does_not() {
    let mut shop = Shop::stocked(0);
    for (asked, is_sent_at_once) in [(1, true), (10, true), (1, false), (1, true)] {
        for _ in 0..asked {
            shop.ask("rejected", "rejected", reserve("o-1"));
        }
        assert_eq!(!shop.sent().is_empty(), is_sent_at_once, "{asked} were asked");
        shop.settle();
        assert_eq!(shop.answers().len(), asked);
    }
}

#[test]
fn the_next_append_serves_as_a_fence() {
    let mut shop = Shop::stocked(0);
    shop.ask_for("fenced", reserve("o-1"));
    shop.ask_for("rejected", reserve("o-2"));
    shop.ask_for("appended", Command::Restock { quantity: 1 });
    assert_eq!(shop.sent(), [(2, Kind::Fence), (3, Kind::Commit)]);
    shop.settle();
    let replies: Vec<_> = shop.answers().into_iter().map(|(reply, _)| reply).collect();
    assert_eq!((replies, shop.log.len()), (vec!["fenced", "rejected", "appended"], 4));
}

#[test]
fn a_command_without_effect_is_accepted_without_events() {
    let mut shop = Shop::stocked(5);
    shop.ask_for("again", register(5));
    assert_eq!(shop.sent(), [(2, Kind::Fence)]);
    shop.settle();
    let answer =
        Answer::Accepted { version: 1, events: vec![], position: (PARTITION, 1), replayed: false, order: None };
    assert_eq!(shop.answers(), [("again", answer)]);
}

#[test]
fn a_precondition_is_held_against_the_version_and_its_failure_is_proved() {
    let mut shop = Shop::stocked(5);
    shop.ask_when(Precondition::Absent, "absent", "a", register(5));
    shop.ask_when(Precondition::Version(2), "wrong", "b", reserve("o-1"));
    assert_eq!((shop.answers(), shop.sent()), (vec![], vec![(2, Kind::Fence)]));
    shop.settle();
    let failed = Answer::PreconditionFailed { version: 1, position: (PARTITION, 1) };
    assert_eq!(shop.answers(), [("absent", failed.clone()), ("wrong", failed)]);
    shop.ask_when(Precondition::Version(1), "right", "c", reserve("o-1"));
    shop.settle();
    assert!(matches!(shop.answers()[..], [("right", Answer::Accepted { version: 2, .. })]));
}

#[test]
fn a_repeat_joins_the_command_in_flight() {
    let mut shop = Shop::stocked(5);
    let restock = || Command::Restock { quantity: 1 };
    shop.ask("first", "key", restock());
    shop.ask("second", "key", restock());
    assert_eq!(shop.sent(), [(2, Kind::Commit), (3, Kind::Fence)]);
    shop.settle();
    assert_eq!(shop.answers(), [("first", accepted(2, RESTOCKED, 2)), ("second", replayed(2, RESTOCKED, 2))]);
}

#[test]
fn a_repeat_gets_the_first_answer_again_despite_later_changes() {
    let mut shop = Shop::stocked(1);
    shop.ask("first", "key", reserve("o-1"));
    shop.ask_for("release", Command::Release { order: OrderId("o-1".into()), by: Holder::Client });
    shop.ask("second", "key", reserve("o-1"));
    shop.settle();
    assert_eq!(shop.answers()[2], ("second", replayed(2, RESERVED, 2)));
}

#[test]
fn a_command_caused_by_an_event_is_always_decided_anew_under_any_key() {
    let mut shop = Shop::stocked(1);
    let caused = |shop: &mut Shop, reply, command| {
        let cause = Some("0-7-1".into());
        let request = ParsedRequest { cause, ..request(reply, "key", command, Precondition::None) };
        shop.machine.command(request, NOW, &mut shop.out);
        shop.end_turn();
    };
    shop.ask("client", "key", Command::Restock { quantity: 1 });
    caused(&mut shop, "reserve", reserve("o-1"));
    caused(&mut shop, "again", reserve("o-1"));
    caused(&mut shop, "release", Command::Release { order: OrderId("o-1".into()), by: Holder::Client });
    caused(&mut shop, "late", reserve("o-1"));
    shop.ask("client again", "key", Command::Restock { quantity: 1 });
    shop.settle();
    let nothing =
        Answer::Accepted { version: 3, events: vec![], position: (PARTITION, 3), replayed: false, order: None };
    let answers = shop.answers();
    assert_eq!(answers[1..3], [("reserve", accepted(3, RESERVED, 3)), ("again", nothing)]);
    assert!(matches!(&answers[4], ("late", Answer::Accepted { version: 5, replayed: false, .. })), "{answers:?}");
    assert_eq!(answers[5], ("client again", replayed(2, RESTOCKED, 2)));
}

#[test]
fn a_key_that_comes_with_other_data_is_refused_with_proof() {
    let mut shop = Shop::stocked(5);
    shop.ask("first", "key", reserve("o-1"));
    shop.ask("other", "key", reserve("o-2"));
    assert_eq!(shop.answers(), []);
    shop.settle();
    assert_eq!(shop.answers()[1], ("other", Answer::KeyReused));
}

#[test]
fn a_rejected_key_may_be_decided_anew() {
    let mut shop = Shop::stocked(0);
    shop.ask("first", "key", reserve("o-1"));
    shop.ask_for("restock", Command::Restock { quantity: 1 });
    shop.ask("second", "key", reserve("o-1"));
    shop.settle();
    assert_eq!(shop.answers()[2], ("second", accepted(3, RESERVED, 4)));
}

#[test]
fn a_key_that_came_back_after_its_window_is_kept_for_another() {
    let later = |shop: &mut Shop, after: Duration| {
        let now = TimeMs(NOW.0 + u64::try_from(after.as_millis()).unwrap());
        let request = request("repeat", "key", Command::Restock { quantity: 1 }, Precondition::None);
        shop.machine.command(request, now, &mut shop.out);
        shop.end_turn();
        shop.settle();
        shop.answers()
    };
    let mut shop = Shop::stocked(0);
    let once = 2 * WINDOW;
    assert_eq!(later(&mut shop, Duration::ZERO), [("repeat", accepted(2, RESTOCKED, 2))]);
    assert_eq!(later(&mut shop, once), [("repeat", accepted(3, RESTOCKED, 3))]);
    // Another instance reads it from the log.
    let mut shop = Shop { log: shop.log, ..Shop::closed() };
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(later(&mut shop, once + WINDOW / 2), [("repeat", replayed(3, RESTOCKED, 3))]);
    assert_eq!(later(&mut shop, once + WINDOW), [("repeat", replayed(3, RESTOCKED, 3))]);
}

#[test]
fn a_full_queue_refuses_the_command_and_uses_no_number_up() {
    let mut shop = Shop::stocked(1);
    shop.out.refusals = 1;
    shop.ask_for("refused", reserve("o-1"));
    assert!(matches!(shop.answers()[..], [("refused", Answer::Overloaded { .. })]));
    shop.ask_for("taken", reserve("o-2"));
    assert_eq!(shop.sent(), [(2, Kind::Commit)]);
    shop.settle();
    assert_eq!(shop.answers(), [("taken", accepted(2, RESERVED, 2))], "the refused one took the stock");
}

#[test]
fn a_fence_or_a_claim_that_a_full_queue_refused_is_tried_again_next_turn() {
    let mut shop = Shop::stocked(0);
    shop.out.refusals = 1;
    shop.ask_for("rejected", reserve("o-1"));
    assert!(shop.sent().is_empty() && shop.machine.wants_turn());
    shop.end_turn();
    assert_eq!((shop.sent(), shop.machine.wants_turn()), (vec![(2, Kind::Fence)], false));
    let mut shop = Shop::closed();
    shop.out.refusals = 2;
    shop.machine.take_over(&mut shop.out);
    shop.read();
    assert!(shop.sent().is_empty() && shop.machine.wants_turn());
    shop.end_turn();
    assert_eq!((shop.sent(), shop.machine.wants_turn()), (vec![(0, Kind::Claim)], false));
}

#[test]
fn only_an_owner_takes_commands() {
    let mut shop = Shop::closed();
    shop.ask_for("a", register(1));
    assert_eq!(shop.answers(), [("a", Answer::Misdirected)]);
}
