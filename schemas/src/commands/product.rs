//! Bodies of product commands.

use domain::ids::OrderId;
use domain::product::{Command, Registration};
use serde::{Deserialize, Serialize};

use super::fields::{Cents, Id, Quantity, Stock, Text};
use super::{CommandError, Fingerprint};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Register {
    name: Text,
    price_cents: Cents,
    stock: Stock,
    limit_per_order: Option<Quantity>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Restock {
    quantity: Quantity,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reprice {
    price_cents: Cents,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reserve {
    order: Id,
    quantity: Quantity,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    order: Id,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Discontinue {}

pub(super) const NAMES: [&str; 7] = ["register", "restock", "reprice", "reserve", "release", "commit", "discontinue"];

pub(super) fn is_internal(command: &str) -> bool {
    command == "commit"
}

pub(super) fn parse(command: &str, body: &[u8], fingerprint: &mut Fingerprint) -> Result<Command, CommandError> {
    Ok(match command {
        "register" => {
            let Register { name, price_cents, stock, limit_per_order } = fingerprint.body(body)?;
            Command::Register(Registration {
                name: name.0,
                price_cents: price_cents.0,
                stock: stock.0,
                limit_per_order: limit_per_order.map(|limit| limit.0),
            })
        }
        "restock" => Command::Restock { quantity: fingerprint.body::<Restock>(body)?.quantity.0 },
        "reprice" => Command::Reprice { price_cents: fingerprint.body::<Reprice>(body)?.price_cents.0 },
        "reserve" => {
            let Reserve { order, quantity } = fingerprint.body(body)?;
            Command::Reserve { order: OrderId(order.0), quantity: quantity.0 }
        }
        "release" => Command::Release { order: OrderId(fingerprint.body::<Held>(body)?.order.0) },
        "commit" => Command::Commit { order: OrderId(fingerprint.body::<Held>(body)?.order.0) },
        "discontinue" => {
            fingerprint.body::<Discontinue>(body)?;
            Command::Discontinue
        }
        _ => return Err(CommandError::Unknown),
    })
}
