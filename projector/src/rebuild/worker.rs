//! Folds some partitions of views into their next rows.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use schemas::exceptions::Exceptions;
use tokio::sync::watch;

use super::limits::{Piece, Share};
use crate::config::{Config, Feeds};
use crate::fold::{Changes, Folder, Progress, Records};
use crate::log_reader::{self, Batch, BatchLimits, Batches};
use crate::postgres::checkpoints::CheckpointMove;
use crate::postgres::{End, Store, Target};

/// Time limit for Kafka to return the next records.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Maximum number of rows of a view that stay in memory.
const MAX_ROWS: usize = 100_000;
/// Interval between commits. It is long so that a row that many records change is written rarely.
const COMMIT_EVERY: Duration = Duration::from_secs(2);
/// Maximum size of a batch. It is larger than in live folding: a row is written once per batch, and this process is
/// short-lived.
const MAX_BATCH_BYTES: usize = 2 * BatchLimits::MAX.bytes;

pub(super) struct Worker {
    views: Feeds,
    partitions: Vec<u32>,
    store: Store,
    folder: Folder,
    /// Progress in all partitions; only this worker's own advance.
    all_progress: Vec<Progress>,
    committed: Vec<Progress>,
    batches: Batches,
    exceptions: Arc<Exceptions>,
    piece: Piece,
    /// Batches that were read beyond the last goal: records that arrived while the rest was read up to it.
    ahead: Vec<Batch>,
    changes: Changes,
    last_commit: Instant,
    /// Keys of changed rows, while they are recorded.
    pub(super) touched: Option<HashSet<String>>,
    /// Number of records that all workers have read.
    progress: Arc<AtomicI64>,
}

impl Worker {
    /// Resumes at the next rows of the view furthest behind. Each view takes only the records that it lacks.
    pub(super) async fn new(
        config: &Config,
        views: Feeds,
        all: u32,
        partitions: Vec<u32>,
        piece: Piece,
        progress: Arc<AtomicI64>,
    ) -> anyhow::Result<Self> {
        let store = Store::connect(&config.postgres, Target::Next(views)).await?;
        let all_progress = store.all_progress(all, views).await?;
        let from: Vec<_> =
            partitions.iter().map(|partition| (*partition, all_progress[*partition as usize].from())).collect();
        let limits = BatchLimits { records: piece.records, bytes: MAX_BATCH_BYTES };
        let batches = log_reader::follow_by(limits, &config.kafka, &config.topic.name, &from, Vec::new())?;
        let folder = Folder::with_room(MAX_ROWS);
        let worker = Self {
            views,
            partitions,
            store,
            folder,
            committed: all_progress.clone(),
            all_progress,
            batches,
            exceptions: config.exceptions.clone(),
            piece,
            ahead: Vec::new(),
            changes: Changes::default(),
            last_commit: Instant::now(),
            touched: None,
            progress,
        };
        worker.progress.fetch_add(worker.position(), Ordering::Relaxed);
        Ok(worker)
    }

    /// Folds for this share of the time until each partition's next rows have reached the goal, and commits. If the
    /// goal moves meanwhile, partitions that have reached it continue, so that no more than the records since the last
    /// move are held for them.
    pub(super) async fn fold_to(mut self, mut goal: watch::Receiver<Arc<[i64]>>, share: Share) -> anyhow::Result<Self> {
        loop {
            let until = goal.borrow_and_update().clone();
            // These come before the batches read next: their offsets are lower.
            for batch in std::mem::take(&mut self.ahead) {
                self.take_below(batch, &until, share).await?;
            }
            while !self.is_at(&until) && !goal.has_changed().unwrap_or(false) {
                let next = tokio::time::timeout(ANSWER_WITHIN, self.batches.recv()).await;
                let batch = next.context("timed out waiting for records from Kafka")?.context("read the log")?;
                self.take_below(batch, &until, share).await?;
            }
            if self.is_at(&until) {
                self.commit().await?;
                return Ok(self);
            }
        }
    }

    async fn take_below(&mut self, mut batch: Batch, until: &[i64], share: Share) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.ahead.extend(batch.split_off(until));
        self.take(&batch).await?;
        if self.changes.len() >= self.piece.changed_rows || self.last_commit.elapsed() > COMMIT_EVERY {
            self.commit().await?;
        }
        share.rest(begun).await;
        Ok(())
    }

    async fn take(&mut self, batch: &Batch) -> anyhow::Result<()> {
        if self.folder.is_full() {
            self.commit().await?;
            self.folder.clear();
        }
        let before = self.position();
        let records = Records::of(batch, &self.exceptions)?;
        let missing = self.folder.missing(&records, self.views);
        self.folder.remember(self.store.rows(&missing).await?);
        let changes = self.folder.fold(&records, &mut self.all_progress)?;
        if let Some(touched) = &mut self.touched {
            touched.extend(changes.keys().cloned());
        }
        self.changes.merge(changes);
        self.progress.fetch_add(self.position() - before, Ordering::Relaxed);
        Ok(())
    }

    async fn commit(&mut self) -> anyhow::Result<()> {
        self.last_commit = Instant::now();
        let mut moves = Vec::new();
        let places = self.partitions.iter().flat_map(|partition| self.views.iter().map(move |feed| (feed, *partition)));
        for (feed, partition) in places {
            let (now, committed) = (&self.all_progress[partition as usize], &self.committed[partition as usize]);
            let (from, to, tally) = (committed.readers[feed], now.readers[feed], now.tallies[feed]);
            if to != from {
                let (name, revision) = (Target::Next(self.views).name(feed), now.revisions[feed]);
                moves.push(CheckpointMove { name, partition, from, to, tally, times: now.times, revision });
            }
        }
        if !moves.is_empty() {
            self.store.commit(&std::mem::take(&mut self.changes), &moves, &self.all_progress, End::Commit).await?;
            self.committed.clone_from(&self.all_progress);
        }
        Ok(())
    }

    fn is_at(&self, until: &[i64]) -> bool {
        self.partitions.iter().all(|partition| self.next_offset(*partition) >= until[*partition as usize])
    }

    fn position(&self) -> i64 {
        self.partitions.iter().map(|partition| self.next_offset(*partition)).sum()
    }

    /// Returns the next offset of the view furthest behind.
    fn next_offset(&self, partition: u32) -> i64 {
        let readers = &self.all_progress[partition as usize].readers;
        self.views.iter().map(|feed| readers[feed].next_offset).min().unwrap_or(i64::MAX)
    }
}
