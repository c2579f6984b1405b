//! The tables and checkpoints of a view: those that live, the next ones, and those from before.
//!
//! A view *waits* while another fold than this build's made its live rows: projectors of this build do not fold it on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chassis::env::Secret;
use chassis::postgres::PostgresError;
use schemas::feeds::{FeedId, StoredView};
use schemas::views::View;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::compare::{self, Comparison};
use super::limits::Share;
use crate::postgres::{ReadRow, reader, tally};

/// One rebuild at a time in a database. The number says nothing.
const LOCK: &str = "SELECT pg_try_advisory_lock(8)";
/// The session of one that has just ended, or was killed, may have it for a moment more.
const FREE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Whoever waits for the switch waits for so long at most, and tries again.
const SWITCH_LIMITS: &str = "SET LOCAL lock_timeout = '500ms'; SET LOCAL idle_in_transaction_session_timeout = '10s'";

/// What the next rows are folded on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Nothing,
    Unfinished,
    Kept,
}

pub(super) struct Tables {
    client: Client,
    /// In it a snapshot is taken; apart, because what is folded after it must be seen.
    snapshot: Client,
    view: &'static View,
    /// The live one.
    generation: i32,
    waits: bool,
}

impl Tables {
    /// # Errors
    /// Also where another rebuild runs.
    pub(super) async fn connect(url: &Secret, view: StoredView) -> anyhow::Result<Self> {
        let client = session(url).await?;
        let begun = Instant::now();
        while !client.query_one(LOCK, &[]).await?.get::<_, bool>(0) {
            ensure!(begun.elapsed() < FREE_WITHIN, "another rebuild runs");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let snapshot = session(url).await?;
        let mut tables = Self { client, snapshot, view: view.view(), generation: 0, waits: false };
        tables.turn_to(view).await?;
        Ok(tables)
    }

    /// Goes on with another view.
    pub(super) async fn turn_to(&mut self, view: StoredView) -> anyhow::Result<()> {
        let sql = "SELECT max(generation), bool_or(fold <> $2) FROM checkpoints WHERE view = $1";
        let view = view.view();
        let row = self.client.query_one(sql, &[&view.name, &view.form]).await?;
        let generation: Option<i32> = row.get(0);
        let generation = generation.context("no projector has folded this log yet")?;
        (self.view, self.generation, self.waits) = (view, generation, row.get(1));
        Ok(())
    }

    /// Tells whether projectors of this build leave the live rows alone.
    pub(super) fn wait(&self) -> bool {
        self.waits
    }

    /// Of the rows that are live.
    pub(super) fn generation(&self) -> i32 {
        self.generation
    }

    /// # Errors
    /// Where this build cannot go on from rows that are kept.
    pub(super) async fn check_kept(&self) -> anyhow::Result<()> {
        let (name, fold) = (self.view.name, self.view.form);
        let of = self.fold_of(&self.kept()).await?;
        let of = of.with_context(|| format!("nothing is kept of a rebuild of {name}"))?;
        if of != fold {
            bail!(
                "the kept rows of {name} were made by fold {of}, and this build's is {fold}: use the build that made them"
            );
        }
        if self.has_other_columns("_kept").await? {
            bail!("a migration changed the columns of {name} since its kept rows were made: rebuild it instead");
        }
        Ok(())
    }

    /// Makes the next rows' table, empty unless an earlier rebuild left it, or `rollback` brings the kept ones.
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

    /// `None`: there are none by that name.
    async fn fold_of(&self, name: &str) -> anyhow::Result<Option<i32>> {
        let sql = "SELECT max(fold) FROM checkpoints WHERE view = $1";
        Ok(self.client.query_one(sql, &[&name]).await?.get(0))
    }

    /// Tells whether a table of the view's has other columns than the live one.
    async fn has_other_columns(&self, suffix: &str) -> anyhow::Result<bool> {
        let (table, other) = (self.view.table, format!("{}{suffix}", self.view.table));
        Ok(!self.client.query(include_str!("other_columns.sql"), &[&table, &other]).await?.is_empty())
    }

    /// Tells whether the next rows are further than the live ones somewhere: the two cannot be compared any more.
    async fn is_ahead(&self) -> anyhow::Result<bool> {
        Ok(!self.client.query(include_str!("behind.sql"), &[&self.next(), &self.view.name]).await?.is_empty())
    }

    fn next(&self) -> String {
        format!("{}@next", self.view.name)
    }

    fn kept(&self) -> String {
        format!("{}@kept", self.view.name)
    }

    /// The next offset of the live rows in each partition.
    pub(super) async fn live(&self) -> anyhow::Result<Vec<i64>> {
        offsets(&self.client.query(POSITIONS, &[&self.view.name]).await?)
    }

    /// The same, as of a moment at which [`Self::compare`] will look.
    pub(super) async fn snapshot(&self) -> anyhow::Result<Vec<i64>> {
        self.snapshot.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        offsets(&self.snapshot.query(POSITIONS, &[&self.view.name]).await?)
    }

    /// How far the hindmost of these views is in each partition.
    pub(super) async fn hindmost(&self, views: &[StoredView]) -> anyhow::Result<Vec<i64>> {
        let names: Vec<_> = views.iter().copied().map(StoredView::name).collect();
        offsets(&self.client.query(include_str!("hindmost.sql"), &[&names]).await?)
    }

    /// How far the next rows are to come: as far as the live ones; where these wait, as far as the furthest view.
    pub(super) async fn goal(&self) -> anyhow::Result<Vec<i64>> {
        if !self.waits {
            return self.live().await;
        }
        offsets(&self.client.query(include_str!("front.sql"), &[&&FeedId::names()[..]]).await?)
    }

    /// Where the next rows stand.
    pub(super) async fn next_offsets(&self) -> anyhow::Result<Vec<i64>> {
        offsets(&self.client.query(POSITIONS, &[&self.next()]).await?)
    }

    /// So that Postgres plans for the next rows as it does for those that live.
    pub(super) async fn analyze(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute(&format!("ANALYZE {}_next", self.view.table)).await?)
    }

