//! The statements.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chassis::env::Secret;
use chassis::postgres::PostgresError;
use deadpool_postgres::{Object, Pool};
use domain::{State, TimeMs, evolve};
use schemas::aggregate::AggregateId;
use schemas::chain::Reader;
use schemas::events::{WireEvent, known_name};
use schemas::idempotency::IdempotencyKey;
use schemas::record::Epoch;
use schemas::snapshots::{FORM, decode};
use schemas::tables::{nonce_from_sql, repeat_key};
use schemas::views::JOURNAL;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::partition::{Checkpoint, KeptState, Repeat, panic_text};

const STATES: &str = include_str!("states.sql");
/// A form that no snapshot has.
const NO_FORM: i16 = -1;
/// Keys are looked up one by one in indexes; a planner without statistics may think otherwise.
const PLANNER: &str = "-c enable_hashjoin=off -c enable_mergejoin=off -c enable_seqscan=off";

#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("no connection to Postgres")]
    Connection(#[from] deadpool_postgres::PoolError),
    #[error("Postgres failed a query")]
    Query(#[from] tokio_postgres::Error),
}

pub(super) struct Store {
    pool: Pool,
}

/// What was found, with the checkpoint as of which it is.
type AsOf<T> = (i64, T);

impl Store {
    pub(super) fn connect(url: &Secret, connections: usize) -> Result<Self, PostgresError> {
        Ok(Self { pool: chassis::postgres::pool(url, PLANNER, connections, "command-api")? })
    }

    /// The nonces of the first claims, by partition, as far as they are known.
    pub(super) async fn identities(&self) -> Result<Vec<(u32, u64)>, StoreError> {
        let rows = self.query("SELECT partition, nonce FROM log_partitions", &[]).await?;
        Ok(rows.iter().map(|row| (row.get::<_, i32>(0).cast_unsigned(), nonce_from_sql(row.get(1)))).collect())
    }

    /// Of the journal, by partition.
    pub(super) async fn checkpoints(&self) -> Result<Vec<(u32, Checkpoint)>, StoreError> {
        let rows = self.query(include_str!("checkpoints.sql"), &[&JOURNAL]).await?;
        Ok(rows.iter().map(checkpoint).collect())
    }

    /// In the order in which they are wanted; `None` where nothing is, or Postgres has nothing of the partition.
    pub(super) async fn states(
        &self,
        wanted: Vec<Option<(&AggregateId, u32)>>,
    ) -> Result<Vec<Option<AsOf<KeptState>>>, StoreError> {
        let mut states: Vec<_> = wanted.iter().map(|_| None).collect();
        let mut columns = (Vec::new(), Vec::new(), Vec::new());
        for (index, (aggregate, partition)) in
            wanted.iter().enumerate().filter_map(|(index, wanted)| Some((index, (*wanted)?)))
        {
            columns.0.push(i32::try_from(index).expect("a batch is short"));
            columns.1.push(aggregate.as_str());
            columns.2.push(partition.cast_signed());
        }
        if columns.0.is_empty() {
            return Ok(states);
        }
        let rows = self.query(STATES, &[&columns.0, &columns.1, &columns.2, &JOURNAL, &FORM]).await?;
        let names = wanted.iter().map(|wanted| wanted.map(|(aggregate, _)| aggregate.clone())).collect();
        for (index, state) in fold(rows, names).await {
            let Some((aggregate, partition)) = wanted[index] else { continue };
            states[index] = match state {
                Some(state) => Some(state),
                // Its bytes are not what its form says: the whole journal tells.
                None => self.without_snapshot(aggregate, partition).await?,
            };
        }
        Ok(states)
    }

    async fn without_snapshot(
        &self,
        aggregate: &AggregateId,
        partition: u32,
    ) -> Result<Option<AsOf<KeptState>>, StoreError> {
        let (indexes, names, partitions) = (vec![0_i32], vec![aggregate.as_str()], vec![partition.cast_signed()]);
        let rows = self.query(STATES, &[&indexes, &names, &partitions, &JOURNAL, &NO_FORM]).await?;
        let folded = fold(rows, vec![Some(aggregate.clone())]).await;
        Ok(folded.into_iter().next().and_then(|(_, state)| state))
    }

    /// What took effect under the keys; in the order in which they are wanted.
    pub(super) async fn repeats(
        &self,
        wanted: Vec<Option<(&AggregateId, &IdempotencyKey, u32)>>,
    ) -> Result<Vec<Option<AsOf<Option<Repeat>>>>, StoreError> {
        let mut repeats: Vec<_> = wanted.iter().map(|_| None).collect();
        let mut columns = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, (aggregate, key, partition)) in
            wanted.iter().enumerate().filter_map(|(index, wanted)| Some((index, (*wanted)?)))
        {
            columns.0.push(i32::try_from(index).expect("a batch is short"));
            columns.1.push(repeat_key(aggregate.as_str(), key.as_str()));
            columns.2.push(aggregate.as_str());
            columns.3.push(key.as_str());
            columns.4.push(partition.cast_signed());
        }
        if columns.0.is_empty() {
            return Ok(repeats);
        }
        let params: [&(dyn ToSql + Sync); 6] = [&columns.0, &columns.1, &columns.2, &columns.3, &columns.4, &JOURNAL];
        for row in self.query(include_str!("repeats.sql"), &params).await? {
            repeats[index(&row)] = repeat(&row).map(|repeat| (row.get(1), repeat));
        }
        Ok(repeats)
    }

    async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let client: Object = self.pool.get().await?;
        let statement = client.prepare_cached(sql).await?;
        Ok(client.query(&statement, params).await?)
    }
}

