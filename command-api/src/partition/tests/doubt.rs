//! Tests of doubt about which records count, and of its resolution.

use domain::product::Command;
use schemas::answers::Answer;
use schemas::chain::Passed;
use schemas::record::Epoch;

use super::{
    FOREIGN_NONCE, Kind, RESERVED, RESTOCKED, Shop, accepted, claim, except, fence, int, kind, register, rejected,
    replayed, reserve, stray, unreadable,
};
use crate::partition::{DoubtCause, HaltError, ReadTo, Role, Ticket};

#[test]
fn a_displaced_record_leads_to_a_read_and_the_epoch_continues_without_a_claim() {
    let mut shop = Shop::stocked(1);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", reserve("o-2"));
    shop.write(fence(Epoch { claim: 0, nonce: FOREIGN_NONCE }, 9));
    let (a, b) = (shop.carry(), shop.carry());
    shop.report(a);
    assert_eq!((shop.machine.role(), shop.answers()), (Role::Unsettled, vec![]));
    assert_eq!((shop.out.reading, &shop.out.doubts[..]), (Some((2, ReadTo::Offset(4))), &[DoubtCause::Displaced][..]));
    shop.report(b);
    shop.read();
    assert_eq!(shop.machine.role(), Role::Owner);
    let answers = [("a", accepted(2, RESERVED, 3)), ("b", rejected("out_of_stock", 2, 3))];
    assert_eq!((shop.answers(), shop.sent()), (answers.to_vec(), vec![]));
    assert_eq!(shop.out.passed, [Passed::OtherEpoch]);
}

#[test]
fn after_a_displacement_no_answer_names_too_early_an_offset() {
    let mut shop = Shop::stocked(2);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", reserve("o-2"));
    shop.write(stray());
    let (a, b) = (shop.carry(), shop.carry());
    shop.report(a);
    shop.read();
    shop.report(b);
    assert_eq!(shop.answers(), [("a", accepted(2, RESERVED, 3)), ("b", accepted(3, RESERVED, 4))]);
    shop.ask("repeat", "b", reserve("o-2"));
    shop.ask_for("c", reserve("o-3"));
    shop.settle();
    assert_eq!(shop.answers(), [("repeat", replayed(3, RESERVED, 4)), ("c", rejected("out_of_stock", 3, 4))]);
}

#[test]
fn an_owner_that_a_stray_stops_answers_what_it_decided_once_that_is_excepted() {
    let mut shop = Shop::stocked(1);
    shop.ask_for("a", reserve("o-1"));
    let place = shop.write(unreadable());
    let a = shop.carry();
    shop.report(a);
    except(&shop.out.exceptions, place, b"another value");
    except(&shop.out.exceptions, place + 1, &unreadable());
    for _ in 0..2 {
        assert!(matches!(shop.try_read(), Err(HaltError::Record(_))));
        assert_eq!((shop.machine.role(), shop.answers()), (Role::Unsettled, vec![]));
    }
    except(&shop.out.exceptions, place, &unreadable());
    shop.read();
    assert_eq!((shop.machine.role(), shop.answers()), (Role::Owner, vec![("a", accepted(2, RESERVED, 3))]));
    assert_eq!((&shop.out.passed[..], shop.log.len()), (&[Passed::Foreign][..], 4));
    // A later owner reads the same.
    let mut later = Shop { log: shop.log.clone(), ..Shop::closed() };
    later.out.exceptions = shop.out.exceptions.clone();
    later.machine.take_over(&mut later.out);
    later.settle();
    later.ask("repeat", "a", reserve("o-1"));
    later.settle();
    assert_eq!(later.answers(), [("repeat", replayed(2, RESERVED, 3))]);
}

#[test]
fn a_duplicated_record_only_displaces_those_behind_it() {
    let mut shop = Shop::stocked(2);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", reserve("o-2"));
    let twice = shop.out.sent[0].value.clone();
    let a = shop.carry();
    shop.write(twice);
    let b = shop.carry();
    shop.report(a);
    shop.report(b);
    shop.settle();
    assert_eq!(shop.answers(), [("a", accepted(2, RESERVED, 2)), ("b", accepted(3, RESERVED, 4))]);
    assert_eq!((shop.machine.role(), &shop.out.passed[..]), (Role::Owner, &[Passed::OutOfSequence][..]));
}

#[test]
fn a_report_without_an_offset_settles_every_command_once_under_a_new_claim() {
    for stands in [true, false] {
        let mut shop = Shop::stocked(1);
        shop.ask("first", "key", reserve("o-1"));
        shop.ask("joined", "key", reserve("o-1"));
        shop.ask_for("late", reserve("o-2"));
        let lost = shop.lose();
        if stands {
            shop.write(lost.value);
        }
        shop.report_failure(lost.ticket);
        assert_eq!((shop.machine.role(), shop.out.reading), (Role::Unsettled, Some((0, ReadTo::End))));
        shop.read();
        assert_eq!(shop.out.sent.back().map(|sent| kind(&sent.value)), Some(Kind::Claim));
        assert_eq!(shop.answers(), [], "the claim is not read back yet");
        // A fence of the previous epoch is still in flight.
        shop.settle();
        let offset = if stands { 2 } else { 4 };
        let answers = [
            ("first", accepted(2, RESERVED, offset)),
            ("joined", replayed(2, RESERVED, offset)),
            ("late", rejected("out_of_stock", 2, offset)),
        ];
        assert_eq!(shop.answers(), answers, "stands: {stands}");
        assert_eq!((shop.machine.role(), shop.machine.pending()), (Role::Owner, 0));
    }
}

