//! Time of a decision, on a state of the size that it has in the middle of a sale.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use domain::ids::{CustomerId, OrderId, ProductId};
use domain::{Command, State, TimeMs, decide, evolve, order, product, sale};

/// Number of open reservations of the product, and of claims of the sale.
const OPEN: u32 = 10_000;
const NOW: TimeMs = TimeMs(1);

fn after(state: State, command: &Command) -> State {
    let events = decide(&state, command, NOW).expect("the command is valid");
    events.iter().fold(state, evolve)
}

fn reserve(number: u32) -> Command {
    let by = product::By::Order { amount_cents: Some(1999) };
    Command::Product(product::Command::Reserve { order: OrderId(format!("o-{number}").into()), quantity: 1, by })
}

fn claim(number: u32) -> Command {
    let order = OrderId::of_claim("s-1", &format!("o-{number}"));
    let customer = CustomerId(format!("c-{number}").into());
    Command::Sale(sale::Command::Claim(sale::Claim { customer, quantity: 1, order }))
}

fn place(lines: u32) -> Command {
    let line =
        |number| order::Line { product: ProductId(format!("p-{number}").into()), quantity: 1, amount_cents: 1999 };
    Command::Order(order::Command::Place {
        customer: CustomerId("c-1".into()),
        lines: (0..lines).map(line).collect(),
        sale: None,
        by: order::Placer::Client { has_reserved_name: false },
    })
}

fn product() -> State {
    let registration =
        product::Registration { name: "A thing".into(), price_cents: 1999, stock: u32::MAX, limit_per_order: None };
    let register = Command::Product(product::Command::Register(registration));
    let registered = after(State::Product(product::State::default()), &register);
    (0..OPEN).map(reserve).fold(registered, |state, command| after(state, &command))
}

fn sale() -> State {
    let schedule = sale::Schedule {
        product: ProductId("p-1".into()),
        opens_at: TimeMs(0),
        closes_at: TimeMs(10),
        price_cents: 1999,
        units: u32::MAX,
        limit_per_customer: 1,
    };
    let begin = [sale::Command::Schedule(schedule), sale::Command::Stock].map(Command::Sale);
    let claims = (0..OPEN).map(claim);
    begin.into_iter().chain(claims).fold(State::Sale(sale::State::default()), |state, command| after(state, &command))
}

fn benches(criterion: &mut Criterion) {
    let order = State::Order(order::State::default());
    for (name, state, command) in [
        ("reserve a unit", product(), reserve(OPEN)),
        ("repeat a reservation", product(), reserve(0)),
        ("claim a unit", sale(), claim(OPEN)),
        ("place an order of five lines", order, place(5)),
    ] {
        decide(&state, &command, NOW).expect("the command is valid");
        criterion.bench_function(&format!("decide: {name}"), |bencher| {
            bencher.iter(|| decide(black_box(&state), black_box(&command), NOW));
        });
    }
}

criterion_group!(decide_benches, benches);
criterion_main!(decide_benches);
