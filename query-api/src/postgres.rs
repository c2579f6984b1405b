//! Reads of the views and the journal from Postgres.
//!
//! Every statement also returns the checkpoints of its snapshot, so an answer carries the positions that it shows,
//! whichever server it came from.
//!
//! Invariant: only lists and sums read rows or checkpoints of more than one partition.

mod server;
mod replicas;
pub(crate) mod instances;

use chassis::postgres::{PostgresError, PostgresSettings};
use schemas::aggregate::{AggregateId, type_name};
use schemas::feeds::ViewId;
use schemas::journal::{StoredCommit, StoredEvent};
use schemas::settings;
use schemas::token::{LogId, Token};
use schemas::views::{JOURNAL, Source, VIEWS, View, row_body};
use tokio_postgres::Row as SqlRow;

pub use server::PLANNER;
pub(crate) use server::{Limits, StoreError};

use crate::lists::{ListQuery, Position};
use crate::positions::{Applied, FormerLogs, Log, NOTHING, Scope, Shows};
use crate::redis::Place;
use crate::row::{Loaded, Parked, Row, RowKey};
use replicas::Replicas;
use server::{Param, Server};

pub(crate) struct Store {
    primary: Server,
    replicas: Replicas,
    /// Statements that read a single row, indexed by [`ViewId::index`].
    row_sql: [String; VIEWS.len()],
}

/// Generation and revision of the rows that were read.
#[derive(Debug, Default)]
pub(crate) struct Made {
    generation: u32,
    /// Revision of the partition, or the sum over all partitions.
    revision: Option<i64>,
}

impl Made {
    /// Returns whether Redis has rows of the same generation and revision at `place`.
    pub(crate) fn is_of(&self, place: &Place) -> bool {
        self.generation == place.making.generation && self.revision == Some(place.revision)
    }
}

/// The servers that may answer a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// A replica, or the primary if no replica can answer.
    Any,
    Primary,
}

/// A row of a list.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) position: Position,
    pub(crate) body: String,
}

/// The events of one aggregate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventStream<'a> {
    pub(crate) aggregate: &'a str,
    pub(crate) partition: u32,
}

impl<'a> EventStream<'a> {
    pub(crate) fn of(id: &'a AggregateId, log: Log) -> Self {
        Self { aggregate: id.as_str(), partition: id.partition(log.partitions) }
    }
}

/// A page of an aggregate's events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventPage {
    /// Version after which the page begins.
    pub(crate) after: i64,
    pub(crate) limit: i64,
}

/// An event of the journal.
#[derive(Debug)]
pub(crate) struct JournalEvent {
    pub(crate) version: i64,
    pub(crate) r#type: String,
    pub(crate) data: String,
    pub(crate) at_ms: i64,
    pub(crate) origin: Origin,
    pub(crate) command_id: String,
    pub(crate) cause: Option<String>,
    pub(crate) trace: Option<String>,
}

/// Position at which an event was written first.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// The log; `None` for this one.
    pub(crate) log: Option<LogId>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

impl Origin {
    /// Parses the origin in a copied record, a token of one position.
    fn parse(text: &str) -> Option<Self> {
        let Token { log, positions } = text.parse().ok()?;
        let (partition, offset) = positions.into_iter().next()?;
        Some(Self { log: Some(log), partition: partition.cast_signed(), offset })
    }
}

impl Store {
    /// Creates the pools. Postgres does not need to be reachable yet.
    pub(crate) fn connect(
        postgres: &PostgresSettings,
        replicas: &[PostgresSettings],
        limits: Limits,
    ) -> Result<Self, PostgresError> {
        Ok(Self {
            primary: Server::connect(postgres, limits)?,
            replicas: Replicas::connect(replicas, limits)?,
            row_sql: ViewId::all().map(row_sql),
        })
    }

