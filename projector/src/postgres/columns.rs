//! Converts rows to columns, because a statement takes one array per column.

use std::collections::HashMap;
use std::ops::Range;

use schemas::views::sums::Delta;
use schemas::views::{Kind, View};
use serde_json::value::RawValue;
use tokio_postgres::types::ToSql;

use super::error::StoreError;
use crate::fold;
use crate::journal::RepeatRows;
use crate::parked::ParkedRecord;

pub(crate) type Param<'a> = &'a (dyn ToSql + Sync);

/// Columns of a view in which each aggregate has its own row.
pub(super) struct Rows {
    pub(super) keys: Vec<String>,
    versions: Vec<i64>,
    data: Vec<String>,
    /// Values of each of the view's own columns, as text.
    fields: Vec<Vec<Option<String>>>,
}

impl Rows {
    pub(super) fn new(view: &View, rows: &fold::Rows) -> Result<Self, StoreError> {
        let fields = view.columns.iter().map(|_| Vec::with_capacity(rows.len())).collect();
        let mut columns = Self { keys: Vec::new(), versions: Vec::new(), data: Vec::new(), fields };
        for (key, (version, row)) in rows {
            columns.keys.push(key.clone());
            columns.versions.push(version.cast_signed());
            let json = serde_json::to_string(row).map_err(StoreError::Row)?;
            columns.push_fields(view, &json).map_err(StoreError::Row)?;
            columns.data.push(json);
        }
        Ok(columns)
    }

    fn push_fields(&mut self, view: &View, json: &str) -> Result<(), serde_json::Error> {
        if view.columns.is_empty() {
            return Ok(());
        }
        let values: HashMap<&str, &RawValue> = serde_json::from_str(json)?;
        for (column, name) in self.fields.iter_mut().zip(view.columns) {
            let value = values.get(name).map(|value| value.get()).filter(|value| *value != "null");
            column.push(match (value, view.field(name).map(|field| field.kind)) {
                (Some(value), Some(Kind::Time)) => Some(value.trim_matches('"').trim_end_matches('Z').to_owned()),
                (Some(value), Some(Kind::Id | Kind::Text | Kind::OneOf(_))) => serde_json::from_str(value)?,
                (value, _) => value.map(str::to_owned),
            });
        }
        Ok(())
    }

    pub(super) fn params(&self) -> Vec<Param<'_>> {
        let rows: [Param<'_>; 3] = [&self.keys, &self.versions, &self.data];
        rows.into_iter().chain(self.fields.iter().map(|column| -> Param<'_> { column })).collect()
    }

    /// Returns the statement that takes [`Self::params`].
    pub(super) fn upsert(view: &View) -> String {
        let each = |column: &dyn Fn(usize, &str) -> String| -> String {
            view.columns.iter().enumerate().map(|(index, name)| format!(", {}", column(index, name))).collect()
        };
        let sql = |name: &str| view.field(name).map_or("text", |field| field.kind.sql());
        include_str!("upsert_rows.sql")
            .replace("{columns}", &each(&|_, name| name.to_owned()))
            .replace("{values}", &each(&|_, name| format!("{name}::{}", sql(name))))
            .replace("{params}", &each(&|index, _| format!("${}::text[]", index + 4)))
            .replace("{sets}", &each(&|_, name| format!("{name} = excluded.{name}")))
    }
}

pub(super) fn repeats_params<'a>(rows: &'a RepeatRows, taken: &'a Range<i64>) -> [Param<'a>; 6] {
    let RepeatRows { keys, at_ms, partitions, offsets } = rows;
    [keys, at_ms, partitions, offsets, &taken.start, &taken.end]
}

/// Columns of the table `parked`.
#[derive(Default)]
pub(crate) struct ParkedRecords<'a> {
    views: Vec<&'static str>,
    aggregates: Vec<&'a str>,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    versions: Vec<i64>,
    reasons: Vec<Option<&'a str>>,
    records: Vec<&'a [u8]>,
}

impl<'a> ParkedRecords<'a> {
    pub(crate) fn new(parked: &'a [ParkedRecord]) -> Self {
        let mut columns = Self::default();
        for ParkedRecord { view, aggregate, partition, offset, version, reason, record } in parked {
            columns.views.push(view);
            columns.aggregates.push(aggregate);
            columns.partitions.push(partition.cast_signed());
            columns.offsets.push(*offset);
            columns.versions.push(version.cast_signed());
            columns.reasons.push(reason.as_deref());
            columns.records.push(record);
        }
        columns
    }

    pub(crate) fn params(&self) -> [Param<'_>; 7] {
        let Self { views, aggregates, partitions, offsets, versions, reasons, records } = self;
        [views, aggregates, partitions, offsets, versions, reasons, records]
    }
}

/// Columns of a summed view. Deltas without times have zeros.
#[derive(Default)]
pub(super) struct Parts {
    keys: Vec<String>,
    partitions: Vec<i32>,
    events: Vec<i64>,
    orders: Vec<i64>,
    /// Units as text, which Postgres converts to numbers of any size.
    units: Vec<String>,
    amounts: Vec<String>,
    first_ms: Vec<i64>,
    last_ms: Vec<i64>,
}

