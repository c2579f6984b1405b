//! Reactions: the commands to other aggregates that an event of one aggregate causes.
//!
//! An order with its reservations is a saga: a transaction over several aggregates without locks. Each [`Step`] is a
//! command to one of them, and its outcome leads to the next step, or ends the saga. Compensations are steps, too.
//!
//! Invariant: every step is idempotent and harmless when late. The receiver remembers its effects for the order or
//! sale; and units taken for an order that has meanwhile ended are given back, because the order refuses to be
//! confirmed.
//!
//! Invariant: an event's steps depend only on the event, so that they can be repeated from the log.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::ids::{CustomerId, OrderId, ProductId, SaleId};
use crate::order::{Ending, Event as OrderEvent, Held, Line, Payment, Placement};
use crate::product::{By, Event as ProductEvent, Holder};
use crate::sale::{Claim, Event as SaleEvent};
use crate::{AggregateType, Command, Event, TimeMs, order, product, sale};

/// Maximum number of units of one product that are reserved for an order, however many of its lines name it.
const MAX_UNITS: u32 = 1_000_000_000;

/// Name of the rule that rejects a command sent before its time.
pub const NOT_DUE: &str = "not_due";
/// Age above which a placed order counts as a record of another system. Earlier versions placed such orders with their
/// dates; an order that is dated when it is placed is never that old.
const RECORD_AFTER_MS: u64 = 24 * 60 * 60 * 1000;

/// Reason of an order that was rejected because the command to reserve a line was refused for too long.
const NOT_CONFIRMED_IN_TIME: &str = "not_confirmed_in_time";

/// A command that an event, or the outcome of another step, causes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `amount_cents`: amount that the buyer agreed to pay for all units.
    Reserve {
        product: ProductId,
        order: OrderId,
        quantity: u32,
        amount_cents: u64,
    },
    /// Reserves units of a sale. `amount_cents`: amount that the buyer agreed to pay for all units.
    Hold {
        sale: SaleId,
        product: ProductId,
        claim: Claim,
        amount_cents: u64,
    },
    ConfirmLine {
        order: OrderId,
        product: ProductId,
        /// The sale that the units are taken from, if not from the product itself.
        sale: Option<SaleId>,
    },
    RejectLine {
        order: OrderId,
        product: ProductId,
        reason: Box<str>,
    },
    Release {
        product: ProductId,
        order: OrderId,
    },
    Return {
        sale: SaleId,
        order: OrderId,
        /// See [`sale::Command::Return`].
        is_ordered: Option<bool>,
    },
    Commit {
        product: ProductId,
        order: OrderId,
        amount_cents: u64,
    },
    CommitClaim {
        sale: SaleId,
        order: OrderId,
        amount_cents: u64,
    },
    /// Places the order of a claim.
    Place {
        order: OrderId,
        customer: CustomerId,
        line: Line,
        sale: SaleId,
    },
    Allot {
        product: ProductId,
        sale: SaleId,
        units: u32,
    },
    Stock {
        sale: SaleId,
        product: ProductId,
        units: u32,
    },
    Refuse {
        sale: SaleId,
        reason: Box<str>,
    },
    TakeBack {
        product: ProductId,
        sale: SaleId,
        total: u32,
    },
    Due {
        deadline: Deadline,
        id: Box<str>,
        due_at: TimeMs,
    },
}

/// A command that is sent at a set time unless it is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deadline {
    /// An order that is not paid in time expires.
    ExpireOrder,
    OpenSale,
    CloseSale,
    /// Lapses the holds on a product that have ended by then.
    LapseHolds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// `is_confirmed`: the command confirmed its order.
    Accepted { is_confirmed: bool },
    /// The name of the rule that rejected the command.
    Rejected(&'a str),
}

/// The continuation after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Step(Step),
    /// The saga ends.
    Done,
    /// The step must be retried once its time has come.
    NotDue,
    /// A promise cannot be kept: operator intervention is required.
    Stuck,
}

