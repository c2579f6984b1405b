//! Bodies of product commands.

use domain::ids::{OrderId, SaleId};
use domain::product::{By, Command, Holder, Registration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::{Cents, HoldSecs, Id, Quantity, Stock, Text, Time};
use super::{CommandContract, CommandError, Fingerprint, Origin, Who, contract, to_body};

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Register {
    name: Text,
    price_cents: Cents,
    stock: Stock,
    limit_per_order: Option<Quantity>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Restock {
    quantity: Quantity,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reprice {
    price_cents: Cents,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reserve {
    order: Id,
    quantity: Quantity,
    /// Duration of the reservation; without it, the units are held until they are released.
    #[serde(skip_serializing_if = "Option::is_none")]
    hold_secs: Option<HoldSecs>,
}

/// Body of a reservation made by the order's own reaction.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReserveForOrder {
    order: Id,
    quantity: Quantity,
    /// Amount that the order was placed with; not limited again, because placing the order validated it.
    #[serde(skip_serializing_if = "Option::is_none")]
    amount_cents: Option<u64>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Held {
    order: Id,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sold {
    order: Id,
    #[serde(default)]
    amount_cents: Option<u64>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Allotted {
    sale: Id,
    units: Quantity,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TakenBack {
    sale: Id,
    total: Stock,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LapseHolds {
    /// Earliest time at which the holds may lapse.
    due_at: Option<Time>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Discontinue {}

pub(super) const CONTRACTS: &[CommandContract] = &[
    contract::<Register>("register", Who::Staff, "Registers a product and puts it on sale.", &["already_registered"]),
    contract::<Restock>("restock", Who::Staff, "Adds units to the stock.", &["not_registered"]),
    contract::<Reprice>("reprice", Who::Staff, "Changes the price of the product.", &["not_registered"]),
    contract::<Reserve>(
        "reserve",
        Who::Client,
        "Reserves units under a name, independently of reservations made by an order's own reactions.",
        &["not_registered", "out_of_stock", "over_limit", "discontinued", "already_reserved", "aggregate_full"],
    )
    .by_reaction::<ReserveForOrder>(&[
        "not_registered",
        "out_of_stock",
        "over_limit",
        "discontinued",
        "already_reserved",
        "wrong_price",
        "aggregate_full",
    ]),
    contract::<Held>(
        "release",
        Who::Client,
        "Releases the units reserved under a name, unless they were reserved by an order's own reaction.",
        &["not_registered", "not_reserved", "held_by_order"],
    ),
    contract::<Sold>(
        "commit",
        Who::Internal,
        "Sells the units reserved for an order.",
        &["not_registered", "not_reserved"],
    ),
    contract::<Allotted>(
        "allot",
        Who::Internal,
        "Takes units out of the stock for a sale.",
        &["not_registered", "already_allotted", "discontinued", "out_of_stock", "aggregate_full"],
    ),
    contract::<TakenBack>(
        "take-back",
        Who::Internal,
        "Puts units of a sale back into the stock.",
        &["not_registered", "not_allotted"],
    ),
    contract::<LapseHolds>(
        "lapse-holds",
        Who::Internal,
        "Releases the units of lapsed reservations.",
        &["not_registered", "not_due"],
    ),
    contract::<Discontinue>("discontinue", Who::Staff, "Discontinues the product permanently.", &["not_registered"]),
];

pub(super) fn parse(
    command: &str,
    body: &[u8],
    origin: Origin,
    fingerprint: &mut Fingerprint,
) -> Result<Command, CommandError> {
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
        "reserve" => reserve(body, origin, fingerprint)?,
        "release" => {
            let by = match origin {
                Origin::Client => Holder::Client,
                Origin::Reaction => Holder::Order,
            };
            Command::Release { order: OrderId(fingerprint.body::<Held>(body)?.order.0), by }
        }
        "commit" => {
            let Sold { order, amount_cents } = fingerprint.body(body)?;
            Command::Commit { order: OrderId(order.0), amount_cents: amount_cents.unwrap_or_default() }
        }
        "allot" => {
            let Allotted { sale, units } = fingerprint.body(body)?;
            Command::Allot { sale: SaleId(sale.0), units: units.0 }
        }
        "take-back" => {
            let TakenBack { sale, total } = fingerprint.body(body)?;
            Command::TakeBack { sale: SaleId(sale.0), total: total.0 }
        }
        "lapse-holds" => {
            let LapseHolds { due_at } = fingerprint.body(body)?;
            Command::LapseHolds { due_at: due_at.map(|time| time.0) }
        }
        "discontinue" => {
            fingerprint.body::<Discontinue>(body)?;
            Command::Discontinue
        }
        _ => return Err(CommandError::Unknown),
    })
}

fn reserve(body: &[u8], origin: Origin, fingerprint: &mut Fingerprint) -> Result<Command, CommandError> {
    let (order, quantity, by) = match origin {
        Origin::Client => {
            let Reserve { order, quantity, hold_secs } = fingerprint.body(body)?;
            (order, quantity, By::Client { hold_secs: hold_secs.map(|secs| secs.0) })
        }
        Origin::Reaction => {
            let ReserveForOrder { order, quantity, amount_cents } = fingerprint.body(body)?;
            (order, quantity, By::Order { amount_cents })
        }
    };
    Ok(Command::Reserve { order: OrderId(order.0), quantity: quantity.0, by })
}

pub(super) fn encode(command: &Command) -> (&'static str, String) {
    match command {
        Command::Register(Registration { name, price_cents, stock, limit_per_order }) => {
            let register = Register {
                name: Text(name.clone()),
                price_cents: Cents(*price_cents),
                stock: Stock(*stock),
                limit_per_order: limit_per_order.map(Quantity),
            };
            ("register", to_body(&register))
        }
        Command::Restock { quantity } => ("restock", to_body(&Restock { quantity: Quantity(*quantity) })),
        Command::Reprice { price_cents } => ("reprice", to_body(&Reprice { price_cents: Cents(*price_cents) })),
        Command::Reserve { order, quantity, by } => {
            let (order, quantity) = (Id(order.0.clone()), Quantity(*quantity));
            let body = match by {
                By::Client { hold_secs } => to_body(&Reserve { order, quantity, hold_secs: hold_secs.map(HoldSecs) }),
                By::Order { amount_cents } => {
                    to_body(&ReserveForOrder { order, quantity, amount_cents: *amount_cents })
                }
            };
            ("reserve", body)
        }
        Command::Release { order, .. } => ("release", to_body(&Held { order: Id(order.0.clone()) })),
        Command::Commit { order, amount_cents } => {
            ("commit", to_body(&Sold { order: Id(order.0.clone()), amount_cents: Some(*amount_cents) }))
        }
        Command::Allot { sale, units } => {
            ("allot", to_body(&Allotted { sale: Id(sale.0.clone()), units: Quantity(*units) }))
        }
        Command::TakeBack { sale, total } => {
            ("take-back", to_body(&TakenBack { sale: Id(sale.0.clone()), total: Stock(*total) }))
        }
        Command::LapseHolds { due_at } => ("lapse-holds", to_body(&LapseHolds { due_at: due_at.map(Time) })),
        Command::Discontinue => ("discontinue", to_body(&Discontinue {})),
    }
}
