//! Properties of aggregates of every type.

use alloc::string::ToString as _;
use alloc::vec;
use alloc::vec::Vec;

use super::ids::{CustomerId, OrderId, ProductId, SaleId};
use super::product::{By, Holder, Registration};
use super::sale::{Claim, Schedule};
use super::{AggregateType, Command, Event, Rejection, State, TimeMs, decide_within, evolve, product, sale};

const NOW: TimeMs = TimeMs(5);
const MAX_BYTES: usize = 16 * 1024;

fn order(number: u32) -> OrderId {
    OrderId(number.to_string().into())
}

fn customer() -> CustomerId {
    CustomerId("c".into())
}

fn decide(state: &State, command: &Command) -> Result<Vec<Event>, Rejection> {
    decide_within(MAX_BYTES, state, command, NOW)
}

fn reserve(number: u32, by: By) -> Command {
    Command::Product(product::Command::Reserve { order: order(number), quantity: 1, by })
}

fn claim(number: u32) -> Claim {
    Claim { customer: customer(), quantity: 1, order: order(number) }
}

fn product() -> State {
    let registration = Registration { name: "P".into(), price_cents: 1, stock: 1_000_000, limit_per_order: None };
    evolve(State::initial(AggregateType::Product), &Event::Product(product::Event::Registered(registration)))
}

fn sale() -> State {
    let schedule = Schedule {
        product: ProductId("p".into()),
        opens_at: TimeMs(0),
        closes_at: TimeMs(u64::MAX),
        price_cents: 1,
        units: 1_000_000,
        limit_per_customer: 1_000_000,
    };
    [sale::Event::Scheduled(schedule), sale::Event::Stocked]
        .into_iter()
        .fold(State::initial(AggregateType::Sale), |state, event| evolve(state, &Event::Sale(event)))
}

/// Returns the full state, and the number of accepted commands.
fn fill(mut state: State, command: impl Fn(u32) -> Command) -> (State, u32) {
    for number in 0..10_000 {
        match decide(&state, &command(number)) {
            Ok(events) => state = events.iter().fold(state, evolve),
            Err(rejection) => {
                assert_eq!(rejection, Rejection::Full);
                return (state, number);
            }
        }
    }
    panic!("the state grows without limit: {} bytes", state.heap_bytes());
}

#[test]
fn no_state_grows_without_limit_whichever_command_makes_it_large() {
    let order_s = By::Order { amount_cents: None };
    let hold = |number| {
        let (claim, product) = (claim(number), ProductId("p".into()));
        Command::Sale(sale::Command::Hold { claim, product, amount_cents: None })
    };
    let allot =
        |number: u32| Command::Product(product::Command::Allot { sale: SaleId(number.to_string().into()), units: 1 });
    for (state, accepted) in [
        fill(product(), |number| reserve(number, order_s)),
        fill(product(), |number| reserve(number, By::Client { hold_secs: None })),
        fill(product(), |number| reserve(number, By::Client { hold_secs: Some(60) })),
        fill(product(), allot),
        fill(sale(), |number| Command::Sale(sale::Command::Claim(claim(number)))),
        fill(sale(), hold),
    ] {
        assert!(accepted > 10, "{accepted} entries");
        assert!(state.heap_bytes() < MAX_BYTES + 1024, "{} bytes", state.heap_bytes());
    }
}

#[test]
fn orders_that_were_sold_count_as_well() {
    let mut state = product();
    for number in 0..10_000 {
        let Ok(reserved) = decide(&state, &reserve(number, By::Order { amount_cents: None })) else { return };
        state = reserved.iter().fold(state, evolve);
        let commit = Command::Product(product::Command::Commit { order: order(number), amount_cents: 1 });
        state = decide(&state, &commit).unwrap().iter().fold(state, evolve);
    }
    panic!("the state of sold orders grows without limit: {} bytes", state.heap_bytes());
}

#[test]
fn a_full_aggregate_accepts_repeats_and_releases() {
    let by = By::Order { amount_cents: None };
    let (state, accepted) = fill(product(), |number| reserve(number, by));
    assert_eq!(decide(&state, &reserve(0, by)), Ok(vec![]));
    let commit = Command::Product(product::Command::Commit { order: order(0), amount_cents: 1 });
    assert!(decide(&state, &commit).is_ok());
    let state = (0..2).fold(state, |state, number| {
        let release = Command::Product(product::Command::Release { order: order(number), by: Holder::Order });
        decide(&state, &release).unwrap().iter().fold(state, evolve)
    });
    assert!(decide(&state, &reserve(accepted, by)).is_ok(), "there is room again");

    let (state, _) = fill(sale(), |number| Command::Sale(sale::Command::Claim(claim(number))));
    assert_eq!(decide(&state, &Command::Sale(sale::Command::Claim(claim(0)))), Ok(vec![]));
    let give_back = Command::Sale(sale::Command::Return { order: order(0), is_ordered: None });
    assert!(decide(&state, &give_back).is_ok());
    assert!(decide(&state, &Command::Sale(sale::Command::Close { due_at: None })).is_ok());
}
