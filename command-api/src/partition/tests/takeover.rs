//! Tests of takeovers.

use domain::product::Command;
use schemas::answers::Answer;
use schemas::chain::Passed;
use schemas::exceptions::{Stray, Unreadable};
use schemas::record::{Claim, Commit, Epoch, Record};

use super::{
    FOREIGN_NONCE, PARTITIONS, RESERVED, Shop, accepted, claim, encoded, moved, register, rejected, replayed, reserve,
    stray,
};
use crate::partition::{DoubtCause, HaltError, Role};

#[test]
fn a_new_owner_knows_what_counted_before_it() {
    let mut before = Shop::stocked(1);
    before.ask_for("key", reserve("o-1"));
    before.settle();
    let mut shop = Shop { log: before.log, ..Shop::closed() };
    shop.write(stray());
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    shop.ask_for("key", reserve("o-1"));
    shop.ask_for("late", reserve("o-2"));
    shop.settle();
    assert_eq!(shop.answers(), [("key", replayed(2, RESERVED, 2)), ("late", rejected("out_of_stock", 2, 2))]);
    assert_eq!(shop.out.passed, [Passed::Foreign]);
}

#[test]
fn records_that_count_between_the_read_and_the_claim_are_read_back() {
    let mut shop = Shop { log: Shop::stocked(1).log, ..Shop::closed() };
    shop.machine.take_over(&mut shop.out);
    shop.read();
    // The previous owner is still alive, and faster than the claim.
    let Some(Record::Claim(first)) = Record::decode(&shop.log[0]).unwrap() else { panic!("no claim") };
    let epoch = Epoch { claim: 0, nonce: first.nonce };
    let mut other = Shop::stocked(1);
    other.ask_for("a", reserve("o-1"));
    let theirs = moved(&other.lose().value, epoch, 2);
    shop.write(theirs.clone());
    shop.settle();
    shop.write(theirs);
    shop.ask_for("b", reserve("o-2"));
    shop.settle();
    assert_eq!(shop.answers(), [("b", rejected("out_of_stock", 2, 2))]);
}

#[test]
fn records_of_another_history_do_not_count() {
    let mut shop = Shop::stocked(0);
    shop.ask_for("restock", Command::Restock { quantity: 1 });
    let restock = shop.lose().value;
    // The chain would continue with it, except for the claim that it names.
    let ghost = moved(&restock, Epoch { claim: 0, nonce: FOREIGN_NONCE }, 2);
    let mut shop = Shop { log: Shop::stocked(0).log, ..Shop::closed() };
    shop.write(ghost);
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    shop.ask_for("reserve", reserve("o-1"));
    shop.settle();
    assert_eq!(shop.answers(), [("reserve", rejected("out_of_stock", 1, 1))]);
}

#[test]
fn a_claim_without_an_offset_is_retried_whether_it_was_appended_or_not() {
    for stands in [true, false] {
        let mut shop = Shop::closed();
        shop.machine.take_over(&mut shop.out);
        shop.read();
        let lost = shop.lose();
        if stands {
            shop.write(lost.value);
        }
        shop.report_failure(lost.ticket);
        assert_eq!(shop.out.doubts, [DoubtCause::NoOffset]);
        shop.settle();
        assert_eq!((shop.machine.role(), shop.log.len()), (Role::Owner, if stands { 2 } else { 1 }));
    }
}

#[test]
fn a_claim_with_another_partition_count_halts() {
    let claim = |partitions| encoded(&Record::Claim(Claim { nonce: 1, url: "http://other".into(), partitions }));
    for (partitions, halts) in [(None, false), (Some(PARTITIONS), false), (Some(PARTITIONS - 1), true)] {
        let mut shop = Shop { log: vec![claim(partitions)], ..Shop::closed() };
        shop.machine.take_over(&mut shop.out);
        let read = shop.try_read();
        assert_eq!(matches!(read, Err(HaltError::Partitions { offset: 0, .. })), halts, "{partitions:?}: {read:?}");
    }
}

fn closing() -> Vec<u8> {
    encoded(&Record::Claim(Claim::closing("events-48", PARTITIONS)))
}

