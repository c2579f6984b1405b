//! Writes snapshots of aggregates with a long history, so that the write tier need not fold it from the beginning.
//!
//! This runs beside the folding, on a connection of its own, and never delays it: a snapshot is a shortcut, and the
//! journal is authoritative. So a snapshot may be late or missing, and writing one may fail.
//!
//! Invariant: the cost stays in proportion: a state is written again only if at least as much has happened since as it
//! is large.
//!
//! Each build reads and writes its own form, and deletes another one only once it has been unused for a week. So the
//! next build's snapshots can be written while this one serves: see [`mod@prepare`].

pub mod prepare;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use chassis::postgres::{Connection, PostgresError, PostgresSettings};
use chassis::telemetry::with_causes;
use domain::{State, evolve};
use schemas::aggregate::AggregateId;
use schemas::events::WireEvent;
use schemas::journal::StoredCommit;
use schemas::record::{Commit, RecordError};
use schemas::snapshots::{FORM, decode, encode};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Row};

use crate::metrics::Metrics;

/// Number of events after which a snapshot is considered.
const EVERY: u64 = 256;
/// Number of bytes of a snapshot that one event since then outweighs.
const BYTES_AN_EVENT: u64 = 256;
/// Maximum number of commits that are read and folded at a time.
const PAGE: i64 = 10_000;
/// Options that make Postgres read names from the index, in its order.
const PLANNER: &str = "-c enable_seqscan=off -c enable_bitmapscan=off";
/// Maximum number of aggregates that wait. One without room is due again after [`EVERY`] more events.
const MAX_DUE: usize = 1024;
const RETRY: Duration = Duration::from_secs(1);
/// Interval at which a projector records that its form is in use, and deletes unused ones.
const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// Maximum number of snapshots that one statement deletes.
const DROPPED_AT_ONCE: i64 = 64;

/// An aggregate and its version.
pub(crate) type Due = (String, u64);

#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error(transparent)]
    Connect(#[from] PostgresError),
    #[error("Postgres statement failed")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{0:?} is not an aggregate")]
    Name(String),
    #[error("reading the journal of {aggregate:?} failed")]
    Journal { aggregate: String, source: JournalError },
    #[error("the events of {0:?} cannot be folded")]
    Fold(String),
}

