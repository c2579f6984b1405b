//! Tests of commands that wait for stored data, and of the conditions under which it is used.

use domain::{State, TimeMs};
use schemas::answers::Answer;
use schemas::chain::Reader;
use schemas::commands::Precondition;
use schemas::record::Epoch;

use super::{
    FOREIGN_NONCE, HaltError, Kind, LoadRequest, NOW, REGISTERED, RESTOCKED, Role, Shop, Unavailable, accepted, claim,
    fence, moved, product, register, replayed, request, reserve,
};
use crate::partition::{Checkpoint, LoadedAggregate, LoadedNames, LoadedState, Repeat};

const RESTOCK: domain::product::Command = domain::product::Command::Restock { quantity: 1 };

/// Returns a checkpoint as of the record at this offset, in the foreign epoch at offset 0.
pub(super) fn checkpoint(last_counted: i64) -> Checkpoint {
    let epoch = Epoch { claim: 0, nonce: FOREIGN_NONCE };
    let reader = Reader::behind(epoch, last_counted.cast_unsigned(), last_counted);
    Checkpoint { reader, last_at: NOW, max_key: TimeMs(NOW.0 - 1) }
}

/// Creates the owner of a partition whose first records are in the store.
fn shop_with_a_past() -> Shop {
    let mut shop = Shop::closed();
    let epoch = Epoch { claim: 0, nonce: FOREIGN_NONCE };
    for record in [claim(FOREIGN_NONCE), fence(epoch, 1), fence(epoch, 2)] {
        shop.write(record);
    }
    shop.machine.checkpointed(checkpoint(2), &mut shop.out);
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
    shop
}

/// Returns the state of a product on sale, at version 1.
fn on_sale(offset: i64) -> LoadedState {
    let registered = domain::Event::Product(match register(1) {
        domain::product::Command::Register(registration) => domain::product::Event::Registered(registration),
        _ => unreachable!(),
    });
    let folded = domain::evolve(State::initial(domain::AggregateType::Product), &registered);
    LoadedState { folded: Ok(folded), version: 1, offset }
}

/// Delivers the stored product, whose event is the record at offset 1.
pub(super) fn kept(shop: &mut Shop, wanted: &LoadRequest, checkpoint: i64, repeat: Option<Repeat>) {
    let state = wanted.state.then(|| on_sale(1));
    shop.machine.loaded(wanted, Ok(LoadedAggregate { checkpoint, state, repeat }), NOW, &mut shop.out);
    shop.end_turn();
}

pub(super) fn wanted(shop: &mut Shop) -> Vec<LoadRequest> {
    std::mem::take(&mut shop.out.wanted)
}

#[test]
fn a_take_over_begins_to_read_at_the_checkpoint() {
    let mut shop = Shop::closed();
    shop.machine.checkpointed(checkpoint(2), &mut shop.out);
    shop.machine.prepare(&mut shop.out);
    assert_eq!(shop.out.reading.map(|(from, _)| from), Some(2), "the last counted record is read again");
}

#[test]
fn a_log_that_does_not_continue_the_checkpoint_is_not_read_on() {
    let mut shop = Shop::closed();
    let epoch = Epoch { claim: 0, nonce: FOREIGN_NONCE };
    for record in [claim(FOREIGN_NONCE), fence(epoch, 1), claim(FOREIGN_NONCE + 1)] {
        shop.write(record);
    }
    shop.machine.checkpointed(checkpoint(2), &mut shop.out);
    shop.machine.prepare(&mut shop.out);
    assert!(matches!(shop.try_read(), Err(HaltError::OtherHistory { offset: 2 })));
    // The log is shorter than the checkpoint, as after a restore.
    let mut shop = Shop::closed();
    shop.write(claim(FOREIGN_NONCE));
    shop.machine.checkpointed(checkpoint(2), &mut shop.out);
    shop.machine.prepare(&mut shop.out);
    assert!(matches!(shop.try_read(), Err(HaltError::OtherHistory { offset: 2 })));
}

