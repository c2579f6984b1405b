//! Tables and checkpoints of a view: the live, the next and the kept ones.
//!
//! A view *waits* while another fold than this build's made its live rows: projectors of this build do not advance
//! them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chassis::postgres::{Connection, PostgresError, PostgresSettings};
use schemas::feeds::{FeedId, StoredView};
use schemas::views::View;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::compare::{self, Comparison};
use super::limits::Share;
use crate::postgres::bases::ReadRow;
use crate::postgres::checkpoints::{reader, tally};

/// Query for the advisory lock that admits one rebuild at a time in a database. The number is arbitrary.
const LOCK: &str = "SELECT pg_try_advisory_lock(8)";
/// Time limit for the lock: the session of a rebuild that has just ended, or was killed, may hold it a moment longer.
const FREE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Timeouts of the switch, which bound how long others wait for it. After a timeout it is retried.
const SWITCH_LIMITS: &str = "SET LOCAL lock_timeout = '500ms'; SET LOCAL idle_in_transaction_session_timeout = '10s'";

/// Rows from which the next rows are folded on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Nothing,
    Unfinished,
    Kept,
}

pub(super) struct Tables {
    client: Connection,
    /// Connection that holds the snapshot. It is separate because `client` must see rows that are folded after it.
    snapshot: Connection,
    view: &'static View,
    /// Generation of the live rows.
    generation: i32,
    waits: bool,
}

impl Tables {
    /// Connects to Postgres and takes the lock.
    ///
    /// # Errors
    /// Also fails if another rebuild is running.
    pub(super) async fn connect(postgres: &PostgresSettings, view: StoredView) -> anyhow::Result<Self> {
        let client = session(postgres).await?;
        let begun = Instant::now();
        while !client.query_one(LOCK, &[]).await?.get::<_, bool>(0) {
            ensure!(begun.elapsed() < FREE_WITHIN, "another rebuild is running");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let snapshot = session(postgres).await?;
        let mut tables = Self { client, snapshot, view: view.view(), generation: 0, waits: false };
        tables.turn_to(view).await?;
        Ok(tables)
    }

    /// Turns to another view.
    pub(super) async fn turn_to(&mut self, view: StoredView) -> anyhow::Result<()> {
        let sql = "SELECT max(generation), bool_or(fold <> $2) FROM checkpoints WHERE view = $1";
        let view = view.view();
        let row = self.client.query_one(sql, &[&view.name, &view.form]).await?;
        let generation: Option<i32> = row.get(0);
        let generation = generation.context("no projector has folded this log yet")?;
        (self.view, self.generation, self.waits) = (view, generation, row.get(1));
        Ok(())
    }

    /// Returns whether projectors of this build leave the live rows alone.
    pub(super) fn wait(&self) -> bool {
        self.waits
    }

    /// Returns the generation of the live rows.
    pub(super) fn generation(&self) -> i32 {
        self.generation
    }

    /// Checks that rows are kept and that this build can fold them on.
    pub(super) async fn check_kept(&self) -> anyhow::Result<()> {
        let (name, fold) = (self.view.name, self.view.form);
        let of = self.fold_of(&self.kept()).await?;
        let of = of.with_context(|| format!("no rows of {name} are kept from a rebuild"))?;
        if of != fold {
            bail!(
                "fold {of} made the kept rows of {name}, but this build has fold {fold}; use the build that made them"
            );
        }
        if self.has_other_columns("_kept").await? {
            bail!("a migration changed the columns of {name} since its kept rows were made; rebuild it instead");
        }
        Ok(())
    }

    /// Creates the table of the next rows. It is empty unless an unfinished rebuild left it, or `rollback` restores the
    /// kept rows.
    pub(super) async fn prepare(&mut self, rollback: bool) -> anyhow::Result<Origin> {
        let table = self.view.table;
        let (next, kept) = (self.next(), self.kept());
        if !rollback
            && self.fold_of(&next).await? == Some(self.view.form)
            && !self.is_ahead().await?
            && !self.has_other_columns("_next").await?
        {
            return Ok(Origin::Unfinished);
        }
        let transaction = self.client.transaction().await?;
        transaction.execute(FORGET, &[&next]).await?;
        transaction.batch_execute(&format!("DROP TABLE IF EXISTS {table}_next")).await?;
        if rollback {
            transaction.batch_execute(&format!("ALTER TABLE {table}_kept RENAME TO {table}_next")).await?;
            transaction.execute("UPDATE checkpoints SET view = $1 WHERE view = $2", &[&next, &kept]).await?;
        } else {
            let options = "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = $1::text::regclass";
            let options: Option<String> = transaction.query_one(options, &[&table]).await?.get(0);
            let with = options.map_or(String::new(), |options| format!("WITH ({options})"));
            let make = format!("CREATE TABLE {table}_next (LIKE {table} INCLUDING ALL) {with}");
            transaction.batch_execute(&make).await?;
        }
        transaction.commit().await?;
        Ok(if rollback { Origin::Kept } else { Origin::Nothing })
    }

    /// Returns the fold that made the rows of this name; `None`: there are no such rows.
    async fn fold_of(&self, name: &str) -> anyhow::Result<Option<i32>> {
        let sql = "SELECT max(fold) FROM checkpoints WHERE view = $1";
        Ok(self.client.query_one(sql, &[&name]).await?.get(0))
    }

    /// Returns whether a table of the view has other columns than the live one.
    async fn has_other_columns(&self, suffix: &str) -> anyhow::Result<bool> {
        let (table, other) = (self.view.table, format!("{}{suffix}", self.view.table));
        Ok(!self.client.query(include_str!("other_columns.sql"), &[&table, &other]).await?.is_empty())
    }

    /// Returns whether the next rows are ahead of the live ones in a partition, so that the two are no longer
    /// comparable.
    async fn is_ahead(&self) -> anyhow::Result<bool> {
        Ok(!self.client.query(include_str!("behind.sql"), &[&self.next(), &self.view.name]).await?.is_empty())
    }

    fn next(&self) -> String {
        format!("{}@next", self.view.name)
    }

    fn kept(&self) -> String {
        format!("{}@kept", self.view.name)
    }

    /// Returns the next offset of the live rows in each partition.
    pub(super) async fn live(&self) -> anyhow::Result<Vec<i64>> {
        offsets(&self.client.query(POSITIONS, &[&self.view.name]).await?)
    }

    /// Takes the snapshot that [`Self::compare`] reads and returns the next offset of its rows in each partition.
    pub(super) async fn snapshot(&self) -> anyhow::Result<Vec<i64>> {
        self.snapshot.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        offsets(&self.snapshot.query(POSITIONS, &[&self.view.name]).await?)
    }

    /// Returns the lowest next offset of these views in each partition.
    pub(super) async fn hindmost(&self, views: &[StoredView]) -> anyhow::Result<Vec<i64>> {
        let names: Vec<_> = views.iter().copied().map(StoredView::name).collect();
        offsets(&self.client.query(include_str!("hindmost.sql"), &[&names]).await?)
    }

    /// Returns the next offsets that the next rows have to reach: those of the live rows, or, if these wait, of the
    /// view furthest ahead.
    pub(super) async fn goal(&self) -> anyhow::Result<Vec<i64>> {
        if !self.waits {
            return self.live().await;
        }
        offsets(&self.client.query(include_str!("front.sql"), &[&&FeedId::names()[..]]).await?)
    }

    /// Returns the next offset of the next rows in each partition.
    pub(super) async fn next_offsets(&self) -> anyhow::Result<Vec<i64>> {
        offsets(&self.client.query(POSITIONS, &[&self.next()]).await?)
    }

    /// Analyzes the table of the next rows, so that Postgres plans for it as for the live one.
    pub(super) async fn analyze(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute(&format!("ANALYZE {}_next", self.view.table)).await?)
    }