/// The effects of an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reaction {
    pub steps: Vec<Step>,
    /// Deadlines of the event's own aggregate to set; `None` cancels one.
    pub deadlines: Vec<(Deadline, Option<TimeMs>)>,
}

/// Returns the effects of an event of the aggregate `id`. `is_caused`: a reaction's step caused the event.
/// `payment_window_ms`: how long an order waits to be paid.
pub fn react(id: &str, event: &Event, at: TimeMs, is_caused: bool, payment_window_ms: u64) -> Reaction {
    match event {
        Event::Product(event) => of_product(event),
        Event::Order(event) => of_order(&OrderId(id.into()), event, at, is_caused, payment_window_ms),
        Event::Sale(event) => of_sale(&SaleId(id.into()), event),
    }
}

fn of_product(event: &ProductEvent) -> Reaction {
    let lapse = |due| Reaction { steps: vec![], deadlines: vec![(Deadline::LapseHolds, due)] };
    match event {
        ProductEvent::Reserved { alarm_at: Some(due), .. } => lapse(Some(*due)),
        ProductEvent::HoldsLapsed { alarm_at, .. } => lapse(*alarm_at),
        ProductEvent::Registered(_)
        | ProductEvent::Restocked { .. }
        | ProductEvent::Repriced { .. }
        | ProductEvent::Reserved { alarm_at: None, .. }
        | ProductEvent::Released { .. }
        | ProductEvent::Committed { .. }
        | ProductEvent::Allotted { .. }
        | ProductEvent::TakenBack { .. }
        | ProductEvent::Discontinued => Reaction::default(),
    }
}

fn of_order(id: &OrderId, event: &OrderEvent, at: TimeMs, is_caused: bool, payment_window_ms: u64) -> Reaction {
    let expire = |due| vec![(Deadline::ExpireOrder, due)];
    match event {
        OrderEvent::Recorded(_) => Reaction::default(),
        OrderEvent::Placed(placement) if is_record(placement, at) => Reaction::default(),
        // The step that placed the order also confirmed its lines.
        OrderEvent::Placed(placement) if placement.sale.is_some() && is_caused => Reaction::default(),
        OrderEvent::Placed(placement) => placed(id, placement).into(),
        OrderEvent::Confirmed => {
            Reaction { steps: vec![], deadlines: expire(Some(TimeMs(at.0.saturating_add(payment_window_ms)))) }
        }
        OrderEvent::Paid(payment) => Reaction { steps: paid(id, payment), deadlines: expire(None) },
        OrderEvent::Rejected(ending) => ended(id, ending).into(),
        OrderEvent::Cancelled(ending) | OrderEvent::Expired(ending) => {
            Reaction { steps: ended(id, ending), deadlines: expire(None) }
        }
        OrderEvent::LineConfirmed { .. }
        | OrderEvent::LineRejected { .. }
        | OrderEvent::Shipped(_)
        | OrderEvent::Delivered(_) => Reaction::default(),
    }
}

fn of_sale(id: &SaleId, event: &SaleEvent) -> Reaction {
    let take_back = |product: &ProductId, total: u32| {
        Reaction::from(vec![Step::TakeBack { product: product.clone(), sale: id.clone(), total }])
    };
    match event {
        SaleEvent::Scheduled(schedule) => Reaction {
            steps: vec![Step::Allot { product: schedule.product.clone(), sale: id.clone(), units: schedule.units }],
            deadlines: vec![
                (Deadline::OpenSale, Some(schedule.opens_at)),
                (Deadline::CloseSale, Some(schedule.closes_at)),
            ],
        },
        SaleEvent::Refused { .. } => {
            Reaction { steps: vec![], deadlines: vec![(Deadline::OpenSale, None), (Deadline::CloseSale, None)] }
        }
        SaleEvent::Closed { product, given_back } => Reaction {
            deadlines: vec![(Deadline::OpenSale, None), (Deadline::CloseSale, None)],
            ..take_back(product, *given_back)
        },
        SaleEvent::Returned { product, given_back: Some(total), .. } => take_back(product, *total),
        SaleEvent::Claimed { order, customer, quantity, product, amount_cents, is_ordered: false, .. } => {
            let line = Line { product: product.clone(), quantity: *quantity, amount_cents: *amount_cents };
            vec![Step::Place { order: order.clone(), customer: customer.clone(), line, sale: id.clone() }].into()
        }
        SaleEvent::Claimed { .. }
        | SaleEvent::Returned { .. }
        | SaleEvent::Stocked
        | SaleEvent::Opened
        | SaleEvent::Committed { .. } => Reaction::default(),
    }
}

