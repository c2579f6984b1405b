//! Compares the next rows with the live ones at the same position of the log.

use std::cmp::Ordering;
use std::fmt;
use std::time::Instant;

use anyhow::Context as _;
use schemas::aggregate::AggregateId;
use schemas::views::{Source, SumFold, SumTable, View};
use tokio_postgres::{Client, Row, Statement};

use super::limits::Share;

/// Maximum number of differences that are reported.
const TOLD: usize = 20;
/// Number of rows that are fetched at a time, and compared between two pauses.
const PAGE: u64 = 1_000;

/// Outcome of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Counts by partition. A view of sums counts each partition's parts; without parts, all of its rows count for the
    /// first.
    pub partitions: Vec<Compared>,
    /// First differences, up to a maximum number.
    pub differences: Vec<Difference>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    pub rows: u64,
    pub differences: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub partition: u32,
    pub key: String,
    /// Live row as JSON; `None`: no such row.
    pub live: Option<String>,
    pub next: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |row: &Option<String>| row.clone().unwrap_or_else(|| "no row".to_owned());
        write!(f, "{}: live {}, next {}", self.key, text(&self.live), text(&self.next))
    }
}

impl Comparison {
    pub fn rows(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.rows).sum()
    }

    pub fn total(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.differences).sum()
    }

    fn take(&mut self, live: Option<Found>, next: Option<Found>) {
        let Some((partition, key)) = live.as_ref().or(next.as_ref()).map(|row| (row.partition, row.key.clone())) else {
            return;
        };
        let compared = &mut self.partitions[partition as usize];
        compared.rows += 1;
        let (live, next) = (live.map(|row| row.text), next.map(|row| row.text));
        if live != next {
            compared.differences += 1;
            if self.differences.len() < TOLD {
                self.differences.push(Difference { partition, key, live, next });
            }
        }
    }
}

struct Found {
    key: String,
    partition: u32,
    text: String,
}

/// Compares for this share of the time. `live` is in a snapshot at the position of the next rows. Rows are read page by
/// page, so neither side needs to fit into memory.
pub(super) async fn compare(
    view: &View,
    partitions: u32,
    live: &Client,
    next: &Client,
    share: Share,
) -> anyhow::Result<Comparison> {
    let mut begun = Instant::now();
    let mut comparison =
        Comparison { partitions: vec![Compared::default(); partitions as usize], ..Default::default() };
    next.batch_execute("BEGIN").await?;
    let mut live = Rows::open(live, view, partitions, view.table).await?;
    let mut next = Rows::open(next, view, partitions, &format!("{}_next", view.table)).await?;
    let (mut from_live, mut from_next) = (live.pull().await?, next.pull().await?);
    for compared in 1_u64.. {
        let order = match (&from_live, &from_next) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(live), Some(next)) => (&live.key, live.partition).cmp(&(&next.key, next.partition)),
        };
        let (mut one, mut other) = (None, None);
        if order.is_le() {
            one = std::mem::replace(&mut from_live, live.pull().await?);
        }
        if order.is_ge() {
            other = std::mem::replace(&mut from_next, next.pull().await?);
        }
        comparison.take(one, other);
        if compared % PAGE == 0 {
            share.rest(begun).await;
            begun = Instant::now();
        }
    }
    next.client.batch_execute("COMMIT").await?;
    Ok(comparison)
}

/// Rows of one side, by key and partition, in byte order. A cursor returns them page by page, because Postgres ends a
/// session that leaves a result unread, as a stream would during a pause.
struct Rows<'a> {
    client: &'a Client,
    view: &'a View,
    partitions: u32,
    fetch: Statement,
    page: std::vec::IntoIter<Row>,
}

impl<'a> Rows<'a> {
    /// Declares the cursor, within the client's transaction.
    async fn open(client: &'a Client, view: &'a View, partitions: u32, table: &str) -> anyhow::Result<Self> {
        let partition = if has_parts(view) { "partition" } else { "NULL::int" };
        let sql = format!(
            "DECLARE rows NO SCROLL CURSOR FOR SELECT key, {partition}, row_to_json(rows)::text FROM {table} AS rows ORDER \
             BY key COLLATE \"C\", {partition}"
        );
        client.batch_execute(&sql).await.with_context(|| format!("read {table}"))?;
        let fetch = client.prepare(&format!("FETCH {PAGE} FROM rows")).await?;
        Ok(Self { client, view, partitions, fetch, page: Vec::new().into_iter() })
    }

    /// Returns the next row, unless this was the last one.
    async fn pull(&mut self) -> anyhow::Result<Option<Found>> {
        if self.page.as_slice().is_empty() {
            let page = self.client.query(&self.fetch, &[]).await.context("read the rows to compare")?;
            self.page = page.into_iter();
        }
        let Some(row) = self.page.next() else { return Ok(None) };
        let key: String = row.get(0);
        let partition = match self.view.source {
            Source::Aggregate(row) => AggregateId::of_log(row.aggregate, &key)?.partition(self.partitions),
            Source::Sum(_) if has_parts(self.view) => row.get::<_, i32>(1).cast_unsigned(),
            // Such rows combine all partitions.
            Source::Sum(_) | Source::View(_) => 0,
        };
        Ok(Some(Found { key, partition, text: row.get(2) }))
    }
}

fn has_parts(view: &View) -> bool {
    matches!(view.source, Source::Sum(SumFold { table: SumTable::Parts | SumTable::DatedParts, .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_surplus_or_changed_row_is_reported_with_its_partition() {
        let mut comparison = Comparison { partitions: vec![Compared::default(); 2], ..Default::default() };
        let row =
            |key: &str, partition, text: &str| Some(Found { key: key.to_owned(), partition, text: text.to_owned() });
        comparison.take(row("a", 0, "1"), row("a", 0, "1"));
        comparison.take(row("b", 1, "1"), row("b", 1, "2"));
        comparison.take(row("c", 1, "1"), None);
        comparison.take(None, row("d", 0, "1"));
        let [zero, one] = [Compared { rows: 2, differences: 1 }, Compared { rows: 2, differences: 2 }];
        assert_eq!((comparison.total(), &comparison.partitions), (3, &vec![zero, one]));
        let told: Vec<_> = comparison.differences.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["b: live 1, next 2", "c: live 1, next no row", "d: live no row, next 1"]);
    }
}
