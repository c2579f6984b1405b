//! Bodies of order commands.

use domain::ids::{CLAIM_MARK, CustomerId, PaymentId, ProductId, SaleId};
use domain::order::{Command, Line as DomainLine, Parcel, Placer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::{Cents, Id, Object, Quantity, Text, Time};
use super::{CommandContract, CommandError, Fingerprint, Origin, Who, contract, to_body};

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Place {
    customer: Id,
    lines: Vec<Object<Line>>,
    sale: Option<Id>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Record {
    customer: Id,
    /// Lines with the amounts that were paid. The products need not be registered.
    lines: Vec<Object<Line>>,
    /// Time of the order, not after the time of recording.
    ordered_at: Time,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Line {
    product: Id,
    quantity: Quantity,
    /// Amount for all units of the line that the buyer agreed to.
    amount_cents: Cents,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ConfirmLine {
    product: Id,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RejectLine {
    product: Id,
    reason: Option<Text>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Cancel {
    reason: Option<Text>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Pay {
    payment: Id,
    amount_cents: Cents,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sent {
    carrier: Option<Text>,
    tracking: Option<Text>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Expire {
    /// Earliest time at which the order may expire.
    due_at: Option<Time>,
}

pub(super) const CONTRACTS: &[CommandContract] = &[
    contract::<Place>(
        "place",
        Who::Client,
        "Places an order with the current time.",
        &["already_placed", "reserved_name", "no_lines", "too_many_lines", "total_too_large"],
    ),
    contract::<Record>(
        "record",
        Who::Staff,
        "Records an order that was fulfilled outside of this system. It counts towards the totals of its customer and its day, but triggers no reactions.",
        &["already_placed", "reserved_name", "no_lines", "too_many_lines", "total_too_large", "ordered_in_future"],
    ),
    contract::<ConfirmLine>(
        "confirm-line",
        Who::Internal,
        "Confirms that the units of a line are reserved.",
        &["not_placed", "no_such_line", "is_recorded", "already_rejected", "already_cancelled", "expired"],
    ),
    contract::<RejectLine>(
        "reject-line",
        Who::Internal,
        "Rejects a line that cannot be fulfilled.",
        &["not_placed", "no_such_line", "is_recorded", "already_confirmed", "already_cancelled", "expired"],
    ),
    contract::<Pay>(
        "pay",
        Who::Staff,
        "Pays a confirmed order.",
        &[
            "not_confirmed",
            "wrong_amount",
            "expired",
            "already_paid",
            "is_recorded",
            "already_rejected",
            "already_cancelled",
            "cancelled_after_payment",
        ],
    ),
    contract::<Sent>(
        "ship",
        Who::Staff,
        "Marks a paid order as shipped.",
        &["not_paid", "is_recorded", "already_cancelled"],
    ),
    contract::<Sent>(
        "deliver",
        Who::Staff,
        "Marks a shipped order as delivered.",
        &["not_paid", "not_shipped", "is_recorded", "already_cancelled"],
    ),
    contract::<Cancel>(
        "cancel",
        Who::Client,
        "Cancels an order that has not been shipped.",
        &["not_placed", "already_shipped", "already_rejected", "expired"],
    ),
    contract::<Expire>(
        "expire",
        Who::Internal,
        "Expires a confirmed order that was not paid.",
        &["not_confirmed", "already_paid", "not_due", "is_recorded", "already_rejected", "already_cancelled"],
    ),
];

/// Parses a command for the order `id`.
pub(super) fn parse(
    id: &str,
    command: &str,
    body: &[u8],
    origin: Origin,
    fingerprint: &mut Fingerprint,
) -> Result<Command, CommandError> {
    let has_reserved_name = match origin {
        Origin::Client => id.contains(CLAIM_MARK),
        Origin::Reaction => false,
    };
    Ok(match command {
        "place" => {
            let Place { customer, lines, sale } = fingerprint.body(body)?;
            Command::Place {
                customer: CustomerId(customer.0),
                lines: lines.into_iter().map(|line| line.0.into()).collect(),
                by: match origin {
                    // A reaction places only the orders of claims.
                    Origin::Reaction if sale.is_some() => Placer::Claim,
                    Origin::Client | Origin::Reaction => Placer::Client { has_reserved_name },
                },
                sale: sale.map(|sale| SaleId(sale.0)),
            }
        }
        "record" => {
            let Record { customer, lines, ordered_at } = fingerprint.body(body)?;
            Command::Record {
                customer: CustomerId(customer.0),
                lines: lines.into_iter().map(|line| line.0.into()).collect(),
                ordered_at: ordered_at.0,
                has_reserved_name,
            }
        }
        "confirm-line" => Command::ConfirmLine { product: ProductId(fingerprint.body::<ConfirmLine>(body)?.product.0) },
        "reject-line" => {
            let RejectLine { product, reason } = fingerprint.body(body)?;
            Command::RejectLine { product: ProductId(product.0), reason: reason.map(|text| text.0) }
        }
        "pay" => {
            let Pay { payment, amount_cents } = fingerprint.body(body)?;
            Command::Pay { payment: PaymentId(payment.0), amount_cents: amount_cents.0 }
        }
        "ship" => Command::Ship(fingerprint.body::<Sent>(body)?.into()),
        "deliver" => Command::Deliver(fingerprint.body::<Sent>(body)?.into()),
        "expire" => {
            let Expire { due_at } = fingerprint.body(body)?;
            Command::Expire { due_at: due_at.map(|time| time.0) }
        }
        "cancel" => Command::Cancel { reason: fingerprint.body::<Cancel>(body)?.reason.map(|text| text.0) },
        _ => return Err(CommandError::Unknown),
    })
}

pub(super) fn encode(command: &Command) -> (&'static str, String) {
    match command {
        Command::Place { customer, lines, sale, .. } => {
            let place = Place {
                customer: Id(customer.0.clone()),
                lines: lines.iter().map(|line| Object(line.into())).collect(),
                sale: sale.as_ref().map(|sale| Id(sale.0.clone())),
            };
            ("place", to_body(&place))
        }
        Command::Record { customer, lines, ordered_at, .. } => {
            let record = Record {
                customer: Id(customer.0.clone()),
                lines: lines.iter().map(|line| Object(line.into())).collect(),
                ordered_at: Time(*ordered_at),
            };
            ("record", to_body(&record))
        }
        Command::ConfirmLine { product } => ("confirm-line", to_body(&ConfirmLine { product: Id(product.0.clone()) })),
        Command::RejectLine { product, reason } => {
            let refused = RejectLine { product: Id(product.0.clone()), reason: reason.clone().map(Text) };
            ("reject-line", to_body(&refused))
        }
        Command::Pay { payment, amount_cents } => {
            ("pay", to_body(&Pay { payment: Id(payment.0.clone()), amount_cents: Cents(*amount_cents) }))
        }
        Command::Ship(parcel) => ("ship", to_body(&Sent::from(parcel))),
        Command::Deliver(parcel) => ("deliver", to_body(&Sent::from(parcel))),
        Command::Cancel { reason } => ("cancel", to_body(&Cancel { reason: reason.clone().map(Text) })),
        Command::Expire { due_at } => ("expire", to_body(&Expire { due_at: due_at.map(Time) })),
    }
}

impl From<&Parcel> for Sent {
    fn from(parcel: &Parcel) -> Self {
        Self { carrier: parcel.carrier.clone().map(Text), tracking: parcel.tracking.clone().map(Text) }
    }
}

impl From<&DomainLine> for Line {
    fn from(line: &DomainLine) -> Self {
        let DomainLine { product, quantity, amount_cents } = line;
        Self { product: Id(product.0.clone()), quantity: Quantity(*quantity), amount_cents: Cents(*amount_cents) }
    }
}

impl From<Sent> for Parcel {
    fn from(sent: Sent) -> Self {
        Self { carrier: sent.carrier.map(|text| text.0), tracking: sent.tracking.map(|text| text.0) }
    }
}

impl From<Line> for DomainLine {
    fn from(line: Line) -> Self {
        Self { product: ProductId(line.product.0), quantity: line.quantity.0, amount_cents: line.amount_cents.0 }
    }
}
