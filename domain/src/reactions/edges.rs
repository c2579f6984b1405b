//! The edges of the sagas: for each step its command, its key, and the next step after either outcome.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use super::{Deadline, Next, Step};
use crate::ids::{OrderId, ProductId, SaleId};
use crate::product::{By, Holder};
use crate::{AggregateType, Command, TimeMs, order, product, sale};

/// The facts of a step.
pub(super) struct Edge<'a> {
    /// The receiver, and its command.
    pub(super) command: (AggregateType, &'a str, Command),
    pub(super) dedup_key: String,
    pub(super) if_accepted: Next,
    /// A step that takes or promises something leads to its compensation. One that gives back was carried out before,
    /// or has nothing to give back. One for a paid order is never rejected, unless another party released the units.
    pub(super) if_rejected: Next,
}

impl Step {
    /// Returns the facts of a step. `rule` is the name of the rule that rejects the command, if one does; it becomes the
    /// reason of the step that follows.
    #[expect(clippy::too_many_lines, reason = "a table of all steps reads better as one")]
    pub(super) fn edge(&self, rule: &str) -> Edge<'_> {
        match self {
            Self::Reserve { product, order, quantity, amount_cents } => Edge {
                command: to_product(product, {
                    let by = By::Order { amount_cents: Some(*amount_cents) };
                    product::Command::Reserve { order: order.clone(), quantity: *quantity, by }
                }),
                dedup_key: format!("reserve {}", order.0),
                if_accepted: confirm_line(order, product, None),
                if_rejected: reject_line(order, product, rule),
            },
            Self::Hold { sale, product, claim, amount_cents } => Edge {
                command: to_sale(sale, {
                    let amount_cents = Some(*amount_cents);
                    sale::Command::Hold { claim: claim.clone(), product: product.clone(), amount_cents }
                }),
                dedup_key: format!("hold {}", claim.order.0),
                if_accepted: confirm_line(&claim.order, product, Some(sale)),
                if_rejected: reject_line(&claim.order, product, rule),
            },
            Self::ConfirmLine { order, product, sale } => Edge {
                command: to_order(order, order::Command::ConfirmLine { product: product.clone() }),
                dedup_key: format!("confirm {}", product.0),
                if_accepted: Next::Done,
                // The order has ended.
                if_rejected: match sale {
                    None => Next::Step(Self::Release { product: product.clone(), order: order.clone() }),
                    Some(sale) => give_back(sale, order, None),
                },
            },
            Self::RejectLine { order, product, reason } => Edge {
                command: to_order(order, {
                    order::Command::RejectLine { product: product.clone(), reason: Some(reason.clone()) }
                }),
                dedup_key: format!("reject {}", product.0),
                if_accepted: Next::Done,
                if_rejected: Next::Done,
            },
            Self::Release { product, order } => Edge {
                command: to_product(product, product::Command::Release { order: order.clone(), by: Holder::Order }),
                dedup_key: format!("release {}", order.0),
                if_accepted: Next::Done,
                if_rejected: Next::Done,
            },
            Self::Return { sale, order, is_ordered } => Edge {
                command: to_sale(sale, sale::Command::Return { order: order.clone(), is_ordered: *is_ordered }),
                dedup_key: match is_ordered {
                    None => format!("return {}", order.0),
                    Some(_) => format!("return claim {}", order.0),
                },
                if_accepted: Next::Done,
                if_rejected: Next::Done,
            },
            Self::Commit { product, order, amount_cents } => Edge {
                command: to_product(product, {
                    product::Command::Commit { order: order.clone(), amount_cents: *amount_cents }
                }),
                dedup_key: format!("commit {}", order.0),
                if_accepted: Next::Done,
                if_rejected: Next::Stuck,
            },
            Self::CommitClaim { sale, order, amount_cents } => Edge {
                command: to_sale(sale, {
                    sale::Command::Commit { order: order.clone(), amount_cents: Some(*amount_cents) }
                }),
                dedup_key: format!("commit {}", order.0),
                if_accepted: Next::Done,
                if_rejected: Next::Stuck,
            },
            Self::Place { order, customer, line, sale } => Edge {
                command: to_order(order, {
                    let (customer, lines, sale) = (customer.clone(), vec![line.clone()], Some(sale.clone()));
                    order::Command::Place { customer, lines, sale, by: order::Placer::Claim }
                }),
                dedup_key: format!("place {}", sale.0),
                // The order was placed before, and may have ended.
                if_accepted: confirm_line(order, &line.product, Some(sale)),
                // There is another order with this id, which may hold units of its own.
                if_rejected: give_back(sale, order, Some(false)),
            },
            Self::Allot { product, sale, units } => Edge {
                command: to_product(product, product::Command::Allot { sale: sale.clone(), units: *units }),
                dedup_key: format!("allot {}", sale.0),
                if_accepted: Next::Step(Self::Stock { sale: sale.clone(), product: product.clone(), units: *units }),
                if_rejected: Next::Step(Self::Refuse { sale: sale.clone(), reason: rule.into() }),
            },
            Self::Stock { sale, product, units } => Edge {
                command: to_sale(sale, sale::Command::Stock),
                dedup_key: String::from("stock"),
                if_accepted: Next::Done,
                // An earlier answer of the product had already refused the sale.
                if_rejected: Next::Step(Self::TakeBack { product: product.clone(), sale: sale.clone(), total: *units }),
            },
            Self::Refuse { sale, reason } => Edge {
                command: to_sale(sale, sale::Command::Refuse { reason: Some(reason.clone()) }),
                dedup_key: String::from("refuse"),
                if_accepted: Next::Done,
                if_rejected: Next::Done,
            },
            Self::TakeBack { product, sale, total } => Edge {
                command: to_product(product, product::Command::TakeBack { sale: sale.clone(), total: *total }),
                dedup_key: format!("take back {} {total}", sale.0),
                if_accepted: Next::Done,
                if_rejected: Next::Done,
            },
            Self::Due { deadline, id, due_at } => {
                let (command, dedup_key) = due(*deadline, Some(*due_at));
                Edge {
                    command: (command.aggregate(), id, command),
                    dedup_key: String::from(dedup_key),
                    if_accepted: Next::Done,
                    if_rejected: Next::Done,
                }
            }
        }
    }
}

