//! A shop in which every step of every reaction may be late, come again, or be overtaken by others: it comes to the same
//! end.

use std::collections::BTreeMap;
use std::string::{String, ToString as _};

use proptest::collection::vec as vec_of;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::ids::PaymentId;
use crate::order::State as OrderState;
use crate::product::{Registration, State as ProductState};
use crate::sale::{Schedule, State as SaleState};
use crate::{State, decide, evolve};

const CLOSES: TimeMs = TimeMs(1_000_000);
const WINDOW_MS: u64 = 600_000;
const PRODUCTS: [&str; 2] = ["a", "b"];
const ORDERS: u8 = 6;

type Name = (AggregateType, String);

#[derive(Debug, Clone)]
enum Move {
    Client(AggregateType, String, Command),
    /// One of the steps that wait is taken.
    Step(Index),
    /// Whatever an event once caused is begun again.
    Again(Index),
}

#[derive(Default)]
struct Shop {
    states: BTreeMap<Name, State>,
    log: Vec<(String, Event, TimeMs, bool)>,
    /// What has passed without an event.
    waited_ms: u64,
    /// Events that were reacted to.
    read: usize,
    waiting: Vec<Step>,
    alarms: BTreeMap<(Alarm, String), TimeMs>,
    supplied: u64,
    committed: u64,
}

impl Shop {
    /// Two products of ten units each; six of one are for a sale.
    fn open() -> Self {
        let mut shop = Self::default();
        for product in PRODUCTS {
            let wish = Registration { name: product.into(), price_cents: 5, stock: 10, limit_per_order: None };
            shop.send(AggregateType::Product, product, &Command::Product(product::Command::Register(wish)), false)
                .unwrap();
        }
        let schedule = Schedule {
            product: ProductId("a".into()),
            opens_at: TimeMs(0),
            closes_at: CLOSES,
            price_cents: 3,
            units: 6,
            limit_per_customer: 4,
        };
        shop.send(AggregateType::Sale, "s", &Command::Sale(sale::Command::Schedule(schedule)), false).unwrap();
        shop
    }

    fn now(&self) -> TimeMs {
        TimeMs(1 + self.log.len() as u64 + self.waited_ms)
    }

    fn send(&mut self, aggregate: AggregateType, id: &str, command: &Command, is_caused: bool) -> Result<(), String> {
        let at = self.now();
        let state = self.states.entry((aggregate, id.to_string())).or_insert_with(|| State::initial(aggregate));
        let events = decide(state, command, at).map_err(|rejection| std::format!("{rejection:?}"))?;
        for event in events {
            *state = evolve(std::mem::replace(state, State::initial(aggregate)), &event);
            match &event {
                Event::Product(product::Event::Registered(wish)) => self.supplied += u64::from(wish.stock),
                Event::Product(product::Event::Committed { quantity, .. }) => self.committed += u64::from(*quantity),
                _ => {}
            }
            self.log.push((id.to_string(), event, at, is_caused));
        }
        Ok(())
    }

    /// The steps of an event, again or for the first time. Its alarms are told once: they are written with the checkpoint.
    fn react(&mut self, index: usize) {
        let (id, event, at, is_caused) = &self.log[index];
        let reaction = react(id, event, *at, *is_caused, WINDOW_MS);
        self.waiting.extend(reaction.steps);
        if index == self.read {
            self.read += 1;
            for (alarm, due) in reaction.alarms {
                match due {
                    Some(due) => self.alarms.insert((alarm, self.log[index].0.clone()), due),
                    None => self.alarms.remove(&(alarm, self.log[index].0.clone())),
                };
            }
        }
    }

    fn catch_up(&mut self) {
        while self.read < self.log.len() {
            self.react(self.read);
        }
    }

    fn take(&mut self, step: &Step) {
        let (aggregate, id, command) = step.command();
        let outcome = self.send(aggregate, id, &command, true);
        let outcome = outcome.as_ref().map_or_else(|reason| Outcome::Rejected(reason), |()| Outcome::Accepted);
        match step.then(outcome) {
            Next::Step(next) => self.waiting.push(next),
            // What was let go of before it was paid for: the steps of one event overtook those of another.
            Next::Done | Next::Stuck => {}
            Next::NotDue => panic!("{step:?} comes when it is due"),
        }
    }

    fn make(&mut self, next: &Move) {
        match next {
            Move::Client(aggregate, id, command) => drop(self.send(*aggregate, id, command, false)),
            Move::Step(index) if !self.waiting.is_empty() => {
                let step = self.waiting.swap_remove(index.index(self.waiting.len()));
                self.take(&step);
            }
            Move::Again(index) if self.read > 0 => self.react(index.index(self.read)),
            Move::Step(_) | Move::Again(_) => {}
        }
        self.catch_up();
    }

    fn settle(&mut self) {
        self.catch_up();
        while let Some(step) = self.waiting.pop() {
            self.take(&step);
            self.catch_up();
        }
    }

