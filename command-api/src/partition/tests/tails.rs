//! Tests of takeovers with a long tail: the memory of events that wait for states is bounded.

use domain::product::{Event, State};
use schemas::aggregate::AggregateId;
use schemas::events::WireEvent;
use schemas::record::{Commit, Epoch, Record};

use super::loading::{checkpoint, kept, wanted};
use super::{
    FOREIGN_NONCE, NOW, RESTOCKED, Role, Shop, Unavailable, accepted, claim, encoded, fence, index, int, product,
};

const EPOCH: Epoch = Epoch { claim: 0, nonce: FOREIGN_NONCE };
const TAIL: u64 = 500;
const MAX_UNFOLDED: usize = 4_000;
const RESTOCK: domain::product::Command = domain::product::Command::Restock { quantity: 1 };

fn restocked(seq: u64, aggregate: &AggregateId, version: u64) -> Vec<u8> {
    encoded(&Record::Commit(Commit {
        epoch: EPOCH,
        seq,
        command_id: format!("key-{seq}").into(),
        at_ms: NOW.0,
        aggregate: aggregate.as_str().into(),
        version,
        events: vec![WireEvent::newest(&domain::Event::Product(Event::Restocked { quantity: 1 }))],
        fingerprint: 0,
        cause: None,
        trace: None,
        origin: None,
    }))
}

/// Creates a machine that takes over a log in which only the registration of a product is in the store; the tail is
/// this many restocks.
fn shop_with_a_tail(restocks: u64) -> Shop {
    let mut shop = Shop::closed();
    for record in [claim(FOREIGN_NONCE), fence(EPOCH, 1), fence(EPOCH, 2)] {
        shop.write(record);
    }
    for n in 0..restocks {
        shop.write(restocked(3 + n, &product("p"), 2 + n));
    }
    shop.machine.checkpointed(checkpoint(2), &mut shop.out);
    shop.machine.take_over(&mut shop.out);
    shop
}

/// Reads to the end while the machine takes records. Returns the offset at which it stopped.
fn read_on(shop: &mut Shop, from: i64) -> i64 {
    let end = int(shop.log.len());
    for offset in from..end {
        if !shop.machine.takes_records(MAX_UNFOLDED) {
            return offset;
        }
        shop.machine.record(offset, &shop.log[index(offset)], &mut shop.out).unwrap();
        shop.end_turn();
    }
    shop.out.reading = None;
    shop.machine.read_ended(shop.now, &mut shop.out).unwrap();
    shop.end_turn();
    end
}

