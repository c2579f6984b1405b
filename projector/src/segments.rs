//! Closes the journal's complete segments beside the folding, and deletes the keys of those whose window has passed.
//!
//! Records that are still in the tail only cost more to read than those of a closed segment, so closing may be late.
//! Each segment is closed once, by any projector.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chassis::postgres::Connection;
use chassis::postgres::PostgresSettings;
use chassis::telemetry::with_causes;
use postgres_types::ToSql;
use schemas::feeds::FeedId;
use schemas::journal::{SEGMENT_OFFSETS, SegmentHash};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

use crate::fold::Progress;
use crate::metrics::Metrics;
use crate::postgres::forgotten_before;
use crate::share::Share;

/// Number of records in one block: usually a page of Postgres, once they are compressed.
const BLOCK: usize = 64;
const RETRY: Duration = Duration::from_secs(1);

/// Segment of the journal's checkpoint, by partition. Those before it are complete.
type Whole = BTreeMap<u32, i64>;

/// Sender of the segments that are complete.
pub(crate) struct Segments(watch::Sender<Whole>);

#[derive(Debug, thiserror::Error)]
enum SegmentError {
    #[error(transparent)]
    Connect(#[from] chassis::postgres::PostgresError),
    #[error("Postgres statement failed")]
    Postgres(#[from] tokio_postgres::Error),
}

impl Segments {
    /// Starts the task that closes segments, first those that are complete already. It ends with `tasks`.
    pub(crate) fn start(
        postgres: &PostgresSettings,
        window: Duration,
        share: &Share,
        all_progress: &[Progress],
        metrics: Arc<Metrics>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let of_journal = share.places().filter(|place| place.feed == FeedId::Journal);
        let whole = of_journal.map(|at| (at.partition, segment(&all_progress[at.partition as usize]))).collect();
        let (sender, receiver) = watch::channel(whole);
        let closer = Closer { postgres: postgres.clone(), window, session: None };
        tasks.spawn(close(closer, receiver, metrics));
        Self(sender)
    }

    /// Notes that the checkpoints of a partition have moved.
    pub(crate) fn passed(&self, partition: u32, from: &Progress, to: &Progress) {
        if segment(from) < segment(to) {
            self.0.send_modify(|whole| {
                whole.insert(partition, segment(to));
            });
        }
    }
}

fn segment(progress: &Progress) -> i64 {
    progress.readers[FeedId::Journal].next_offset / SEGMENT_OFFSETS
}

/// Closes complete segments until the sender is dropped.
async fn close(mut closer: Closer, mut whole: watch::Receiver<Whole>, metrics: Arc<Metrics>) {
    let mut closed = Whole::new();
    loop {
        let now = whole.borrow_and_update().clone();
        for (partition, until) in now {
            if closed.get(&partition) == Some(&until) {
                continue;
            }
            match closer.close_until(partition.cast_signed(), until).await {
                Ok(count) => {
                    metrics.segments_closed(count);
                    closed.insert(partition, until);
                }
                Err(error) => {
                    tracing::warn!(error = with_causes(&error), "closing a segment failed; retrying");
                    closer.session = None;
                    tokio::time::sleep(RETRY).await;
                    whole.mark_changed();
                }
            }
        }
        if whole.changed().await.is_err() {
            return;
        }
    }
}

/// A session in Postgres, once it is needed.
struct Closer {
    postgres: PostgresSettings,
    /// Time for which idempotency keys are remembered.
    window: Duration,
    session: Option<Session>,
}

impl Closer {
    async fn close_until(&mut self, partition: i32, until: i64) -> Result<u64, SegmentError> {
        let session = match &mut self.session {
            Some(session) => session,
            None => self.session.insert(Session::connect(&self.postgres, self.window).await?),
        };
        session.close_until(partition, until).await
    }
}

/// A session in Postgres, with its prepared statements.
struct Session {
    client: Connection,
    /// Time for which idempotency keys are remembered.
    window: Duration,
    open: Statement,
    take_runs: Statement,
    hash_before: Statement,
    insert_blocks: Statement,
    insert_index: Statement,
    insert_segment: Statement,
    insert_keys: Statement,
    forget_keys: Statement,
}

impl Session {
    async fn connect(postgres: &PostgresSettings, window: Duration) -> Result<Self, SegmentError> {
        let client = chassis::postgres::connect(postgres, "", "projector segments").await?;
        Ok(Self {
            open: client.prepare(include_str!("postgres/open_segments.sql")).await?,
            take_runs: client.prepare(include_str!("postgres/take_runs.sql")).await?,
            hash_before: client.prepare(include_str!("postgres/hash_before.sql")).await?,
            insert_blocks: client.prepare(include_str!("postgres/insert_blocks.sql")).await?,
            insert_index: client.prepare(include_str!("postgres/insert_index.sql")).await?,
            insert_segment: client.prepare(include_str!("postgres/insert_segment.sql")).await?,
            insert_keys: client.prepare(include_str!("postgres/insert_keys.sql")).await?,
            forget_keys: client.prepare(include_str!("postgres/forget_keys.sql")).await?,
            client,
            window,
        })
    }

    /// Closes the segments of a partition below `until`, in order, and returns their number.
    async fn close_until(&mut self, partition: i32, until: i64) -> Result<u64, SegmentError> {
        let open = self.client.query(&self.open, &[&partition, &until]).await?;
        let mut count = 0;
        for row in open {
            count += u64::from(self.close(partition, row.get(0)).await?);
        }
        Ok(count)
    }

    /// Closes a segment. Returns `false` if another process has closed it.
    async fn close(&mut self, partition: i32, segment: i64) -> Result<bool, SegmentError> {
        let transaction = self.client.transaction().await?;
        let place: [&(dyn ToSql + Sync); 2] = [&partition, &segment];
        let (runs, before) = tokio::try_join!(
            transaction.query(&self.take_runs, &place),
            transaction.query_opt(&self.hash_before, &place),
        )?;
        if runs.is_empty() {
            return Ok(false);
        }
        let mut records: Vec<_> = runs.iter().flat_map(StoredRecord::of_run).collect();
        records.sort_unstable_by_key(|record| record.offset);
        let (hash, keys) = (hash(before.as_ref().map(|row| row.get(0)), &records), Keys::of(&records));
        let last_at_ms: i64 = runs.iter().map(|run| run.get(6)).max().unwrap_or(0);
        let forgotten = forgotten_before(self.window, last_at_ms.cast_unsigned()).cast_signed();
        records.sort_unstable_by_key(|record| {
            (record.aggregate.is_none(), record.aggregate, record.version, record.offset)
        });
        let blocks = blocks(partition, segment, &records);
        let (index, count) = (Index::of(&records), i32::try_from(records.len()).unwrap_or(i32::MAX));
        let (in_blocks, in_index): ([&(dyn ToSql + Sync); 1], _) = ([&blocks], index.params(&segment));
        let in_segments: [&(dyn ToSql + Sync); 4] = [&partition, &segment, &count, &hash];
        let in_keys: [&(dyn ToSql + Sync); 6] =
            [&partition, &segment, &last_at_ms, &keys.first, &keys.last, &keys.by_offset];
        let over: [&(dyn ToSql + Sync); 2] = [&partition, &forgotten];
        tokio::try_join!(
            transaction.execute(&self.insert_blocks, &in_blocks),
            transaction.execute(&self.insert_index, &in_index),
            transaction.execute(&self.insert_segment, &in_segments),
            transaction.execute(&self.insert_keys, &in_keys),
            transaction.execute(&self.forget_keys, &over),
        )?;
        transaction.commit().await?;
        Ok(true)
    }
}

/// A record of the tail.
struct StoredRecord<'a> {
    offset: i64,
    aggregate: Option<&'a str>,
    version: i64,
    events: i32,
    record: &'a [u8],
    key: Option<Uuid>,
}

impl<'a> StoredRecord<'a> {
    fn of_run(row: &'a Row) -> impl Iterator<Item = Self> {
        let (offsets, aggregates): (Vec<i64>, Vec<Option<&str>>) = (row.get(0), row.get(1));
        let (versions, events, records): (Vec<i64>, Vec<i32>, Vec<&[u8]>) = (row.get(2), row.get(3), row.get(4));
        let keys: Vec<Option<Uuid>> = row.get(5);
        let rest = aggregates.into_iter().zip(versions).zip(events).zip(records).zip(keys);
        offsets.into_iter().zip(rest).map(|(offset, ((((aggregate, version), events), record), key))| Self {
            offset,
            aggregate,
            version,
            events,
            record,
            key,
        })
    }
}

/// Returns the hash of a segment, as defined in `V21__segments.sql`.
fn hash(before: Option<&[u8]>, records: &[StoredRecord<'_>]) -> Vec<u8> {
    let mut hash = SegmentHash::after(before);
    records.iter().for_each(|record| hash.take(record.offset, record.record));
    hash.end().to_vec()
}

/// Idempotency keys of a segment's records.
struct Keys {
    /// Smallest key; `None`: the segment has no keys.
    first: Option<Uuid>,
    last: Option<Uuid>,
    by_offset: Vec<Option<Uuid>>,
}

impl Keys {
    fn of(records: &[StoredRecord<'_>]) -> Self {
        let mut by_offset = vec![None; SEGMENT_OFFSETS as usize];
        for record in records {
            by_offset[(record.offset % SEGMENT_OFFSETS) as usize] = record.key;
        }
        let known = || by_offset.iter().flatten().copied();
        Self { first: known().min(), last: known().max(), by_offset }
    }
}

/// A row of the table `segment_blocks`.
#[derive(Debug, ToSql)]
#[postgres(name = "segment_blocks")]
struct Block<'a> {
    partition: i32,
    segment: i64,
    block: i32,
    offsets: Vec<i64>,
    aggregates: Vec<Option<&'a str>>,
    versions: Vec<i64>,
    events: Vec<i32>,
    records: Vec<&'a [u8]>,
}

fn blocks<'a>(partition: i32, segment: i64, records: &[StoredRecord<'a>]) -> Vec<Block<'a>> {
    let block = |(block, records): (i32, &[StoredRecord<'a>])| Block {
        partition,
        segment,
        block,
        offsets: records.iter().map(|record| record.offset).collect(),
        aggregates: records.iter().map(|record| record.aggregate).collect(),
        versions: records.iter().map(|record| record.version).collect(),
        events: records.iter().map(|record| record.events).collect(),
        records: records.iter().map(|record| record.record).collect(),
    };
    (0..).zip(records.chunks(BLOCK)).map(block).collect()
}

