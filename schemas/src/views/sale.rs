//! `sale`: status, units and claim rate of a sale.

use domain::sale::{Event, Schedule};
use domain::{AggregateType, Event as AnyEvent, TimeMs};
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{AggregateRow, KEY_ORDER, Key, Kind, Natural, RowFold, Source, View, field, list};

pub const VIEW: View = View {
    name: "sale",
    about: "Status, units and claim rate of a sale.",
    relation: "view_sale",
    source: Source::Aggregate(RowFold {
        aggregate: AggregateType::Sale,
        fold: |row, event, at| match (row, event) {
            (Some(AggregateRow::Sale(row)), AnyEvent::Sale(event)) => Some(AggregateRow::Sale(next(row, event, at))),
            (None, AnyEvent::Sale(Event::Scheduled(schedule))) => Some(AggregateRow::Sale(first(schedule))),
            // No other event creates a row, and events of another aggregate type do not occur.
            (row, _) => row,
        },
        read: |json| serde_json::from_str(json).map(AggregateRow::Sale),
        schema: SchemaGenerator::subschema_for::<SaleRow>,
    }),
    natural: Natural::Row("sales"),
    is_personal: false,
    key: Key::Id,
    fields: &[
        field("product", Kind::Id),
        field("status", Kind::OneOf(&["scheduled", "stocked", "open", "closed", "refused"])),
        field("units", Kind::Integer),
        field("claimed", Kind::Integer),
        field("left", Kind::Integer),
        field("committed", Kind::Integer),
        field("returned", Kind::Integer),
        field("customers", Kind::Integer),
        field("claims_per_second", Kind::Integer),
        field("claims_since", Kind::Integer),
        field("last_claim_at", Kind::Time),
        field("price_cents", Kind::Integer),
        field("limit_per_customer", Kind::Integer),
        field("opens_at", Kind::Time),
        field("closes_at", Kind::Time),
        field("reason", Kind::Text),
    ],
    key_range: None,
    table: "sale_rows",
    columns: &["product", "status", "opens_at"],
    form: 2,
    lists: &[
        list(KEY_ORDER, &[]),
        list("opens_at", &[]),
        list("opens_at", &["status"]),
        list("opens_at", &["product"]),
    ],
    nested: &[],
};

/// A row of `sale`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SaleRow {
    pub product: String,
    pub status: SaleStatus,
    /// Set when the sale is opened, by its schedule or by a command. It accepts claims once it has its units.
    pub opened: bool,
    pub units: u64,
    /// Claimed units that were not returned.
    pub claimed: u64,
    /// Units that can still be claimed, or could when the sale closed.
    pub left: u64,
    /// Claimed units that were paid.
    pub committed: u64,
    /// Claimed units that were returned.
    pub returned: u64,
    /// Number of customers with a claim that was not returned.
    pub customers: u64,
    /// Number of claims in the whole second before that of `last_claim_at`; 0 once the sale is closed. A row changes
    /// only with an event: if `last_claim_at` is long past, the current rate is 0.
    pub claims_per_second: u64,
    /// Number of claims since the beginning of the second of `last_claim_at`; 0 once the sale is closed.
    pub claims_since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::time::rfc3339::option")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub last_claim_at: Option<TimeMs>,
    pub price_cents: u64,
    pub limit_per_customer: u64,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub opens_at: TimeMs,
    #[serde(with = "crate::time::rfc3339")]
    #[schemars(schema_with = "crate::time::rfc3339::schema")]
    pub closes_at: TimeMs,
    /// Reason why the sale was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SaleStatus {
    /// The units have not been taken out of the product's stock yet.
    Scheduled,
    /// The units have been taken; the sale opens at its scheduled time.
    Stocked,
    /// The sale accepts claims.
    Open,
    Closed,
    /// The product had no units for the sale.
    Refused,
}

fn first(schedule: &Schedule) -> SaleRow {
    SaleRow {
        product: schedule.product.0.to_string(),
        status: SaleStatus::Scheduled,
        opened: false,
        units: schedule.units.into(),
        claimed: 0,
        left: schedule.units.into(),
        committed: 0,
        returned: 0,
        customers: 0,
        claims_per_second: 0,
        claims_since: 0,
        last_claim_at: None,
        price_cents: schedule.price_cents,
        limit_per_customer: schedule.limit_per_customer.into(),
        opens_at: schedule.opens_at,
        closes_at: schedule.closes_at,
        reason: None,
    }
}

