//! SQL statements of the loader.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use chassis::postgres::{PostgresError, PostgresSettings};
use deadpool_postgres::{Object, Pool};
use domain::{State, TimeMs, evolve};
use schemas::aggregate::AggregateId;
use schemas::chain::Reader;
use schemas::events::{WireEvent, known_name};
use schemas::idempotency::IdempotencyKey;
use schemas::journal::StoredCommit;
use schemas::record::Epoch;
use schemas::settings::{self, Difference, Settings};
use schemas::snapshots::{FORM, decode};
use schemas::tables::{nonce_from_sql, repeat_key};
use schemas::views::JOURNAL;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::partition::{Checkpoint, LoadedNames, LoadedState, Repeat};

/// Maximum number of an aggregate's commits that are read together with others'. A longer history is read alone, in
/// pages.
const MAX_SHORT: i64 = 512;
/// Number of commits in one page of a long history.
const PAGE: i64 = 4096;
/// Number of segments whose names are read at once: some 4 MiB of blocks.
const SEGMENTS_OF_NAMES: i64 = 32;
/// Timeout of a statement, longer than the server's own: a server that has not answered by then is gone.
const ANSWERS_WITHIN: Duration = Duration::from_secs(12);
/// Planner settings. Keys are looked up one by one in indexes, and histories are read in order; without statistics, the
/// planner may choose otherwise and sort the whole rest of a history for each page.
const PLANNER: &str = "-c enable_hashjoin=off -c enable_mergejoin=off -c enable_seqscan=off -c enable_bitmapscan=off";