/// Returns the command of a deadline, and its key.
fn due(deadline: Deadline, due_at: Option<TimeMs>) -> (Command, &'static str) {
    match deadline {
        Deadline::ExpireOrder => (Command::Order(order::Command::Expire { due_at }), "expire"),
        Deadline::OpenSale => (Command::Sale(sale::Command::Open { due_at }), "open"),
        Deadline::CloseSale => (Command::Sale(sale::Command::Close { due_at }), "close"),
        Deadline::LapseHolds => (Command::Product(product::Command::LapseHolds { due_at }), "lapse holds"),
    }
}

fn to_product(ProductId(id): &ProductId, command: product::Command) -> (AggregateType, &str, Command) {
    (AggregateType::Product, id, Command::Product(command))
}

fn to_order(OrderId(id): &OrderId, command: order::Command) -> (AggregateType, &str, Command) {
    (AggregateType::Order, id, Command::Order(command))
}

fn to_sale(SaleId(id): &SaleId, command: sale::Command) -> (AggregateType, &str, Command) {
    (AggregateType::Sale, id, Command::Sale(command))
}

/// `sale`: the sale that the units are taken from, if not from the product itself.
fn confirm_line(order: &OrderId, product: &ProductId, sale: Option<&SaleId>) -> Next {
    Next::Step(Step::ConfirmLine { order: order.clone(), product: product.clone(), sale: sale.cloned() })
}

fn reject_line(order: &OrderId, product: &ProductId, reason: &str) -> Next {
    Next::Step(Step::RejectLine { order: order.clone(), product: product.clone(), reason: reason.into() })
}

/// `is_ordered`: see [`sale::Command::Return`].
fn give_back(sale: &SaleId, order: &OrderId, is_ordered: Option<bool>) -> Next {
    Next::Step(Step::Return { sale: sale.clone(), order: order.clone(), is_ordered })
}
