//! Reads the actual state from Postgres and Redis.

use std::collections::HashMap;

use chassis::postgres;
use chassis::postgres::PostgresSettings;
use chassis::redis::RedisSettings;
use chassis::redis::{Connection, Pipelines, RESPONSE_TIMEOUT};
use schemas::aggregate::{self, AggregateId};
use schemas::cache::{ABSENT, Head, Keys, Shown};
use schemas::chain::{Reader, Tally};
use schemas::feeds::{FeedId, PerFeed, StoredView};
use schemas::journal::{Hash, SegmentHash};
use schemas::views::Source;
use tokio_postgres::{IsolationLevel, Row, Transaction};

use crate::postgres::checkpoints::{LOAD, reader, tally};

/// Maximum number of rows in one command to Redis.
const MAX_ROWS_A_CALL: usize = 500;

/// Query for the last version and the number of events of each aggregate in the journal.
const ALL_OF_JOURNAL: &str =
    "SELECT aggregate, max(version), sum(events)::text FROM journal_commits GROUP BY aggregate";
const SOME_OF_JOURNAL: &str = "
    SELECT wanted.aggregate, max(commits.version), sum(commits.events)::text
    FROM unnest($1::text[], $2::int[]) AS wanted (aggregate, partition)
    CROSS JOIN LATERAL commits_of(wanted.aggregate, wanted.partition, 0, 9223372036854775807) AS commits
    GROUP BY wanted.aggregate";

/// A checkpoint, with the offset from which its tally counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) reader: Reader,
    pub(super) tally: Tally,
    pub(super) tally_from: i64,
}

/// Checkpoints by feed and partition.
pub(super) type Checkpoints = HashMap<(FeedId, u32), Checkpoint>;

/// A row as readers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReadRow {
    pub(super) version: u64,
    pub(super) data: String,
}

/// Rows by key.
pub(super) type Rows = HashMap<String, ReadRow>;

/// Query for the closed segments, in an order in which each follows the one whose hash its own covers.
const SEGMENTS: &str = "SELECT partition, segment, hash FROM segments ORDER BY partition, segment";
const BLOCKS: &str = "SELECT offsets, records FROM segment_blocks WHERE partition = $1 AND segment = $2";

/// A closed segment of the journal.
pub(super) struct Segment {
    pub(super) partition: u32,
    pub(super) number: i64,
    /// Hash that was written when the segment was closed.
    pub(super) hash: Vec<u8>,
    /// Hash of the segment's records, if they were read.
    pub(super) of_records: Option<Hash>,
}

pub(super) struct Postgres {
    client: postgres::Connection,
}

impl Postgres {
    pub(super) async fn connect(server: &PostgresSettings) -> anyhow::Result<Self> {
        // Reading all rows of a view may take long, and so may their processing before the next statement.
        let options = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0";
        let client = postgres::connect(server, options, "projector audit").await?;
        Ok(Self { client })
    }

    pub(super) async fn checkpoints(&self) -> anyhow::Result<Checkpoints> {
        let rows = self.client.query(LOAD, &[]).await?;
        Ok(checkpoints(&rows))
    }

    /// Reads, in one snapshot, the checkpoints, the rows of each feed with these keys, or all rows, and the segments.
    pub(super) async fn snapshot(
        &mut self,
        keys: &PerFeed<Option<Vec<String>>>,
        partitions: u32,
    ) -> anyhow::Result<(Checkpoints, PerFeed<Rows>, Vec<Segment>)> {
        let transaction = self.client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
        let transaction = transaction.read_only(true).start().await?;
        let known = transaction.query(LOAD, &[]).await?;
        let mut found = PerFeed::<Rows>::default();
        for feed in FeedId::all() {
            let rows = match (feed, &keys[feed]) {
                (FeedId::View(view), keys) => {
                    let all = format!("SELECT key, version, data::text FROM {}", view.view().relation);
                    match keys {
                        Some(keys) => transaction.query(&format!("{all} WHERE key = ANY($1)"), &[keys]).await?,
                        None => transaction.query(&all, &[]).await?,
                    }
                }
                (FeedId::Journal, Some(keys)) => {
                    let partition = |key: &String| {
                        AggregateId::parse(key).map_or(-1, |aggregate| aggregate.partition(partitions).cast_signed())
                    };
                    let partitions: Vec<i32> = keys.iter().map(partition).collect();
                    transaction.query(SOME_OF_JOURNAL, &[keys, &partitions]).await?
                }
                (FeedId::Journal, None) => transaction.query(ALL_OF_JOURNAL, &[]).await?,
            };
            let rows = rows.iter().map(|row| {
                let version: i64 = row.get(1);
                (row.get(0), ReadRow { version: version.cast_unsigned(), data: row.get(2) })
            });
            found[feed] = rows.collect();
        }
        let segments = segments(&transaction, keys[FeedId::Journal].is_none()).await?;
        transaction.commit().await?;
        Ok((checkpoints(&known), found, segments))
    }
}

