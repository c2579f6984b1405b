//! One Postgres, asked within limits.

use std::time::Duration;

use chassis::env::Secret;
use chassis::postgres::PostgresError;
use deadpool_postgres::{Object, Pool};
use schemas::record::RecordError;
use schemas::tables::nonce_from_sql;
use schemas::token::LogId;
use schemas::views::JOURNAL;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::limiter::{Busy, Limiter};
use crate::positions::Log;

/// Every statement here looks up a key or walks an index in its order, and stops at its limit. A planner without
/// statistics, as after a large import, may think that it is better to sum up a whole table first (74 ms a page
/// instead of 8); and one that does not know the limit, to have workers read a tenth of it.
pub const PLANNER: &str = "-c enable_hashagg=off -c enable_sort=off -c enable_seqscan=off -c enable_bitmapscan=off \
                            -c max_parallel_workers_per_gather=0";

/// An answer that takes longer is better refused than waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// For looking how far the views are: a flood of queries must not hide that.
const CONNECTIONS_APART: usize = 1;

pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("Postgres has too much to do")]
    Busy(#[from] Busy),
    #[error("no connection to Postgres")]
    Connection(#[from] deadpool_postgres::PoolError),
    #[error("Postgres failed a query")]
    Query(#[from] tokio_postgres::Error),
    #[error("Postgres did not answer in time")]
    Silent,
    #[error("the journal holds a record that does not read")]
    Record(#[from] RecordError),
}

/// How much one server is asked at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Queries under way, each on a connection of its own.
    pub(crate) connections: usize,
    /// Queries that wait for one of those to end.
    pub(crate) queue: usize,
    /// For how long.
    pub(crate) wait: Duration,
}

pub(super) struct Server {
    pool: Pool,
    limiter: Limiter,
}

impl Server {
    /// It need not be there.
    pub(super) fn connect(url: &Secret, limits: Limits) -> Result<Self, PostgresError> {
        let connections = limits.connections + CONNECTIONS_APART;
        let pool = chassis::postgres::pool(url, PLANNER, connections, "query-api")?;
        Ok(Self { pool, limiter: Limiter::new(limits.connections, limits.queue, limits.wait) })
    }

    pub(super) async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, StoreError> {
        let _place = self.limiter.enter().await?;
        self.query_apart(sql, params).await
    }

    /// Beside the limits. `None` until the projector has folded the log's first record.
    pub(super) async fn log(&self) -> Result<Option<Log>, StoreError> {
        let rows = self.query_apart(include_str!("log.sql"), &[&JOURNAL]).await?;
        Ok(rows.first().map(|row| {
            let partitions = u32::try_from(row.get::<_, i64>(1)).expect("a count of partitions");
            Log { id: LogId::of_nonce(nonce_from_sql(row.get(0))), partitions }
        }))
    }

    /// Beside the limits; one at a time.
    pub(super) async fn query_apart(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, StoreError> {
        let answer = tokio::time::timeout(ANSWER_WITHIN, async {
            let client: Object = self.pool.get().await?;
            let statement = client.prepare_cached(sql).await?;
            Ok(client.query(&statement, params).await?)
        });
        answer.await.map_err(|_| StoreError::Silent)?
    }
}
