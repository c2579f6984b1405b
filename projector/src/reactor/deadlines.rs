//! Fires due deadlines. Any reactor may fire any deadline, whichever partitions it has: it leases the deadline, sends
//! its command, and deletes the row once the command is answered. If it stops in between, another reactor fires the
//! deadline when the lease expires.
//!
//! A deadline takes effect once, however often it is fired, because the aggregate recognizes a repeated command.
//!
//! Postgres's clock decides when a deadline is leased, for all reactors alike, and command-api's clock whether it is
//! due: an early command is refused. So a jump of either clock delays deadlines at most, and loses none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chassis::postgres::Connection;
use chassis::postgres::PostgresSettings;
use chassis::shutdown::Shutdown;
use chassis::telemetry::with_causes;
use domain::TimeMs;
use domain::reactions::Step;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Row;

use super::positions::{ReactorStoreError, connect, of_kind};
use super::queues::PartitionQueues;
use super::sagas::{EndedSaga, Origin, Saga, SagaEnd};
use crate::metrics::Metrics;

/// Interval between polls, unless one poll could not lease all due deadlines. If none is due, it reads one index entry.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(1);
/// Duration of a lease. A deadline that could not be fired is retried once it expires.
const LEASE: Duration = Duration::from_secs(10);
/// Delay before a retry if command-api's clock is behind that of Postgres.
const NOT_DUE_FOR: Duration = Duration::from_millis(500);
/// Maximum number of deadlines that are fired and not answered.
const MAX_UNDER_WAY: usize = 4096;
const MAX_AT_ONCE: usize = 1000;

pub(crate) struct Deadlines {
    pub(crate) postgres: PostgresSettings,
    pub(crate) queues: PartitionQueues,
    pub(crate) metrics: Arc<Metrics>,
}

/// Key of a deadline's row, and its time.
struct Due {
    kind: String,
    aggregate: String,
    due_ms: i64,
}

/// State that is kept for one connection to Postgres.
struct Firing<'a> {
    deadlines: &'a Deadlines,
    client: Connection,
    under_way: HashMap<i64, Due>,
    next: i64,
    sender: mpsc::UnboundedSender<EndedSaga>,
    ended: mpsc::UnboundedReceiver<EndedSaga>,
}

impl Deadlines {
    /// Fires deadlines until shutdown. Those in flight by then are retried once their lease expires.
    pub(crate) async fn fire(self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let error = tokio::select! {
                Err(error) = self.fire_on() => error,
                () = shutdown.requested() => return,
            };
            tracing::warn!(error = with_causes(&error), "Postgres failed; deadlines delayed");
            shutdown.sleep(RETRY).await;
        }
    }

    /// Fires deadlines until Postgres fails.
    async fn fire_on(&self) -> Result<(), ReactorStoreError> {
        let client = connect(&self.postgres).await?;
        // It holds no more ends than deadlines are under way: MAX_UNDER_WAY, and those of one lease.
        let (sender, ended) = mpsc::unbounded_channel();
        let mut firing = Firing { deadlines: self, client, under_way: HashMap::new(), next: 0, sender, ended };
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut all = Vec::new();
            tokio::select! {
                _ = look.tick(), if firing.under_way.len() < MAX_UNDER_WAY => {
                    // More may be due.
                    if firing.lease().await? == MAX_AT_ONCE {
                        look.reset_immediately();
                    }
                }
                _ = firing.ended.recv_many(&mut all, MAX_AT_ONCE) => firing.end(all).await?,
            }
        }
    }
}

impl Firing<'_> {
    /// Leases due deadlines and returns their number.
    async fn lease(&mut self) -> Result<usize, ReactorStoreError> {
        let lease_ms = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
        let most = i64::try_from(MAX_AT_ONCE).unwrap_or(i64::MAX);
        let rows = self.client.query(include_str!("lease_deadlines.sql"), &[&most, &lease_ms]).await?;
        for row in &rows {
            self.begin(row);
        }
        Ok(rows.len())
    }

    /// Fires a leased deadline. One of an unknown kind is left to another build, and one whose partition is unavailable
    /// to the end of its lease.
    fn begin(&mut self, row: &Row) {
        let (kind, aggregate, due_ms): (String, String, i64) = (row.get(0), row.get(1), row.get(2));
        let Some((deadline, (_, id))) = of_kind(&kind).zip(aggregate.split_once('/')) else { return };
        let due_at = TimeMs(due_ms.cast_unsigned());
        let step = Step::Due { deadline, id: id.into(), due_at };
        if self.deadlines.queues.is_away(&step) {
            return;
        }
        self.next += 1;
        let (source, ended) = ((0, self.next), self.sender.clone());
        let sender = Origin { source, ended, lease: None, patience: Some(LEASE) };
        self.under_way.insert(self.next, Due { kind, aggregate, due_ms });
        self.deadlines.queues.begin(Saga { step, at: due_at, cause: row.get::<_, &str>(3).into(), sender });
    }

    async fn end(&mut self, all: Vec<EndedSaga>) -> Result<(), ReactorStoreError> {
        let (mut done, mut held) = (Vec::new(), Vec::new());
        for EndedSaga { source: (_, number), how, .. } in all {
            let Some(due) = self.under_way.remove(&number) else { continue };
            match how {
                SagaEnd::Done => done.push(due),
                SagaEnd::NotDue => held.push((due, None)),
                SagaEnd::Failed(reason) => {
                    tracing::error!(
                        kind = due.kind,
                        aggregate = due.aggregate,
                        reason,
                        "deadline failed and is parked"
                    );
                    held.push((due, Some(reason)));
                }
                // Retried once the lease expires.
                SagaEnd::Late(_) | SagaEnd::Dropped => {}
            }
        }
        if !done.is_empty() {
            let (kinds, aggregates, due_ms) = columns(done.iter());
            self.client.execute(include_str!("end_deadlines.sql"), &[&kinds, &aggregates, &due_ms]).await?;
            self.deadlines.metrics.fired(done.len());
        }
        if !held.is_empty() {
            let (kinds, aggregates, due_ms) = columns(held.iter().map(|(due, _)| due));
            let reasons: Vec<Option<&str>> = held.iter().map(|(_, reason)| reason.as_deref()).collect();
            let pause_ms = i64::try_from(NOT_DUE_FOR.as_millis()).unwrap_or(i64::MAX);
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&kinds, &aggregates, &due_ms, &reasons, &pause_ms];
            self.client.execute(include_str!("hold_deadlines.sql"), &params).await?;
        }
        Ok(())
    }
}

fn columns<'a>(all: impl Iterator<Item = &'a Due>) -> (Vec<&'a str>, Vec<&'a str>, Vec<i64>) {
    let (mut kinds, mut aggregates, mut due_ms) = (Vec::new(), Vec::new(), Vec::new());
    for due in all {
        kinds.push(due.kind.as_str());
        aggregates.push(due.aggregate.as_str());
        due_ms.push(due.due_ms);
    }
    (kinds, aggregates, due_ms)
}