/// Returns the closed segments, and, if `all`, the hashes of their records.
async fn segments(transaction: &Transaction<'_>, all: bool) -> anyhow::Result<Vec<Segment>> {
    let blocks = transaction.prepare(BLOCKS).await?;
    let mut segments = Vec::<Segment>::new();
    for row in transaction.query(SEGMENTS, &[]).await? {
        let (partition, number): (i32, i64) = (row.get(0), row.get(1));
        let mut segment = Segment { partition: partition.cast_unsigned(), number, hash: row.get(2), of_records: None };
        if all {
            let before = segments.last().filter(|before| before.partition == segment.partition);
            // One segment at a time: together they are the whole log.
            let blocks = transaction.query(&blocks, &[&partition, &number]).await?;
            segment.of_records = Some(hash(before.map(|before| &before.hash[..]), &blocks));
        }
        segments.push(segment);
    }
    Ok(segments)
}

/// Returns the hash of a segment's records, which its blocks hold in another order than the log.
fn hash(before: Option<&[u8]>, blocks: &[Row]) -> Hash {
    let mut records: Vec<_> = blocks.iter().flat_map(records).collect();
    records.sort_unstable_by_key(|(offset, _)| *offset);
    let mut hash = SegmentHash::after(before);
    records.into_iter().for_each(|(offset, record)| hash.take(offset, record));
    hash.end()
}

/// Returns the records of a block. A NULL, which no build writes, is left out and changes the hash.
fn records(block: &Row) -> impl Iterator<Item = (i64, &[u8])> {
    let (offsets, records): (Vec<Option<i64>>, Vec<Option<&[u8]>>) = (block.get(0), block.get(1));
    offsets.into_iter().zip(records).filter_map(|(offset, record)| Some((offset?, record?)))
}

fn checkpoints(rows: &[Row]) -> Checkpoints {
    let checkpoint = |row: &Row| {
        let place = (FeedId::named(row.get("view"))?, row.get::<_, i32>("partition").cast_unsigned());
        let (reader, tally) = (reader(row), tally(row));
        Some((place, Checkpoint { reader, tally, tally_from: row.get("counted_from") }))
    };
    rows.iter().filter_map(checkpoint).collect()
}

pub(super) struct Redis {
    connection: Connection,
    keys: Keys,
}

impl Redis {
    pub(super) fn connect(redis: &RedisSettings, prefix: &str) -> anyhow::Result<Self> {
        Ok(Self { connection: chassis::redis::connect(redis)?, keys: Keys::new(prefix) })
    }

    /// Returns the position that Redis shows of each feed, by partition.
    pub(super) async fn shown(&mut self, partitions: u32) -> anyhow::Result<Vec<PerFeed<Option<Shown>>>> {
        let mut pipelines = Pipelines::default();
        for partition in 0..partitions {
            pipelines.of(partition).mget(FeedId::names().map(|feed| self.keys.shown(feed, partition)).as_slice());
        }
        let mut shown = Vec::new();
        for answers in
            pipelines.send::<[Option<String>; FeedId::COUNT]>(&self.connection, RESPONSE_TIMEOUT).await.into_values()
        {
            shown.extend(answers?.into_iter().map(|values| values.map(|value| Shown::parse(&value?))));
        }
        Ok(shown)
    }

    /// Returns rows with their whole bodies. It omits absent keys, and views that many aggregates feed: their rows live
    /// for a second, and only readers write them.
    pub(super) async fn rows(&mut self, view: StoredView, partitions: u32, keys: &[&str]) -> anyhow::Result<Rows> {
        let Source::Aggregate(fold) = view.view().source else { return Ok(Rows::new()) };
        let shown = self.shown(partitions).await?;
        let row = |key: &str| {
            let partition = aggregate::partition(fold.aggregate, key, partitions);
            let making = shown[partition as usize][FeedId::View(view)]?.making;
            Some(self.keys.row(partition, making.incarnation, view, key))
        };
        let rows: Vec<_> = keys.iter().filter_map(|key| Some((*key, row(key)?))).collect();
        let mut found = Rows::new();
        for rows in rows.chunks(MAX_ROWS_A_CALL) {
            let names: Vec<_> = rows.iter().map(|(_, row)| row).collect();
            let values: Vec<Option<Vec<u8>>> = redis::cmd("MGET").arg(names).query_async(&mut self.connection).await?;
            for ((key, _), value) in rows.iter().zip(values) {
                let Some(value) = value else { continue };
                let (version, body) = Head::of(&value).map_or((ABSENT, 0), |head| (head.version, head.len));
                let data = String::from_utf8_lossy(&value[body..]).into_owned();
                found.insert((*key).to_owned(), ReadRow { version, data });
            }
        }
        Ok(found)
    }
}