impl Parts {
    pub(super) fn new(parts: &HashMap<(String, u32), Delta>) -> Self {
        let mut columns = Self::default();
        for ((key, partition), Delta { events, sums, times }) in parts {
            columns.keys.push(key.clone());
            columns.partitions.push(partition.cast_signed());
            columns.events.push(*events);
            columns.orders.push(sums.orders);
            columns.units.push(sums.units.to_string());
            columns.amounts.push(sums.amount_cents.to_string());
            let (first, last) = times.unwrap_or_default();
            columns.first_ms.push(first.0.cast_signed());
            columns.last_ms.push(last.0.cast_signed());
        }
        columns
    }

    pub(super) fn params(&self) -> [Param<'_>; 8] {
        let Self { keys, partitions, events, orders, units, amounts, first_ms, last_ms } = self;
        [keys, partitions, events, orders, units, amounts, first_ms, last_ms]
    }
}

#[cfg(test)]
mod tests {
    use domain::TimeMs;
    use schemas::feeds::StoredView;
    use schemas::views::sums::Sums;

    use super::*;
    use crate::parked::REACTOR;

    /// Returns the values of a view's own columns for a row.
    fn fields(view: &str, json: &str) -> Result<Vec<Option<String>>, serde_json::Error> {
        let view = StoredView::named(view).unwrap().view();
        let mut columns = Rows::new(view, &fold::Rows::new()).unwrap();
        columns.push_fields(view, json)?;
        Ok(columns.fields.into_iter().map(|mut column| column.pop().unwrap()).collect())
    }

    fn some(values: [&str; 3]) -> Vec<Option<String>> {
        values.map(|value| Some(value.to_owned())).to_vec()
    }

    #[test]
    fn a_text_is_written_without_its_quotes_and_escapes_and_a_time_without_its_z() {
        let row = r#"{"ordered_at":"2026-01-01T00:00:00.120Z","status":"paid","customer":"a \"b\" \u00e9Z","x":1}"#;
        assert_eq!(fields("order", row).unwrap(), some(["a \"b\" \u{e9}Z", "paid", "2026-01-01T00:00:00.120"]));
    }

    #[test]
    fn numbers_and_booleans_are_written_as_json_has_them() {
        let row = r#"{"price_cents":9223372036854775807,"discontinued":false,"available":-1}"#;
        assert_eq!(fields("product", row).unwrap(), some(["9223372036854775807", "false", "-1"]));
    }

    #[test]
    fn a_field_that_is_null_or_missing_is_null_in_its_column() {
        assert_eq!(fields("sale", r#"{"product":null,"opens_at":null}"#).unwrap(), [None, None, None]);
        assert_eq!(fields("order", r#"{"customer":"null"}"#).unwrap(), [Some("null".to_owned()), None, None]);
        assert!(fields("order", "[]").is_err());
    }

    #[test]
    fn a_view_without_columns_of_its_own_has_three_parameters_and_any_other_one_more_for_each() {
        for view in StoredView::all().map(StoredView::view) {
            let (params, upsert) = (3 + view.columns.len(), Rows::upsert(view));
            assert_eq!(Rows::new(view, &fold::Rows::new()).unwrap().params().len(), params);
            assert!(upsert.contains(&format!("${params}::")), "{upsert}");
            assert!(!upsert.contains(&format!("${}::", params + 1)), "{upsert}");
            assert!(view.columns.iter().all(|name| upsert.contains(&format!("{name} = excluded.{name}"))), "{upsert}");
            let left: Vec<_> = upsert.match_indices('{').map(|(at, _)| &upsert[at..]).collect();
            assert!(left.iter().all(|left| left.starts_with("{table}")), "{upsert}");
        }
    }

    #[test]
    fn sums_beyond_64_bits_are_written_in_full_and_deltas_without_times_as_zeros() {
        let sums = Sums { orders: 3, units: i128::from(i64::MAX) + 1, amount_cents: i128::MIN };
        let timed = Delta { events: 2, sums, times: Some((TimeMs(1), TimeMs(2))) };
        for (delta, times) in [(timed, (1, 2)), (Delta { times: None, ..timed }, (0, 0))] {
            let parts = Parts::new(&HashMap::from([(("a".to_owned(), u32::MAX), delta)]));
            assert_eq!((&parts.keys[..], &parts.partitions[..]), (&["a".to_owned()][..], &[-1][..]));
            assert_eq!((parts.events[0], parts.orders[0]), (2, 3));
            assert_eq!(parts.units, ["9223372036854775808"]);
            assert_eq!(parts.amounts, [i128::MIN.to_string()]);
            assert_eq!((parts.first_ms[0], parts.last_ms[0]), times);
        }
    }

    #[test]
    fn parked_records_are_written_in_their_order_and_keep_a_reason_only_where_there_is_one() {
        let parked = |offset, reason: Option<&str>| ParkedRecord {
            view: REACTOR,
            aggregate: format!("order/{offset}"),
            partition: 2,
            offset,
            version: 1,
            reason: reason.map(str::to_owned),
            record: vec![offset as u8],
        };
        let parked = [parked(7, Some("it is late")), parked(3, None)];
        let columns = ParkedRecords::new(&parked);
        assert_eq!((columns.aggregates, columns.offsets), (vec!["order/7", "order/3"], vec![7, 3]));
        assert_eq!((columns.reasons, columns.records), (vec![Some("it is late"), None], vec![&[7][..], &[3]]));
    }
}