    /// Checks that the next rows of a view that waits counted the same records as those of the snapshot: by the switch
    /// they are further ahead, and a difference would go unnoticed.
    pub(super) async fn compare_counted(&self) -> anyhow::Result<()> {
        if self.waits {
            let live = self.snapshot.query(COUNTED, &[&self.view.name]).await?;
            let next = self.client.query(COUNTED, &[&self.next()]).await?;
            for (live, next) in live.iter().zip(&next) {
                // A tally lacks records that were folded before tallies existed.
                let is_in_tally = live.get::<_, i64>("counted_from") == 0;
                let counted = |row: &Row| is_in_tally.then(|| tally(row));
                if reader(live) != reader(next) || counted(live) != counted(next) {
                    bail!("{OTHER_RECORDS} {}", live.get::<_, i32>("partition"));
                }
            }
        }
        Ok(())
    }

    /// Compares the next rows with those of the snapshot.
    pub(super) async fn compare(&self, partitions: u32, share: Share) -> anyhow::Result<Comparison> {
        compare::compare(self.view, partitions, &self.snapshot, &self.client, share).await
    }

    pub(super) async fn end_snapshot(&self) -> anyhow::Result<()> {
        Ok(self.snapshot.batch_execute("COMMIT").await?)
    }

    /// Returns next rows as readers would see them.
    pub(super) async fn next_rows(&self, keys: &[String]) -> anyhow::Result<Vec<ReadRow>> {
        // This also runs within the transaction of the switch.
        let definition = self.definition().await?.replace(self.view.table, &format!("{}_next", self.view.table));
        let sql = format!("SELECT key, version, data::text FROM ({definition}) AS rows WHERE key = ANY($1)");
        let rows = self.client.query(&sql, &[&keys]).await.context("read the next rows")?;
        Ok(rows.iter().map(ReadRow::of).collect())
    }

