//! Memory per order of each kind of state, compared with the estimate that bounds a service's memory.
//!
//! The actual memory is the growth of the process under the services' allocator. `cargo test -p domain --test memory --
//! --nocapture` prints it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::process::Command;

use domain::ids::{CustomerId, OrderId, ProductId, SaleId};
use domain::order::{self, Line};
use domain::product::{self, By, Registration};
use domain::sale::{self, Claim, Schedule};
use domain::{AggregateType, State, TimeMs, decide, evolve};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Number of entries, large enough that pages and the smallest tables do not matter. The cost of a map's entry varies
/// with their number by up to a third, because a full map doubles its table.
const MANY: u32 = 300_000;
const PAGE: usize = 4096;
/// Tolerance of the estimate, in percent of the actual memory.
const TOLERANCE: usize = 33;

/// Lengths of ids: that of a UUID, for which the estimates are made, and a short one.
const LENGTHS: [usize; 2] = [36, 12];

fn id(kind: &str, number: u32, length: usize) -> Box<str> {
    let mut id = format!("{kind}-{number}-");
    id.extend(std::iter::repeat_n('x', length - id.len()));
    id.into()
}

/// Returns the resident memory of this process.
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE
}

fn take(state: State, command: &domain::Command) -> State {
    let events = decide(&state, command, TimeMs(1)).unwrap();
    events.iter().fold(state, evolve)
}

type Grow = fn(usize) -> Vec<State>;

const CASES: [(&str, Grow); 7] = [
    ("product without sales", registered),
    ("open reservation", reserved),
    ("hold of a client", held),
    ("hold of a client with an end", held_for_a_while),
    ("committed order", committed),
    ("claim, each by another customer", claimed),
    ("placed order of two lines", placed),
];

/// Variable that selects the case in a child process.
const CASE: &str = "MEASURED_CASE";

/// Returns the bytes per entry, measured and estimated.
fn measure(grow: Grow, length: usize) -> (usize, usize) {
    let before = resident_bytes();
    let states = grow(length);
    let truth = (resident_bytes() - before) / MANY as usize;
    let estimate = states.iter().map(|state| size_of::<State>() + state.heap_bytes()).sum::<usize>() / MANY as usize;
    (truth, estimate)
}

/// Measures in a child process: a process that has measured before has free memory that is not counted. Purging is off,
/// because the time at which memory freed by a growing map would be returned varies.
fn measure_alone(case: usize, length: usize) -> (usize, usize) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]).env(CASE, format!("{case} {length}"));
    command.env("MIMALLOC_PURGE_DELAY", "-1");
    let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let line = output.lines().find_map(|line| line.strip_prefix("measured ")).expect("the child prints a measurement");
    let (truth, estimate) = line.split_once(' ').unwrap();
    (truth.parse().unwrap(), estimate.parse().unwrap())
}

fn registered(length: usize) -> Vec<State> {
    let mut states = Vec::with_capacity(MANY as usize);
    states.extend((0..MANY).map(|number| product_of(id("p", number, length))));
    states
}

fn product() -> State {
    product_of("A thing".into())
}

fn product_of(name: Box<str>) -> State {
    let registration = Registration { name, price_cents: 1, stock: u32::MAX, limit_per_order: None };
    take(State::initial(AggregateType::Product), &domain::Command::Product(product::Command::Register(registration)))
}

fn hold(length: usize, hold_secs: Option<u32>) -> Vec<State> {
    let state = (0..MANY).fold(product(), |state, number| {
        let (order, by) = (OrderId(id("o", number, length)), By::Client { hold_secs });
        take(state, &domain::Command::Product(product::Command::Reserve { order, quantity: 1, by }))
    });
    vec![state]
}

fn held(length: usize) -> Vec<State> {
    hold(length, None)
}

fn held_for_a_while(length: usize) -> Vec<State> {
    hold(length, Some(60))
}

fn reserve(order: OrderId) -> product::Command {
    product::Command::Reserve { order, quantity: 1, by: By::Order { amount_cents: None } }
}

fn reserved(length: usize) -> Vec<State> {
    let state = (0..MANY).fold(product(), |state, number| {
        let order = OrderId(id("o", number, length));
        take(state, &domain::Command::Product(reserve(order)))
    });
    vec![state]
}

/// Commits each order's units before the next reservation.
fn committed(length: usize) -> Vec<State> {
    let state = (0..MANY).fold(product(), |state, number| {
        let order = || OrderId(id("o", number, length));
        let state = take(state, &domain::Command::Product(reserve(order())));
        take(state, &domain::Command::Product(product::Command::Commit { order: order(), amount_cents: 1 }))
    });
    vec![state]
}

/// Makes one claim per customer.
fn claimed(length: usize) -> Vec<State> {
    let schedule = Schedule {
        product: ProductId("p".into()),
        opens_at: TimeMs(0),
        closes_at: TimeMs(10),
        price_cents: 1,
        units: MANY,
        limit_per_customer: 1,
    };
    let begin = [sale::Command::Schedule(schedule), sale::Command::Stock].map(domain::Command::Sale);
    let state = begin.iter().fold(State::initial(AggregateType::Sale), take);
    let state = (0..MANY).fold(state, |state, number| {
        let (customer, order) =
            (CustomerId(id("c", number, length)), OrderId::of_claim(&id("s", 1, length), &id("o", number, length)));
        take(state, &domain::Command::Sale(sale::Command::Claim(Claim { customer, quantity: 1, order })))
    });
    vec![state]
}

/// Places orders of two lines each, half of them of a sale.
fn placed(length: usize) -> Vec<State> {
    let mut states = Vec::with_capacity(MANY as usize);
    states.extend((0..MANY).map(|number| {
        let line = |product| Line { product: ProductId(id("p", product, length)), quantity: 1, amount_cents: 1 };
        let place = order::Command::Place {
            customer: CustomerId(id("c", number, length)),
            lines: vec![line(number), line(number + 1)],
            sale: (number % 2 == 0).then(|| SaleId(id("s", 1, length))),
            by: order::Placer::Client { has_reserved_name: false },
        };
        take(State::initial(AggregateType::Order), &domain::Command::Order(place))
    }));
    states
}

const NAME: &str = "a_state_takes_about_as_much_memory_as_it_is_counted_for";

#[test]
fn a_state_takes_about_as_much_memory_as_it_is_counted_for() {
    if let Ok(case) = std::env::var(CASE) {
        let (case, length) = case.split_once(' ').unwrap();
        let (truth, estimate) = measure(CASES[case.parse::<usize>().unwrap()].1, length.parse().unwrap());
        return println!("\nmeasured {truth} {estimate}");
    }
    for (case, (what, _)) in CASES.iter().enumerate() {
        for length in LENGTHS {
            let (truth, estimate) = measure_alone(case, length);
            let told = format!("{what}, ids of {length} characters: {truth} bytes, estimated {estimate}");
            println!("{told}");
            let (least, most) = (truth * (100 - TOLERANCE) / 100, truth * (100 + TOLERANCE) / 100);
            assert!(estimate >= least, "{told}");
            // For short ids the estimate is too high.
            assert!(length < LENGTHS[0] || estimate <= most, "{told}");
        }
    }
}
