//! Copies rows of the next generation to Redis before it becomes live there.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use chassis::redis::{Connection, Pipelines, RESPONSE_TIMEOUT};
use redis::FromRedisValue;
use schemas::aggregate;
use schemas::cache::{Keys, Making, PUT, ROW_TTL_SECS, Shown, value};
use schemas::feeds::{FeedId, StoredView};
use schemas::views::{Source, row_body};

use super::limits::Share;
use super::tables::Tables;
use crate::config::Config;
use crate::postgres::bases::ReadRow;
use crate::redis::{MAX_ROWS_A_CALL, change_position};
use crate::share::Place;

/// Upper bound of the rows to copy. Hot rows are far fewer.
const MAX_COPIED: usize = 200_000;

pub(super) struct Cache {
    connection: Connection,
    keys: Keys,
    view: StoredView,
    /// Making of the live rows, by partition.
    live: Vec<Making>,
    /// Incarnation of the next rows in every partition. It is random, so no earlier attempt has left rows there.
    incarnation: u64,
}

impl Cache {
    /// Connects to Redis. Returns `None` if Redis lacks the live generation, too.
    pub(super) async fn connect(
        config: &Config,
        view: StoredView,
        live_generation: i32,
        partitions: u32,
    ) -> anyhow::Result<Option<Self>> {
        let mut connection = chassis::redis::connect(&config.redis)?;
        let keys = Keys::new(&config.redis_prefix);
        let positions: Vec<_> = (0..partitions).map(|partition| keys.shown(view.name(), partition)).collect();
        let found: Vec<Option<String>> = redis::cmd("MGET").arg(positions).query_async(&mut connection).await?;
        let generation = live_generation.cast_unsigned();
        let making = |value: Option<String>| Shown::parse(&value?).map(|shown| shown.making);
        let live: Option<Vec<_>> = found.into_iter().map(making).collect();
        let live = live.filter(|live| live.iter().all(|making| making.generation == generation));
        Ok(live.map(|live| Self { connection, keys, view, live, incarnation: rand::random() }))
    }

    /// Copies the next rows for the keys that Redis has of the live generation, for this share of the time. Returns
    /// their number.
    pub(super) async fn copy(&mut self, tables: &Tables, share: Share) -> anyhow::Result<usize> {
        let Source::Aggregate(_) = self.view.view().source else { return Ok(0) };
        let start = |(partition, making): (u32, &Making)| self.keys.row(partition, making.incarnation, self.view, "");
        let starts: Vec<_> = (0..).zip(&self.live).map(start).collect();
        let servers = self.connection.ask_masters(redis::cmd("PING")).await.context("list the Redis servers")?;
        let mut copied = 0;
        for (server, _) in servers {
            let mut cursor = 0;
            loop {
                let begun = Instant::now();
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(self.keys.rows(self.view)).arg("COUNT").arg(MAX_ROWS_A_CALL);
                let found = self.connection.ask(&server, scan).await.context("scan the keys in Redis")?;
                let (next, found): (u64, Vec<String>) = FromRedisValue::from_redis_value(found)?;
                let key = |found: &String| starts.iter().find_map(|start| found.strip_prefix(start)).map(str::to_owned);
                let keys: Vec<_> = found.iter().filter_map(key).collect();
                copied += keys.len();
                self.put(tables, keys).await?;
                if copied >= MAX_COPIED {
                    return Ok(copied);
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
                share.rest(begun).await;
            }
        }
        Ok(copied)
    }

    /// Writes rows of the next table to Redis.
    pub(super) async fn put(&mut self, tables: &Tables, keys: Vec<String>) -> anyhow::Result<()> {
        let Source::Aggregate(fold) = self.view.view().source else { return Ok(()) };
        for keys in keys.chunks(MAX_ROWS_A_CALL) {
            let mut rows: BTreeMap<u32, Vec<_>> = BTreeMap::new();
            for ReadRow { key, version, data } in tables.next_rows(keys).await? {
                let partition = aggregate::partition(fold.aggregate, &key, self.live.len() as u32);
                let row = self.keys.row(partition, self.incarnation, self.view, &key);
                let value = value(version, &[], row_body(&key, version, &data).as_bytes());
                rows.entry(partition).or_default().push((row, version, value));
            }
            let mut pipelines = Pipelines::default();
            for (partition, rows) in &rows {
                let call = pipelines.of(*partition).cmd("EVAL").arg(PUT).arg(rows.len());
                for (key, ..) in rows {
                    call.arg(key);
                }
                call.arg(ROW_TTL_SECS);
                for (_, version, value) in rows {
                    call.arg(*version).arg(value);
                }
            }
            for answer in pipelines.send::<i64>(&self.connection, RESPONSE_TIMEOUT).await.into_values() {
                answer.context("write the next rows to Redis")?;
            }
        }
        Ok(())
    }

    /// Raises the revision of all other views in Redis, as the switch did with their checkpoints so that their
    /// projectors notice it. If this fails, those projectors start anew.
    pub(super) async fn revise_others(&mut self) {
        let feeds = FeedId::all().into_iter().filter(|feed| *feed != FeedId::View(self.view));
        let partitions = 0..self.live.len() as u32;
        for place in feeds.flat_map(|feed| partitions.clone().map(move |partition| Place { feed, partition })) {
            let revised = |shown: Shown| {
                let making = Making { revision: shown.making.revision + 1, ..shown.making };
                Some(Shown { making, ..shown })
            };
            if change_position(&mut self.connection, &self.keys, place, revised).await.is_err() {
                return;
            }
        }
    }

    /// Makes the next rows live at these next offsets. Returns `false` if that failed in a partition, or the previous
    /// rows were no longer live there.
    pub(super) async fn switch(&mut self, to: &[i64]) -> bool {
        let mut is_everywhere = true;
        for ((partition, live), to) in (0..).zip(self.live.clone()).zip(to) {
            let (generation, revision) = (live.generation + 1, live.revision + 1);
            let making = Making { incarnation: self.incarnation, generation, revision };
            let change = |shown: Shown| (shown.making == live).then_some(Shown { making, offset: to - 1, hash: None });
            let place = Place { feed: FeedId::View(self.view), partition };
            let changed = change_position(&mut self.connection, &self.keys, place, change).await;
            is_everywhere &= changed.unwrap_or(false);
        }
        is_everywhere
    }
}