    /// Returns the row, if it exists, with the generation and revision of its view.
    pub(crate) async fn row(
        &self,
        side: Side,
        RowKey { view, key, scope }: RowKey<'_>,
    ) -> Result<(Loaded<Option<Row>>, Made), StoreError> {
        let (feed, partition) = (view.feed().name(), scope.partition().map(u32::cast_signed));
        let params: [Param<'_>; 3] = [&feed, &key, &partition];
        let (rows, is_copy) = self.query(side, &self.row_sql[view.index()], &params).await?;
        let made = rows.first().and_then(|row| {
            let generation = row.get::<_, Option<i32>>(3)?.cast_unsigned();
            Some(Made { generation, revision: row.get(4) })
        });
        let made = made.unwrap_or_default();
        let row = rows.first().and_then(|row| {
            let version = row.get::<_, Option<i64>>(1)?.cast_unsigned();
            Some(Row { version, generation: made.generation, body: row_body(key, version, row.get(2)).into() })
        });
        let parked = rows.first().and_then(|row| {
            let offset = row.get::<_, Option<i64>>(5)?;
            Some(if matches!(scope, Scope::One(_)) { Parked::From(offset) } else { Parked::Something })
        });
        Ok((Loaded { found: row, shows: shows(&rows, scope), is_copy, parked }, made))
    }

    /// Returns whether a token names exactly the position of a record that is parked for the view.
    pub(crate) async fn names_parked(&self, view: ViewId, token: &Token) -> Result<bool, StoreError> {
        let place = |(partition, offset): (&u32, &i64)| (partition.cast_signed(), *offset);
        let (partitions, offsets): (Vec<_>, Vec<_>) = token.positions.iter().map(place).unzip();
        let sql = include_str!("postgres/names_parked.sql");
        Ok(!self.primary.query(sql, &[&view.feed().name(), &partitions, &offsets]).await?.is_empty())
    }

    pub(crate) async fn page(&self, side: Side, query: &ListQuery) -> Result<Loaded<Vec<Listed>>, StoreError> {
        let ((sql, values), feed) = (query.statement(), query.view.feed().name());
        let mut params: Vec<Param<'_>> = vec![&feed, &query.limit];
        params.extend(values.into_iter().map(|value| -> Param<'_> { value }));
        let (rows, is_copy) = self.query(side, &sql, &params).await?;
        let found = rows.iter().filter_map(|row| {
            let key: String = row.get::<_, Option<_>>(1)?;
            let body = row_body(&key, row.get::<_, i64>(2).cast_unsigned(), row.get(3));
            Some(Listed { position: Position { value: row.get(4), key }, body })
        });
        let parked = rows.first().is_some_and(|row| row.get(5)).then_some(Parked::Something);
        Ok(Loaded { found: found.collect(), shows: shows(&rows, Scope::All), is_copy, parked })
    }

    /// Returns a page of an aggregate's events.
    pub(crate) async fn history(
        &self,
        EventStream { aggregate, partition }: EventStream<'_>,
        EventPage { after, limit }: EventPage,
    ) -> Result<Loaded<Vec<JournalEvent>>, StoreError> {
        let (scope, partition) = (Scope::One(partition), partition.cast_signed());
        let params: [Param<'_>; 5] = [&JOURNAL, &aggregate, &partition, &after, &limit];
        let rows = self.primary.query(include_str!("postgres/history.sql"), &params).await?;
        let mut found = Vec::new();
        for row in &rows {
            let Some(record) = row.get::<_, Option<&[u8]>>(2) else { continue };
            let commit = StoredCommit::read(record)?;
            let origin = commit.origin.as_deref().and_then(Origin::parse);
            let event = |(version, event): (u64, &StoredEvent<'_>)| JournalEvent {
                version: version.cast_signed(),
                r#type: event.name.to_string(),
                data: event.data.get().to_owned(),
                at_ms: commit.at_ms.cast_signed(),
                origin: origin.clone().unwrap_or_else(|| Origin { log: None, partition, offset: row.get(1) }),
                command_id: commit.command_id.to_string(),
                cause: commit.cause.as_deref().map(str::to_owned),
                trace: commit.trace.as_deref().map(str::to_owned),
            };
            found.extend(commit.events_after(after.cast_unsigned()).map(event));
        }
        found.truncate(usize::try_from(limit).unwrap_or_default());
        Ok(Loaded { found, shows: shows(&rows, scope), is_copy: false, parked: None })
    }

    /// Returns the version and the JSON of a row that this build's fold made, from the primary.
    pub(crate) async fn kept_row(&self, view: &View, key: &str) -> Result<Option<(i64, String)>, StoreError> {
        let sql = include_str!("postgres/kept_row.sql").replace("{relation}", view.relation);
        let rows = self.primary.query(&sql, &[&view.name, &key, &view.form]).await?;
        Ok(rows.first().map(|row| (row.get(0), row.get(1))))
    }

    /// Returns the Redis prefix that the projector stored, if any, bypassing the query limits.
    pub(crate) async fn redis_prefix(&self) -> Result<Option<String>, StoreError> {
        let sql = "SELECT value FROM settings WHERE name = $1";
        let rows = self.primary.query_apart(sql, &[&settings::REDIS_PREFIX]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// See [`Server::log`].
    pub(crate) async fn log(&self) -> Result<Option<Log>, StoreError> {
        self.primary.log().await
    }

    /// See [`Server::former_logs`].
    pub(crate) async fn former_logs(&self) -> Result<FormerLogs, StoreError> {
        self.primary.former_logs().await
    }

    /// Probes the replicas. Replicas receive no queries before the first probe. Returns the checkpoints of each that is
    /// usable.
    pub(crate) async fn look_at_replicas(&self, log: Log) -> Vec<Option<Vec<SqlRow>>> {
        self.replicas.look(log).await
    }

    /// Returns the preferred side for a read: replicas if any is usable.
    pub(crate) fn nearest(&self) -> Side {
        if self.replicas.is_any_usable() { Side::Any } else { Side::Primary }
    }

    /// Runs `sql`; the flag is true if a replica answered.
    async fn query(&self, side: Side, sql: &str, params: &[Param<'_>]) -> Result<(Vec<SqlRow>, bool), StoreError> {
        if side == Side::Any
            && let Some(rows) = self.replicas.query(sql, params).await
        {
            return Ok((rows, true));
        }
        Ok((self.primary.query(sql, params).await?, false))
    }

    /// Returns all checkpoints, bypassing the query limits.
    pub(crate) async fn checkpoints(&self) -> Result<Vec<SqlRow>, StoreError> {
        self.primary.checkpoints().await
    }
}

fn row_sql(id: ViewId) -> String {
    let view = id.view();
    // A view that is derived from another view's rows has the same aggregate per row.
    let (partition, parked) = match id.base().view().source {
        Source::Aggregate(row) => (
            "AND partition = $3",
            format!("AND aggregate = '{}/' || $2::text ORDER BY \"offset\"", type_name(row.aggregate)),
        ),
        // The key of the sum that a parked record would change is unknown.
        Source::Sum(_) | Source::View(_) => ("AND $3::int IS NULL", String::new()),
    };
    let sql = include_str!("postgres/row.sql").replace("{relation}", view.relation);
    sql.replace("{partition}", partition).replace("{parked}", &parked)
}

/// Returns the position in a row of [`Store::checkpoints`].
pub(crate) fn applied(row: &SqlRow) -> Applied<'_> {
    Applied { view: row.get(0), partition: row.get::<_, i32>(1).cast_unsigned(), offset: row.get(2) }
}

/// Returns the view and the generation in a row of [`Store::checkpoints`].
pub(crate) fn made(row: &SqlRow) -> (&str, u32) {
    (row.get(0), row.get::<_, i32>(3).cast_unsigned())
}

/// Returns the positions that a result shows; its first column holds the offsets of the partitions that were read.
fn shows(rows: &[SqlRow], scope: Scope) -> Shows {
    let offsets: Vec<i64> = rows.first().and_then(|row| row.get::<_, Option<_>>(0)).unwrap_or_default();
    match scope {
        Scope::One(partition) => Shows::One(partition, offsets.first().copied().unwrap_or(NOTHING)),
        Scope::All => Shows::All(offsets.into()),
    }
}

#[cfg(test)]
mod tests {
    use schemas::cache::Making;

    use super::*;

    #[test]
    fn a_row_is_put_into_redis_only_if_it_was_read_as_redis_shows_it() {
        let making = Making { incarnation: 1, generation: 2, revision: 3 };
        let view = ViewId::named("product").unwrap().base();
        let place = Place { view, partition: 0, making, revision: 3, is_sum: false };
        let is_of = |generation, revision| Made { generation, revision }.is_of(&place);
        assert!(is_of(2, Some(3)));
        assert!(!is_of(1, Some(3)), "from before a rebuild");
        assert!(!is_of(2, Some(2)), "from before a parked record was folded");
        assert!(!is_of(2, None));
        assert!(!Made::default().is_of(&place));
    }

    #[test]
    fn a_row_reads_its_partition_alone_and_a_sum_reads_all() {
        for view in ViewId::all() {
            let (sql, name) = (row_sql(view), view.name());
            let is_one = matches!(view.base().view().source, Source::Aggregate(_));
            assert_eq!(sql.contains("AND partition = $3"), is_one, "{name}: {sql}");
            assert!(sql.contains(view.view().relation) && !sql.contains('{'), "{name}: {sql}");
        }
    }
}
