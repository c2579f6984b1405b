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
