//! The views in Postgres.
//!
//! Invariant: rows and checkpoints change in one transaction, and only if no other process has moved the checkpoints
//! since they were read.

mod error;
pub(crate) mod measure;
pub(crate) mod bases;
pub(crate) mod checkpoints;
pub(crate) mod columns;
pub(crate) mod parked;
mod repeats;
mod progress;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chassis::postgres::Connection;
use chassis::postgres::PostgresSettings;
use futures_util::future::join_all;
use schemas::feeds::{FeedId, StoredView};
use schemas::tables::nonce_to_sql;
use schemas::views::{Source, SumTable};
use tokio_postgres::{Client, Statement};

use checkpoints::{CheckpointMove, Checkpoints, have_moved};
use columns::{Param, ParkedRecords, Parts, Rows, repeats_params};
pub(crate) use error::StoreError;
pub(crate) use repeats::forgotten_before;

use crate::config::Feeds;
use crate::fold::{Changes, Progress};

const MAINTAIN_EVERY: Duration = Duration::from_secs(60);
/// Delay before another attempt to drop a partition that could not be dropped because the table is being read.
const DROP_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A Postgres session with prepared statements.
pub(crate) struct Store {
    client: Connection,
    target: Target,
    statements: Statements,
    /// Time at which the partitions of `repeats` are to be maintained again, and the range of times that they cover.
    repeats: (Option<Instant>, Range<i64>),
}

struct Statements {
    insert_partitions: Statement,
    move_checkpoints: Statement,
    insert_journal: Statement,
    insert_repeats: Statement,
    insert_parked: Statement,
    /// Statements of each view, by [`StoredView::index`].
    views: Vec<ViewStatements>,
}

/// Statements of one view.
struct ViewStatements {
    /// Writes rows, or adds sums.
    write: Statement,
    /// Reads rows to fold on; `None` for a summed view.
    read: Option<Statement>,
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    /// Dry run, to find out whether Postgres accepts the rows.
    Rollback,
}

/// The set of rows that a store writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The rows that readers see.
    Live,
    /// The rows that a rebuild prepares, to replace the live rows of these views.
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

    /// Returns the Postgres options of its sessions.
    fn options(self) -> &'static str {
        match self {
            Self::Live => "",
            // Rows and checkpoints can only be lost together, and are then folded again. The switch to the new rows, in
            // another session, also flushes all commits before its own.
            Self::Next(_) => "-c synchronous_commit=off",
        }
    }

    /// Returns the statement with the names of the live tables replaced by those of this target.
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
    pub(crate) async fn connect(postgres: &PostgresSettings, target: Target) -> Result<Self, StoreError> {
        let client = chassis::postgres::connect(postgres, target.options(), "projector").await?;
        let statements = Statements::prepare(&client, target).await.map_err(StoreError::Prepare)?;
        Ok(Self { client, target, statements, repeats: (None, 0..0) })
    }

    /// Maintains the partitions of `repeats`. Call it before each commit, and when [`Self::repeats_are_due`] returns;
    /// it acts once a minute, and when the log's time has passed the end of the table. `log_ms` is the time of the last
    /// commit that was read.
    pub(crate) async fn maintain_repeats(&mut self, window: Duration, log_ms: u64) -> Result<(), StoreError> {
        let (due, taken) = &self.repeats;
        let is_behind = repeats::time(log_ms).cast_signed() >= taken.end;
        if is_behind || due.is_none_or(|due| due <= Instant::now()) {
            let kept = repeats::maintain(&self.client, window, log_ms).await;
            // After an error, too, the next attempt has to wait.
            self.repeats.0 = Some(Instant::now() + DROP_AGAIN_AFTER);
            let (taken, is_done) = kept.map_err(StoreError::Maintain)?;
            let pause = if is_done { MAINTAIN_EVERY } else { DROP_AGAIN_AFTER };
            self.repeats = (Some(Instant::now() + pause), taken);
        }
        Ok(())
    }

    /// Waits until the partitions of `repeats` are to be maintained again; forever if they never were before.
    pub(crate) async fn repeats_are_due(&self) {
        match self.repeats.0 {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Writes all changes in one transaction and one round trip: the statements are pipelined. The first one fails, and
    /// with it the transaction, unless every checkpoint is where `moves` expects it.
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
        let (client, failed) = (&*self.client, AtomicBool::new(false));
        let session = InCommit { client, failed: &failed };
        let (partitions, nonces) = identities(moves, all_progress);
        let moves = Checkpoints::new(moves);
        let written = written(changes)?;
        let writes = written.iter().map(|(view, columns)| self.write(session, *view, columns));
        let runs: Vec<_> = changes.journal.runs.values().collect();
        let repeats = repeats_params(&changes.journal.repeats, &self.repeats.1);
        let (no_keys, parked) = (changes.journal.repeats.keys.is_empty(), ParkedRecords::new(&changes.parked));
        // All are awaited even if one fails, so that the session has left the transaction afterwards.
        let (begun, moved, identified, writes, journal, repeats, parked, committed) = tokio::join!(
            // `biased` fixes the order in which the statements are sent.
            biased;
            client.batch_execute("BEGIN"),
            run(session, move_checkpoints, moves.params(), false),
            run(session, insert_partitions, [&partitions as Param<'_>, &nonces], partitions.is_empty()),
            join_all(writes),
            run(session, insert_journal, [&runs as Param<'_>], runs.is_empty()),
            run(session, insert_repeats, repeats, no_keys),
            run(session, insert_parked, parked.params(), changes.parked.is_empty()),
            async {
                // If a statement could not be sent, the server would commit the others without it.
                let is_whole = end == End::Commit && !failed.load(Ordering::Relaxed);
                client.batch_execute(if is_whole { "COMMIT" } else { "ROLLBACK" }).await
            }
        );
        if have_moved(&moved) {
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

/// The rows or sums to write to a view.
enum Columns {
    Rows(Rows),
    Parts(Parts),
}

/// Returns the changed views with their columns.
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

/// Returns whether Postgres refused the rows themselves, so that a retry would fail as well.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    // Classes of data exceptions, integrity constraint violations and exceeded program limits.
    error.code().is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.code().starts_with(class)))
}

/// Returns the partitions that were read from their beginning, with the nonces of their first claims.
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
            move_checkpoints: prepare(checkpoints::MOVE).await?,
            insert_journal: prepare(include_str!("postgres/insert_journal.sql")).await?,
            insert_repeats: prepare(include_str!("postgres/insert_repeats.sql")).await?,
            insert_parked: prepare(include_str!("postgres/insert_parked.sql")).await?,
            views,
        })
    }
}

/// The session of a commit.
#[derive(Clone, Copy)]
struct InCommit<'a> {
    client: &'a Client,
    /// Set once one of the transaction's statements has failed.
    failed: &'a AtomicBool,
}

/// Executes a statement of a commit, unless it has nothing to write.
async fn run(
    InCommit { client, failed }: InCommit<'_>,
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