    /// Returns the definition of the SQL view that readers use.
    async fn definition(&self) -> anyhow::Result<String> {
        let sql = "SELECT rtrim(pg_get_viewdef($1::text::regclass), ';')";
        Ok(self.client.query_one(sql, &[&self.view.relation]).await?.get(0))
    }

    /// Begins the switch: locks the live checkpoints and returns their next offsets. If the view waits, locks those of
    /// all other views, too: projectors that do not fold it have to notice the switch as well.
    pub(super) async fn lock(&self) -> anyhow::Result<Vec<i64>> {
        self.client.batch_execute(&format!("BEGIN; {SWITCH_LIMITS}")).await?;
        let locked: Vec<_> = FeedId::names().into_iter().filter(|feed| self.waits || *feed == self.view.name).collect();
        let sql = "SELECT view, next_offset FROM checkpoints WHERE view = ANY($1) ORDER BY partition, view FOR UPDATE";
        let mut rows = self.client.query(sql, &[&locked]).await?;
        rows.retain(|row| row.get::<_, &str>("view") == self.view.name);
        offsets(&rows)
    }

    /// Commits the switch to the next rows and returns the new generation. It changes nothing unless they are at the
    /// position of the live ones, or, for a view that waits, at or ahead of it.
    pub(super) async fn switch(&mut self) -> anyhow::Result<i32> {
        let differ = if self.waits { include_str!("behind.sql") } else { include_str!("differ.sql") };
        let differ = self.client.query(differ, &[&self.view.name, &self.next()]).await?;
        if let Some(row) = differ.first() {
            bail!("{OTHER_RECORDS} {}", row.get::<_, i32>(0));
        }
        let table = self.view.table;
        // Other roles have no access to the kept rows: a rollback grants the privileges of its own time.
        let grants = self.client.query(include_str!("grants.sql"), &[&table, &format!("{table}_next")]).await?;
        let grants: String =
            grants.iter().map(|row| format!("{}; {};", row.get::<_, &str>(0), row.get::<_, &str>(1))).collect();
        // An SQL view stays bound to the table that it was created on, even if that is renamed.
        let mut views = String::new();
        for row in self.client.query(include_str!("dependents.sql"), &[&table]).await? {
            views.push_str(&format!("CREATE OR REPLACE VIEW {} AS {};", row.get::<_, &str>(0), row.get::<_, &str>(1)));
        }
        self.client
            .batch_execute(&format!(
                "{grants}
                 DROP TABLE IF EXISTS {table}_kept;
                 ALTER TABLE {table} RENAME TO {table}_kept;
                 ALTER TABLE {table}_next RENAME TO {table};
                 {views}"
            ))
            .await?;
        let (next, kept) = (self.next(), self.kept());
        self.client.execute(FORGET, &[&kept]).await?;
        self.client.execute(include_str!("keep.sql"), &[&self.view.name, &kept]).await?;
        self.client.execute(include_str!("adopt.sql"), &[&self.view.name, &next]).await?;
        self.client.execute(FORGET, &[&next]).await?;
        if self.waits {
            // Projectors that fold the other views notice the switch because their next commit fails.
            let revise = "UPDATE checkpoints SET revision = revision + 1 WHERE view = ANY($1) AND view <> $2";
            self.client.execute(revise, &[&&FeedId::names()[..], &self.view.name]).await?;
        }
        // The next rows include the parked records.
        self.client.execute("DELETE FROM parked WHERE view = $1", &[&self.view.name]).await?;
        self.client.batch_execute("COMMIT").await?;
        self.generation += 1;
        Ok(self.generation)
    }

    /// Rolls back a switch.
    pub(super) async fn abandon(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute("ROLLBACK").await?)
    }

    /// Returns whether another session's lock caused the error.
    pub(super) fn is_worth_a_retry(&self, error: &anyhow::Error) -> bool {
        let of_postgres = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
        of_postgres.is_some_and(|code| [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
    }
}

const POSITIONS: &str = "SELECT next_offset FROM checkpoints WHERE view = $1 ORDER BY partition";

const COUNTED: &str = "SELECT * FROM checkpoints WHERE view = $1 ORDER BY partition";

const OTHER_RECORDS: &str = "the next rows and the live ones counted different records in partition";

const FORGET: &str = "DELETE FROM checkpoints WHERE view = $1";

fn offsets(rows: &[Row]) -> anyhow::Result<Vec<i64>> {
    if rows.is_empty() {
        bail!("no projector has folded this view yet");
    }
    Ok(rows.iter().map(|row| row.get("next_offset")).collect())
}

/// Opens a session without timeouts, because its statements may read whole tables.
async fn session(postgres: &PostgresSettings) -> Result<Connection, PostgresError> {
    let options = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0";
    chassis::postgres::connect(postgres, options, "projector rebuild").await
}
