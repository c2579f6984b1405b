//! Fires what is due. Any reactor may, whichever partitions it has: a deadline is leased for a while, its command sent,
//! and the row deleted once it is answered. Whoever stops in between is followed by another one when the lease is over.
//!
//! What a deadline does is done once however often it is fired: its command is one to an aggregate that knows.
//!
//! When something is due, Postgres's clock says, for all alike. A jump of it fires early or late, and loses nothing.

use std::sync::Arc;
use std::time::Duration;

use chassis::env::Secret;
use chassis::shutdown::Shutdown;
use domain::TimeMs;
use domain::reactions::Step;
use tokio_postgres::{Client, Row};

use super::chains::{self, Chain};
use super::commands::Commands;
use super::positions::{ReactorStoreError, connect, of_kind};
use crate::metrics::Metrics;

/// Between looks, unless there is more than one look takes. While nothing is due, one index entry is read.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(1);
/// What could not be done is tried again when it is over.
const LEASE: Duration = Duration::from_secs(10);
const MAX_AT_ONCE: u32 = 1000;

struct Due {
    kind: String,
    aggregate: String,
    due_ms: i64,
    chain: Chain,
}

/// Until shutdown.
pub(crate) async fn fire(url: Secret, commands: Arc<Commands>, metrics: Arc<Metrics>, shutdown: Shutdown) {
    let mut client = None;
    while !shutdown.is_requested() {
        let wait = tokio::select! {
            fired = fire_due(&url, &mut client, &commands, &metrics) => match fired {
                Ok(fired) if fired < MAX_AT_ONCE as usize => LOOK_EVERY,
                Ok(_) => Duration::ZERO,
                Err(error) => {
                    client = None;
                    tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "deadlines wait for Postgres");
                    RETRY
                }
            },
            () = shutdown.requested() => return,
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.requested() => {}
        }
    }
}

/// How many.
async fn fire_due(
    url: &Secret,
    client: &mut Option<Client>,
    commands: &Commands,
    metrics: &Metrics,
) -> Result<usize, ReactorStoreError> {
    let client = match client {
        Some(client) => client,
        None => client.insert(connect(url).await?),
    };
    let lease_ms = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
    let rows = client.query(include_str!("lease_deadlines.sql"), &[&i64::from(MAX_AT_ONCE), &lease_ms]).await?;
    let due: Vec<Due> = rows.iter().enumerate().filter_map(|(source, row)| read(row, source)).collect();
    if due.is_empty() {
        return Ok(0);
    }
    let steps = due.iter().map(|due| due.chain.clone()).collect();
    // A command that takes longer than the lease may be sent by another one, too.
    let failed = chains::finish(commands, Some(metrics), steps).await;
    let is_done = |due: &&Due| failed.iter().all(|failed| failed.source != due.chain.source);
    for failed in &failed {
        let Some(due) = due.iter().find(|due| due.chain.source == failed.source) else { continue };
        tracing::error!(kind = due.kind, aggregate = due.aggregate, reason = failed.reason, "a deadline has no effect");
    }
    let done: Vec<&Due> = due.iter().filter(is_done).collect();
    let kinds: Vec<&str> = done.iter().map(|due| due.kind.as_str()).collect();
    let aggregates: Vec<&str> = done.iter().map(|due| due.aggregate.as_str()).collect();
    let due_ms: Vec<i64> = done.iter().map(|due| due.due_ms).collect();
    client.execute(include_str!("end_deadlines.sql"), &[&kinds, &aggregates, &due_ms]).await?;
    metrics.fired(done.len());
    Ok(due.len())
}

/// `None`: of a kind that this build does not know. Another one fires it.
fn read(row: &Row, source: usize) -> Option<Due> {
    let (kind, aggregate, due_ms): (String, String, i64) = (row.get(0), row.get(1), row.get(2));
    let alarm = of_kind(&kind)?;
    let id = aggregate.split_once('/')?.1.into();
    let cause: &str = row.get(3);
    let chain =
        Chain { step: Step::Due { alarm, id }, at: TimeMs(due_ms.cast_unsigned()), cause: cause.into(), source };
    Some(Due { kind, aggregate, due_ms, chain })
}
