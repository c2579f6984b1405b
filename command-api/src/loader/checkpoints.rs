//! Polls the progress of the journal and sends it to the engines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::shutdown::Shutdown;
use futures_util::future::join_all;
use schemas::record::Record;
use schemas::settings::Settings;
use tokio::sync::watch;

use super::postgres::{Store, StoreError};
use crate::kafka::reader::LogReader;
use crate::partition::Checkpoint;

pub(super) const EVERY: Duration = Duration::from_millis(500);
/// Time without an answer from Postgres after which the next owner of a short partition reads all of its log instead.
const GIVES_UP_AFTER: Duration = Duration::from_secs(3);
/// Maximum number of records that are read without a checkpoint, which takes seconds.
const SHORT: i64 = 100_000;

/// Progress of a partition's checkpoint, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JournalProgress {
    /// Not known yet, shortly after the start.
    NotYet,
    /// Postgres does not answer, and the partition has too many records to be read without a checkpoint.
    Late {
        records: i64,
    },
    /// Postgres does not answer and the partition is short, or Postgres has nothing of the partition.
    Nothing,
    At(Checkpoint),
}

/// Polls until shutdown, or until the tables turn out to belong to another log or to services configured otherwise.
pub(super) async fn follow(
    store: Arc<Store>,
    settings: Settings,
    reader: LogReader,
    tell: Vec<watch::Sender<JournalProgress>>,
    wrong: watch::Sender<Option<String>>,
    shutdown: Shutdown,
) {
    let (mut since, mut unchecked, mut compared) = (Instant::now(), None, false);
    while !shutdown.is_requested() {
        if !compared {
            match store.compare(&settings).await {
                Ok(None) => compared = true,
                Ok(Some(difference)) => {
                    wrong.send_replace(Some(difference.to_string()));
                    return shutdown.requested().await;
                }
                // Without Postgres the service runs; the comparison follows once Postgres is back.
                Err(error) => tracing::debug!(error = %error, "could not compare the shared settings"),
            }
        }
        match look(&store, &reader, &tell, &mut unchecked).await {
            Ok(()) => since = Instant::now(),
            Err(CheckpointError::OtherLog(partition)) => {
                let message = format!(
                    "the tables belong to another log: partition {partition} begins with another claim than the one in Postgres"
                );
                wrong.send_replace(Some(message));
                return shutdown.requested().await;
            }
            Err(CheckpointError::Store(error)) => {
                tracing::debug!(error = %error, "could not read the checkpoints");
                if since.elapsed() > GIVES_UP_AFTER {
                    go_without(&reader, &tell).await;
                }
                // Notifies the engines anyway, because this also triggers their maintenance.
                tell.iter().for_each(|tell| tell.send_modify(|_| ()));
            }
        }
        shutdown.sleep(EVERY).await;
    }
}

enum CheckpointError {
    Store(StoreError),
    /// The tables belong to another log; names the partition where they differ.
    OtherLog(u32),
}

/// Publishes the checkpoints of partitions whose identities match those in Postgres. `unchecked` holds the partitions
/// that could not be compared yet, with their expected nonces.
async fn look(
    store: &Store,
    reader: &LogReader,
    tell: &[watch::Sender<JournalProgress>],
    unchecked: &mut Option<Vec<(u32, u64)>>,
) -> Result<(), CheckpointError> {
    let unchecked = match unchecked {
        Some(unchecked) => unchecked,
        None => unchecked.insert(store.identities().await.map_err(CheckpointError::Store)?),
    };
    let firsts = unchecked.iter().map(|(partition, _)| reader.record(*partition, 0));
    let mut firsts = join_all(firsts).await.into_iter();
    let mut other = None;
    unchecked.retain(|(partition, nonce)| {
        let Some(Ok(first)) = firsts.next() else { return true };
        let first = first.unwrap_or_default();
        if matches!(Record::decode(&first), Ok(Some(Record::Claim(claim))) if claim.nonce != *nonce) {
            other = Some(*partition);
        }
        false
    });
    if let Some(partition) = other {
        return Err(CheckpointError::OtherLog(partition));
    }
    let mut checkpoints = vec![JournalProgress::Nothing; tell.len()];
    for (partition, checkpoint) in store.checkpoints().await.map_err(CheckpointError::Store)? {
        if let Some(slot) = checkpoints.get_mut(partition as usize) {
            *slot = JournalProgress::At(checkpoint);
        }
    }
    for ((partition, tell), known) in (0..).zip(tell).zip(checkpoints) {
        if unchecked.iter().all(|(unchecked, _)| *unchecked != partition) {
            tell.send_replace(known);
        }
    }
    Ok(())
}

/// Lets short partitions be read from their beginning while Postgres is unavailable; long ones wait.
async fn go_without(reader: &LogReader, tell: &[watch::Sender<JournalProgress>]) {
    let waits = |tell: &watch::Sender<JournalProgress>| {
        matches!(*tell.borrow(), JournalProgress::NotYet | JournalProgress::Late { .. })
    };
    let waiting = (0..).zip(tell).filter(|(_, tell)| waits(tell));
    join_all(waiting.map(async |(partition, tell)| {
        let Ok(last) = reader.last_offset(partition).await else { return };
        let records = last.map_or(0, |last| last + 1);
        let known = if records < SHORT { JournalProgress::Nothing } else { JournalProgress::Late { records } };
        let before = tell.send_replace(known);
        if before == JournalProgress::NotYet {
            tracing::warn!(kafka.partition = partition, known = ?known, "no checkpoint: Postgres does not answer");
        }
    }))
    .await;
}
