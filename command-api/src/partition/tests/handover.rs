//! From one instance to another on purpose: prepared first, asked for, let go of.

use schemas::answers::Answer;

use super::{FOREIGN_NONCE, Kind, NOW, RESERVED, Shop, accepted, claim, rejected, reserve};
use crate::partition::Role;

#[test]
fn one_that_prepares_reads_and_claims_nothing_until_it_is_told() {
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
fn one_that_is_told_while_it_prepares_claims_when_it_is_prepared() {
    let mut shop = Shop { log: Shop::stocked(5).log, ..Shop::closed() };
    shop.machine.prepare(&mut shop.out);
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
}

#[test]
fn what_counted_since_it_was_prepared_is_read_when_it_claims() {
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
fn an_owner_that_lets_go_answers_what_it_decided_and_nothing_more() {
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
    // And it may come back.
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
}

#[test]
fn one_that_only_prepares_lets_go_at_once() {
    let mut shop = Shop { log: Shop::stocked(5).log, ..Shop::closed() };
    shop.machine.prepare(&mut shop.out);
    shop.machine.let_go();
    assert_eq!(shop.machine.role(), Role::Idle);
}

#[test]
fn one_that_lets_go_in_the_middle_of_a_read_has_no_use_for_the_rest() {
    let mut shop = Shop { log: Shop::stocked(5).log, ..Shop::closed() };
    shop.machine.prepare(&mut shop.out);
    shop.machine.record(0, &shop.log[0], &mut shop.out).unwrap();
    shop.machine.let_go();
    shop.machine.record(1, &shop.log[1], &mut shop.out).unwrap();
    shop.machine.read_ended(NOW, &mut shop.out).unwrap();
    assert_eq!(shop.machine.role(), Role::Idle);
    // And it may come back.
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
}

#[test]
fn an_owner_that_slept_finds_out_that_it_was_deposed_before_anybody_commands_it() {
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
