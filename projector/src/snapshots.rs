//! States of aggregates with a long history, kept so that the write tier need not fold it from the beginning.
//!
//! It runs beside the folding, on a connection of its own, and never holds it up: a snapshot is a shortcut, and the
//! journal says what is true. So it may be late, be left out, or fail.
//!
//! Invariant: what it costs stays in proportion: a state is written anew only when as much has happened since as it
//! is large.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use chassis::env::Secret;
use chassis::postgres::PostgresError;
use domain::{State, evolve};
use schemas::aggregate::AggregateId;
use schemas::events::WireEvent;
use schemas::record::Commit;
use schemas::snapshots::{FORM, decode, encode};
use tokio::sync::mpsc;
use tokio_postgres::{Client, NoTls, Row};

use crate::metrics::Metrics;

/// Events after which it is looked at whether a state should be kept.
const EVERY: u64 = 256;
/// Bytes of a kept state that one event since then outweighs.
const BYTES_AN_EVENT: u64 = 256;
/// Events that are read and folded in one go.
const PAGE: i64 = 10_000;
/// Aggregates that may wait. One that finds no room comes again after [`EVERY`] more events.
const MAX_DUE: usize = 1024;
const RETRY: Duration = Duration::from_secs(1);

/// An aggregate and its version.
pub(crate) type Due = (String, u64);

#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error("the Postgres URL cannot be used")]
    Url(#[from] PostgresError),
    #[error("Postgres failed")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{0:?} is no aggregate")]
    Name(String),
    #[error("the journal of {aggregate:?} cannot be read")]
    Journal { aggregate: String, source: serde_json::Error },
    #[error("the events of {0:?} cannot be folded")]
    Fold(String),
}

/// Whether the commit passes one of the versions at which a snapshot is considered.
pub(crate) fn is_due(commit: &Commit<'_>) -> bool {
    let before = commit.version - commit.events.len() as u64;
    before / EVERY != commit.version / EVERY
}

pub(crate) fn channel() -> (mpsc::Sender<Due>, mpsc::Receiver<Due>) {
    mpsc::channel(MAX_DUE)
}

/// Until nobody sends any more.
pub(crate) async fn keep(url: Secret, mut due: mpsc::Receiver<Due>, metrics: Arc<Metrics>) {
    let mut client = None;
    while let Some((aggregate, version)) = due.recv().await {
        match keep_one(&url, &mut client, &aggregate, version).await {
            Ok(kept) => metrics.kept(kept),
            Err(error) => {
                let is_connection = matches!(error, SnapshotError::Url(_) | SnapshotError::Postgres(_));
                tracing::warn!(aggregate, error = format!("{:#}", anyhow::Error::from(error)), "no snapshot was kept");
                metrics.snapshot_failed();
                if is_connection {
                    client = None;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// Whether it was worth it.
async fn keep_one(
    url: &Secret,
    client: &mut Option<Client>,
    aggregate: &str,
    version: u64,
) -> Result<bool, SnapshotError> {
    let client = match client {
        Some(client) => client,
        None => client.insert(connect(url).await?),
    };
    let kept = client.query_opt(include_str!("postgres/snapshot_size.sql"), &[&aggregate, &FORM]).await?;
    let (kept_version, bytes) = kept.map_or((0, 0), |row| (row.get::<_, i64>(0), row.get::<_, i32>(1)));
    let events = version.saturating_sub(kept_version.cast_unsigned());
    if events * BYTES_AN_EVENT < u64::from(bytes.cast_unsigned()) {
        return Ok(false);
    }
    let name = AggregateId::parse(aggregate).map_err(|_| SnapshotError::Name(aggregate.to_owned()))?;
    let known = "SELECT form, version, state FROM snapshots WHERE aggregate = $1";
    let known = client.query_opt(known, &[&aggregate]).await?;
    let known = beside(aggregate, move || known.and_then(|row| Some((decode(row.get(0), row.get(2))?, row.get(1)))));
    let (mut state, mut version) = known.await?.unwrap_or_else(|| (State::initial(name.aggregate()), 0_i64));
    let from = version;
    loop {
        let journal = client.query(include_str!("postgres/journal_since.sql"), &[&aggregate, &version, &PAGE]).await?;
        let Some(last) = journal.last() else { break };
        version = last.get(2);
        let folded = beside(aggregate, move || fold(state, &journal)).await?;
        state = folded.map_err(|source| SnapshotError::Journal { aggregate: aggregate.to_owned(), source })?;
    }
    if version == from {
        return Ok(false);
    }
    let Some(bytes) = beside(aggregate, move || encode(&state)).await? else { return Ok(false) };
    client.execute(include_str!("postgres/upsert_snapshot.sql"), &[&aggregate, &FORM, &version, &bytes]).await?;
    Ok(true)
}

/// A large state takes a while: other work goes on beside it.
async fn beside<T: Send + 'static>(
    aggregate: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SnapshotError> {
    let done = tokio::task::spawn_blocking(move || catch_unwind(AssertUnwindSafe(work)).ok()).await;
    done.ok().flatten().ok_or_else(|| SnapshotError::Fold(aggregate.to_owned()))
}

fn fold(state: State, journal: &[Row]) -> Result<State, serde_json::Error> {
    journal.iter().try_fold(state, |state, row| Ok(evolve(state, &WireEvent::upcast_parts(row.get(0), row.get(1))?)))
}

async fn connect(url: &Secret) -> Result<Client, SnapshotError> {
    let (client, connection) = chassis::postgres::session(url, "", "projector snapshots")?.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %error, "the snapshots' connection to Postgres is gone");
        }
    });
    Ok(client)
}
