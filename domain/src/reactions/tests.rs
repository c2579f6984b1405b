//! A shop in which every step of every reaction may be late, repeated, or overtaken by others: the outcome is the same.

use std::collections::BTreeMap;
use std::string::{String, ToString as _};

use proptest::collection::vec as vec_of;
use proptest::prelude::*;
use proptest::sample::Index;

use super::order::MAX_UNITS;
use super::*;
use crate::ids::PaymentId;
use crate::order::{Event as OrderEvent, Payment, Placement, State as OrderState};
use crate::product::{Registration, State as ProductState};
use crate::sale::{Schedule, State as SaleState};
use crate::{State, decide, evolve, order, product, sale};

mod interleavings;
mod recovery;
mod strangers;
mod table;

const CLOSES: TimeMs = TimeMs(1_000_000);
const WINDOW_MS: u64 = 600_000;
const PRODUCTS: [&str; 2] = ["a", "b"];
/// Price of one unit outside the sale.
const PRICE_CENTS: u64 = 5;
/// Price of one unit in the sale.
const SALE_PRICE_CENTS: u64 = 3;
const ORDERS: u8 = 6;

type Name = (AggregateType, String);

/// `Ok` with whether the command confirmed an order, or the rule that rejected it.
type Taken = Result<bool, String>;

const CLIENT: order::Placer = order::Placer::Client { has_reserved_name: false };

#[derive(Debug, Clone)]
enum Move {
    Client(AggregateType, String, Command),
    /// Executes one of the waiting steps.
    Step(Index),
    /// Starts all steps of an event again.
    Again(Index),
    /// Executes one of the waiting steps and loses its outcome, as if the process died. Its successor starts again with
    /// the first event that has steps left.
    Die(Index),
}

/// An event in the log.
struct Entry {
    id: String,
    event: Event,
    at: TimeMs,
    is_caused: bool,
}

#[derive(Default)]
struct Shop {
    /// Current time; only [`Shop::pass`] advances it.
    now: TimeMs,
    states: BTreeMap<Name, State>,
    log: Vec<Entry>,
    /// Number of events that were reacted to.
    read: usize,
    /// Steps in flight, each with the index of the event that caused it.
    waiting: Vec<(usize, Step)>,
    deadlines: BTreeMap<(Deadline, String), TimeMs>,
    /// Supplied units by product, counted from the events; committed ones also by sale.
    supplied: BTreeMap<String, u64>,
    committed: BTreeMap<String, u64>,
    /// Steps after which an operator would have to intervene.
    stuck: Vec<Step>,
}

impl Shop {
    /// Returns a shop with two products of ten units each; six of one are for a sale.
    fn open() -> Self {
        Self::of(10, 6, 4)
    }

    /// Returns a shop with `stock` of each product, and a sale of `units` with a `limit` per customer.
    fn of(stock: u32, units: u32, limit: u32) -> Self {
        let mut shop = Self::default();
        for product in PRODUCTS {
            let wish = Registration { name: product.into(), price_cents: PRICE_CENTS, stock, limit_per_order: None };
            shop.send(AggregateType::Product, product, &Command::Product(product::Command::Register(wish)), false)
                .unwrap();
        }
        let schedule = Schedule {
            product: ProductId("a".into()),
            opens_at: TimeMs(0),
            closes_at: CLOSES,
            price_cents: SALE_PRICE_CENTS,
            units,
            limit_per_customer: limit,
        };
        shop.send(AggregateType::Sale, "s", &Command::Sale(sale::Command::Schedule(schedule)), false).unwrap();
        shop
    }

