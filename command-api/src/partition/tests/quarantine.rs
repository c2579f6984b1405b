//! Tests of domain rules that panic: their aggregate is quarantined, and the others are served.

use domain::product::Command;
use domain::{Event, order};
use schemas::answers::Answer;
use schemas::commands::Precondition;
use schemas::events::WireEvent;
use schemas::record::{Commit, Epoch, Record};

use super::{
    FOREIGN_NONCE, NOW, REGISTERED, Release, Role, Shop, accepted, claim, encoded, product, register, request, reserve,
};

/// Sends a command for another aggregate type, on which the rules panic.
fn ask_nonsense(shop: &mut Shop, key: &'static str) {
    let mut request = request(key, key, register(1), Precondition::None);
    request.command = domain::Command::Order(order::Command::Cancel { reason: None });
    shop.machine.command(request, NOW, &mut shop.out);
    shop.end_turn();
}

fn ask_other(shop: &mut Shop, key: &'static str, command: Command) {
    let mut request = request(key, key, command, Precondition::None);
    request.aggregate = product("q");
    shop.machine.command(request, NOW, &mut shop.out);
    shop.end_turn();
}

#[test]
fn an_aggregate_whose_decision_panics_is_set_aside_until_it_is_released() {
    let mut shop = Shop::stocked(1);
    ask_nonsense(&mut shop, "a");
    assert_eq!(shop.answers(), [("a", Answer::Quarantined)]);
    shop.ask_for("b", reserve("o-1"));
    assert_eq!(shop.answers(), [("b", Answer::Quarantined)]);
    assert_eq!(shop.sent(), [], "nothing was decided");
    let (name, why) = shop.machine.quarantined().first_key_value().unwrap();
    assert_eq!((name, why.state_lost, why.since), (&product("p"), false, NOW));
    assert!(why.reason.contains("different aggregates"), "{}", why.reason);

    assert_eq!(shop.machine.release(&product("q")), Release::NotQuarantined);
    assert_eq!(shop.machine.release(&product("p")), Release::Released);
    shop.ask_for("b", reserve("o-1"));
    shop.settle();
    assert_eq!(shop.answers(), [("b", accepted(2, super::RESERVED, 2))]);
}

#[test]
fn the_rest_is_served_beside_an_aggregate_in_quarantine() {
    let mut shop = Shop::open();
    ask_nonsense(&mut shop, "a");
    ask_other(&mut shop, "b", register(1));
    shop.settle();
    assert_eq!(shop.answers(), [("a", Answer::Quarantined), ("b", accepted(1, REGISTERED, 1))]);
}

#[test]
fn an_outcome_from_before_a_quarantine_is_still_repeated() {
    let mut shop = Shop::stocked(1);
    ask_nonsense(&mut shop, "a");
    shop.answers();
    shop.ask_for("registration", register(1));
    shop.settle();
    assert_eq!(shop.answers(), [("registration", super::replayed(1, REGISTERED, 1))]);
}

#[test]
fn an_aggregate_whose_events_cannot_be_folded_is_set_aside_and_the_log_is_read_on() {
    let epoch = Epoch { claim: 0, nonce: FOREIGN_NONCE };
    let commit = |seq, aggregate: &'static str, event: &Event| {
        encoded(&Record::Commit(Commit {
            epoch,
            seq,
            command_id: format!("k-{seq}").into(),
            at_ms: NOW.0,
            aggregate: aggregate.into(),
            version: 1,
            events: vec![WireEvent::newest(event)],
            fingerprint: 0,
            cause: None,
            trace: None,
            origin: None,
        }))
    };
    let mut shop = Shop::closed();
    let nonsense = Event::Order(order::Event::Confirmed);
    let restocked = Event::Product(domain::product::Event::Restocked { quantity: 1 });
    for record in [claim(FOREIGN_NONCE), commit(1, "product/p", &nonsense), commit(2, "product/q", &restocked)] {
        shop.write(record);
    }
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
    let quarantined = shop.machine.quarantined();
    assert!(quarantined.len() == 1 && quarantined[&product("p")].state_lost, "{quarantined:?}");
    assert_eq!(shop.machine.release(&product("p")), Release::StateLost);
    shop.ask_for("a", reserve("o-1"));
    assert_eq!(shop.answers(), [("a", Answer::Quarantined)]);
    ask_other(&mut shop, "b", Command::Restock { quantity: 1 });
    shop.settle();
    assert!(matches!(shop.answers()[..], [("b", Answer::Rejected { .. })]), "the rest is served");
}
