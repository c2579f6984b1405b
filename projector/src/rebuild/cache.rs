//! Rows of the next generation in Redis, before it is live there.

use anyhow::Context as _;
use redis::aio::ConnectionManager;
use schemas::cache::{ADVANCE, Keys, SWITCH, generation, position_field, switched};
use schemas::feeds::StoredView;

use super::tables::Tables;
use crate::config::Config;
use crate::redis::put_rows;

/// What is hot is far less.
const MAX_COPIED: usize = 200_000;
const ROWS_A_CALL: usize = 500;
/// In ms since 1970: a deadline that does not pass. Nobody else moves the positions of a view that waits.
const NEVER_MS: u64 = 1 << 52;

pub(super) struct Cache {
    connection: ConnectionManager,
    keys: Keys,
    view: StoredView,
    live: String,
    next: String,
}

impl Cache {
    /// `None`: Redis does not have the live generation either.
    pub(super) async fn connect(
        config: &Config,
        view: StoredView,
        live_generation: i32,
    ) -> anyhow::Result<Option<Self>> {
        let mut connection = chassis::redis::connect(&config.redis_url)?;
        let keys = Keys::new(&config.redis_prefix);
        let live: Option<String> = redis::cmd("GET").arg(keys.live()).query_async(&mut connection).await?;
        let is = live_generation.cast_unsigned();
        let Some(live) = live.filter(|live| generation(live, view) == Some(is)) else { return Ok(None) };
        // No other attempt may have left anything there.
        let next = switched(&live, view, is + 1, rand::random());
        Ok(Some(Self { connection, keys, view, live, next }))
    }

    /// What Redis has of the live generation, as the next rows have it.
    pub(super) async fn copy(&mut self, tables: &Tables) -> anyhow::Result<usize> {
        let (mut cursor, mut copied) = (0u64, 0);
        let start = self.keys.row(&self.live, self.view, "");
        loop {
            let (next, found): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{start}*"))
                .arg("COUNT")
                .arg(ROWS_A_CALL)
                .query_async(&mut self.connection)
                .await
                .context("look for what Redis has")?;
            let keys: Vec<_> = found.iter().filter_map(|key| key.strip_prefix(&start)).map(str::to_owned).collect();
            copied += keys.len();
            self.put(tables, keys).await?;
            cursor = next;
            if cursor == 0 || copied >= MAX_COPIED {
                return Ok(copied);
            }
        }
    }

    /// Rows as they stand in the next table.
    pub(super) async fn put(&mut self, tables: &Tables, keys: Vec<String>) -> anyhow::Result<()> {
        for keys in keys.chunks(ROWS_A_CALL) {
            let rows = tables.next_rows(keys).await?;
            // Nobody else writes there: no deadline.
            let place = (&self.keys, self.next.as_str(), self.view);
            put_rows(&mut self.connection, place, 0, &rows).await.context("put the next rows into Redis")?;
        }
        Ok(())
    }

    /// `false`: another incarnation has begun meanwhile.
    pub(super) async fn switch(&mut self) -> anyhow::Result<bool> {
        let script = redis::Script::new(SWITCH);
        let mut call = script.key(self.keys.live());
        call.arg(self.keys.applied()).arg(&self.live).arg(&self.next);
        Ok(call.invoke_async::<i64>(&mut self.connection).await? == 1)
    }

    /// Moves the view's positions to where the rows of the new incarnation stand, by their next offsets. `false`: they are
    /// not where the live rows stood.
    pub(super) async fn advance(&mut self, from: &[i64], to: &[i64]) -> anyhow::Result<bool> {
        let script = redis::Script::new(ADVANCE);
        let mut call = script.key(self.keys.live());
        call.key(self.keys.applied()).arg(self.keys.applied()).arg(NEVER_MS).arg(&self.next);
        for (partition, (from, to)) in (0..).zip(from.iter().zip(to)).filter(|(_, (from, to))| to > from) {
            let expected = if *from == 0 { String::new() } else { (from - 1).to_string() };
            call.arg(position_field(self.view.name(), partition)).arg(expected).arg(to - 1);
        }
        Ok(call.invoke_async::<i64>(&mut self.connection).await? == 1)
    }
}