fn next(mut row: SaleRow, event: &Event, at: TimeMs) -> SaleRow {
    match event {
        Event::Scheduled(_) => {}
        Event::Stocked if row.status == SaleStatus::Scheduled => {
            row.status = if row.opened { SaleStatus::Open } else { SaleStatus::Stocked };
        }
        // The sale was already closed.
        Event::Stocked => {}
        Event::Refused { reason } => {
            (row.status, row.left) = (SaleStatus::Refused, 0);
            row.reason = reason.as_deref().map(str::to_owned);
        }
        Event::Opened => {
            row.opened = true;
            if row.status == SaleStatus::Stocked {
                row.status = SaleStatus::Open;
            }
        }
        Event::Closed { .. } => {
            row.status = SaleStatus::Closed;
            (row.claims_per_second, row.claims_since) = (0, 0);
        }
        Event::Claimed { quantity, is_first, .. } => {
            row.claimed += u64::from(*quantity);
            row.left = row.left.saturating_sub(u64::from(*quantity));
            row.customers += u64::from(*is_first);
            count(&mut row, at);
        }
        Event::Returned { quantity, is_last, given_back, .. } => {
            row.claimed = row.claimed.saturating_sub(u64::from(*quantity));
            row.returned += u64::from(*quantity);
            row.customers = row.customers.saturating_sub(u64::from(*is_last));
            if given_back.is_none() {
                row.left += u64::from(*quantity);
            }
        }
        Event::Committed { quantity, .. } => row.committed += u64::from(*quantity),
    }
    row
}

fn count(row: &mut SaleRow, at: TimeMs) {
    let second = |time: TimeMs| time.0 / 1000;
    let passed = row.last_claim_at.map_or(u64::MAX, |last| second(at).saturating_sub(second(last)));
    if passed > 0 {
        (row.claims_per_second, row.claims_since) = (if passed == 1 { row.claims_since } else { 0 }, 0);
    }
    row.claims_since += 1;
    row.last_claim_at = Some(at);
}

#[cfg(test)]
mod tests {
    use domain::ids::{CustomerId, OrderId, ProductId};

    use super::*;

    fn row(events: &[(u64, Event)]) -> SaleRow {
        let schedule = Schedule {
            product: ProductId("cd".into()),
            opens_at: TimeMs(0),
            closes_at: TimeMs(9_000),
            price_cents: 5,
            units: 10,
            limit_per_customer: 4,
        };
        events.iter().fold(first(&schedule), |row, (at, event)| next(row, event, TimeMs(*at)))
    }

    fn claimed(quantity: u32, is_first: bool) -> Event {
        let (order, customer, product) = (OrderId("o".into()), CustomerId("c".into()), ProductId("cd".into()));
        Event::Claimed { order, customer, quantity, product, amount_cents: 5, is_first, is_ordered: false }
    }

    fn returned(quantity: u32, given_back: Option<u32>, is_last: bool) -> Event {
        let (order, customer, product) = (OrderId("o".into()), CustomerId("c".into()), ProductId("cd".into()));
        Event::Returned { order, customer, quantity, product, given_back, is_last }
    }

    #[test]
    fn units_are_left_until_they_are_claimed_and_again_when_they_are_returned() {
        let given = [(1, Event::Stocked), (2, claimed(3, true)), (3, claimed(1, false)), (4, returned(1, None, false))];
        let now = row(&given);
        assert_eq!((now.status, now.claimed, now.left, now.returned, now.customers), (SaleStatus::Stocked, 3, 7, 1, 1));
        let closed = Event::Closed { product: ProductId("cd".into()), given_back: 7 };
        let after = row(&[&given[..], &[(5, closed), (6, returned(3, Some(10), true))]].concat());
        assert_eq!((after.status, after.claimed, after.left, after.customers), (SaleStatus::Closed, 0, 7, 0));
    }

    #[test]
    fn a_sale_is_open_once_it_is_opened_and_has_its_units_whichever_comes_first() {
        let statuses =
            |events: [Event; 2]| [1, 2].map(|many| row(&events.clone().map(|event| (1, event))[..many]).status);
        assert_eq!(statuses([Event::Stocked, Event::Opened]), [SaleStatus::Stocked, SaleStatus::Open]);
        assert_eq!(statuses([Event::Opened, Event::Stocked]), [SaleStatus::Scheduled, SaleStatus::Open]);
    }

    #[test]
    fn claims_are_counted_by_the_second() {
        let claims = [100, 200, 1_000, 1_999, 1_999, 2_000].map(|at| (at, claimed(1, true)));
        let now = row(&claims);
        assert_eq!((now.claims_per_second, now.claims_since, now.last_claim_at), (3, 1, Some(TimeMs(2_000))));
        let json = serde_json::to_string(&now).unwrap();
        assert_eq!(serde_json::from_str::<SaleRow>(&json).unwrap(), now);
        let after_a_pause = row(&[(100, claimed(1, true)), (2_100, claimed(1, true))]);
        assert_eq!((after_a_pause.claims_per_second, after_a_pause.claims_since), (0, 1));
    }

    #[test]
    fn a_closed_sale_has_no_rate() {
        let closed = Event::Closed { product: ProductId("cd".into()), given_back: 7 };
        let now = row(&[(100, claimed(1, true)), (1_100, claimed(1, true)), (1_200, closed)]);
        assert_eq!((now.claims_per_second, now.claims_since, now.last_claim_at), (0, 0, Some(TimeMs(1_100))));
    }
}
