//! Retries parked records with a growing delay: the cause may have been fixed without notice to the reactor.
//!
//! The time of the next retry is in Postgres, so that a reactor that starts does not retry everything at once. Any
//! reactor may retry any record, whichever partitions it has. `POST /parked/reactor/retry` lets an operator retry
//! everything now.

use std::collections::BTreeMap;
use std::time::Duration;

use chassis::postgres::PostgresSettings;
use chassis::shutdown::Shutdown;
use chassis::telemetry::with_causes;
use domain::TimeMs;
use schemas::exceptions::Exceptions;
use schemas::record::Record;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use super::positions::{ReactorStoreError, connect};
use super::queues::PartitionQueues;
use super::sagas::{self, EndedSaga, Origin, RecordPosition, Saga, SagaEnd};
use crate::fold::Records;
use crate::log_reader::{Batch, RawRecord};
use crate::parked::{ParkedAt, REACTOR};

/// Interval between polls. If nothing is due, a poll reads one index entry.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
/// Time limit of an attempt to retry a batch of parked records.
const AGAIN_WITHIN: Duration = Duration::from_secs(10);
const MAX_AT_ONCE: usize = 1000;

pub(crate) struct Retries {
    pub(crate) postgres: PostgresSettings,
    pub(crate) queues: PartitionQueues,
    pub(crate) payment_window: Duration,
}

impl Retries {
    /// Retries due records until shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let error = tokio::select! {
                Err(error) = self.try_on() => error,
                () = shutdown.requested() => return,
            };
            let error = with_causes(&error);
            tracing::warn!(error, "Postgres failed; retries of parked records are delayed");
            shutdown.sleep(RETRY).await;
        }
    }

    /// Retries due records until Postgres fails.
    async fn try_on(&self) -> Result<(), ReactorStoreError> {
        let client = connect(&self.postgres).await?;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.try_due(&client).await?;
        }
    }

    async fn try_due(&self, client: &Client) -> Result<(), ReactorStoreError> {
        let most = i64::try_from(MAX_AT_ONCE).unwrap_or(i64::MAX);
        let mut rows = client.query(include_str!("lease_parked.sql"), &[&most]).await?;
        if rows.is_empty() {
            return Ok(());
        }
        // Restore the order of the log.
        rows.sort_unstable_by_key(|row| (row.get::<_, i32>(0), row.get::<_, i64>(1)));
        let batch = Batch::of(rows.iter().map(|row| (row.get::<_, i32>(0).cast_unsigned(), row.get(1), row.get(2))));
        let Again { done, failed, .. } = again(&self.queues, &batch, self.payment_window).await;
        tracing::info!(done = done.len(), failed, "retried parked records");
        let (aggregates, offsets) = ParkedAt::columns(&done);
        client.execute(include_str!("forget_parked.sql"), &[&REACTOR, &aggregates, &offsets]).await?;
        Ok(())
    }
}

/// Outcome of another attempt at parked records.
#[derive(Debug, Default)]
pub(crate) struct Again {
    /// Records whose sagas all succeeded.
    pub(crate) done: Vec<ParkedAt>,
    pub(crate) failed: usize,
    /// Reason of one failure.
    pub(crate) why_not: Option<String>,
}

/// Executes the reactions to the records again.
pub(crate) async fn again(queues: &PartitionQueues, batch: &Batch, payment_window: Duration) -> Again {
    // It holds no more ends than the batch causes steps.
    let (ended, mut answers) = mpsc::unbounded_channel();
    let mut open: BTreeMap<RecordPosition, (String, usize)> = BTreeMap::new();
    // A parked record was decoded before, so it needs no exception.
    let records = match Records::of(batch, &Exceptions::default()) {
        Ok(records) => records,
        Err(error) => {
            return Again { failed: batch.iter().count(), why_not: Some(with_causes(&error)), ..Again::default() };
        }
    };
    for (RawRecord { partition, offset, .. }, record) in records.iter() {
        let Some(Record::Commit(commit)) = record else { continue };
        let source = (partition, offset);
        let caused = sagas::caused_by(commit, source, payment_window);
        open.insert(source, (commit.aggregate.to_string(), caused.steps.len()));
        for (step, cause) in caused.steps {
            let sender = Origin { source, ended: ended.clone(), lease: None, patience: Some(AGAIN_WITHIN) };
            queues.begin(Saga { step, at: TimeMs(commit.at_ms), cause, sender });
        }
    }
    drop(ended);
    let mut why_not = None;
    let all = async {
        while let Some(EndedSaga { source, how, .. }) = answers.recv().await {
            match how {
                SagaEnd::Failed(reason) | SagaEnd::Late(reason) => why_not = Some(reason),
                SagaEnd::Done | SagaEnd::NotDue | SagaEnd::Dropped => open.entry(source).or_default().1 -= 1,
            }
        }
    };
    if tokio::time::timeout(AGAIN_WITHIN, all).await.is_err() {
        why_not.get_or_insert_with(|| "command-api did not accept the steps in time".to_owned());
    }
    let count = open.len();
    let done = open.into_iter().filter(|(_, (_, sagas))| *sagas == 0);
    let done: Vec<_> = done.map(|((_, offset), (aggregate, _))| ParkedAt { aggregate, offset }).collect();
    Again { failed: count - done.len(), done, why_not }
}
