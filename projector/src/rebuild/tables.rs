//! The tables and checkpoints of a view: those that live, the next ones, and those from before.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chassis::env::Secret;
use schemas::views::{FOLDS, VIEWS, View};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, Row};

use super::compare::{self, Comparison};
use crate::postgres::ReadRow;

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
    feed: usize,
    view: &'static View,
    /// The live one.
    generation: i32,
}

impl Tables {
    /// # Errors
    /// Also where another rebuild runs.
    pub(super) async fn connect(url: &Secret, view: usize) -> anyhow::Result<Self> {
        let client = session(url).await?;
        let begun = Instant::now();
        while !client.query_one(LOCK, &[]).await?.get::<_, bool>(0) {
            ensure!(begun.elapsed() < FREE_WITHIN, "another rebuild runs");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let snapshot = session(url).await?;
        let sql = "SELECT max(generation) FROM checkpoints WHERE view = $1";
        let generation: Option<i32> = client.query_one(sql, &[&VIEWS[view].name]).await?.get(0);
        let generation = generation.context("no projector has folded this log yet")?;
        Ok(Self { client, snapshot, feed: view, view: VIEWS[view], generation })
    }

    /// Of the rows that are live.
    pub(super) fn generation(&self) -> i32 {
        self.generation
    }

    /// Makes the next rows' table, empty unless an earlier rebuild left it, or `rollback` brings the kept ones.
    pub(super) async fn prepare(&mut self, rollback: bool) -> anyhow::Result<Origin> {
        let (table, fold) = (self.view.table, FOLDS[self.feed]);
        let (next, kept) = (self.next(), self.kept());
        if rollback {
            let of = self.fold_of(&kept).await?.context("nothing is kept of a rebuild of this view")?;
            if of != fold {
                bail!("the kept rows were made by fold {of}, and this build's is {fold}: use the build that made them");
            }
        } else if self.fold_of(&next).await? == Some(fold) {
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

    /// So that Postgres plans for the next rows as it does for those that live.
    pub(super) async fn analyze(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute(&format!("ANALYZE {}_next", self.view.table)).await?)
    }

    pub(super) async fn compare(&self, partitions: u32) -> anyhow::Result<Comparison> {
        let comparison = compare::compare(self.view, partitions, &self.snapshot, &self.client).await?;
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

    /// Begins the switch: nobody moves the live checkpoints until its end. Gives their next offsets.
    pub(super) async fn lock(&self) -> anyhow::Result<Vec<i64>> {
        self.client.batch_execute(&format!("BEGIN; {SWITCH_LIMITS}")).await?;
        let sql = "SELECT next_offset FROM checkpoints WHERE view = $1 ORDER BY partition FOR UPDATE";
        offsets(&self.client.query(sql, &[&self.view.name]).await?)
    }

    /// Ends it: the next rows live. They stand where the live ones do, or nothing changes.
    pub(super) async fn switch(&mut self) -> anyhow::Result<i32> {
        let differ = self.client.query(include_str!("differ.sql"), &[&self.view.name, &self.next()]).await?;
        if let Some(row) = differ.first() {
            bail!("the next rows counted other records than the live ones in partition {}", row.get::<_, i32>(0));
        }
        let table = self.view.table;
        // An SQL view goes with the table that it was made from, whatever the table is called.
        let mut views = String::new();
        for row in self.client.query(include_str!("dependents.sql"), &[&table]).await? {
            views.push_str(&format!("CREATE OR REPLACE VIEW {} AS {};", row.get::<_, &str>(0), row.get::<_, &str>(1)));
        }
        self.client
            .batch_execute(&format!(
                "DROP TABLE IF EXISTS {table}_kept;
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

const FORGET: &str = "DELETE FROM checkpoints WHERE view = $1";

fn offsets(rows: &[Row]) -> anyhow::Result<Vec<i64>> {
    if rows.is_empty() {
        bail!("no projector has folded this view yet");
    }
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Its statements may take long: they read whole tables.
async fn session(url: &Secret) -> anyhow::Result<Client> {
    let options = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0";
    let config = chassis::postgres::session(url, options, "projector rebuild")?;
    let (client, connection) = config.connect(NoTls).await.context("connect to Postgres")?;
    tokio::spawn(connection);
    Ok(client)
}