#[test]
fn commands_on_a_cold_aggregate_wait_for_its_state_in_their_order() {
    let mut shop = shop_with_a_past();
    shop.ask_for("a", reserve("o-1"));
    shop.ask_for("b", RESTOCK);
    assert_eq!(shop.sent(), [], "nothing is decided");
    let [first, second] = wanted(&mut shop).try_into().unwrap();
    assert!(first.state && !second.state, "one load serves both");
    kept(&mut shop, &second, 3, None);
    assert_eq!(shop.sent(), [], "the first one waits, and no command overtakes it");
    kept(&mut shop, &first, 3, None);
    assert_eq!(shop.sent(), [(1, Kind::Commit), (2, Kind::Commit)]);
    shop.settle();
    assert_eq!(shop.answers(), [("a", accepted(2, super::RESERVED, 4)), ("b", accepted(3, RESTOCKED, 5))]);
}

const FRESH: &str = "01a207a9-06da-7393-ba71-dff74814781b";
const FRESHER: &str = "01a207a9-06fe-77ea-bdb9-c6c8b328ab9e";

/// Creates the same with the product in memory, and its registration answered.
fn warm_shop_with_a_past() -> Shop {
    let mut shop = shop_with_a_past();
    shop.ask("registration", FRESH, register(1));
    let [state] = wanted(&mut shop).try_into().unwrap();
    kept(&mut shop, &state, 3, None);
    shop.settle();
    shop.answers();
    shop
}

/// Sends a restock, as a line of a batch or on its own.
fn line(shop: &mut Shop, reply: &'static str, key: &str, batch: Option<u64>) {
    let request = super::ParsedRequest { batch, ..request(reply, key, RESTOCK, Precondition::None) };
    shop.machine.command(request, NOW, &mut shop.out);
    shop.end_turn();
}

#[test]
fn a_key_lookup_delays_no_other_command() {
    let mut shop = warm_shop_with_a_past();
    shop.ask_for("untimed", RESTOCK);
    let [untimed] = wanted(&mut shop).try_into().unwrap();
    shop.ask("b", FRESHER, RESTOCK);
    shop.settle();
    assert_eq!(shop.answers(), [("b", accepted(2, RESTOCKED, 5))]);
    kept(&mut shop, &untimed, 3, None);
    shop.settle();
    assert_eq!(shop.answers(), [("untimed", accepted(3, RESTOCKED, 6))]);
}

#[test]
fn lines_of_one_batch_wait_behind_each_other_and_others_do_not() {
    let mut shop = warm_shop_with_a_past();
    let key = |n: u16| format!("01a207a9-0{n:03}-77ea-bdb9-c6c8b328ab9e");
    line(&mut shop, "first", "untimed", Some(7));
    let (second, other) = (key(700), key(701));
    line(&mut shop, "second", &second, Some(7));
    line(&mut shop, "other", &other, Some(8));
    shop.settle();
    assert_eq!(shop.answers(), [("other", accepted(2, RESTOCKED, 5))]);
    let [untimed] = wanted(&mut shop).try_into().unwrap();
    kept(&mut shop, &untimed, 3, None);
    shop.settle();
    assert_eq!(shop.answers(), [("first", accepted(3, RESTOCKED, 6)), ("second", accepted(4, RESTOCKED, 7))]);
}

#[test]
fn a_failed_key_lookup_refuses_only_its_command_and_the_lines_behind_it() {
    let mut shop = warm_shop_with_a_past();
    line(&mut shop, "first", "one", Some(7));
    line(&mut shop, "second", FRESHER, Some(7));
    line(&mut shop, "other", "two", None);
    let [one, two] = wanted(&mut shop).try_into().unwrap();
    shop.machine.loaded(&one, Err(Unavailable), NOW, &mut shop.out);
    let refused = shop.answers();
    assert!(matches!(refused[..], [("first", Answer::Overloaded { .. }), ("second", Answer::Overloaded { .. })]));
    kept(&mut shop, &two, 3, None);
    shop.settle();
    assert_eq!(shop.answers(), [("other", accepted(2, RESTOCKED, 5))]);
}

