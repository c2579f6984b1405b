//! Bodies of sale commands.

use domain::TimeMs;
use domain::ids::{CLAIM_MARK, CustomerId, OrderId, ProductId};
use domain::sale::{Claim as DomainClaim, Command, Schedule as DomainSchedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::{Cents, Id, MAX_CENTS, OrderName, Quantity, Text, Time};
use super::{CommandContract, CommandError, Fingerprint, Who, contract, to_body};
use crate::aggregate::MAX_ID_CHARS;

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Schedule {
    product: Id,
    opens_at: Time,
    closes_at: Time,
    price_cents: Cents,
    units: Quantity,
    limit_per_customer: Quantity,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Refuse {
    reason: Option<Text>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Claim {
    customer: Id,
    quantity: Quantity,
    /// Last part of the order's ID, which consists of the sale's ID, `~` and this name. It must not contain `~`, and
    /// the ID has at most 128 characters.
    order: OrderName,
}

/// Body like [`Claim`], for an order that was already placed with this product.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Hold {
    customer: Id,
    quantity: Quantity,
    order: Id,
    product: Id,
    /// Amount for all units, as in the order.
    #[serde(skip_serializing_if = "Option::is_none")]
    amount_cents: Option<u64>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sold {
    order: Id,
    /// Amount for all units; by default their price in the sale.
    #[serde(skip_serializing_if = "Option::is_none")]
    amount_cents: Option<u64>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Return {
    order: Id,
    is_ordered: Option<bool>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InTime {
    /// Earliest time at which the command may take effect; by default now.
    due_at: Option<Time>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

pub(super) const CONTRACTS: &[CommandContract] = &[
    contract::<Schedule>("schedule", Who::Staff, "Schedules a sale.", &["already_scheduled", "bad_window"]),
    contract::<Nothing>(
        "stock",
        Who::Internal,
        "Confirms that the product provided the units.",
        &["not_scheduled", "already_refused"],
    ),
    contract::<Refuse>(
        "refuse",
        Who::Internal,
        "Refuses the sale for lack of units.",
        &["not_scheduled", "already_stocked"],
    ),
    contract::<InTime>(
        "open",
        Who::Staff,
        "Opens the sale early; it opens automatically at `opens_at`.",
        &["not_scheduled", "already_closed", "already_refused", "not_due"],
    ),
    contract::<InTime>("close", Who::Staff, "Closes the sale.", &["not_scheduled", "not_due"]),
    contract::<Claim>(
        "claim",
        Who::Client,
        "Claims units for a new order of a customer.",
        &["sale_not_open", "already_claimed", "sold_out", "over_limit", "aggregate_full"],
    ),
    contract::<Hold>(
        "hold",
        Who::Internal,
        "Claims units for an order that was already placed.",
        &[
            "sale_not_open",
            "already_claimed",
            "sold_out",
            "over_limit",
            "other_product",
            "wrong_price",
            "aggregate_full",
        ],
    ),
    contract::<Return>("return", Who::Internal, "Returns the units that an order claimed.", &["not_claimed"]),
    contract::<Sold>("commit", Who::Internal, "Sells the units that an order claimed.", &["not_claimed"]),
];

/// Parses a command for the sale `id`.
pub(super) fn parse(
    id: &str,
    command: &str,
    body: &[u8],
    fingerprint: &mut Fingerprint,
) -> Result<Command, CommandError> {
    Ok(match command {
        "schedule" => {
            let wish = fingerprint.body(body)?;
            check_amount(&wish)?;
            Command::Schedule(wish.into())
        }
        "stock" => fingerprint.body::<Nothing>(body).map(|Nothing {}| Command::Stock)?,
        "refuse" => Command::Refuse { reason: fingerprint.body::<Refuse>(body)?.reason.map(|text| text.0) },
        "open" => Command::Open { due_at: due_at(fingerprint.body(body)?) },
        "close" => Command::Close { due_at: due_at(fingerprint.body(body)?) },
        "claim" => Command::Claim(claim(id, fingerprint.body(body)?)?),
        "hold" => {
            let Hold { customer, quantity, order, product, amount_cents } = fingerprint.body(body)?;
            let (customer, order) = (CustomerId(customer.0), OrderId(order.0));
            let claim = DomainClaim { customer, quantity: quantity.0, order };
            Command::Hold { claim, product: ProductId(product.0), amount_cents }
        }
        "return" => {
            let Return { order, is_ordered } = fingerprint.body(body)?;
            Command::Return { order: OrderId(order.0), is_ordered }
        }
        "commit" => {
            let Sold { order, amount_cents } = fingerprint.body(body)?;
            Command::Commit { order: OrderId(order.0), amount_cents }
        }
        _ => return Err(CommandError::Unknown),
    })
}

pub(super) fn encode(command: &Command) -> (&'static str, String) {
    match command {
        Command::Schedule(wish) => ("schedule", to_body(&Schedule::from(wish))),
        Command::Stock => ("stock", to_body(&Nothing {})),
        Command::Refuse { reason } => ("refuse", to_body(&Refuse { reason: reason.clone().map(Text) })),
        Command::Open { due_at } => ("open", to_body(&InTime { due_at: due_at.map(Time) })),
        Command::Close { due_at } => ("close", to_body(&InTime { due_at: due_at.map(Time) })),
        Command::Claim(DomainClaim { customer, quantity, order }) => {
            let name = order.0.rsplit_once(CLAIM_MARK).map_or(&*order.0, |(_, name)| name);
            let (customer, order) = (Id(customer.0.clone()), OrderName(name.into()));
            ("claim", to_body(&Claim { customer, quantity: Quantity(*quantity), order }))
        }
        Command::Hold { claim, product, amount_cents } => {
            let (customer, order) = (Id(claim.customer.0.clone()), Id(claim.order.0.clone()));
            let quantity = Quantity(claim.quantity);
            let (product, amount_cents) = (Id(product.0.clone()), *amount_cents);
            ("hold", to_body(&Hold { customer, quantity, order, product, amount_cents }))
        }
        Command::Return { order, is_ordered } => {
            ("return", to_body(&Return { order: Id(order.0.clone()), is_ordered: *is_ordered }))
        }
        Command::Commit { order, amount_cents } => {
            ("commit", to_body(&Sold { order: Id(order.0.clone()), amount_cents: *amount_cents }))
        }
    }
}

fn due_at(InTime { due_at }: InTime) -> Option<TimeMs> {
    due_at.map(|time| time.0)
}

/// Converts a claim, putting the sale's ID in front of the order's name.
fn claim(sale: &str, Claim { customer, quantity, order }: Claim) -> Result<DomainClaim, CommandError> {
    let order = OrderId::of_claim(sale, &order.0);
    if order.0.len() > MAX_ID_CHARS {
        let detail = format!("order: with the sale's ID in front, {:?} exceeds {MAX_ID_CHARS} characters", order.0);
        return Err(CommandError::Body(detail));
    }
    Ok(DomainClaim { customer: CustomerId(customer.0), quantity: quantity.0, order })
}

/// Checks that the maximum claim of a customer does not exceed the limit of an order, which could not be placed
/// otherwise.
fn check_amount(wish: &Schedule) -> Result<(), CommandError> {
    let most = wish.units.0.min(wish.limit_per_customer.0);
    if wish.price_cents.0.saturating_mul(u64::from(most)) > MAX_CENTS {
        let detail = format!("price_cents: the maximum claim of a customer exceeds {MAX_CENTS} cents");
        return Err(CommandError::Body(detail));
    }
    Ok(())
}

impl From<Schedule> for DomainSchedule {
    fn from(wish: Schedule) -> Self {
        Self {
            product: ProductId(wish.product.0),
            opens_at: wish.opens_at.0,
            closes_at: wish.closes_at.0,
            price_cents: wish.price_cents.0,
            units: wish.units.0,
            limit_per_customer: wish.limit_per_customer.0,
        }
    }
}

impl From<&DomainSchedule> for Schedule {
    fn from(wish: &DomainSchedule) -> Self {
        Self {
            product: Id(wish.product.0.clone()),
            opens_at: Time(wish.opens_at),
            closes_at: Time(wish.closes_at),
            price_cents: Cents(wish.price_cents),
            units: Quantity(wish.units),
            limit_per_customer: Quantity(wish.limit_per_customer),
        }
    }
}
