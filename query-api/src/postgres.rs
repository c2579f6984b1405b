//! The views and the journal in Postgres.
//!
//! Every statement also gives the checkpoints of the same moment: an answer knows what it shows, whichever server
//! it came from.

use std::time::Duration;

use chassis::env::Secret;
use chassis::postgres::PostgresError;
use deadpool_postgres::{Object, Pool};
use schemas::cache::Applied;
use schemas::tables::nonce_from_sql;
use schemas::token::LogId;
use schemas::views::{FEEDS, JOURNAL, VIEWS, View, row_body};
use tokio_postgres::Row as SqlRow;
use tokio_postgres::types::ToSql;

use crate::lists::{ListQuery, Position};
use crate::positions::Log;
use crate::reads::Row;

/// Every statement here looks up a key or walks an index in its order, and stops at its limit. A planner without
/// statistics, as after a large import, may think that it is better to sum up a whole table first (74 ms a page
/// instead of 8); and one that does not know the limit, to have workers read a tenth of it.
pub const PLANNER: &str = "-c enable_hashagg=off -c enable_sort=off -c enable_seqscan=off -c enable_bitmapscan=off \
                           -c max_parallel_workers_per_gather=0";

/// An answer that takes longer is better refused than waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

pub(crate) struct Store {
    pool: Pool,
    row_sql: [String; VIEWS.len()],
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("no connection to Postgres")]
    Connection(#[from] deadpool_postgres::PoolError),
    #[error("Postgres failed a query")]
    Query(#[from] tokio_postgres::Error),
    #[error("Postgres did not answer in time")]
    Silent,
}

/// What was read, and the offsets by partition that it is sure to show.
#[derive(Debug)]
pub(crate) struct Loaded<T> {
    pub(crate) found: T,
    pub(crate) offsets: Vec<i64>,
}

/// A row of a list.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) position: Position,
    pub(crate) body: String,
}

/// An event of the journal.
#[derive(Debug)]
pub(crate) struct JournalEvent {
    pub(crate) version: i64,
    pub(crate) r#type: String,
    pub(crate) data: String,
    pub(crate) at_ms: i64,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) command_id: String,
    pub(crate) cause: Option<String>,
    pub(crate) trace: Option<String>,
}

impl Store {
    /// Postgres need not be there.
    pub(crate) fn connect(url: &Secret, connections: usize) -> Result<Self, PostgresError> {
        let pool = chassis::postgres::pool(url, PLANNER, connections, "query-api")?;
        let row_sql = VIEWS.map(|view: &View| include_str!("postgres/row.sql").replace("{relation}", view.relation));
        Ok(Self { pool, row_sql })
    }

    pub(crate) async fn row(&self, view: usize, key: &str) -> Result<Loaded<Option<Row>>, StoreError> {
        let rows = self.query(&self.row_sql[view], &[&FEEDS[view], &key]).await?;
        let row = rows.first().and_then(|row| {
            let version = row.get::<_, Option<i64>>(1)?.cast_unsigned();
            Some(Row { version, body: row_body(key, version, row.get(2)).into() })
        });
        Ok(Loaded { found: row, offsets: offsets(&rows) })
    }

    pub(crate) async fn page(&self, query: &ListQuery) -> Result<Loaded<Vec<Listed>>, StoreError> {
        let (sql, values) = query.statement();
        let mut params: Vec<Param<'_>> = vec![&FEEDS[query.view], &query.limit];
        params.extend(values.into_iter().map(|value| -> Param<'_> { value }));
        let rows = self.query(&sql, &params).await?;
        let found = rows.iter().filter_map(|row| {
            let key: String = row.get::<_, Option<_>>(1)?;
            let body = row_body(&key, row.get::<_, i64>(2).cast_unsigned(), row.get(3));
            Some(Listed { position: Position { value: row.get(4), key }, body })
        });
        Ok(Loaded { found: found.collect(), offsets: offsets(&rows) })
    }

    /// Events after a version.
    pub(crate) async fn history(
        &self,
        aggregate: &str,
        after: i64,
        limit: i64,
    ) -> Result<Loaded<Vec<JournalEvent>>, StoreError> {
        let rows = self.query(include_str!("postgres/history.sql"), &[&JOURNAL, &aggregate, &after, &limit]).await?;
        let found = rows.iter().filter_map(|row| {
            Some(JournalEvent {
                version: row.get::<_, Option<i64>>(1)?,
                r#type: row.get(2),
                data: row.get(3),
                at_ms: row.get(4),
                partition: row.get(5),
                offset: row.get(6),
                command_id: row.get(7),
                cause: row.get(8),
                trace: row.get(9),
            })
        });
        Ok(Loaded { found: found.collect(), offsets: offsets(&rows) })
    }

    /// `None` until the projector has folded the log's first record.
    pub(crate) async fn log(&self) -> Result<Option<Log>, StoreError> {
        let rows = self.query(include_str!("postgres/log.sql"), &[&JOURNAL]).await?;
        Ok(rows.first().map(|row| {
            let partitions = u32::try_from(row.get::<_, i64>(1)).expect("a count of partitions");
            Log { id: LogId::of_nonce(nonce_from_sql(row.get(0))), partitions }
        }))
    }

    /// Every checkpoint.
    pub(crate) async fn checkpoints(&self) -> Result<Vec<SqlRow>, StoreError> {
        self.query("SELECT view, partition, next_offset - 1 FROM checkpoints", &[]).await
    }

    async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<SqlRow>, StoreError> {
        let answer = tokio::time::timeout(ANSWER_WITHIN, async {
            let client: Object = self.pool.get().await?;
            let statement = client.prepare_cached(sql).await?;
            Ok(client.query(&statement, params).await?)
        });
        answer.await.map_err(|_| StoreError::Silent)?
    }
}

type Param<'a> = &'a (dyn ToSql + Sync);

/// A row of [`Store::checkpoints`].
pub(crate) fn applied(row: &SqlRow) -> Applied<'_> {
    Applied { view: row.get(0), partition: row.get::<_, i32>(1).cast_unsigned(), offset: row.get(2) }
}

fn offsets(rows: &[SqlRow]) -> Vec<i64> {
    rows.first().and_then(|row| row.get::<_, Option<_>>(0)).unwrap_or_default()
}