#[test]
fn a_key_that_may_have_been_evicted_is_looked_up_and_a_fresh_one_is_not() {
    let mut shop = shop_with_a_past();
    shop.ask("registration", FRESH, register(1));
    let [state] = wanted(&mut shop).try_into().unwrap();
    assert_eq!(state.key, None, "it is newer than every evicted key");
    kept(&mut shop, &state, 3, None);
    shop.settle();
    shop.answers();
    shop.ask_for("a", RESTOCK);
    let [untimed] = wanted(&mut shop).try_into().unwrap();
    assert!(!untimed.state && untimed.key.is_some());
    let fingerprint = request("a", "a", RESTOCK, Precondition::None).fingerprint;
    let repeat = Repeat { offset: 1, fingerprint, version: 1, events: [REGISTERED].into() };
    kept(&mut shop, &untimed, 3, Some(repeat));
    shop.settle();
    assert_eq!(shop.answers(), [("a", replayed(1, REGISTERED, 1))]);
}

#[test]
fn stored_data_that_is_too_old_is_requested_again_later() {
    let mut shop = shop_with_a_past();
    shop.ask_for("a", RESTOCK);
    let [first] = wanted(&mut shop).try_into().unwrap();
    kept(&mut shop, &first, 2, None);
    assert_eq!((shop.sent(), shop.answers()), (vec![], vec![]));
    assert_eq!((wanted(&mut shop), shop.machine.floor()), (vec![], 3), "the same data would be loaded again");
    let [again] = std::mem::take(&mut shop.out.wanted_later).try_into().unwrap();
    kept(&mut shop, &again, 3, None);
    shop.settle();
    assert_eq!(shop.answers(), [("a", accepted(2, RESTOCKED, 4))]);
}

#[test]
fn without_the_store_a_cold_aggregate_is_refused_and_a_resident_one_served() {
    let mut shop = shop_with_a_past();
    let fresh = "01a207a9-06da-7393-ba71-dff74814781b";
    shop.ask("a", fresh, RESTOCK);
    let [first] = wanted(&mut shop).try_into().unwrap();
    shop.machine.loaded(&first, Err(Unavailable), NOW, &mut shop.out);
    assert!(matches!(shop.answers()[..], [("a", Answer::Overloaded { .. })]));
    shop.ask("b", fresh, RESTOCK);
    let [again] = wanted(&mut shop).try_into().unwrap();
    kept(&mut shop, &again, 3, None);
    shop.out.refuses_loads = true;
    shop.ask("c", "01a207a9-06fe-77ea-bdb9-c6c8b328ab9e", RESTOCK);
    shop.settle();
    assert_eq!(shop.answers(), [("b", accepted(2, RESTOCKED, 4)), ("c", accepted(3, RESTOCKED, 5))]);
}

#[test]
fn an_aggregate_is_evicted_only_once_the_store_has_all_of_it() {
    let mut shop = Shop::stocked(1);
    let evict = |shop: &mut Shop| (0..2).for_each(|_| shop.machine.evict(0));
    evict(&mut shop);
    assert_eq!(shop.machine.residents(), 1, "no checkpoint is known");
    let reader = |next| Reader { next_offset: next, ..Reader::START };
    let checkpoint = |next| Checkpoint { reader: reader(next), last_at: NOW, max_key: NOW };
    shop.machine.checkpointed(checkpoint(1), &mut shop.out);
    evict(&mut shop);
    assert_eq!(shop.machine.residents(), 1, "the checkpoint does not cover its last event");
    shop.machine.checkpointed(checkpoint(2), &mut shop.out);
    evict(&mut shop);
    assert_eq!((shop.machine.residents(), shop.machine.resident_bytes()), (0, 0));
    shop.ask_for("a", RESTOCK);
    let [cold] = wanted(&mut shop).try_into().unwrap();
    assert_eq!((cold.aggregate.clone(), cold.state), (product("p"), true));
}

#[test]
fn a_full_memory_refuses_aggregates_that_are_not_in_it() {
    let mut shop = Shop::stocked(1);
    let reader = Reader { next_offset: 2, ..Reader::START };
    shop.machine.checkpointed(Checkpoint { reader, last_at: NOW, max_key: NOW }, &mut shop.out);
    (0..2).for_each(|_| shop.machine.evict(0));
    shop.ask_for("a", RESTOCK);
    let [cold] = wanted(&mut shop).try_into().unwrap();
    kept(&mut shop, &cold, 2, None);
    shop.settle();
    shop.answers();
    // A recently used aggregate is not evicted.
    shop.machine.evict(0);
    let mut other = request("b", "b", RESTOCK, Precondition::None);
    other.aggregate = product("q");
    shop.machine.command(other, NOW, &mut shop.out);
    assert!(matches!(shop.answers()[..], [("b", Answer::Overloaded { .. })]));
}