    fn send(&mut self, aggregate: AggregateType, id: &str, command: &Command, is_caused: bool) -> Taken {
        let at = self.now;
        let state = self.states.entry((aggregate, id.to_string())).or_insert_with(|| State::initial(aggregate));
        let events = decide(state, command, at).map_err(|rejection| std::format!("{rejection:?}"))?;
        let is_confirmed = events.contains(&Event::Order(order::Event::Confirmed));
        for event in events {
            *state = evolve(std::mem::replace(state, State::initial(aggregate)), &event);
            let (ledger, units) = match &event {
                Event::Product(product::Event::Registered(wish)) => (&mut self.supplied, wish.stock),
                Event::Product(product::Event::Restocked { quantity }) => (&mut self.supplied, *quantity),
                Event::Product(product::Event::Committed { quantity, .. })
                | Event::Sale(sale::Event::Committed { quantity, .. }) => (&mut self.committed, *quantity),
                _ => (&mut self.supplied, 0),
            };
            *ledger.entry(id.to_string()).or_default() += u64::from(units);
            self.log.push(Entry { id: id.to_string(), event, at, is_caused });
        }
        Ok(is_confirmed)
    }

    /// Starts the steps and deadlines of an event, again or for the first time: a deadline that has passed or was
    /// cancelled may be set once more.
    fn react(&mut self, index: usize) {
        let Entry { id, event, at, is_caused } = &self.log[index];
        let reaction = react(id, event, *at, *is_caused, WINDOW_MS);
        self.waiting.extend(reaction.steps.into_iter().map(|step| (index, step)));
        for (deadline, due) in reaction.deadlines {
            match due {
                Some(due) => self.deadlines.insert((deadline, id.clone()), due),
                None => self.deadlines.remove(&(deadline, id.clone())),
            };
        }
        self.read = self.read.max(index + 1);
    }

    fn catch_up(&mut self) {
        while self.read < self.log.len() {
            self.react(self.read);
        }
    }

    fn take(&mut self, source: usize, step: &Step) {
        let (aggregate, id, command) = step.command();
        let outcome = self.send(aggregate, id, &command, true);
        let next = self.next(step, &outcome);
        self.waiting.extend(next.map(|step| (source, step)));
    }

    /// Returns the step that follows from the outcome of a step.
    fn next(&mut self, step: &Step, outcome: &Taken) -> Option<Step> {
        let outcome = match outcome {
            Ok(is_confirmed) => Outcome::Accepted { is_confirmed: *is_confirmed },
            Err(reason) => Outcome::Rejected(reason),
        };
        match step.next(outcome) {
            Next::Step(step) => Some(step),
            Next::Done => None,
            Next::Stuck => {
                self.stuck.push(step.clone());
                None
            }
            Next::NotDue => panic!("{step:?} was rejected as not due although it is due"),
        }
    }

    fn die(&mut self, index: usize) {
        let first = self.waiting.iter().map(|(source, _)| *source).min();
        let (_, step) = self.waiting.swap_remove(index);
        let (aggregate, id, command) = step.command();
        drop(self.send(aggregate, id, &command, true));
        self.waiting.clear();
        self.read = first.unwrap_or(self.read);
    }

    fn make(&mut self, next: &Move) {
        match next {
            Move::Client(aggregate, id, command) => drop(self.send(*aggregate, id, command, false)),
            Move::Step(index) if !self.waiting.is_empty() => {
                let (source, step) = self.waiting.swap_remove(index.index(self.waiting.len()));
                self.take(source, &step);
            }
            Move::Again(index) if self.read > 0 => self.react(index.index(self.read)),
            Move::Die(index) if !self.waiting.is_empty() => self.die(index.index(self.waiting.len())),
            Move::Step(_) | Move::Again(_) | Move::Die(_) => {}
        }
        self.catch_up();
    }

    fn settle(&mut self) {
        self.catch_up();
        while let Some((source, step)) = self.waiting.pop() {
            self.take(source, &step);
            self.catch_up();
        }
    }

    /// Advances the time and executes all deadlines due by then.
    fn pass(&mut self, until: TimeMs) {
        self.now = until;
        let due: Vec<_> =
            self.deadlines.iter().filter(|(_, due)| **due <= until).map(|(deadline, _)| deadline.clone()).collect();
        for deadline in due {
            let due_at = self.deadlines.remove(&deadline).unwrap();
            // The deadline is no event of the log, so its follow-up steps are executed at once.
            self.take(self.read, &Step::Due { deadline: deadline.0, id: deadline.1.into(), due_at });
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
            State::Product(ProductState::OnSale(product) | ProductState::Discontinued(product)) => product,
            other => panic!("{other:?}"),
        }
    }

