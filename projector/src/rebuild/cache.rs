//! Rows of the next generation in Redis, before it is live there.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use redis::aio::ConnectionManager;
use schemas::aggregate;
use schemas::cache::{Keys, Making, PUT, ROW_TTL_SECS, Shown, value};
use schemas::feeds::{FeedId, StoredView};
use schemas::views::{Source, row_body};

use super::limits::Share;
use super::tables::Tables;
use crate::config::Config;
use crate::redis::{MAX_ROWS_A_CALL, change_position};

/// What is hot is far less.
const MAX_COPIED: usize = 200_000;

pub(super) struct Cache {
    connection: ConnectionManager,
    keys: Keys,
    view: StoredView,
    /// By partition.
    live: Vec<Making>,
    /// Of the next rows, in every partition; no other attempt has left anything there.
    incarnation: u64,
    /// The script that puts rows, by its name on the server.
    put: String,
}

impl Cache {
    /// `None`: Redis does not have the live generation either.
    pub(super) async fn connect(
        config: &Config,
        view: StoredView,
        (live_generation, partitions): (i32, u32),
    ) -> anyhow::Result<Option<Self>> {
        let mut connection = chassis::redis::connect(&config.redis_url)?;
        let keys = Keys::new(&config.redis_prefix);
        let mut pipe = redis::pipe();
        for partition in 0..partitions {
            pipe.get(keys.shown(view.name(), partition));
        }
        let found: Vec<Option<String>> = pipe.query_async(&mut connection).await?;
        let generation = live_generation.cast_unsigned();
        let making = |value: Option<String>| Shown::parse(&value?).map(|shown| shown.making);
        let live: Option<Vec<_>> = found.into_iter().map(making).collect();
        let live = live.filter(|live| live.iter().all(|making| making.generation == generation));
        let put = redis::cmd("SCRIPT").arg("LOAD").arg(PUT).query_async(&mut connection).await?;
        Ok(live.map(|live| Self { connection, keys, view, live, incarnation: rand::random(), put }))
    }

    /// Puts what Redis has of the live generation as the next rows have it, for this share of the time. Returns how many
    /// rows that are.
    pub(super) async fn copy(&mut self, tables: &Tables, share: Share) -> anyhow::Result<usize> {
        let Source::Aggregate(_) = self.view.view().source else { return Ok(0) };
        let start = |(partition, making): (u32, &Making)| self.keys.row(partition, making.incarnation, self.view, "");
        let starts: Vec<_> = (0..).zip(&self.live).map(start).collect();
        let (mut cursor, mut copied) = (0u64, 0);
        loop {
            let begun = Instant::now();
            let (next, found): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(self.keys.rows(self.view))
                .arg("COUNT")
                .arg(MAX_ROWS_A_CALL)
                .query_async(&mut self.connection)
                .await
                .context("look for what Redis has")?;
            let key = |found: &String| starts.iter().find_map(|start| found.strip_prefix(start)).map(str::to_owned);
            let keys: Vec<_> = found.iter().filter_map(key).collect();
            copied += keys.len();
            self.put(tables, keys).await?;
            cursor = next;
            if cursor == 0 || copied >= MAX_COPIED {
                return Ok(copied);
            }
            share.rest(begun).await;
        }
    }

    /// Puts rows as they stand in the next table.
    pub(super) async fn put(&mut self, tables: &Tables, keys: Vec<String>) -> anyhow::Result<()> {
        let Source::Aggregate(fold) = self.view.view().source else { return Ok(()) };
        for keys in keys.chunks(MAX_ROWS_A_CALL) {
            let mut rows: BTreeMap<u32, Vec<_>> = BTreeMap::new();
            for (key, version, data) in tables.next_rows(keys).await? {
                let partition = aggregate::partition(fold.aggregate, &key, self.live.len() as u32);
                let row = self.keys.row(partition, self.incarnation, self.view, &key);
                let value = value(version, &[], row_body(&key, version, &data).as_bytes());
                rows.entry(partition).or_default().push((row, version, value));
            }
            let mut pipe = redis::pipe();
            for rows in rows.values() {
                let call = pipe.cmd("EVALSHA").arg(&self.put).arg(rows.len());
                for (key, ..) in rows {
                    call.arg(key);
                }
                call.arg(ROW_TTL_SECS);
                for (_, version, value) in rows {
                    call.arg(*version).arg(value);
                }
            }
            if !rows.is_empty() {
                pipe.query_async::<Vec<i64>>(&mut self.connection).await.context("put the next rows into Redis")?;
            }
        }
        Ok(())
    }

    /// Goes with the checkpoints of all other views, whose revision was raised to make them known to whoever folds these.
    /// Where it fails, their projectors begin anew.
    pub(super) async fn revise_others(&mut self) {
        let feeds = FeedId::all().into_iter().filter(|feed| *feed != FeedId::View(self.view));
        let partitions = 0..self.live.len() as u32;
        for place in feeds.flat_map(|feed| partitions.clone().map(move |partition| (feed, partition))) {
            let revised = |shown: Shown| {
                let making = Making { revision: shown.making.revision + 1, ..shown.making };
                Some(Shown { making, ..shown })
            };
            if change_position(&mut self.connection, &self.keys, place, revised).await.is_err() {
                return;
            }
        }
    }

    /// Makes the next rows live, which stand at these next offsets. `false`: somewhere the rows from before are not live any
    /// more.
    pub(super) async fn switch(&mut self, to: &[i64]) -> bool {
        let mut is_everywhere = true;
        for ((partition, live), to) in (0..).zip(self.live.clone()).zip(to) {
            let (generation, revision) = (live.generation + 1, live.revision + 1);
            let making = Making { incarnation: self.incarnation, generation, revision };
            let change = |shown: Shown| (shown.making == live).then_some(Shown { making, offset: to - 1, hash: None });
            let place = (FeedId::View(self.view), partition);
            let changed = change_position(&mut self.connection, &self.keys, place, change).await;
            is_everywhere &= changed.unwrap_or(false);
        }
        is_everywhere
    }
}