fn index(row: &Row) -> usize {
    usize::try_from(row.get::<_, i32>(0)).expect("it was an index")
}

fn checkpoint(row: &Row) -> (u32, Checkpoint) {
    let claim: i64 = row.get("epoch_claim");
    let reader = Reader {
        next_offset: row.get("next_offset"),
        epoch: (claim >= 0).then(|| Epoch { claim, nonce: nonce_from_sql(row.get("epoch_nonce")) }),
        last_seq: row.get::<_, i64>("last_seq").cast_unsigned(),
        last_counted: row.get("last_counted"),
    };
    let last_at = TimeMs(row.get::<_, i64>("last_at_ms").cast_unsigned());
    let max_key = TimeMs(row.get::<_, i64>("max_key_ms").cast_unsigned());
    (row.get::<_, i32>("partition").cast_unsigned(), Checkpoint { reader, last_at, max_key })
}

/// `None`: it has events that this build does not know. To another build they would be its answer.
fn repeat(row: &Row) -> Option<Option<Repeat>> {
    let Some(offset) = row.get::<_, Option<i64>>(2) else { return Some(None) };
    let types: Vec<&str> = row.get(5);
    let fingerprint = row.get::<_, i64>(3).cast_unsigned();
    let version = row.get::<_, i64>(4).cast_unsigned();
    let events = types.into_iter().map(known_name).collect::<Option<_>>()?;
    Some(Some(Repeat { offset, fingerprint, version, events }))
}

/// By index; `None` where the snapshot cannot be read. Beside the runtime's other work: a state may be large.
async fn fold(rows: Vec<Row>, names: Vec<Option<AggregateId>>) -> Vec<(usize, Option<AsOf<KeptState>>)> {
    let folding = tokio::task::spawn_blocking(move || {
        let one = |row: &Row| {
            let index = index(row);
            let state = names[index].as_ref().and_then(|name| fold_row(row, name));
            (index, state.map(|state| (row.get(1), state)))
        };
        rows.iter().map(one).collect()
    });
    folding.await.expect("what may panic is caught")
}

fn fold_row(row: &Row, aggregate: &AggregateId) -> Option<KeptState> {
    let (initial, from) = match row.get::<_, Option<&[u8]>>("state") {
        Some(bytes) => (decode(FORM, bytes)?, row.get::<_, Option<i64>>("version").unwrap_or_default()),
        None => (State::initial(aggregate.aggregate()), 0),
    };
    let types: Vec<&str> = row.get::<_, Option<_>>("types").unwrap_or_default();
    let data: Vec<&str> = row.get::<_, Option<_>>("data").unwrap_or_default();
    let versions: Vec<i64> = row.get::<_, Option<_>>("versions").unwrap_or_default();
    let folded = catch_unwind(AssertUnwindSafe(|| {
        let since = types.iter().zip(&data).zip(&versions).filter(|(_, version)| **version > from);
        since.fold(initial, |state, ((name, data), _)| {
            let event = WireEvent::upcast_parts(name, data).unwrap_or_else(|error| panic!("{name}: {error}"));
            evolve(state, &event)
        })
    }));
    Some(KeptState {
        folded: folded.map_err(|panic| panic_text(panic.as_ref())),
        version: versions.last().copied().unwrap_or(from).cast_unsigned(),
        offset: row.get::<_, Option<i64>>("last_offset").unwrap_or_default(),
    })
}