    /// Everything that is due by then.
    fn pass(&mut self, until: TimeMs) {
        let due: Vec<_> =
            self.alarms.iter().filter(|(_, due)| **due <= until).map(|(alarm, _)| alarm.clone()).collect();
        self.waited_ms = self.waited_ms.max(until.0);
        for alarm in due {
            let due_at = self.alarms.remove(&alarm).unwrap();
            self.take(&Step::Due { alarm: alarm.0, id: alarm.1.into(), due_at });
            self.settle();
        }
    }

    fn orders(&self) -> impl Iterator<Item = (OrderId, &OrderState)> {
        self.states.iter().filter_map(|((_, id), state)| match state {
            State::Order(state) => Some((OrderId(id.as_str().into()), state)),
            State::Product(_) | State::Sale(_) => None,
        })
    }

    fn product(&self, id: &str) -> &product::Product {
        match &self.states[&(AggregateType::Product, id.to_string())] {
            State::Product(ProductState::OnSale(product)) => product,
            other => panic!("{other:?}"),
        }
    }

    fn sale(&self) -> &sale::Sale {
        match &self.states[&(AggregateType::Sale, String::from("s"))] {
            State::Sale(SaleState::Scheduled(sale)) => sale,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing waits: whatever is held is held for an order that may still be paid, and everything is somewhere.
    fn check(&self) {
        let (mut available, mut reserved, mut given) = (0, 0, 0);
        for product in PRODUCTS.map(|id| self.product(id)) {
            available += product.available;
            reserved += product.reservations.values().map(|units| u64::from(*units)).sum::<u64>();
            given += product.allotments.values().map(|of| u64::from(of.units - of.taken_back)).sum::<u64>();
        }
        assert_eq!(self.supplied, available + reserved + self.committed + given);
        let sale = self.sale();
        assert!(sale.claimed <= sale.schedule.units && sale.customers.values().all(|units| *units <= 4));
        if sale.is_closed {
            assert_eq!(given, u64::from(sale.claimed), "what was not claimed is back");
        }
        for (id, state) in self.orders() {
            let reserved = PRODUCTS.iter().any(|product| self.product(product).reservations.contains_key(&id));
            let claim = sale.claims.get(&id);
            let open = claim.is_some_and(|claim| !claim.is_committed);
            match state {
                OrderState::New => assert!(!reserved && claim.is_none()),
                OrderState::Placed(open) => panic!("{id:?} waits for ever: {open:?}"),
                OrderState::Confirmed(placement) => match placement.sale {
                    Some(_) => assert!(open && !reserved, "{id:?}"),
                    None => assert!(reserved && !open, "{id:?}"),
                },
                OrderState::Rejected(_) | OrderState::Expired(_) => assert!(!reserved && claim.is_none(), "{id:?}"),
                // It may have been paid before.
                OrderState::Cancelled(_) => assert!(!reserved && !open, "{id:?}"),
                OrderState::Paid(settled) | OrderState::Shipped(settled) | OrderState::Delivered(settled) => {
                    assert!(!reserved && !open && (settled.placement.sale.is_none() || claim.is_some()), "{id:?}");
                }
            }
        }
        for (id, _) in sale.claims.iter() {
            assert!(self.orders().any(|(order, _)| order == *id), "{id:?} was claimed and has no order");
        }
    }
}

fn order_id() -> impl Strategy<Value = String> {
    (0..ORDERS).prop_map(|number| std::format!("o-{number}"))
}

fn any_client() -> impl Strategy<Value = Move> {
    let client = |aggregate: AggregateType| move |(id, command)| Move::Client(aggregate, id, command);
    let customer = || (0..2_u8).prop_map(|number| CustomerId(std::format!("c-{number}").into()));
    let line = (prop::sample::select(&PRODUCTS[..]), 1..5_u32).prop_map(|(product, quantity)| Line {
        product: ProductId(product.into()),
        quantity,
        amount_cents: 10,
    });
    let sale = prop_oneof![3 => Just(None), 1 => Just(Some(SaleId("s".into())))];
    let place = (customer(), vec_of(line, 1..4), sale).prop_map(|(customer, lines, sale)| {
        Command::Order(order::Command::Place { customer, lines, sale, ordered_at: None })
    });
    let amount = prop_oneof![Just(3_u64), Just(6), Just(9), Just(10), Just(20), Just(30)];
    let pay = amount
        .prop_map(|amount_cents| Command::Order(order::Command::Pay { payment: PaymentId("p".into()), amount_cents }));
    let claim = (order_id(), customer(), 1..4_u32).prop_map(|(order, customer, quantity)| {
        let claim = Claim { customer, quantity, order: OrderId(order.into()) };
        (String::from("s"), Command::Sale(sale::Command::Claim(claim)))
    });
    let cancel = Just(Command::Order(order::Command::Cancel { reason: None }));
    let close = Just((String::from("s"), Command::Sale(sale::Command::Close { due_at: None })));
    prop_oneof![
        6 => (order_id(), place).prop_map(client(AggregateType::Order)),
        6 => (order_id(), pay).prop_map(client(AggregateType::Order)),
        2 => (order_id(), cancel).prop_map(client(AggregateType::Order)),
        6 => claim.prop_map(client(AggregateType::Sale)),
        1 => close.prop_map(client(AggregateType::Sale)),
    ]
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        3 => any_client(),
        5 => any::<Index>().prop_map(Move::Step),
        1 => any::<Index>().prop_map(Move::Again),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn however_late_often_or_mixed_up_steps_are_nothing_stays_reserved_and_nothing_is_given_twice(
        moves in vec_of(any_move(), 0..80)
    ) {
        let mut shop = Shop::open();
        shop.catch_up();
        moves.iter().for_each(|next| shop.make(next));
        shop.settle();
        shop.check();
        let now = shop.now();
        shop.pass(TimeMs(now.0 + WINDOW_MS));
        shop.check();
        prop_assert!(shop.orders().all(|(_, state)| !matches!(state, OrderState::Confirmed(_))), "none waits for ever");
        shop.pass(CLOSES);
        shop.check();
        prop_assert!(shop.sale().is_closed || shop.sale().stock == sale::Stock::Refused);
    }

    #[test]
    fn everything_taken_once_more_changes_nothing(moves in vec_of(any_move(), 0..60)) {
        let mut shop = Shop::open();
        shop.catch_up();
        moves.iter().for_each(|next| shop.make(next));
        shop.settle();
        let (before, events) = (shop.states.clone(), shop.log.len());
        for index in 0..events {
            shop.react(index);
            shop.settle();
        }
        prop_assert_eq!(
            before.iter().filter(|(name, _)| name.0 == AggregateType::Order).collect::<Vec<_>>(),
            shop.states.iter().filter(|(name, _)| name.0 == AggregateType::Order).collect::<Vec<_>>()
        );
        shop.check();
    }
}

#[test]
fn an_order_from_long_ago_causes_nothing() {
    let line = Line { product: ProductId("a".into()), quantity: 1, amount_cents: 1 };
    let placement = |ordered_at| Placement {
        customer: CustomerId("c".into()),
        lines: vec![line.clone()],
        sale: None,
        ordered_at: TimeMs(ordered_at),
    };
    let day = TimeMs(24 * 60 * 60 * 1000 + 9);
    let steps = |ordered_at| {
        react("o", &Event::Order(OrderEvent::Placed(placement(ordered_at))), day, false, WINDOW_MS).steps.len()
    };
    assert_eq!((steps(8), steps(9)), (0, 1));
}

#[test]
fn lines_of_one_product_are_reserved_together() {
    let line = |quantity| Line { product: ProductId("a".into()), quantity, amount_cents: 1 };
    let placement = |lines| Placement { customer: CustomerId("c".into()), lines, sale: None, ordered_at: TimeMs(1) };
    let steps =
        |lines| react("o", &Event::Order(OrderEvent::Placed(placement(lines))), TimeMs(1), false, WINDOW_MS).steps;
    let (product, order) = (ProductId("a".into()), OrderId("o".into()));
    let reserve = Step::Reserve { product: product.clone(), order: order.clone(), quantity: 5 };
    assert_eq!(steps(vec![line(2), line(3)]), [reserve]);
    let reject = Step::RejectLine { product, order, reason: "over_limit".into() };
    assert_eq!(steps(vec![line(MAX_UNITS), line(MAX_UNITS)]), [reject]);
}

#[test]
fn a_payment_calls_the_alarm_off_that_the_confirmation_set() {
    let expire = |event| react("o", &Event::Order(event), TimeMs(7), true, 100).alarms;
    assert_eq!(expire(OrderEvent::Confirmed), [(Alarm::ExpireOrder, Some(TimeMs(107)))]);
    let payment = Payment { payment: PaymentId("p".into()), amount_cents: 1, lines: vec![], sale: None };
    assert_eq!(expire(OrderEvent::Paid(payment)), [(Alarm::ExpireOrder, None)]);
}

#[test]
fn a_payment_that_cannot_be_kept_and_an_alarm_that_comes_early_are_told_from_what_is_done() {
    let (product, order, sale) = (ProductId("a".into()), OrderId("o".into()), SaleId("s".into()));
    let rejected = |step: Step, rule| step.then(Outcome::Rejected(rule));
    let commit = Step::Commit { product: product.clone(), order: order.clone(), amount_cents: 1 };
    assert_eq!(rejected(commit, "not_reserved"), Next::Stuck);
    assert_eq!(rejected(Step::CommitClaim { sale, order: order.clone() }, "not_claimed"), Next::Stuck);
    assert_eq!(rejected(Step::Release { product, order }, "not_reserved"), Next::Done);
    let due = || Step::Due { alarm: Alarm::ExpireOrder, id: "o".into(), due_at: TimeMs(7) };
    assert_eq!(rejected(due(), NOT_DUE), Next::NotDue);
    assert_eq!(rejected(due(), "already_paid"), Next::Done);
}
