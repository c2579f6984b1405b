//! The same deliveries in different interleavings: only the order of the messages to one aggregate is fixed. If there
//! are enough units for everyone, the outcome is always the same.

use std::collections::VecDeque;

use super::*;

/// Behaviour of a customer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Pay,
    PayAndReceive,
    PayAndCancel,
    /// Cancels as soon as the order is confirmed.
    Cancel,
    /// Cancels at once, whether the order is confirmed or not.
    CancelEarly,
    /// Does nothing, so that the order expires.
    Nothing,
}

#[derive(Debug, Clone)]
pub(super) enum Wish {
    /// Products and quantities.
    Lines(Vec<(&'static str, u32)>),
    /// Units of the sale's product, held by the sale.
    Held(u32),
    Claimed(u32),
}

/// An order and its customer's behaviour; the index in the list of plans identifies the order.
pub(super) type Plan = (Wish, Way);

/// The next action.
#[derive(Debug, Clone)]
pub(super) enum Turn {
    Next(Index),
    /// Delivers an event again.
    Again(Index),
}

#[derive(Debug)]
pub(super) enum Sent {
    Client(Command),
    Step(usize, Step),
}

/// A shop, and the messages in flight.
pub(super) struct Network {
    pub(super) shop: Shop,
    ways: BTreeMap<String, Way>,
    to: BTreeMap<Name, VecDeque<Sent>>,
    /// Events without reactions so far, by their index in the log.
    unread: BTreeMap<Name, VecDeque<usize>>,
    /// Number of events of the log that were taken in.
    seen: usize,
}

impl Network {
    pub(super) fn of(mut shop: Shop, plans: &[Plan]) -> Self {
        shop.settle();
        let seen = shop.log.len();
        let (to, unread, ways) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut network = Self { shop, ways, to, unread, seen };
        for (number, (wish, way)) in plans.iter().enumerate() {
            network.wish(std::format!("o-{number}"), CustomerId(std::format!("c-{}", number % 3).into()), wish, *way);
        }
        network
    }

    fn wish(&mut self, id: String, customer: CustomerId, wish: &Wish, way: Way) {
        let (lines, sale) = match wish {
            Wish::Claimed(quantity) => {
                let order = OrderId::of_claim("s", &id);
                let id = String::from(&*order.0);
                let claim = Claim { customer, quantity: *quantity, order };
                let command = Command::Sale(sale::Command::Claim(claim));
                self.send((AggregateType::Sale, "s".into()), Sent::Client(command));
                self.ways.insert(id, way);
                return;
            }
            Wish::Lines(lines) => {
                let line = |(product, quantity): &(&str, u32)| line_of(product, *quantity, PRICE_CENTS);
                (lines.iter().map(line).collect(), None)
            }
            Wish::Held(quantity) => (vec![line_of("a", *quantity, SALE_PRICE_CENTS)], Some(SaleId("s".into()))),
        };
        let command = Command::Order(order::Command::Place { customer, lines, sale, by: CLIENT });
        self.send((AggregateType::Order, id.clone()), Sent::Client(command));
        self.ways.insert(id, way);
    }

    pub(super) fn send(&mut self, to: Name, sent: Sent) {
        self.to.entry(to).or_default().push_back(sent);
    }

    pub(super) fn make(&mut self, turn: &Turn) {
        match turn {
            Turn::Next(index) => {
                let ready = self.ready();
                if !ready.is_empty() {
                    self.go(index.get(&ready).clone());
                }
            }
            Turn::Again(index) if self.seen > 0 => self.deliver(index.index(self.seen)),
            Turn::Again(_) => {}
        }
    }

    pub(super) fn end(&mut self) {
        while let Some(next) = self.ready().into_iter().next() {
            self.go(next);
        }
    }

    /// Returns the aggregates with messages in flight, and those with unread events.
    fn ready(&self) -> Vec<(bool, Name)> {
        let to = self.to.iter().filter(|(_, sent)| !sent.is_empty()).map(|(name, _)| (true, name.clone()));
        let unread = self.unread.iter().filter(|(_, events)| !events.is_empty()).map(|(name, _)| (false, name.clone()));
        to.chain(unread).collect()
    }

    fn go(&mut self, (is_sent, name): (bool, Name)) {
        if is_sent {
            self.receive(&name);
        } else if let Some(index) = self.unread.get_mut(&name).and_then(VecDeque::pop_front) {
            self.deliver(index);
        }
    }

    fn receive(&mut self, name: &Name) {
        let Some(sent) = self.to.get_mut(name).and_then(VecDeque::pop_front) else { return };
        match sent {
            Sent::Client(command) => drop(self.shop.send(name.0, &name.1, &command, false)),
            Sent::Step(source, step) => {
                let outcome = self.shop.send(name.0, &name.1, &step.command().2, true);
                let next = self.shop.next(&step, &outcome);
                self.send_steps([(source, next)]);
            }
        }
        for index in self.seen..self.shop.log.len() {
            let Entry { id, event, .. } = &self.shop.log[index];
            self.unread.entry((event.aggregate(), id.clone())).or_default().push_back(index);
        }
        self.seen = self.shop.log.len();
    }

    fn deliver(&mut self, index: usize) {
        self.shop.react(index);
        let steps: Vec<_> = self.shop.waiting.drain(..).map(|(source, step)| (source, Some(step))).collect();
        self.send_steps(steps);
        let Entry { id, event, .. } = &self.shop.log[index];
        let wish = self.ways.get(id).and_then(|way| self.answer(id, event, *way));
        if let Some(command) = wish {
            let id = id.clone();
            self.send((AggregateType::Order, id), Sent::Client(Command::Order(command)));
        }
    }

    /// Returns the customer's command in answer to an event of the order.
    fn answer(&self, id: &str, event: &Event, way: Way) -> Option<order::Command> {
        let cancel = Some(order::Command::Cancel { reason: None });
        let parcel = order::Parcel::default();
        match (event, way) {
            (Event::Order(OrderEvent::Placed(_)), Way::CancelEarly)
            | (Event::Order(OrderEvent::Confirmed), Way::Cancel)
            | (Event::Order(OrderEvent::Paid(_)), Way::PayAndCancel) => cancel,
            (Event::Order(OrderEvent::Confirmed), Way::Pay | Way::PayAndReceive | Way::PayAndCancel) => {
                let OrderState::Confirmed(placement) = &self.shop.orders().find(|(order, _)| *order.0 == *id)?.1 else {
                    return None;
                };
                let amount_cents = placement.lines.iter().map(|line| line.amount_cents).sum();
                Some(order::Command::Pay { payment: PaymentId("p".into()), amount_cents })
            }
            (Event::Order(OrderEvent::Paid(_)), Way::PayAndReceive) => Some(order::Command::Ship(parcel)),
            (Event::Order(OrderEvent::Shipped(_)), Way::PayAndReceive) => Some(order::Command::Deliver(parcel)),
            _ => None,
        }
    }

    fn send_steps(&mut self, steps: impl IntoIterator<Item = (usize, Option<Step>)>) {
        for (source, step) in steps {
            let Some(step) = step else { continue };
            let (aggregate, id, _) = step.command();
            let to = (aggregate, id.to_string());
            self.send(to, Sent::Step(source, step));
        }
    }
}

/// Plays all plans in this interleaving, then all deadlines.
fn play(shop: Shop, plans: &[Plan], turns: &[Turn], is_closed_first: bool) -> Shop {
    let mut network = Network::of(shop, plans);
    turns.iter().for_each(|turn| network.make(turn));
    network.end();
    let mut shop = network.shop;
    shop.settle();
    shop.check();
    if is_closed_first {
        shop.send(AggregateType::Sale, "s", &Command::Sale(sale::Command::Close { due_at: None }), false).unwrap();
        shop.settle();
        shop.check();
    }
    shop.pass(TimeMs(WINDOW_MS));
    shop.pass(CLOSES);
    shop.check();
    assert_eq!(shop.stuck, [], "no step got stuck");
    assert!(shop.orders().all(|(_, state)| !matches!(state, OrderState::Confirmed(_))), "no order stays confirmed");
    shop
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let fine = (prop::sample::select(&PRODUCTS[..]), 1..6_u32);
    // A product that does not exist: the order is rejected, in any interleaving.
    let bad = (Just("none"), 1..6_u32);
    let way = || {
        prop::sample::select(vec![
            Way::Pay,
            Way::PayAndReceive,
            Way::PayAndCancel,
            Way::Cancel,
            Way::CancelEarly,
            Way::Nothing,
        ])
    };
    // Cancelling before the answer would race with the rejection.
    let late = way().prop_map(|way| if matches!(way, Way::CancelEarly) { Way::Cancel } else { way });
    prop_oneof![
        4 => (vec_of(fine.clone(), 1..4).prop_map(Wish::Lines), way()),
        2 => ((vec_of(fine, 0..3), bad).prop_map(|(lines, bad)| {
            Wish::Lines(lines.into_iter().chain([bad]).collect())
        }), late),
        2 => ((1..6_u32).prop_map(Wish::Held), way()),
        3 => ((1..6_u32).prop_map(Wish::Claimed), way()),
    ]
}

fn any_turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        8 => any::<Index>().prop_map(Turn::Next),
        1 => any::<Index>().prop_map(Turn::Again),
    ];
    vec_of(turn, 0..120)
}

proptest! {
    #[test]
    fn where_there_is_enough_the_outcome_is_the_same_in_every_interleaving(
        plans in vec_of(any_plan(), 1..8),
        one in any_turns(),
        other in any_turns(),
        is_closed_first in any::<bool>(),
    ) {
        let plenty = || Shop::of(1_000, 500, 100);
        let one = play(plenty(), &plans, &one, is_closed_first);
        let other = play(plenty(), &plans, &other, is_closed_first);
        prop_assert_eq!(one.states, other.states);
    }

    #[test]
    fn where_there_is_not_enough_every_order_has_all_of_its_units_or_none(
        plans in vec_of(any_plan(), 1..8),
        turns in any_turns(),
        is_closed_first in any::<bool>(),
    ) {
        play(Shop::open(), &plans, &turns, is_closed_first);
    }
}