fn is_record(placement: &Placement, at: TimeMs) -> bool {
    placement.ordered_at.0.saturating_add(RECORD_AFTER_MS) < at.0
}

fn placed(id: &OrderId, placement: &Placement) -> Vec<Step> {
    let Placement { customer, lines, sale, .. } = placement;
    let mut sums: BTreeMap<&ProductId, (u32, u64)> = BTreeMap::new();
    for line in lines {
        let (quantity, amount_cents) = sums.entry(&line.product).or_default();
        *quantity = quantity.saturating_add(line.quantity);
        *amount_cents = amount_cents.saturating_add(line.amount_cents);
    }
    let step = |(product, (quantity, amount_cents)): (&ProductId, (u32, u64))| {
        let (order, product) = (id.clone(), product.clone());
        match sale {
            _ if quantity > MAX_UNITS => Step::RejectLine { order, product, reason: "over_limit".into() },
            None => Step::Reserve { product, order, quantity, amount_cents },
            Some(sale) => {
                let claim = Claim { customer: customer.clone(), quantity, order };
                Step::Hold { sale: sale.clone(), product, claim, amount_cents }
            }
        }
    };
    sums.into_iter().map(step).collect()
}

fn paid(id: &OrderId, Payment { amount_cents, lines, sale, .. }: &Payment) -> Vec<Step> {
    if let Some(sale) = sale {
        let (sale, order) = (sale.clone(), id.clone());
        return vec![Step::CommitClaim { sale, order, amount_cents: *amount_cents }];
    }
    let mut amounts: BTreeMap<&ProductId, u64> = BTreeMap::new();
    for line in lines {
        let sum = amounts.entry(&line.product).or_default();
        *sum = sum.saturating_add(line.amount_cents);
    }
    let commit = |(product, amount_cents): (&ProductId, u64)| Step::Commit {
        product: product.clone(),
        order: id.clone(),
        amount_cents,
    };
    amounts.into_iter().map(commit).collect()
}

fn ended(id: &OrderId, Ending { held, sale, .. }: &Ending) -> Vec<Step> {
    if let Some(sale) = sale {
        return vec![Step::Return { sale: sale.clone(), order: id.clone(), is_ordered: None }];
    }
    let mut products: Vec<&ProductId> = held.iter().map(|Held { product, .. }| product).collect();
    products.sort_unstable();
    products.dedup();
    products.into_iter().map(|product| Step::Release { product: product.clone(), order: id.clone() }).collect()
}