#[test]
fn a_command_that_is_decided_anew_is_no_proof_for_another_under_its_key() {
    let mut shop = Shop::stocked(0);
    shop.ask("rejected", "key", reserve("o-1"));
    shop.ask_for("restock", Command::Restock { quantity: 1 });
    shop.ask("reserved", "key", reserve("o-1"));
    let fence = shop.carry();
    let restock = shop.carry();
    let lost = shop.lose();
    shop.report_failure(lost.ticket);
    shop.read();
    let claim = shop.carry();
    shop.report(claim);
    shop.read();
    assert_eq!((fence.1, shop.answers()), (2, vec![("restock", accepted(2, RESTOCKED, restock.1))]));
    shop.settle();
    assert_eq!(shop.answers(), [("rejected", accepted(3, RESERVED, 5)), ("reserved", replayed(3, RESERVED, 5))]);
}

#[test]
fn a_record_behind_a_gap_is_not_acknowledged_even_at_its_expected_offset() {
    let mut shop = Shop::stocked(3);
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("lost", reserve("o-2"));
    shop.ask_for("behind", reserve("o-3"));
    shop.write(stray());
    let a = shop.carry();
    let lost = shop.lose();
    let behind = shop.carry();
    assert_eq!(behind, (Ticket { seq: 4, ..lost.ticket }, 4));
    shop.report(behind);
    assert_eq!((shop.answers(), shop.machine.role()), (vec![], Role::Owner));
    shop.report(a);
    shop.settle();
    assert_eq!(shop.out.doubts, [DoubtCause::Displaced, DoubtCause::Broken]);
    let decided =
        [("a", accepted(2, RESERVED, 3)), ("lost", accepted(3, RESERVED, 6)), ("behind", accepted(4, RESERVED, 7))];
    assert_eq!(shop.answers(), decided);
}

#[test]
fn a_deposed_owner_answers_commands_that_count_and_claims_nothing() {
    let mut shop = Shop::stocked(1);
    shop.ask_for("counts", reserve("o-1"));
    shop.ask("joined", "counts", reserve("o-1"));
    shop.ask_for("void", Command::Restock { quantity: 1 });
    shop.ask_for("unproved", register(9));
    let counts = shop.carry();
    shop.write(claim(FOREIGN_NONCE));
    let (fence, void) = (shop.carry(), shop.carry());
    shop.report(counts);
    assert_eq!(shop.answers(), [("counts", accepted(2, RESERVED, 2))]);
    shop.report(fence);
    shop.report(void);
    shop.out.sent.clear();
    shop.settle();
    let answers = [("joined", accepted(2, RESERVED, 2)), ("void", Answer::NoOwner), ("unproved", Answer::NoOwner)];
    assert_eq!(shop.answers(), answers);
    assert_eq!((shop.machine.role(), shop.log.len(), shop.sent()), (Role::Idle, 6, vec![]));
}

#[test]
fn a_report_without_an_offset_and_a_foreign_claim_lead_to_no_claim() {
    let mut shop = Shop::stocked(2);
    shop.ask_for("counts", reserve("o-1"));
    shop.ask_for("void", reserve("o-2"));
    let (counts, _) = shop.carry();
    let theirs = shop.write(claim(FOREIGN_NONCE));
    let void = shop.lose();
    shop.report_failure(counts);
    shop.read();
    assert_eq!(shop.answers(), [("counts", accepted(2, RESERVED, 2)), ("void", Answer::NoOwner)]);
    assert_eq!((shop.machine.role(), shop.sent()), (Role::Idle, vec![]));
    // Records that arrive from here on are void under the foreign claim.
    shop.write(void.value);
    shop.write(fence(Epoch { claim: theirs, nonce: FOREIGN_NONCE }, 1));
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    shop.ask_for("state", Command::Restock { quantity: 1 });
    shop.settle();
    assert!(matches!(shop.answers()[..], [("state", Answer::Accepted { version: 3, .. })]));
}

#[test]
fn reports_of_an_earlier_generation_are_void() {
    let mut shop = Shop::stocked(2);
    shop.ask_for("a", reserve("o-1"));
    let lost = shop.lose();
    shop.report_failure(lost.ticket);
    shop.settle();
    shop.answers();
    shop.ask_for("b", reserve("o-2"));
    let (in_flight, _) = shop.carry();
    let stale = Ticket { generation: lost.ticket.generation, ..in_flight };
    assert_ne!(stale, in_flight);
    shop.report((stale, int(shop.log.len()) - 1));
    shop.report_failure(stale);
    assert_eq!((shop.answers(), shop.machine.role(), shop.out.reading), (vec![], Role::Owner, None));
}