/// Columns of the table `segment_index`, with one row per aggregate.
#[derive(Default)]
struct Index<'a> {
    aggregates: Vec<&'a str>,
    first_blocks: Vec<i32>,
    last_blocks: Vec<i32>,
    last_versions: Vec<i64>,
}

impl<'a> Index<'a> {
    /// Returns the index of records that are sorted by aggregate and version.
    fn of(records: &[StoredRecord<'a>]) -> Self {
        let mut index = Self::default();
        for (block, record) in (0..)
            .zip(records.chunks(BLOCK))
            .flat_map(|(block, records)| records.iter().map(move |record| (block, record)))
        {
            let Some(aggregate) = record.aggregate else { break };
            if index.aggregates.last() != Some(&aggregate) {
                index.aggregates.push(aggregate);
                index.first_blocks.push(block);
                index.last_blocks.push(block);
                index.last_versions.push(record.version);
            }
            if let (Some(last_block), Some(last_version)) =
                (index.last_blocks.last_mut(), index.last_versions.last_mut())
            {
                (*last_block, *last_version) = (block, record.version);
            }
        }
        index
    }

    fn params<'b>(&'b self, segment: &'b i64) -> [&'b (dyn ToSql + Sync); 5] {
        [segment, &self.aggregates, &self.first_blocks, &self.last_blocks, &self.last_versions]
    }
}