    fn sale(&self) -> &sale::Sale {
        match &self.states[&(AggregateType::Sale, String::from("s"))] {
            State::Sale(SaleState::Scheduled(sale)) => sale,
            other => panic!("{other:?}"),
        }
    }

    /// Returns all states, without traces of a sale that was refused its units, got them later, and gave them back.
    /// back.
    fn holdings(&self) -> BTreeMap<Name, State> {
        let mut states = self.states.clone();
        for state in states.values_mut() {
            if let State::Product(ProductState::OnSale(product) | ProductState::Discontinued(product)) = state {
                let left = product.allotments.iter().filter(|(_, of)| of.taken_back < of.units);
                product.allotments = left.map(|(sale, of)| (sale.clone(), *of)).collect();
            }
        }
        states
    }

    /// Checks that no step is in flight: all units are accounted for, and held only for orders that may still be paid.
    fn check(&self) {
        let mut given_to_sales = 0;
        for id in PRODUCTS {
            let product = self.product(id);
            let reserved: u64 = product.reservations.values().map(|units| u64::from(*units)).sum();
            let held: u64 = product.holds.iter().map(|(_, hold)| u64::from(hold.quantity)).sum();
            let given: u64 = product.allotments.values().map(|of| u64::from(of.units - of.taken_back)).sum();
            let (supplied, committed) = (self.supplied[id], self.committed.get(id).copied().unwrap_or_default());
            assert_eq!(supplied, product.available + reserved + held + committed + given, "{id}");
            given_to_sales += given;
        }
        let sale = self.sale();
        let limit = sale.schedule.limit_per_customer;
        assert!(sale.claimed <= sale.schedule.units && sale.customers.values().all(|units| *units <= limit));
        assert_eq!(sale.claimed, sale.claims.values().map(|claim| claim.quantity).sum::<u32>());
        let sold = sale.claims.values().filter(|claim| claim.is_committed).map(|claim| u64::from(claim.quantity));
        assert_eq!(sold.sum::<u64>(), self.committed.get("s").copied().unwrap_or_default(), "sold units stay sold");
        match sale.stock {
            sale::Stock::Taken if sale.is_closed => {
                assert_eq!(given_to_sales, u64::from(sale.claimed), "unclaimed units are back");
            }
            sale::Stock::Taken => assert_eq!(given_to_sales, u64::from(sale.schedule.units)),
            sale::Stock::Refused => assert_eq!((given_to_sales, sale.claimed), (0, 0)),
            sale::Stock::Awaited => panic!("the sale still waits for its units"),
        }
        for (id, state) in self.orders() {
            let reserved = PRODUCTS.iter().any(|product| self.product(product).reservations.contains_key(&id));
            let claim = sale.claims.get(&id);
            let open = claim.is_some_and(|claim| !claim.is_committed);
            match state {
                OrderState::New | OrderState::Recorded(_) => assert!(!reserved && claim.is_none(), "{id:?}"),
                OrderState::Placed(open) => panic!("{id:?} is still open: {open:?}"),
                OrderState::Confirmed(placement) => match placement.sale {
                    Some(_) => assert!(open && !reserved, "{id:?}"),
                    None => assert!(reserved && !open, "{id:?}"),
                },
                OrderState::Rejected(_) | OrderState::Expired(_) => assert!(!reserved && claim.is_none(), "{id:?}"),
                // The order may have been paid before.
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

fn line_of(product: &str, quantity: u32, price_cents: u64) -> Line {
    Line { product: ProductId(product.into()), quantity, amount_cents: price_cents * u64::from(quantity) }
}

fn order_name() -> impl Strategy<Value = String> {
    (0..ORDERS).prop_map(|number| std::format!("o-{number}"))
}

/// Generates ids of placed orders and of claims' orders.
fn order_id() -> impl Strategy<Value = String> {
    (order_name(), any::<bool>()).prop_map(
        |(name, is_claims)| {
            if is_claims { String::from(OrderId::of_claim("s", &name).0) } else { name }
        },
    )
}

fn any_client() -> impl Strategy<Value = Move> {
    let client = |aggregate: AggregateType| move |(id, command)| Move::Client(aggregate, id, command);
    let customer = || (0..2_u8).prop_map(|number| CustomerId(std::format!("c-{number}").into()));
    let line = (prop::sample::select(&PRODUCTS[..]), 1..5_u32);
    let sale = prop_oneof![3 => Just(None), 1 => Just(Some(SaleId("s".into())))];
    // Sometimes a buyer names another price.
    let discount = prop_oneof![9 => Just(0), 1 => 1..3_u64];
    let place = (customer(), vec_of(line, 1..4), sale, discount).prop_map(|(customer, lines, sale, discount)| {
        let price_cents = if sale.is_some() { SALE_PRICE_CENTS } else { PRICE_CENTS } - discount;
        let line = |(product, quantity): (&str, u32)| line_of(product, quantity, price_cents);
        let lines = lines.into_iter().map(line).collect();
        Command::Order(order::Command::Place { customer, lines, sale, by: CLIENT })
    });
    let record = (customer(), 1..4_u32).prop_map(|(customer, quantity)| {
        let lines = vec![line_of("a", quantity, 1)];
        Command::Order(order::Command::Record { customer, lines, ordered_at: TimeMs(0), has_reserved_name: false })
    });
    let amount = prop::sample::select(vec![3_u64, 5, 6, 9, 10, 15, 20, 25, 30]);
    let pay = amount
        .prop_map(|amount_cents| Command::Order(order::Command::Pay { payment: PaymentId("p".into()), amount_cents }));
    let claim = (order_name(), customer(), 1..4_u32).prop_map(|(order, customer, quantity)| {
        let claim = Claim { customer, quantity, order: OrderId::of_claim("s", &order) };
        (String::from("s"), Command::Sale(sale::Command::Claim(claim)))
    });
    let cancel = Just(Command::Order(order::Command::Cancel { reason: None }));
    let parcel = prop_oneof![
        Just(Command::Order(order::Command::Ship(order::Parcel::default()))),
        Just(Command::Order(order::Command::Deliver(order::Parcel::default()))),
    ];
    let product = || prop::sample::select(&PRODUCTS[..]).prop_map(String::from);
    let restock = (1..5_u32).prop_map(|quantity| Command::Product(product::Command::Restock { quantity }));
    let discontinue = Just(Command::Product(product::Command::Discontinue));
    let close = Just((String::from("s"), Command::Sale(sale::Command::Close { due_at: None })));
    prop_oneof![
        6 => (order_name(), place).prop_map(client(AggregateType::Order)),
        1 => (order_name(), record).prop_map(client(AggregateType::Order)),
        6 => (order_id(), pay).prop_map(client(AggregateType::Order)),
        2 => (order_id(), cancel).prop_map(client(AggregateType::Order)),
        3 => (order_id(), parcel).prop_map(client(AggregateType::Order)),
        2 => (product(), restock).prop_map(client(AggregateType::Product)),
        1 => (product(), discontinue).prop_map(client(AggregateType::Product)),
        6 => claim.prop_map(client(AggregateType::Sale)),
        1 => close.prop_map(client(AggregateType::Sale)),
    ]
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => any_client(),
        10 => any::<Index>().prop_map(Move::Step),
        2 => any::<Index>().prop_map(Move::Again),
        1 => any::<Index>().prop_map(Move::Die),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn however_late_repeated_or_reordered_steps_are_no_unit_stays_reserved_or_is_given_twice(
        moves in vec_of(any_move(), 0..80)
    ) {
        let mut shop = Shop::open();
        shop.catch_up();
        moves.iter().for_each(|next| shop.make(next));
        shop.settle();
        shop.check();
        shop.pass(TimeMs(WINDOW_MS));
        shop.check();
        prop_assert!(shop.orders().all(|(_, state)| !matches!(state, OrderState::Confirmed(_))), "no order stays confirmed");
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
        let (before, events) = (shop.holdings(), shop.log.len());
        for index in 0..events {
            shop.react(index);
            shop.settle();
            prop_assert_eq!(&before, &shop.holdings(), "event {} was repeated", index);
        }
        shop.check();
    }
}

/// The latest step runs first: the steps of the cancellation before those of the payment.
#[test]
fn paid_units_are_committed_although_the_order_is_cancelled_first() {
    let place = order::Command::Place {
        customer: CustomerId("c-0".into()),
        lines: vec![line_of("a", 2, PRICE_CENTS)],
        sale: None,
        by: CLIENT,
    };
    let mut shop = Shop::open();
    shop.catch_up();
    shop.make(&Move::Client(AggregateType::Order, "o-0".into(), Command::Order(place)));
    shop.settle();
    let pay = order::Command::Pay { payment: PaymentId("p".into()), amount_cents: 2 * PRICE_CENTS };
    for command in [pay, order::Command::Cancel { reason: None }] {
        shop.make(&Move::Client(AggregateType::Order, "o-0".into(), Command::Order(command)));
    }
    shop.settle();
    assert_eq!((shop.committed.get("a"), shop.stuck.len()), (Some(&2), 0));
    for index in 0..shop.log.len() {
        shop.react(index);
        shop.settle();
    }
    assert!(shop.product("a").reservations.is_empty(), "a repeated placement takes nothing");
    shop.check();
}

#[test]
fn an_order_that_was_placed_with_a_date_of_long_ago_causes_nothing_nor_does_a_record() {
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
    let recorded = Event::Order(OrderEvent::Recorded(placement(9)));
    assert_eq!(react("o", &recorded, TimeMs(9), false, WINDOW_MS), Reaction::default());
}

#[test]
fn lines_of_one_product_are_reserved_together() {
    let line = |quantity| Line { product: ProductId("a".into()), quantity, amount_cents: 1 };
    let placement = |lines| Placement { customer: CustomerId("c".into()), lines, sale: None, ordered_at: TimeMs(1) };
    let steps =
        |lines| react("o", &Event::Order(OrderEvent::Placed(placement(lines))), TimeMs(1), false, WINDOW_MS).steps;
    let (product, order) = (ProductId("a".into()), OrderId("o".into()));
    let reserve = Step::Reserve { product: product.clone(), order: order.clone(), quantity: 5, amount_cents: 2 };
    assert_eq!(steps(vec![line(2), line(3)]), [reserve]);
    let reject = Step::RejectLine { product, order, reason: "over_limit".into() };
    assert_eq!(steps(vec![line(MAX_UNITS), line(MAX_UNITS)]), [reject]);
}

#[test]
fn a_payment_cancels_the_deadline_that_the_confirmation_set() {
    let expire = |event| react("o", &Event::Order(event), TimeMs(7), true, 100).deadlines;
    assert_eq!(expire(OrderEvent::Confirmed), [(Deadline::ExpireOrder, Some(TimeMs(107)))]);
    let payment = Payment { payment: PaymentId("p".into()), amount_cents: 1, lines: vec![], sale: None };
    assert_eq!(expire(OrderEvent::Paid(payment)), [(Deadline::ExpireOrder, None)]);
}

#[test]
fn a_stuck_payment_and_an_early_deadline_are_distinguished_from_completed_steps() {
    let (product, order, sale) = (ProductId("a".into()), OrderId("o".into()), SaleId("s".into()));
    let rejected = |step: Step, rule| step.next(Outcome::Rejected(rule));
    let commit = Step::Commit { product: product.clone(), order: order.clone(), amount_cents: 1 };
    assert_eq!(rejected(commit, "not_reserved"), Next::Stuck);
    assert_eq!(rejected(Step::CommitClaim { sale, order: order.clone(), amount_cents: 1 }, "not_claimed"), Next::Stuck);
    assert_eq!(rejected(Step::Release { product, order }, "not_reserved"), Next::Done);
    let due = || Step::Due { deadline: Deadline::ExpireOrder, id: "o".into(), due_at: TimeMs(7) };
    assert_eq!(rejected(due(), NOT_DUE), Next::NotDue);
    assert_eq!(rejected(due(), "already_paid"), Next::Done);
}