/// Returns the available units of the product.
fn available(shop: &Shop) -> u64 {
    match shop.machine.memory.aggregates.state(&product("p")) {
        Some(domain::State::Product(State::OnSale(product))) => product.available,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tail_of_any_length_waits_for_its_states_in_bounded_memory() {
    let mut shop = shop_with_a_tail(TAIL);
    let stopped = read_on(&mut shop, 2);
    assert!(stopped < int(shop.log.len()), "it reads no further");
    assert!((MAX_UNFOLDED..MAX_UNFOLDED * 2).contains(&shop.machine.unfolded_bytes()));
    assert_eq!(shop.machine.resident_bytes(), shop.machine.unfolded_bytes(), "they count as memory of aggregates");
    assert_eq!(read_on(&mut shop, stopped), stopped, "it waits for the state");
    let [state] = wanted(&mut shop).try_into().unwrap();
    kept(&mut shop, &state, 3, None);
    assert_eq!(shop.machine.unfolded_bytes(), 0);
    assert_eq!(read_on(&mut shop, stopped), int(shop.log.len()), "what follows is folded at once");
    assert!(shop.machine.resident_bytes() < MAX_UNFOLDED);
    assert_eq!(available(&shop), 1 + TAIL);
    shop.settle();
    shop.ask_for("key-3", RESTOCK);
    shop.ask_for("01a207a9-06da-7393-ba71-dff74814781b", RESTOCK);
    shop.settle();
    let answers = shop.answers();
    assert!(matches!(answers[0].1, schemas::answers::Answer::KeyReused), "{answers:?}");
    assert_eq!(answers[1].1, accepted(TAIL + 2, RESTOCKED, int(shop.log.len()) - 1));
}

#[test]
fn events_that_a_loaded_state_already_includes_are_not_applied_again() {
    let mut shop = shop_with_a_tail(4);
    shop.machine.record(2, &shop.log[2], &mut shop.out).unwrap();
    shop.machine.record(3, &shop.log[3], &mut shop.out).unwrap();
    let [state] = wanted(&mut shop).try_into().unwrap();
    // The state is as of offset 5, and includes two of the four restocks.
    let registered = super::register(1);
    let domain::product::Command::Register(registered) = registered else { unreachable!() };
    let restock = Event::Restocked { quantity: 1 };
    let events = [Event::Registered(registered), restock.clone(), restock].map(domain::Event::Product);
    let folded = events.iter().fold(domain::State::initial(domain::AggregateType::Product), domain::evolve);
    let state_kept = crate::partition::LoadedState { folded: Ok(folded), version: 3, offset: 4 };
    let kept = crate::partition::LoadedAggregate { checkpoint: 5, state: Some(state_kept), repeat: None };
    shop.machine.loaded(&state, Ok(kept), NOW, &mut shop.out);
    read_on(&mut shop, 4);
    shop.settle();
    assert_eq!(available(&shop), 5, "one, and each of the four once");
}

#[test]
fn a_state_that_could_not_be_loaded_is_requested_again_later() {
    let mut shop = shop_with_a_tail(TAIL);
    let stopped = read_on(&mut shop, 2);
    let [state] = wanted(&mut shop).try_into().unwrap();
    shop.machine.loaded(&state, Err(Unavailable), NOW, &mut shop.out);
    assert_eq!(wanted(&mut shop), [], "not at once");
    shop.out.refuses_loads = true;
    shop.machine.ask_for_states(&mut shop.out);
    shop.out.refuses_loads = false;
    shop.machine.ask_for_states(&mut shop.out);
    shop.machine.ask_for_states(&mut shop.out);
    let [state] = wanted(&mut shop).try_into().unwrap();
    kept(&mut shop, &state, 3, None);
    read_on(&mut shop, stopped);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
}

#[test]
fn states_of_many_aggregates_are_requested_in_parts() {
    const MANY: u64 = 3_000;
    let mut shop = shop_with_a_tail(0);
    for n in 0..MANY {
        shop.write(restocked(3 + n, &product(&format!("p-{n}")), 2));
    }
    let end = int(shop.log.len());
    for offset in 2..end {
        shop.machine.record(offset, &shop.log[index(offset)], &mut shop.out).unwrap();
    }
    let mut asked = 0;
    loop {
        let under_way = wanted(&mut shop);
        if under_way.is_empty() {
            break;
        }
        assert!(under_way.len() <= 1024, "others have room for requests");
        asked += under_way.len();
        under_way.iter().for_each(|state| kept(&mut shop, state, 3, None));
    }
    assert_eq!((asked, shop.machine.residents(), shop.machine.unfolded_bytes()), (3_000, 3_000, 0));
}

#[test]
fn keys_that_the_store_has_meanwhile_are_evicted_while_the_tail_is_read() {
    let mut shop = shop_with_a_tail(100);
    (2..90).for_each(|it| shop.machine.record(it, &shop.log[index(it)], &mut shop.out).unwrap());
    let later = domain::TimeMs(NOW.0 + 60_000);
    shop.machine.forget(0, later);
    assert_eq!(shop.machine.remembered_keys(), 87, "no checkpoint is known");
    shop.machine.checkpointed(checkpoint(49), &mut shop.out);
    shop.machine.forget(0, later);
    assert_eq!(shop.machine.remembered_keys(), 40);
}

#[test]
fn an_aggregate_that_begins_in_the_tail_needs_no_state() {
    let mut shop = shop_with_a_tail(0);
    shop.write(restocked(3, &product("new"), 1));
    read_on(&mut shop, 2);
    assert_eq!((wanted(&mut shop), shop.machine.residents()), (vec![], 1));
}

#[test]
fn a_read_restarts_from_a_checkpoint_that_saves_many_records() {
    let mut shop = Shop::closed();
    shop.write(claim(FOREIGN_NONCE));
    (1..60).for_each(|seq| _ = shop.write(fence(EPOCH, seq)));
    shop.machine.take_over(&mut shop.out);
    (0..30).for_each(|it| shop.machine.record(int(it), &shop.log[it], &mut shop.out).unwrap());
    let from = |shop: &mut Shop| shop.out.reading.map(|(from, _)| from);
    shop.machine.checkpointed(checkpoint(33), &mut shop.out);
    assert_eq!(from(&mut shop), Some(0), "too few records would be saved");
    shop.machine.checkpointed(checkpoint(50), &mut shop.out);
    assert_eq!(from(&mut shop), Some(50));
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
    shop.machine.checkpointed(checkpoint(59), &mut shop.out);
    assert_eq!(from(&mut shop), None, "an owner reads nothing");
}