#[test]
fn an_owner_whose_partition_is_closed_answers_what_counts_and_claims_nothing_more() {
    let mut shop = Shop::stocked(2);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", reserve("o-2"));
    let a = shop.carry();
    let closed = shop.write(closing());
    let b = shop.carry();
    shop.report(a);
    shop.report(b);
    shop.read();
    let ended = shop.try_read();
    assert!(matches!(ended, Err(HaltError::Closed { offset }) if offset == closed), "{ended:?}");
    assert_eq!(shop.answers(), [("a", accepted(2, RESERVED, 2)), ("b", Answer::NoOwner)]);
    assert_eq!((shop.machine.role(), shop.sent()), (Role::Idle, vec![]));
}

#[test]
fn a_closed_partition_is_not_claimed_whenever_it_is_closed() {
    let mut shop = Shop { log: Shop::stocked(1).log, ..Shop::closed() };
    shop.write(closing());
    shop.machine.take_over(&mut shop.out);
    assert!(matches!(shop.try_read(), Err(HaltError::Closed { offset: 2 })));
    let mut shop = Shop { log: Shop::stocked(1).log, ..Shop::closed() };
    shop.machine.take_over(&mut shop.out);
    shop.read();
    shop.write(closing());
    let claim = shop.carry();
    shop.report(claim);
    assert!(matches!(shop.try_read(), Err(HaltError::Closed { offset: 2 })), "its claim is behind the closing one");
    assert_eq!(shop.machine.role(), Role::Idle);
}

#[test]
fn every_claim_states_the_partition_count() {
    let log = Shop::open().log;
    let Some(Record::Claim(claim)) = Record::decode(&log[0]).unwrap() else { panic!("no claim") };
    assert_eq!(claim.partitions, Some(PARTITIONS));
}

#[test]
fn a_record_that_cannot_be_read_halts_with_its_offset() {
    for unreadable in [&b"st2{}"[..], b"st1{", b"st{}"] {
        let mut shop = Shop { log: Shop::stocked(1).log, ..Shop::closed() };
        shop.write(unreadable.to_vec());
        shop.machine.take_over(&mut shop.out);
        let halted = shop.try_read();
        assert!(
            matches!(halted, Err(HaltError::Record(Unreadable { stray: Stray { offset: 2, .. }, .. }))),
            "{halted:?}"
        );
    }
}

#[test]
fn a_log_that_is_not_of_this_system_halts() {
    let mut shop = Shop::closed();
    shop.write(stray());
    shop.machine.take_over(&mut shop.out);
    assert!(matches!(shop.try_read(), Err(HaltError::Chain(_))));
    let mut shop = Shop::closed();
    shop.write(claim(FOREIGN_NONCE));
    let named = Commit {
        epoch: Epoch { claim: 0, nonce: FOREIGN_NONCE },
        seq: 1,
        command_id: "key".into(),
        at_ms: 0,
        aggregate: "basket/1".into(),
        version: 1,
        events: vec![],
        fingerprint: 0,
        cause: None,
        trace: None,
        origin: None,
    };
    shop.write(encoded(&Record::Commit(named)));
    shop.machine.take_over(&mut shop.out);
    assert!(matches!(shop.try_read(), Err(HaltError::Aggregate { offset: 1, .. })));
}

#[test]
fn a_foreign_claim_under_the_own_url_is_reported_and_one_of_an_earlier_life_is_not() {
    let claim = |url: &str, nonce| encoded(&Record::Claim(Claim { nonce, url: url.into(), partitions: None }));
    for (url, twins) in [("http://me", 1), ("http://other", 0)] {
        let mut shop = Shop::closed();
        shop.write(claim("http://me", FOREIGN_NONCE));
        shop.machine.take_over(&mut shop.out);
        shop.settle();
        shop.write(claim(url, FOREIGN_NONCE + 1));
        shop.ask_for("a", register(1));
        shop.settle();
        assert_eq!((shop.machine.role(), shop.out.twins), (Role::Idle, twins), "{url}");
    }
}