#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("no connection to Postgres")]
    Connection(#[from] deadpool_postgres::PoolError),
    #[error("Postgres query failed")]
    Query(#[from] tokio_postgres::Error),
    #[error("Postgres does not answer")]
    Silent,
}

pub(super) struct Store {
    pool: Pool,
}

/// A result with the checkpoint as of which it holds.
pub(super) type AsOf<T> = (i64, T);

/// The answer of [`Store::states`] for one aggregate.
pub(super) enum Found {
    State(AsOf<LoadedState>),
    /// Too many events, or an undecodable snapshot: [`Store::history`] reads it.
    Long,
}

impl Store {
    pub(super) fn connect(postgres: &PostgresSettings, connections: usize) -> Result<Self, PostgresError> {
        Ok(Self { pool: chassis::postgres::pool(postgres, PLANNER, connections, "command-api")? })
    }

    /// Returns the nonces of the partitions' first claims, as far as they are known.
    pub(super) async fn identities(&self) -> Result<Vec<(u32, u64)>, StoreError> {
        let rows = self.query("SELECT partition, nonce FROM log_partitions", &[]).await?;
        Ok(rows.iter().map(|row| (row.get::<_, i32>(0).cast_unsigned(), nonce_from_sql(row.get(1)))).collect())
    }

    /// Stores this instance's settings where none are stored yet. Returns a difference from the stored ones, if there
    /// is any.
    pub(super) async fn compare(&self, told: &Settings) -> Result<Option<Difference>, StoreError> {
        self.query(settings::KEEP, &[&told.names, &told.values]).await?;
        let rows = self.query(settings::READ, &[]).await?;
        Ok(told.difference(rows.iter().map(|row| (row.get(0), row.get(1)))))
    }

    /// Returns the journal's checkpoints by partition.
    pub(super) async fn checkpoints(&self) -> Result<Vec<(u32, Checkpoint)>, StoreError> {
        let rows = self.query(include_str!("checkpoints.sql"), &[&JOURNAL]).await?;
        Ok(rows.iter().map(checkpoint).collect())
    }

    /// Returns states in the order of `wanted`; `None` where none is wanted, or Postgres has nothing of the partition.
    pub(super) async fn states(
        &self,
        wanted: Vec<Option<(&AggregateId, u32)>>,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        let mut states: Vec<_> = wanted.iter().map(|_| None).collect();
        let mut columns = (Vec::new(), Vec::new(), Vec::new());
        for (index, (aggregate, partition)) in
            wanted.iter().enumerate().filter_map(|(index, wanted)| Some((index, (*wanted)?)))
        {
            columns.0.push(i32::try_from(index).expect("a batch's size fits into 32 bits"));
            columns.1.push(aggregate.as_str());
            columns.2.push(partition.cast_signed());
        }
        if columns.0.is_empty() {
            return Ok(states);
        }
        let params: [&(dyn ToSql + Sync); 6] = [&columns.0, &columns.1, &columns.2, &JOURNAL, &FORM, &MAX_SHORT];
        let rows = self.query(include_str!("states.sql"), &params).await?;
        let names: Vec<_> = wanted.iter().map(|wanted| wanted.map(|(aggregate, _)| aggregate.clone())).collect();
        let fold = move || rows.iter().map(|row| (index(row), find(row, names[index(row)].as_ref()))).collect();
        let found: Vec<_> = beside(fold).await;
        for (index, found) in found {
            states[index] = Some(found);
        }
        Ok(states)
    }

    /// Returns one state, reading its events in as many statements as needed; the last of them determines the
    /// checkpoint. `None` if Postgres has nothing of the partition.
    pub(super) async fn history(
        &self,
        aggregate: &AggregateId,
        partition: u32,
    ) -> Result<Option<AsOf<LoadedState>>, StoreError> {
        let name = aggregate.as_str();
        let snapshot = "SELECT version, state FROM state_snapshots WHERE form = $1 AND aggregate = $2";
        let snapshot = self.query(snapshot, &[&FORM, &name]).await?.pop();
        let kept = beside(move || snapshot.and_then(|row| Some((decode(FORM, row.get(1))?, row.get(0))))).await;
        let (mut state, mut version): (State, i64) = kept.unwrap_or((State::initial(aggregate.aggregate()), 0));
        loop {
            let params: [&(dyn ToSql + Sync); 5] = [&name, &version, &PAGE, &JOURNAL, &partition.cast_signed()];
            let Some(row) = self.query(include_str!("page.sql"), &params).await?.pop() else { return Ok(None) };
            let (checkpoint, is_last) = (row.get("next_offset"), (records(&row).len() as i64) < PAGE);
            match beside(move || fold(&row, state, version)).await {
                LoadedState { folded: Ok(so_far), version: reached, .. } if !is_last => {
                    (state, version) = (so_far, reached.cast_signed());
                }
                whole => return Ok(Some((checkpoint, whole))),
            }
        }
    }

    /// Returns the commands that took effect under the keys, in the order of `wanted`.
    pub(super) async fn repeats(
        &self,
        wanted: Vec<Option<(&AggregateId, &IdempotencyKey, u32)>>,
    ) -> Result<Vec<Option<AsOf<Option<Repeat>>>>, StoreError> {
        let mut repeats: Vec<_> = wanted.iter().map(|_| None).collect();
        let mut columns = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, (aggregate, key, partition)) in
            wanted.iter().enumerate().filter_map(|(index, wanted)| Some((index, (*wanted)?)))
        {
            columns.0.push(i32::try_from(index).expect("a batch's size fits into 32 bits"));
            columns.1.push(repeat_key(aggregate.as_str(), key));
            columns.2.push(key.time().map(|time| time.0.cast_signed()));
            columns.3.push(aggregate.as_str());
            columns.4.push(partition.cast_signed());
        }
        if columns.0.is_empty() {
            return Ok(repeats);
        }
        let params: [&(dyn ToSql + Sync); 6] = [&columns.0, &columns.1, &columns.2, &columns.3, &columns.4, &JOURNAL];
        for row in self.query(include_str!("repeats.sql"), &params).await? {
            let place = index(&row);
            let Some((_, key, _)) = wanted[place] else { continue };
            let is_found = matches!(repeats[place], Some((_, Some(_))));
            match repeat(&row, key) {
                Sought::Found(repeat) => repeats[place] = Some((row.get(1), Some(repeat))),
                Sought::Absent if !is_found => repeats[place] = Some((row.get(1), None)),
                Sought::Absent | Sought::Unknown => {}
            }
        }
        Ok(repeats)
    }

    /// Returns the names of aggregates with events from an offset on, as far as one statement reads, or `None` if
    /// Postgres has nothing of the partition.
    pub(super) async fn names(&self, partition: u32, from: i64) -> Result<Option<LoadedNames>, StoreError> {
        let params: [&(dyn ToSql + Sync); 4] = [&partition.cast_signed(), &from, &SEGMENTS_OF_NAMES, &JOURNAL];
        let found = self.query(include_str!("names.sql"), &params).await?.pop();
        Ok(found.map(|row| LoadedNames { from, until: row.get("until"), names: row.get("names") }))
    }

    async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let client: Object = self.pool.get().await?;
        let rows = async { client.query(&client.prepare_cached(sql).await?, params).await };
        match tokio::time::timeout(ANSWERS_WITHIN, rows).await {
            Ok(rows) => Ok(rows?),
            Err(_) => {
                // Removes the connection from the pool, so that no other statement waits for it.
                drop(Object::take(client));
                Err(StoreError::Silent)
            }
        }
    }
}

