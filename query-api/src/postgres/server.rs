//! One Postgres server, queried within limits.

use std::time::Duration;

use chassis::postgres::{PostgresError, PostgresSettings};
use deadpool_postgres::{Object, Pool};
use schemas::record::RecordError;
use schemas::tables::nonce_from_sql;
use schemas::token::LogId;
use schemas::views::JOURNAL;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::limiter::{Busy, Limiter};
use crate::positions::{FormerLogs, Log};

/// Planner options. Every statement here looks up a key or scans an index in order, and stops at its limit. Without
/// statistics, as after a large import, the planner may prefer to aggregate a whole table first (74 ms a page instead
/// of 8); without knowing the limit, it may have parallel workers read a tenth of it.
pub const PLANNER: &str = "-c enable_hashagg=off -c enable_sort=off -c enable_seqscan=off -c enable_bitmapscan=off \
                            -c max_parallel_workers_per_gather=0";

/// Maximum duration of a query; beyond it, refusing is better than waiting.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Number of connections outside the query limits, for polling checkpoints while queries use up all others.
const CONNECTIONS_APART: usize = 1;

pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("Postgres is overloaded")]
    Busy(#[from] Busy),
    #[error("no connection to Postgres")]
    Connection(#[from] deadpool_postgres::PoolError),
    #[error("Postgres query failed")]
    Query(#[from] tokio_postgres::Error),
    #[error("Postgres did not answer in time")]
    Silent,
    #[error("the journal contains a record that cannot be decoded")]
    Record(#[from] RecordError),
}

/// Query limits of one server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Maximum number of concurrent queries, each on its own connection.
    pub(crate) connections: usize,
    /// Maximum number of queued queries.
    pub(crate) queue: usize,
    /// Maximum time in the queue.
    pub(crate) wait: Duration,
}

pub(super) struct Server {
    pool: Pool,
    limiter: Limiter,
}

impl Server {
    /// Creates the pool. The server does not need to be reachable yet.
    pub(super) fn connect(postgres: &PostgresSettings, limits: Limits) -> Result<Self, PostgresError> {
        let connections = limits.connections + CONNECTIONS_APART;
        let pool = chassis::postgres::pool(postgres, PLANNER, connections, "query-api")?;
        Ok(Self { pool, limiter: Limiter::new(limits.connections, limits.queue, limits.wait) })
    }

    pub(super) async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, StoreError> {
        let _place = self.limiter.enter().await?;
        self.query_apart(sql, params).await
    }

    /// Reads the log's identity, bypassing the limits. Returns `None` until the projector has folded the log's first
    /// record.
    pub(super) async fn log(&self) -> Result<Option<Log>, StoreError> {
        let rows = self.query_apart(include_str!("log.sql"), &[&JOURNAL]).await?;
        Ok(rows.first().map(|row| {
            let partitions = u32::try_from(row.get::<_, i64>(1)).expect("a partition count fits in 32 bits");
            Log { id: LogId::of_nonce(nonce_from_sql(row.get(0))), partitions }
        }))
    }

    /// Returns all checkpoints, bypassing the limits.
    pub(super) async fn checkpoints(&self) -> Result<Vec<Row>, StoreError> {
        self.query_apart("SELECT view, partition, next_offset - 1, generation FROM checkpoints", &[]).await
    }

    /// Returns what tokens of former logs name in this one.
    pub(super) async fn former_logs(&self) -> Result<FormerLogs, StoreError> {
        let mut former = FormerLogs::new();
        for row in self.query_apart(r#"SELECT nonce, partition, "offset" FROM former_logs"#, &[]).await? {
            let id = LogId::of_nonce(nonce_from_sql(row.get(0))).to_string();
            former.entry(id).or_default().insert(row.get::<_, i32>(1).cast_unsigned(), row.get(2));
        }
        Ok(former)
    }

    /// Runs a statement, bypassing the limits: there is one extra connection for this.
    pub(super) async fn query_apart(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, StoreError> {
        let answer = tokio::time::timeout(ANSWER_WITHIN, async {
            let client: Object = self.pool.get().await?;
            let statement = client.prepare_cached(sql).await?;
            Ok(client.query(&statement, params).await?)
        });
        answer.await.map_err(|_| StoreError::Silent)?
    }
}