/// Delivers these names of stored aggregates, up to this offset.
fn named(shop: &mut Shop, names: &[&str], until: i64) {
    let from = shop.out.wants_names.take().expect("names were requested");
    named_from(shop, from, names, until);
}

fn named_from(shop: &mut Shop, from: i64, names: &[&str], until: i64) {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    shop.machine.named(&LoadedNames { from, until, names }, NOW, &mut shop.out);
    shop.end_turn();
}

#[test]
fn once_all_names_are_known_only_existing_aggregates_are_loaded() {
    let mut shop = shop_with_a_past();
    shop.ask_for("waits", register(1));
    assert_eq!(wanted(&mut shop).len(), 1, "it may exist already");
    named(&mut shop, &["product/other"], 2);
    assert!(shop.sent().is_empty() && shop.out.wants_names.is_some(), "names up to the checkpoint are needed");
    named(&mut shop, &["product/known"], 3);
    assert_eq!(shop.out.wants_names, None);
    shop.settle();
    assert_eq!(shop.answers(), [("waits", accepted(1, REGISTERED, 4))], "the waiting command needs no key lookup");
    for id in ["known", "other"] {
        let known = super::ParsedRequest { aggregate: product(id), ..request(id, id, RESTOCK, Precondition::None) };
        shop.machine.command(known, NOW, &mut shop.out);
        let [cold] = wanted(&mut shop).try_into().unwrap();
        assert!(cold.state && cold.key.is_some());
    }
}

#[test]
fn an_evicted_aggregate_is_not_taken_for_a_new_one() {
    let mut shop = shop_with_a_past();
    named(&mut shop, &[], 3);
    shop.ask_for("a", register(1));
    shop.settle();
    let reader = Reader { next_offset: 5, ..Reader::START };
    shop.machine.checkpointed(Checkpoint { reader, last_at: NOW, max_key: NOW }, &mut shop.out);
    (0..2).for_each(|_| shop.machine.evict(0));
    assert_eq!(shop.machine.residents(), 0);
    shop.ask_for("b", register(1));
    let [cold] = wanted(&mut shop).try_into().unwrap();
    assert!(cold.state);
}

#[test]
fn names_behind_a_gap_are_not_all_names() {
    let mut shop = shop_with_a_past();
    assert_eq!(shop.out.wants_names.take(), Some(0));
    named_from(&mut shop, 1, &[], 3);
    shop.ask_for("a", register(1));
    let [cold] = wanted(&mut shop).try_into().unwrap();
    assert!(cold.state);
}

/// The state arrives with the first event, before that is read: the owner was deposed after it had requested the state.
#[test]
fn an_aggregate_loaded_before_its_events_were_read_is_not_taken_for_a_new_one() {
    let mut shop = shop_with_a_past();
    shop.ask_for("a", register(1));
    let [asked] = wanted(&mut shop).try_into().unwrap();
    shop.machine.probe(NOW, &mut shop.out);
    let (claimed, epoch) = (claim(FOREIGN_NONCE + 1), Epoch { claim: 4, nonce: FOREIGN_NONCE + 1 });
    shop.write(claimed);
    let mut other = Shop::open();
    other.ask_for("b", register(1));
    let registration = other.lose().value;
    shop.write(moved(&registration, epoch, 1));
    let fence = shop.carry();
    shop.report(fence);
    shop.read();
    assert_eq!(shop.machine.role(), Role::Unsettled, "it reads the records of others");
    let state = Some(on_sale(5));
    shop.machine.loaded(&asked, Ok(LoadedAggregate { checkpoint: 6, state, repeat: None }), NOW, &mut shop.out);
    named(&mut shop, &[], 3);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Idle);
    let reader = Reader::behind(epoch, 1, 5);
    shop.machine.checkpointed(Checkpoint { reader, last_at: NOW, max_key: NOW }, &mut shop.out);
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert!(shop.machine.knows_names(), "it has read the names behind those that were loaded");
    shop.answers();
    shop.ask_for("c", register(1));
    let [cold] = wanted(&mut shop).try_into().unwrap();
    assert!(cold.state);
}
