//! The views in Postgres.
//!
//! Invariant: rows and checkpoints move in one transaction, and only while nobody else moved them since they were read.

mod bases;
mod columns;
mod parked;
mod repeats;
mod progress;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chassis::env::Secret;
use chassis::postgres::PostgresError;
use futures_util::future::join_all;
use schemas::chain::{Reader, Tally};
use schemas::feeds::{FeedId, StoredView};
use schemas::tables::nonce_to_sql;
use schemas::views::{Source, SumTable};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

pub(crate) use bases::ReadRow;
pub(crate) use columns::{Checkpoints, ParkedRecords};
use columns::{Param, Parts, Rows, repeats_params};
pub(crate) use parked::DEADLINES;
pub(crate) use progress::{reader, tally};
pub(crate) use repeats::forgotten_before;

use crate::config::Feeds;
use crate::fold::{Changes, Progress, Times};
use crate::redis::Place;

const MAINTAIN_EVERY: Duration = Duration::from_secs(60);
/// Where a partition could not be dropped, because somebody reads the table.
const DROP_AGAIN_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Connect(#[from] PostgresError),
    #[error("could not prepare the statements")]
    Prepare(#[source] tokio_postgres::Error),
    #[error("Postgres does not answer")]
    Silent,
    #[error("could not load the checkpoints")]
    Load(#[source] tokio_postgres::Error),
    #[error("could not read rows")]
    Read(#[source] tokio_postgres::Error),
    #[error("another process moved the checkpoints")]
    Moved,
    #[error("the rows of {} were refused", view.name())]
    Refused { view: StoredView, source: tokio_postgres::Error },
    /// In these places Redis had other rows than Postgres.
    #[error("rows of Redis that were folded on are not those of Postgres")]
    Disproved(Vec<Place>),
    #[error("{0}")]
    Fold(String),
    #[error("could not commit a batch")]
    Commit(#[source] tokio_postgres::Error),
    #[error("could not look after the partitions of the repeats")]
    Maintain(#[source] tokio_postgres::Error),
    #[error("the rows of {0} were made by another fold than this build's: they wait for `projector rebuild {0}`")]
    OtherFold(String),
    #[error("a row does not read as what this build writes")]
    Row(#[source] serde_json::Error),
}

impl StoreError {
    /// Tells whether the server gave up what was asked for because it took too long.
    pub(crate) fn is_time_out(&self) -> bool {
        matches!(self, Self::Commit(error) | Self::Read(error) if error.code() == Some(&SqlState::QUERY_CANCELED))
    }
}

/// One session.
pub(crate) struct Store {
    client: Client,
    target: Target,
    statements: Statements,
    /// When the partitions of the repeats are to be looked after again, and the times that they take.
    repeats: (Option<Instant>, Range<i64>),
}

struct Statements {
    insert_partitions: Statement,
    move_checkpoints: Statement,
    insert_journal: Statement,
    insert_repeats: Statement,
    insert_parked: Statement,
    /// By [`StoredView::index`].
    views: Vec<ViewStatements>,
}

/// Statements of one view.
struct ViewStatements {
    /// Rows or parts.
    write: Statement,
    /// Rows to fold on; of a summed view there are none.
    read: Option<Statement>,
}

/// A checkpoint to move: from where to where.
pub(crate) struct CheckpointMove {
    /// The feed's name, or that of its next rows' checkpoints.
    pub(crate) name: String,
    pub(crate) partition: u32,
    pub(crate) from: Reader,
    pub(crate) to: Reader,
    pub(crate) tally: Tally,
    pub(crate) times: Times,
    pub(crate) revision: i64,
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    /// It was only to see what becomes of it.
    Rollback,
}

/// Which rows a store writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Those that readers see.
    Live,
    /// Those that are to take the place of these views'.
    Next(Feeds),
}

impl Target {
    /// Returns the name of a feed's checkpoints.
    pub(crate) fn name(self, feed: FeedId) -> String {
        match self {
            Self::Live => feed.name().to_owned(),
            Self::Next(_) => format!("{}@next", feed.name()),
        }
    }

    /// Returns what its sessions do otherwise than others.
    fn options(self) -> &'static str {
        match self {
            Self::Live => "",
            // Rows and checkpoints that are lost together are folded again. The switch, by another session, flushes the
            // commits before its own, too.
            Self::Next(_) => "-c synchronous_commit=off",
        }
    }

    /// A statement that names live tables.
    pub(crate) fn of(self, sql: &str) -> String {
        match self {
            Self::Live => sql.to_owned(),
            Self::Next(feeds) => {
                let tables = feeds.views().map(|view| view.view().table);
                tables.fold(sql.to_owned(), |sql, table| sql.replace(table, &format!("{table}_next")))
            }
        }
    }
}

impl Store {
    pub(crate) async fn connect(url: &Secret, target: Target) -> Result<Self, StoreError> {
        let client = chassis::postgres::connect(url, target.options(), "projector").await?;
        let statements = Statements::prepare(&client, target).await.map_err(StoreError::Prepare)?;
        Ok(Self { client, target, statements, repeats: (None, 0..0) })
    }

    /// To be called before each commit, and when [`Self::repeats_are_due`] ends; it has something to do once a minute, and
    /// where the log's time has come further than the table takes. `log_ms`: of the last commit that was read.
    pub(crate) async fn maintain_repeats(&mut self, window: Duration, log_ms: u64) -> Result<(), StoreError> {
        let (due, taken) = &self.repeats;
        let is_behind = repeats::time(log_ms).cast_signed() >= taken.end;
        if is_behind || due.is_none_or(|due| due <= Instant::now()) {
            let kept = repeats::maintain(&self.client, window, log_ms).await;
            // An error, too, is not met at once again.
            self.repeats.0 = Some(Instant::now() + DROP_AGAIN_AFTER);
            let (taken, is_done) = kept.map_err(StoreError::Maintain)?;
            let pause = if is_done { MAINTAIN_EVERY } else { DROP_AGAIN_AFTER };
            self.repeats = (Some(Instant::now() + pause), taken);
        }
        Ok(())
    }

    /// Never where they were not looked after yet.
    pub(crate) async fn repeats_are_due(&self) {
        match self.repeats.0 {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Everything in one transaction and one round trip: the statements are sent without waiting for each other's
    /// answers. The first fails unless every checkpoint is where `moves` says, and with it fails the transaction.
    pub(crate) async fn commit(
        &self,
        changes: &Changes,
        moves: &[CheckpointMove],
        all_progress: &[Progress],
        end: End,
    ) -> Result<(), StoreError> {
        let Statements { insert_partitions, move_checkpoints, insert_journal, insert_repeats, insert_parked, .. } =
            &self.statements;
        self.prove(&changes.bases, all_progress.len() as u32).await?;
        let (client, failed) = (&self.client, AtomicBool::new(false));
        let session = (client, &failed);
        let (partitions, nonces) = identities(moves, all_progress);
        let moves = Checkpoints::new(moves);
        let written = written(changes)?;
        let writes = written.iter().map(|(view, columns)| self.write(session, *view, columns));
        let runs: Vec<_> = changes.journal.runs.values().collect();
        let repeats = repeats_params(&changes.journal.repeats, &self.repeats.1);
        let (no_keys, parked) = (changes.journal.repeats.keys.is_empty(), ParkedRecords::new(&changes.parked));
        // All are awaited even if one fails, so that the session is out of the transaction afterwards.
        let (begun, moved, identified, writes, journal, repeats, parked, committed) = tokio::join!(
            // The order in which they are sent.
            biased;
            client.batch_execute("BEGIN"),
            run(session, move_checkpoints, moves.params(), false),
            run(session, insert_partitions, [&partitions as Param<'_>, &nonces], partitions.is_empty()),
            join_all(writes),
            run(session, insert_journal, [&runs as Param<'_>], runs.is_empty()),
            run(session, insert_repeats, repeats, no_keys),
            run(session, insert_parked, parked.params(), changes.parked.is_empty()),
            async {
                // The server knows nothing of a statement that could not be sent, and would commit the others.
                let is_whole = end == End::Commit && !failed.load(Ordering::Relaxed);
                client.batch_execute(if is_whole { "COMMIT" } else { "ROLLBACK" }).await
            }
        );
        // See `move_checkpoints.sql`.
        if moved.as_ref().is_err_and(|error| error.code() == Some(&SqlState::DIVISION_BY_ZERO)) {
            return Err(StoreError::Moved);
        }
        begun.and(moved).and(identified).map_err(StoreError::Commit)?;
        writes.into_iter().collect::<Result<(), _>>()?;
        journal.and(repeats).and(parked).and(committed).map_err(StoreError::Commit).map(drop)
    }

    async fn write(&self, session: InCommit<'_>, view: StoredView, columns: &Columns) -> Result<(), StoreError> {
        let statement = &self.statements.views[view.index()].write;
        let written = match columns {
            Columns::Rows(rows) => run(session, statement, rows.params(), false).await,
            Columns::Parts(parts) => run(session, statement, parts.params(), false).await,
        };
        written.map_err(|source| match is_refusal(&source) {
            true => StoreError::Refused { view, source },
            false => StoreError::Commit(source),
        })
    }
}

/// What a view is to be given.
enum Columns {
    Rows(Rows),
    Parts(Parts),
}

/// Views of which something changed.
fn written(changes: &Changes) -> Result<Vec<(StoredView, Columns)>, StoreError> {
    let mut written = Vec::new();
    for view in StoredView::all() {
        if !changes.rows[view].is_empty() {
            written.push((view, Columns::Rows(Rows::new(view.view(), &changes.rows[view])?)));
        }
        if !changes.sums[view].is_empty() {
            written.push((view, Columns::Parts(Parts::new(&changes.sums[view]))));
        }
    }
    Ok(written)
}

/// Of the rows: they will be refused again.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    // Data exceptions, integrity constraints, limits of the server's own.
    error.code().is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.code().starts_with(class)))
}

/// Of partitions that are read from their beginning.
fn identities(moves: &[CheckpointMove], all_progress: &[Progress]) -> (Vec<i32>, Vec<i64>) {
    let begun: BTreeSet<u32> =
        moves.iter().filter(|step| step.from.next_offset == 0).map(|step| step.partition).collect();
    let known = begun.into_iter().filter_map(|partition| Some((partition, all_progress[partition as usize].nonce?)));
    known.map(|(partition, nonce)| (partition.cast_signed(), nonce_to_sql(nonce))).unzip()
}

impl Statements {
    async fn prepare(client: &Client, target: Target) -> Result<Self, tokio_postgres::Error> {
        let prepare = async |sql: &str| client.prepare(&target.of(sql)).await;
        let mut views = Vec::new();
        for view in StoredView::all().map(StoredView::view) {
            let (write, read) = match view.source {
                Source::Aggregate(_) | Source::View(_) => {
                    let read = include_str!("postgres/read_rows.sql").replace("{table}", view.table);
                    (Rows::upsert(view), Some(prepare(&read).await?))
                }
                Source::Sum(sum) => {
                    let write = match sum.table {
                        SumTable::Parts => include_str!("postgres/add_parts.sql"),
                        SumTable::DatedParts => include_str!("postgres/add_dated_parts.sql"),
                        SumTable::Totals => include_str!("postgres/add_totals.sql"),
                    };
                    (write.to_owned(), None)
                }
            };
            views.push(ViewStatements { write: prepare(&write.replace("{table}", view.table)).await?, read });
        }
        Ok(Self {
            insert_partitions: prepare(include_str!("postgres/insert_partitions.sql")).await?,
            move_checkpoints: prepare(include_str!("postgres/move_checkpoints.sql")).await?,
            insert_journal: prepare(include_str!("postgres/insert_journal.sql")).await?,
            insert_repeats: prepare(include_str!("postgres/insert_repeats.sql")).await?,
            insert_parked: prepare(include_str!("postgres/insert_parked.sql")).await?,
            views,
        })
    }
}

/// The session that commits, and whether one of the transaction's statements has failed.
type InCommit<'a> = (&'a Client, &'a AtomicBool);

/// Nothing to write is not sent.
async fn run(
    (client, failed): InCommit<'_>,
    statement: &Statement,
    params: impl AsRef<[Param<'_>]>,
    is_empty: bool,
) -> Result<(), tokio_postgres::Error> {
    if is_empty {
        return Ok(());
    }
    let executed = client.execute(statement, params.as_ref()).await;
    failed.fetch_or(executed.is_err(), Ordering::Relaxed);
    executed.map(drop)
}
