//! Tests of planned handovers: prepare, request, release.

use schemas::answers::Answer;

use super::{FOREIGN_NONCE, Kind, NOW, RESERVED, Shop, accepted, claim, rejected, reserve};
use crate::partition::Role;

#[test]
fn preparing_reads_and_claims_nothing_until_take_over() {
    let mut shop = Shop { log: Shop::stocked(5).log, ..Shop::closed() };
    let before = shop.log.len();
    shop.machine.prepare(&mut shop.out);
    assert_eq!(shop.machine.role(), Role::Preparing);
    shop.settle();
    assert_eq!((shop.machine.role(), shop.log.len()), (Role::Prepared, before));
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!((shop.machine.role(), shop.log.len()), (Role::Owner, before + 1));
}

#[test]
fn take_over_while_preparing_claims_once_prepared() {
    let mut shop = Shop { log: Shop::stocked(5).log, ..Shop::closed() };
    shop.machine.prepare(&mut shop.out);
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
}

#[test]
fn records_that_count_after_preparing_are_read_on_claiming() {
    let mut owner = Shop::stocked(1);
    let mut shop = Shop { log: owner.log.clone(), ..Shop::closed() };
    shop.machine.prepare(&mut shop.out);
    shop.settle();
    owner.ask_for("a", reserve("o-1"));
    owner.settle();
    shop.log = owner.log;
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    shop.ask_for("b", reserve("o-2"));
    shop.settle();
    assert_eq!(shop.answers(), [("b", rejected("out_of_stock", 2, 2))]);
}

#[test]
fn a_releasing_owner_answers_decided_commands_and_decides_no_more() {
    let mut shop = Shop::stocked(5);
    shop.ask_for("decided", reserve("o-1"));
    shop.machine.let_go();
    assert_eq!(shop.machine.role(), Role::Leaving);
    shop.ask_for("late", reserve("o-2"));
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Idle);
    assert_eq!(shop.answers(), [("late", Answer::Misdirected), ("decided", accepted(2, RESERVED, 2))]);
}

#[test]
fn an_owner_with_nothing_in_flight_is_idle_at_once() {
    let mut shop = Shop::stocked(5);
    let before = shop.log.len();
    shop.machine.let_go();
    assert_eq!((shop.machine.role(), shop.log.len()), (Role::Idle, before));
    // It can take over again later.
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
}

#[test]
fn a_release_while_preparing_takes_effect_at_once() {
    let mut shop = Shop { log: Shop::stocked(5).log, ..Shop::closed() };
    shop.machine.prepare(&mut shop.out);
    shop.machine.let_go();
    assert_eq!(shop.machine.role(), Role::Idle);
}

#[test]
fn a_release_during_a_read_discards_the_rest() {
    let mut shop = Shop { log: Shop::stocked(5).log, ..Shop::closed() };
    shop.machine.prepare(&mut shop.out);
    shop.machine.record(0, &shop.log[0], &mut shop.out).unwrap();
    shop.machine.let_go();
    shop.machine.record(1, &shop.log[1], &mut shop.out).unwrap();
    shop.machine.read_ended(NOW, &mut shop.out).unwrap();
    assert_eq!(shop.machine.role(), Role::Idle);
    // It can take over again later.
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
}

#[test]
fn a_probe_shows_a_suspended_owner_that_it_was_deposed() {
    let mut shop = Shop::stocked(5);
    shop.write(claim(FOREIGN_NONCE));
    shop.machine.probe(NOW, &mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Idle);
}

#[test]
fn an_owner_that_has_no_reason_to_doubt_goes_on_after_a_probe() {
    let mut shop = Shop::stocked(5);
    shop.machine.probe(NOW, &mut shop.out);
    assert_eq!(shop.sent(), [(2, Kind::Fence)]);
    shop.settle();
    shop.ask_for("a", reserve("o-1"));
    shop.settle();
    assert_eq!(shop.answers(), [("a", accepted(2, RESERVED, 3))]);
}