impl Step {
    /// Returns the aggregate that receives the step, and the command.
    pub fn command(&self) -> (AggregateType, &str, Command) {
        match self {
            Self::Reserve { product, order, quantity, amount_cents } => {
                let by = By::Order { amount_cents: Some(*amount_cents) };
                to_product(&product.0, product::Command::Reserve { order: order.clone(), quantity: *quantity, by })
            }
            Self::Release { product, order } => {
                to_product(&product.0, product::Command::Release { order: order.clone(), by: Holder::Order })
            }
            Self::Commit { product, order, amount_cents } => {
                to_product(&product.0, product::Command::Commit { order: order.clone(), amount_cents: *amount_cents })
            }
            Self::Allot { product, sale, units } => {
                to_product(&product.0, product::Command::Allot { sale: sale.clone(), units: *units })
            }
            Self::TakeBack { product, sale, total } => {
                to_product(&product.0, product::Command::TakeBack { sale: sale.clone(), total: *total })
            }
            Self::ConfirmLine { order, product, .. } => {
                to_order(order, order::Command::ConfirmLine { product: product.clone() })
            }
            Self::RejectLine { order, product, reason } => {
                to_order(order, order::Command::RejectLine { product: product.clone(), reason: Some(reason.clone()) })
            }
            Self::Place { order, customer, line, sale } => {
                let (customer, lines, sale) = (customer.clone(), vec![line.clone()], Some(sale.clone()));
                to_order(order, order::Command::Place { customer, lines, sale, by: order::Placer::Claim })
            }
            Self::Hold { sale, product, claim, amount_cents } => {
                let (claim, product, amount_cents) = (claim.clone(), product.clone(), Some(*amount_cents));
                to_sale(&sale.0, sale::Command::Hold { claim, product, amount_cents })
            }
            Self::Return { sale, order, is_ordered } => {
                to_sale(&sale.0, sale::Command::Return { order: order.clone(), is_ordered: *is_ordered })
            }
            Self::CommitClaim { sale, order, amount_cents } => {
                let amount_cents = Some(*amount_cents);
                to_sale(&sale.0, sale::Command::Commit { order: order.clone(), amount_cents })
            }
            Self::Stock { sale, .. } => to_sale(&sale.0, sale::Command::Stock),
            Self::Refuse { sale, reason } => to_sale(&sale.0, sale::Command::Refuse { reason: Some(reason.clone()) }),
            Self::Due { deadline, id, due_at } => {
                let due_at = Some(*due_at);
                match deadline {
                    Deadline::ExpireOrder => {
                        (AggregateType::Order, id, Command::Order(order::Command::Expire { due_at }))
                    }
                    Deadline::OpenSale => to_sale(id, sale::Command::Open { due_at }),
                    Deadline::CloseSale => to_sale(id, sale::Command::Close { due_at }),
                    Deadline::LapseHolds => to_product(id, product::Command::LapseHolds { due_at }),
                }
            }
        }
    }

    /// Returns a key that is unique among the steps to one aggregate, and the same for a repetition of the step.
    pub fn dedup_key(&self) -> String {
        match self {
            Self::Reserve { order, .. } => format!("reserve {}", order.0),
            Self::Release { order, .. } => format!("release {}", order.0),
            Self::Commit { order, .. } | Self::CommitClaim { order, .. } => format!("commit {}", order.0),
            Self::Hold { claim, .. } => format!("hold {}", claim.order.0),
            Self::Return { order, is_ordered: None, .. } => format!("return {}", order.0),
            Self::Return { order, is_ordered: Some(_), .. } => format!("return claim {}", order.0),
            Self::ConfirmLine { product, .. } => format!("confirm {}", product.0),
            Self::RejectLine { product, .. } => format!("reject {}", product.0),
            Self::Place { sale, .. } => format!("place {}", sale.0),
            Self::Allot { sale, .. } => format!("allot {}", sale.0),
            Self::TakeBack { sale, total, .. } => format!("take back {} {total}", sale.0),
            Self::Stock { .. } => String::from("stock"),
            Self::Refuse { .. } => String::from("refuse"),
            Self::Due { deadline: Deadline::ExpireOrder, .. } => String::from("expire"),
            Self::Due { deadline: Deadline::OpenSale, .. } => String::from("open"),
            Self::Due { deadline: Deadline::CloseSale, .. } => String::from("close"),
            Self::Due { deadline: Deadline::LapseHolds, .. } => String::from("lapse holds"),
        }
    }

    /// Returns the step that rejects the order if this step, which should lead to a line's confirmation, is refused for
    /// too long.
    pub fn given_up(&self) -> Option<Self> {
        match self {
            Self::Reserve { product, order, .. } | Self::Hold { product, claim: Claim { order, .. }, .. } => {
                let (order, product) = (order.clone(), product.clone());
                Some(Self::RejectLine { order, product, reason: NOT_CONFIRMED_IN_TIME.into() })
            }
            Self::ConfirmLine { .. } | Self::RejectLine { .. } | Self::Release { .. } | Self::Return { .. } => None,
            Self::Commit { .. } | Self::CommitClaim { .. } | Self::Place { .. } | Self::Allot { .. } => None,
            Self::Stock { .. } | Self::Refuse { .. } | Self::TakeBack { .. } | Self::Due { .. } => None,
        }
    }