#[derive(Debug, thiserror::Error)]
enum JournalError {
    #[error("a record is not a commit")]
    Record(#[from] RecordError),
    #[error("an event is unknown to this build")]
    Event(#[from] serde_json::Error),
}

/// Returns whether the commit passes a version at which a snapshot is considered.
pub(crate) fn is_due(commit: &Commit<'_>) -> bool {
    let before = commit.version - commit.events.len() as u64;
    before / EVERY != commit.version / EVERY
}

pub(crate) fn channel() -> (mpsc::Sender<Due>, mpsc::Receiver<Due>) {
    mpsc::channel(MAX_DUE)
}

/// Writes due snapshots until all senders are dropped.
pub(crate) async fn keep(
    postgres: PostgresSettings,
    partitions: u32,
    mut due: mpsc::Receiver<Due>,
    metrics: Arc<Metrics>,
) {
    let mut client = None;
    let mut tidying = tokio::time::interval(TIDY_EVERY);
    tidying.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            due = due.recv() => match due {
                Some((aggregate, version)) => match connected(&postgres, &mut client).await {
                    Ok(client) => keep_one(client, partitions, &aggregate, version).await.map(|kept| metrics.kept(kept)),
                    Err(error) => Err(error),
                },
                None => return,
            },
            _ = tidying.tick() => tidy(&postgres, &mut client).await,
        };
        if let Err(error) = done {
            let is_connection = matches!(error, SnapshotError::Connect(_) | SnapshotError::Postgres(_));
            tracing::warn!(error = with_causes(&error), "updating the snapshots failed");
            metrics.snapshot_failed();
            if is_connection {
                client = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Records that this build's form is in use, and deletes the snapshots of unused forms.
async fn tidy(postgres: &PostgresSettings, client: &mut Option<Connection>) -> Result<(), SnapshotError> {
    let client = connected(postgres, client).await?;
    use_form(client).await?;
    let mut dropped = 0;
    loop {
        match client.execute(include_str!("postgres/drop_snapshots.sql"), &[&DROPPED_AT_ONCE]).await? {
            0 => break,
            more => dropped += more,
        }
    }
    client.execute("DELETE FROM snapshot_forms WHERE used_at < now() - interval '7 days'", &[]).await?;
    if dropped > 0 {
        tracing::info!(count = dropped, "deleted snapshots of forms that were unused for a week");
    }
    Ok(())
}

async fn use_form(client: &Client) -> Result<(), SnapshotError> {
    client.execute(include_str!("postgres/use_form.sql"), &[&FORM]).await?;
    Ok(())
}

async fn connected<'a>(
    postgres: &PostgresSettings,
    client: &'a mut Option<Connection>,
) -> Result<&'a Client, SnapshotError> {
    match client {
        Some(client) => Ok(client),
        None => Ok(client.insert(connect(postgres).await?)),
    }
}

/// Writes an aggregate's snapshot if enough has happened since the last one. Returns whether it did.
async fn keep_one(client: &Client, partitions: u32, aggregate: &str, version: u64) -> Result<bool, SnapshotError> {
    let kept = client.query_opt(include_str!("postgres/snapshot_size.sql"), &[&FORM, &aggregate]).await?;
    let (kept_version, bytes) = kept.map_or((0, 0), |row| (row.get::<_, i64>(0), row.get::<_, i32>(1)));
    let events = version.saturating_sub(kept_version.cast_unsigned());
    if events * BYTES_AN_EVENT < u64::from(bytes.cast_unsigned()) {
        return Ok(false);
    }
    let name = AggregateId::parse(aggregate).map_err(|_| SnapshotError::Name(aggregate.to_owned()))?;
    let known = "SELECT state, version FROM state_snapshots WHERE form = $1 AND aggregate = $2";
    let known = client.query_opt(known, &[&FORM, &aggregate]).await?;
    let known = beside(aggregate, move || known.and_then(|row| Some((decode(FORM, row.get(0))?, row.get(1)))));
    let (mut state, mut version) = known.await?.unwrap_or_else(|| (State::initial(name.aggregate()), 0_i64));
    let (from, partition) = (version, name.partition(partitions).cast_signed());
    loop {
        let since = "SELECT record, version FROM commits_of($1, $2, $3, $4)";
        let journal = client.query(since, &[&aggregate, &partition, &version, &PAGE]).await?;
        let Some(last) = journal.last() else { break };
        let after = std::mem::replace(&mut version, last.get(1)).cast_unsigned();
        let folded = beside(aggregate, move || fold(state, after, &journal)).await?;
        state = folded.map_err(|source| SnapshotError::Journal { aggregate: aggregate.to_owned(), source })?;
    }
    if version == from {
        return Ok(false);
    }
    let Some(bytes) = beside(aggregate, move || encode(&state)).await? else { return Ok(false) };
    client.execute(include_str!("postgres/upsert_snapshot.sql"), &[&FORM, &aggregate, &version, &bytes]).await?;
    Ok(true)
}

/// Runs `work` on a thread of its own, because a large state takes a while, and catches its panics.
async fn beside<T: Send + 'static>(
    aggregate: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SnapshotError> {
    let done = tokio::task::spawn_blocking(move || catch_unwind(AssertUnwindSafe(work)).ok()).await;
    done.ok().flatten().ok_or_else(|| SnapshotError::Fold(aggregate.to_owned()))
}

fn fold(mut state: State, after: u64, journal: &[Row]) -> Result<State, JournalError> {
    for row in journal {
        for (_, event) in StoredCommit::read(row.get(0))?.events_after(after) {
            state = evolve(state, &WireEvent::upcast_parts(&event.name, event.data.get())?);
        }
    }
    Ok(state)
}

async fn connect(postgres: &PostgresSettings) -> Result<Connection, PostgresError> {
    chassis::postgres::connect(postgres, PLANNER, "projector snapshots").await
}
