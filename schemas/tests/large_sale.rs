//! Performance and snapshots of a sale with very many claims.
//!
//! `cargo test -p schemas --release --test large_sale -- --ignored --nocapture` prints the cost of a million claims.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::{Duration, Instant};

use domain::ids::{CustomerId, OrderId, ProductId};
use domain::sale::{Claim, Command, Schedule};
use domain::{AggregateType, State, TimeMs, decide, evolve};
use schemas::snapshots::{FORM, decode, encode};

fn take(state: State, command: Command) -> State {
    let events = decide(&state, &domain::Command::Sale(command), TimeMs(1)).unwrap();
    events.iter().fold(state, evolve)
}

/// Returns a claim with IDs as long as UUIDs.
fn claim(number: u32) -> Claim {
    let id = |kind: &str| format!("{kind}-{number:034}").into();
    Claim { customer: CustomerId(id("c")), quantity: 1, order: OrderId(id("o")) }
}

/// Returns the state after `claims` claims, and the longest duration of one claim.
fn claimed(claims: u32) -> (State, Duration) {
    let schedule = Schedule {
        product: ProductId("p".into()),
        opens_at: TimeMs(0),
        closes_at: TimeMs(10),
        price_cents: 1,
        units: claims + 1,
        limit_per_customer: 1,
    };
    let begin = [Command::Schedule(schedule), Command::Stock];
    let mut state = begin.into_iter().fold(State::initial(AggregateType::Sale), take);
    let mut longest = Duration::ZERO;
    for number in 0..claims {
        let claim = claim(number);
        let begun = Instant::now();
        state = take(state, Command::Claim(claim));
        longest = longest.max(begun.elapsed());
    }
    (state, longest)
}

/// Checks that a sale of this size survives a snapshot and accepts further commands.
fn goes_on(claims: u32) {
    let (state, longest) = claimed(claims);
    let begun = Instant::now();
    let bytes = encode(&state).unwrap();
    let encoded = begun.elapsed();
    let begun = Instant::now();
    let read = decode(FORM, &bytes).unwrap();
    let decoded = begun.elapsed();
    println!(
        "{claims} claims: the longest took {longest:?}; encoded in {encoded:?}, {} bytes; decoded in {decoded:?}",
        bytes.len()
    );
    assert!(read == state);
    assert_eq!(decide(&read, &domain::Command::Sale(Command::Claim(claim(0))), TimeMs(1)), Ok(vec![]));
    let full = take(read, Command::Claim(claim(claims)));
    let refused = decide(&full, &domain::Command::Sale(Command::Claim(claim(claims + 1))), TimeMs(1));
    assert_eq!(refused, Err(domain::Rejection::Sale(domain::sale::Rejection::SoldOut)));
}

#[test]
fn a_sale_of_very_many_claims_survives_a_snapshot() {
    goes_on(50_000);
}

#[test]
#[ignore = "second gate: slow benchmark"]
fn a_sale_of_a_million_claims_survives_a_snapshot() {
    goes_on(1_000_000);
}