    /// # Errors
    /// Also where the next rows of a view that waits counted other records than the live ones: at the switch they stand
    /// further on, and nobody could tell.
    pub(super) async fn compare(&self, partitions: u32, share: Share) -> anyhow::Result<Comparison> {
        if self.waits {
            let live = self.snapshot.query(COUNTED, &[&self.view.name]).await?;
            let next = self.client.query(COUNTED, &[&self.next()]).await?;
            for (live, next) in live.iter().zip(&next) {
                // What was folded before there were tallies is in none.
                let is_in_tally = live.get::<_, i64>("counted_from") == 0;
                let counted = |row: &Row| is_in_tally.then(|| tally(row));
                if reader(live) != reader(next) || counted(live) != counted(next) {
                    bail!("{OTHER_RECORDS} {}", live.get::<_, i32>("partition"));
                }
            }
        }
        let comparison = compare::compare(self.view, partitions, (&self.snapshot, &self.client), share).await?;
        self.snapshot.batch_execute("COMMIT").await?;
        Ok(comparison)
    }

    /// Of the next rows, as readers would see them: key, version, data.
    pub(super) async fn next_rows(&self, keys: &[String]) -> anyhow::Result<Vec<ReadRow>> {
        // Within the transaction that switches, too.
        let definition = self.definition().await?.replace(self.view.table, &format!("{}_next", self.view.table));
        let sql = format!("SELECT key, version, data::text FROM ({definition}) AS rows WHERE key = ANY($1)");
        let rows = self.client.query(&sql, &[&keys]).await.context("read the next rows")?;
        Ok(rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1).cast_unsigned(), row.get(2))).collect())
    }

    /// Of the SQL view that readers use.
    async fn definition(&self) -> anyhow::Result<String> {
        let sql = "SELECT rtrim(pg_get_viewdef($1::text::regclass), ';')";
        Ok(self.client.query_one(sql, &[&self.view.relation]).await?.get(0))
    }

    /// Begins the switch: nobody moves the live checkpoints until its end. Gives their next offsets. Where the view waits,
    /// nobody moves those of the others either: projectors that do not fold it have to learn of the switch, too.
    pub(super) async fn lock(&self) -> anyhow::Result<Vec<i64>> {
        self.client.batch_execute(&format!("BEGIN; {SWITCH_LIMITS}")).await?;
        let locked: Vec<_> = FeedId::names().into_iter().filter(|feed| self.waits || *feed == self.view.name).collect();
        let sql = "SELECT view, next_offset FROM checkpoints WHERE view = ANY($1) ORDER BY partition, view FOR UPDATE";
        let mut rows = self.client.query(sql, &[&locked]).await?;
        rows.retain(|row| row.get::<_, &str>("view") == self.view.name);
        offsets(&rows)
    }

    /// Ends it: the next rows live. They stand where the live ones do, or nothing changes; those of a view that waits may
    /// stand further on.
    pub(super) async fn switch(&mut self) -> anyhow::Result<i32> {
        let differ = if self.waits { include_str!("behind.sql") } else { include_str!("differ.sql") };
        let differ = self.client.query(differ, &[&self.view.name, &self.next()]).await?;
        if let Some(row) = differ.first() {
            bail!("{OTHER_RECORDS} {}", row.get::<_, i32>(0));
        }
        let table = self.view.table;
        // What is kept is nobody else's: a rollback gives what others have by then.
        let grants = self.client.query(include_str!("grants.sql"), &[&table, &format!("{table}_next")]).await?;
        let grants: String =
            grants.iter().map(|row| format!("{}; {};", row.get::<_, &str>(0), row.get::<_, &str>(1))).collect();
        // An SQL view goes with the table that it was made from, whatever the table is called.
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
            // Whoever folds the others finds that out by its next commit, which fails.
            let revise = "UPDATE checkpoints SET revision = revision + 1 WHERE view = ANY($1) AND view <> $2";
            self.client.execute(revise, &[&&FeedId::names()[..], &self.view.name]).await?;
        }
        // The next rows took it.
        self.client.execute("DELETE FROM parked WHERE view = $1", &[&self.view.name]).await?;
        self.client.batch_execute("COMMIT").await?;
        self.generation += 1;
        Ok(self.generation)
    }

    /// Of a switch.
    pub(super) async fn abandon(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute("ROLLBACK").await?)
    }

    /// Whether somebody else's lock was in the way.
    pub(super) fn is_worth_a_retry(&self, error: &anyhow::Error) -> bool {
        let of_postgres = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
        of_postgres.is_some_and(|code| [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
    }
}

const POSITIONS: &str = "SELECT next_offset FROM checkpoints WHERE view = $1 ORDER BY partition";

const COUNTED: &str = "SELECT * FROM checkpoints WHERE view = $1 ORDER BY partition";

const OTHER_RECORDS: &str = "the next rows counted other records than the live ones in partition";

const FORGET: &str = "DELETE FROM checkpoints WHERE view = $1";

fn offsets(rows: &[Row]) -> anyhow::Result<Vec<i64>> {
    if rows.is_empty() {
        bail!("no projector has folded this view yet");
    }
    Ok(rows.iter().map(|row| row.get("next_offset")).collect())
}

/// Its statements may take long: they read whole tables.
async fn session(url: &Secret) -> Result<Client, PostgresError> {
    let options = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0";
    chassis::postgres::connect(url, options, "projector rebuild").await
}