fn index(row: &Row) -> usize {
    usize::try_from(row.get::<_, i32>(0)).expect("it is an index that was sent")
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

/// Result of looking up a key in one row.
enum Sought {
    Found(Repeat),
    /// The key belongs to another command, or to none.
    Absent,
    /// The command has events unknown to this build. Another build would answer with them.
    Unknown,
}

fn repeat(row: &Row, key: &IdempotencyKey) -> Sought {
    let Some(record) = row.get::<_, Option<&[u8]>>(3) else { return Sought::Absent };
    let Ok(commit) = StoredCommit::read(record) else { return Sought::Unknown };
    if commit.command_id != key.as_str() {
        return Sought::Absent;
    }
    let events: Option<_> = commit.events.iter().map(|event| known_name(&event.name)).collect();
    events.map_or(Sought::Unknown, |events| {
        let (fingerprint, version) = (commit.fingerprint, commit.version);
        Sought::Found(Repeat { offset: row.get(2), fingerprint, version, events })
    })
}

/// Runs `work` on a blocking thread, because a state may be large.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("panics are caught in `work`")
}

fn find(row: &Row, aggregate: Option<&AggregateId>) -> Found {
    let Some(aggregate) = aggregate.filter(|_| !row.get::<_, bool>("is_long")) else { return Found::Long };
    let (initial, from) = match row.get::<_, Option<&[u8]>>("state") {
        Some(bytes) => match decode(FORM, bytes) {
            Some(state) => (state, row.get::<_, Option<i64>>("version").unwrap_or_default()),
            None => return Found::Long,
        },
        None => (State::initial(aggregate.aggregate()), 0),
    };
    Found::State((row.get("next_offset"), fold(row, initial, from)))
}

/// Returns a row's commits, oldest first.
fn records(row: &Row) -> Vec<&[u8]> {
    row.get::<_, Option<_>>("records").unwrap_or_default()
}

/// Folds a row's events after the version `from` into `state`, which is of that version.
fn fold(row: &Row, state: State, from: i64) -> LoadedState {
    let after = from.cast_unsigned();
    let folded = catch_unwind(AssertUnwindSafe(|| {
        records(row).into_iter().fold(state, |state, record| {
            let commit = StoredCommit::read(record).unwrap_or_else(|error| panic!("invalid record: {error}"));
            commit.events_after(after).fold(state, |state, (_, event)| {
                let upcast = WireEvent::upcast_parts(&event.name, event.data.get());
                evolve(state, &upcast.unwrap_or_else(|error| panic!("{}: {error}", event.name)))
            })
        })
    }));
    LoadedState {
        folded: folded.map_err(|panic| chassis::panic::text(panic.as_ref())),
        version: row.get::<_, Option<i64>>("last_version").unwrap_or(from).cast_unsigned(),
        offset: row.get::<_, Option<i64>>("last_offset").unwrap_or_default(),
    }
}
