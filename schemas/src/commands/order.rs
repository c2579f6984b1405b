//! Bodies of order commands.

use domain::TimeMs;
use domain::ids::{CustomerId, PaymentId, ProductId, SaleId};
use domain::order::{Command, Line as DomainLine, Parcel};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fields::{Cents, Id, Object, Quantity, Text};
use super::{CommandError, Fingerprint};
use crate::time::{parse_rfc3339, rfc3339};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    customer: Id,
    lines: Vec<Object<Line>>,
    sale: Option<Id>,
    ordered_at: Option<Time>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    product: Id,
    quantity: Quantity,
    amount_cents: Cents,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfirmLine {
    product: Id,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RejectLine {
    product: Id,
    reason: Option<Text>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    reason: Option<Text>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pay {
    payment: Id,
    amount_cents: Cents,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    carrier: Option<Text>,
    tracking: Option<Text>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expire {}

struct Time(TimeMs);

pub(super) const NAMES: [&str; 8] =
    ["place", "confirm-line", "reject-line", "pay", "ship", "deliver", "cancel", "expire"];

pub(super) fn is_internal(command: &str) -> bool {
    matches!(command, "confirm-line" | "reject-line" | "expire")
}

pub(super) fn parse(command: &str, body: &[u8], fingerprint: &mut Fingerprint) -> Result<Command, CommandError> {
    Ok(match command {
        "place" => {
            let Place { customer, lines, sale, ordered_at } = fingerprint.body(body)?;
            Command::Place {
                customer: CustomerId(customer.0),
                lines: lines.into_iter().map(|line| line.0.into()).collect(),
                sale: sale.map(|sale| SaleId(sale.0)),
                ordered_at: ordered_at.map(|time| time.0),
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
            let Expire {} = fingerprint.body(body)?;
            Command::Expire
        }
        "cancel" => Command::Cancel { reason: fingerprint.body::<Cancel>(body)?.reason.map(|text| text.0) },
        _ => return Err(CommandError::Unknown),
    })
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

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        rfc3339::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        parse_rfc3339(&text).map(Self).map_err(D::Error::custom)
    }
}