    /// Returns the continuation after an outcome. A releasing step that is rejected was carried out before or has
    /// nothing to release. A step for a paid order is never rejected, unless the units were released by another party.
    pub fn next(&self, outcome: Outcome<'_>) -> Next {
        match outcome {
            Outcome::Accepted { is_confirmed } => self.when_accepted(is_confirmed),
            Outcome::Rejected(rule) => self.when_rejected(rule),
        }
    }

    fn when_accepted(&self, is_confirmed: bool) -> Next {
        let confirm = |order: &OrderId, product: &ProductId, sale: Option<&SaleId>| {
            Next::Step(Self::ConfirmLine { order: order.clone(), product: product.clone(), sale: sale.cloned() })
        };
        match self {
            Self::Reserve { product, order, .. } => confirm(order, product, None),
            Self::Hold { sale, product, claim, .. } => confirm(&claim.order, product, Some(sale)),
            Self::Place { .. } if is_confirmed => Next::Done,
            // The order was placed before, and may have ended.
            Self::Place { order, line, sale, .. } => confirm(order, &line.product, Some(sale)),
            Self::Allot { product, sale, units } => {
                Next::Step(Self::Stock { sale: sale.clone(), product: product.clone(), units: *units })
            }
            Self::ConfirmLine { .. } | Self::RejectLine { .. } | Self::Release { .. } | Self::Return { .. } => {
                Next::Done
            }
            Self::Commit { .. } | Self::CommitClaim { .. } | Self::Stock { .. } | Self::Refuse { .. } => Next::Done,
            Self::TakeBack { .. } | Self::Due { .. } => Next::Done,
        }
    }

    fn when_rejected(&self, rule: &str) -> Next {
        let give_back = |sale: &SaleId, order: &OrderId, is_ordered| {
            Next::Step(Self::Return { sale: sale.clone(), order: order.clone(), is_ordered })
        };
        match self {
            Self::Reserve { product, order, .. } | Self::Hold { product, claim: Claim { order, .. }, .. } => {
                Next::Step(Self::RejectLine { order: order.clone(), product: product.clone(), reason: rule.into() })
            }
            // The order has ended.
            Self::ConfirmLine { order, product, sale: None } => {
                Next::Step(Self::Release { product: product.clone(), order: order.clone() })
            }
            Self::ConfirmLine { order, sale: Some(sale), .. } => give_back(sale, order, None),
            // There is another order with this id, which may hold units of its own.
            Self::Place { order, sale, .. } => give_back(sale, order, Some(false)),
            Self::Allot { sale, .. } => Next::Step(Self::Refuse { sale: sale.clone(), reason: rule.into() }),
            // An earlier answer of the product had already refused the sale.
            Self::Stock { sale, product, units } => {
                Next::Step(Self::TakeBack { product: product.clone(), sale: sale.clone(), total: *units })
            }
            Self::Commit { .. } | Self::CommitClaim { .. } => Next::Stuck,
            Self::Due { .. } if rule == NOT_DUE => Next::NotDue,
            Self::RejectLine { .. } | Self::Release { .. } | Self::Return { .. } => Next::Done,
            Self::Refuse { .. } | Self::TakeBack { .. } | Self::Due { .. } => Next::Done,
        }
    }
}

fn to_product(id: &str, command: product::Command) -> (AggregateType, &str, Command) {
    (AggregateType::Product, id, Command::Product(command))
}

fn to_order(id: &OrderId, command: order::Command) -> (AggregateType, &str, Command) {
    (AggregateType::Order, &id.0, Command::Order(command))
}

fn to_sale(id: &str, command: sale::Command) -> (AggregateType, &str, Command) {
    (AggregateType::Sale, id, Command::Sale(command))
}

impl From<Vec<Step>> for Reaction {
    fn from(steps: Vec<Step>) -> Self {
        Self { steps, deadlines: vec![] }
    }
}

#[cfg(test)]
mod tests;
