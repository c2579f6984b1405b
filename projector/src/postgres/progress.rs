//! Loads the checkpoints.

use std::collections::HashMap;

use schemas::chain::{Reader, Tally};
use schemas::feeds::{FeedId, PerFeed};
use schemas::tables::nonce_from_sql;
use tokio_postgres::Row;

use super::Store;
use super::checkpoints::{self, reader, tally};
use super::error::StoreError;
use crate::config::Feeds;
use crate::fold::{Progress, Times};

impl Store {
    /// Returns the feeds whose live rows were made by another version of the fold than this build's.
    pub(crate) async fn of_other_folds(&self, feeds: Feeds) -> Result<Feeds, StoreError> {
        let sql = "SELECT DISTINCT view, fold FROM checkpoints";
        let known = self.client.query(sql, &[]).await.map_err(StoreError::Load)?;
        let is_other = |feed: FeedId| {
            known.iter().any(|row| row.get::<_, &str>(0) == feed.name() && row.get::<_, i32>(1) != feed.form())
        };
        Ok(feeds.filter(is_other))
    }

    /// Loads the progress of all partitions. Checkpoints that do not exist yet are created at the start of the log.
    ///
    /// # Errors
    /// [`StoreError::OtherFold`] if the rows of one of the feeds were made by another version of the fold.
    pub(crate) async fn all_progress(&self, partitions: u32, feeds: Feeds) -> Result<Vec<Progress>, StoreError> {
        let (names, folds): (Vec<_>, Vec<_>) = feeds.iter().map(|feed| (self.target.name(feed), feed.form())).unzip();
        self.client
            .execute(checkpoints::BEGIN, &[&names, &partitions.cast_signed(), &folds])
            .await
            .map_err(StoreError::Load)?;
        let checkpoints = self.client.query(checkpoints::LOAD, &[]).await.map_err(StoreError::Load)?;
        let known: HashMap<(String, i32), &Row> =
            checkpoints.iter().map(|row| ((row.get("view"), row.get("partition")), row)).collect();
        let is_other = |row: &&Row| {
            feeds.iter().any(|feed| {
                row.get::<_, &str>("view") == self.target.name(feed) && row.get::<_, i32>("fold") != feed.form()
            })
        };
        if let Some(row) = checkpoints.iter().find(is_other) {
            return Err(StoreError::OtherFold(row.get("view")));
        }
        let rows =
            self.client.query("SELECT partition, nonce FROM log_partitions", &[]).await.map_err(StoreError::Load)?;
        let nonces: HashMap<i32, u64> = rows.iter().map(|row| (row.get(0), nonce_from_sql(row.get(1)))).collect();
        let mut times: HashMap<i32, Times> = HashMap::new();
        for row in &checkpoints {
            let known = times.entry(row.get("partition")).or_default();
            known.last_at_ms = known.last_at_ms.max(row.get::<_, i64>("last_at_ms").cast_unsigned());
            known.max_key_ms = known.max_key_ms.max(row.get::<_, i64>("max_key_ms").cast_unsigned());
        }
        let progress = |partition: u32| {
            let partition = partition.cast_signed();
            let rows: PerFeed<Option<&Row>> =
                FeedId::all().map(|feed| known.get(&(self.target.name(feed), partition)).copied());
            let readers = rows.map(|row| row.map_or(Reader::START, reader));
            let mut progress = Progress::new(readers, feeds, nonces.get(&partition).copied());
            progress.tallies = rows.map(|row| row.map_or(Tally::default(), tally));
            progress.generations = rows.map(|row| row.map_or(1, |row| row.get("generation")));
            progress.revisions = rows.map(|row| row.map_or(0, |row| row.get("revision")));
            progress.times = times.get(&partition).copied().unwrap_or_default();
            progress
        };
        Ok((0..partitions).map(progress).collect())
    }
}
