//! Fires what is due. Any reactor may, whichever partitions it has: a deadline is leased for a while, its command sent,
//! and the row deleted once it is answered. Whoever stops in between is followed by another one when the lease is over.
//!
//! What a deadline does is done once however often it is fired: its command is one to an aggregate that knows.
//!
//! When to look at one, Postgres's clock says, for all alike; whether its time has come, the command's, which is refused
//! before. So a jump of the one clock fires late at most, and loses nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chassis::env::Secret;
use chassis::shutdown::Shutdown;
use domain::TimeMs;
use domain::reactions::Step;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Row};

use super::positions::{ReactorStoreError, connect, of_kind};
use super::queues::PartitionQueues;
use super::sagas::{EndedSaga, Origin, Saga, SagaEnd};
use crate::metrics::Metrics;

/// Between looks, unless there is more than one look takes. While nothing is due, one index entry is read.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(1);
/// What could not be done is tried again when it is over.
const LEASE: Duration = Duration::from_secs(10);
/// A clock that is behind Postgres's is asked again after this.
const NOT_DUE_FOR: Duration = Duration::from_millis(500);
/// Fired and not answered yet.
const MAX_UNDER_WAY: usize = 4096;
const MAX_AT_ONCE: usize = 1000;

pub(crate) struct Deadlines {
    pub(crate) url: Secret,
    pub(crate) queues: PartitionQueues,
    pub(crate) metrics: Arc<Metrics>,
}

/// The names of one, as in the table.
struct Due {
    kind: String,
    aggregate: String,
    due_ms: i64,
}

/// What one connection has under way.
struct Firing<'a> {
    deadlines: &'a Deadlines,
    client: Client,
    under_way: HashMap<i64, Due>,
    next: i64,
    sender: mpsc::UnboundedSender<EndedSaga>,
    ended: mpsc::UnboundedReceiver<EndedSaga>,
}

impl Deadlines {
    /// Until shutdown. What is under way then is left to its lease.
    pub(crate) async fn fire(self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let error = tokio::select! {
                Err(error) = self.fire_on() => error,
                () = shutdown.requested() => return,
            };
            tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "deadlines wait for Postgres");
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.requested() => {}
            }
        }
    }

    /// Until Postgres fails.
    async fn fire_on(&self) -> Result<(), ReactorStoreError> {
        let client = connect(&self.url).await?;
        let (sender, ended) = mpsc::unbounded_channel();
        let mut firing = Firing { deadlines: self, client, under_way: HashMap::new(), next: 0, sender, ended };
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut all = Vec::new();
            tokio::select! {
                _ = look.tick(), if firing.under_way.len() < MAX_UNDER_WAY => {
                    // There may be more.
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
    /// How many.
    async fn lease(&mut self) -> Result<usize, ReactorStoreError> {
        let lease_ms = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
        let most = i64::try_from(MAX_AT_ONCE).unwrap_or(i64::MAX);
        let rows = self.client.query(include_str!("lease_deadlines.sql"), &[&most, &lease_ms]).await?;
        for row in &rows {
            self.begin(row);
        }
        Ok(rows.len())
    }

    /// One of a kind that this build does not know is left to another, and one whose partition is away to the end of its
    /// lease.
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
                    tracing::error!(kind = due.kind, aggregate = due.aggregate, reason, "a deadline has no effect");
                    held.push((due, Some(reason)));
                }
                // Its lease ends.
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
