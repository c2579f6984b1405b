//! Does what events cause: sends the steps of `domain::reactions` to command-api, and sets the alarms.
//!
//! It reads the log by itself, from checkpoints of its own. The steps of a batch are taken in waves, each of what the
//! outcomes of the one before lead to; the checkpoint moves when none is left, with the alarms in the same transaction.
//!
//! Invariant: every step of every event is taken at least once, in whatever order, before the checkpoint passes the event.
//! That it may be taken again, at any time, is what the steps are made for.
//!
//! Invariant: a step that cannot be taken is parked with its event's aggregate, and holds up nothing else. Overload and
//! outages are no reason: then everything waits.

mod chains;
mod commands;
pub(crate) mod deadlines;
mod positions;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::kafka::group::Assignment;
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use rdkafka::error::KafkaError;
use schemas::chain::Verdict;
use schemas::record::Record;
use tokio::sync::watch;

use crate::config::Config;
use crate::fold::{FoldError, Records};
use crate::log::{self, Batch};
use crate::metrics::Metrics;
use crate::poison::ParkedRecord;
use chains::{Chain, Failed};
pub(crate) use commands::{Answered, Commands};
pub(crate) use positions::{Positions, REACTOR, ReactorStoreError};

/// After something broke.
const RETRY: Duration = Duration::from_millis(300);
/// Another reactor moved the checkpoints.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The checkpoints follow this much behind at most: what they have not passed is only taken again after a crash.
const MOVE_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
enum ReactorError {
    #[error("Postgres failed")]
    Store(#[from] ReactorStoreError),
    #[error("the log is not what the reactor read")]
    Read(#[from] FoldError),
    #[error("the log does not hold what is asked of it")]
    Log(#[source] KafkaError),
    #[error("the log's reader could not start")]
    Reader(#[source] anyhow::Error),
}

pub(crate) struct Reactor {
    pub(crate) config: Config,
    pub(crate) partitions: u32,
    pub(crate) commands: Arc<Commands>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ready: Condition,
    /// Told by the group.
    pub(crate) assignment: watch::Receiver<Assignment>,
}

impl Reactor {
    /// Until shutdown. Only a log that cannot be read on ends it in place: it halts and says so.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let wait = match self.stretch(&shutdown).await {
                Ok(()) => continue,
                Err(ReactorError::Store(ReactorStoreError::Moved)) => LOOK_AGAIN,
                Err(error @ (ReactorError::Read(_) | ReactorError::Log(_))) => {
                    let reason = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(error = reason, "the reactor halted: a person must look at the log");
                    self.ready.waiting(format!("halted: {reason}"));
                    return shutdown.requested().await;
                }
                Err(error) => {
                    let reason = format!("{:#}", anyhow::Error::from(error));
                    tracing::warn!(error = reason, "reacting stopped; beginning again from the checkpoints");
                    self.ready.waiting(reason);
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.requested() => {}
            }
        }
    }

    /// Until the assignment changes.
    async fn stretch(&mut self, shutdown: &Shutdown) -> Result<(), ReactorError> {
        let assigned = self.assignment.borrow_and_update().clone().unwrap_or_default();
        if assigned.is_empty() {
            self.ready.ready();
            changed(&mut self.assignment, shutdown).await;
            return Ok(());
        }
        let mut positions = Positions::load(&self.config.postgres_url, self.partitions, &assigned).await?;
        self.metrics.reactor_parked(positions.parked.len());
        let mut batches = log::follow(&self.config.kafka, &self.config.topic.name, &positions.from())
            .map_err(ReactorError::Reader)?;
        self.ready.ready();
        tracing::info!(partitions = ?assigned, "reacting");
        let mut assignment = self.assignment.clone();
        let mut last_move = Instant::now();
        loop {
            let batch = tokio::select! {
                biased;
                () = changed(&mut assignment, shutdown) => None,
                batch = batches.recv() => Some(batch.map_err(ReactorError::Log)?),
                () = tokio::time::sleep(MOVE_EVERY) => Some(Batch::default()),
            };
            let Some(batch) = batch else {
                positions.commit().await?;
                return Ok(());
            };
            tokio::select! {
                // What is under way is given up: whoever takes over begins it again.
                () = changed(&mut assignment, shutdown) => return Ok(()),
                taken = self.take(&batch, &mut positions, &assigned) => taken?,
            }
            if last_move.elapsed() >= MOVE_EVERY {
                positions.commit().await?;
                last_move = Instant::now();
            }
        }
    }

    async fn take(
        &self,
        batch: &Batch,
        positions: &mut Positions,
        assigned: &BTreeSet<u32>,
    ) -> Result<(), ReactorError> {
        let records = Records::of(batch)?;
        let window = u64::try_from(self.config.payment_window.as_millis()).unwrap_or(u64::MAX);
        let mut chains = Vec::new();
        let mut read = Vec::new();
        for (partition, offset, value, record) in records.iter() {
            if !assigned.contains(&partition) || positions.read(partition, offset, record)? != Some(Verdict::Counts) {
                continue;
            }
            let Some(Record::Commit(commit)) = record else { continue };
            let parked = |reason| ParkedRecord {
                view: 0,
                aggregate: commit.aggregate.to_string(),
                partition,
                offset,
                version: commit.version,
                reason,
                record: value.to_vec(),
            };
            if positions.parked.contains(&*commit.aggregate) {
                positions.park(parked(None));
                continue;
            }
            let caused = chains::of(commit, (partition, offset), window, read.len());
            positions.set(caused.alarms);
            if !caused.chains.is_empty() {
                chains.extend(caused.chains);
                read.push((partition, offset, value, commit));
            }
        }
        for Failed { source, reason } in self.finish(chains).await {
            let (partition, offset, value, commit) = read[source];
            tracing::error!(aggregate = &*commit.aggregate, reason, "parked: what it causes cannot be done");
            let (aggregate, version, record) = (commit.aggregate.to_string(), commit.version, value.to_vec());
            positions.park(ParkedRecord {
                view: 0,
                aggregate,
                partition,
                offset,
                version,
                reason: Some(reason),
                record,
            });
        }
        self.metrics.reactor_parked(positions.parked.len());
        Ok(())
    }

    async fn finish(&self, chains: Vec<Chain>) -> Vec<Failed> {
        chains::finish(&self.commands, Some(&self.metrics), chains).await
    }
}

/// What the records of one aggregate cause, once more. An error says why it cannot be done.
pub(crate) async fn again(commands: &Commands, batch: &Batch, payment_window: Duration) -> Result<(), String> {
    let window = u64::try_from(payment_window.as_millis()).unwrap_or(u64::MAX);
    let records = Records::of(batch).map_err(|error| error.to_string())?;
    for (partition, offset, _, record) in records.iter() {
        let Some(Record::Commit(commit)) = record else { continue };
        let caused = chains::of(commit, (partition, offset), window, 0);
        if let Some(Failed { reason, .. }) = chains::finish(commands, None, caused.chains).await.pop() {
            return Err(reason);
        }
    }
    Ok(())
}

/// The share did, or it is time to end.
async fn changed(assignment: &mut watch::Receiver<Assignment>, shutdown: &Shutdown) {
    tokio::select! {
        // The group ends after the reactor.
        Ok(()) = assignment.changed() => {}
        () = shutdown.requested() => {}
    }
}
