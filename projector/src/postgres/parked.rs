//! Lists, retries and discards parked records.

use std::sync::atomic::AtomicBool;

use schemas::exceptions::Exceptions;
use schemas::feeds::{FeedId, StoredView};
use tokio_postgres::Row;

use super::error::StoreError;
use super::{InCommit, Store, written};
use crate::config::Feeds;
use crate::fold::{Folder, Records};
use crate::log_reader::Batch;
use crate::parked::{Parked, ParkedAt, REACTOR};

const NAMES: &str = "SELECT DISTINCT view, aggregate FROM parked";
const PARTITION: &str = "SELECT partition FROM parked WHERE view = $1 AND aggregate = $2 LIMIT 1";
const RECORDS: &str = "SELECT \"offset\", record FROM parked WHERE view = $1 AND aggregate = $2 ORDER BY \"offset\"";
/// Increments the revision of a view's rows. The partition's projector notices it at its next commit.
const REVISE: &str =
    "UPDATE checkpoints SET revision = revision + 1 WHERE view = $1 AND partition = $2 RETURNING revision";
const FORGET: &str = "DELETE FROM parked WHERE view = $1 AND aggregate = $2";

/// An aggregate with records that are parked for a view.
#[derive(Debug)]
pub(crate) struct ParkedAggregate {
    pub(crate) view: String,
    pub(crate) aggregate: String,
    pub(crate) records: i64,
    pub(crate) first_version: i64,
    pub(crate) reason: Option<String>,
    pub(crate) since_us: i64,
}

/// The place of an entry in the list of parked aggregates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ListedAt<'a> {
    pub(crate) since_us: i64,
    pub(crate) view: &'a str,
    pub(crate) aggregate: &'a str,
}

impl ListedAt<'_> {
    /// The place before all entries.
    pub(crate) const START: Self = Self { since_us: i64::MIN, view: "", aggregate: "" };
}

/// A page of records that are parked for the reactor.
#[derive(Debug)]
pub(crate) struct ReactionsPage {
    pub(crate) records: Batch,
    /// Place of the page's last record.
    pub(crate) last: ParkedAt,
}

impl Store {
    /// Loads the parked aggregates. Call it after loading the checkpoints to which they belong.
    pub(crate) async fn parked(&self) -> Result<Parked, StoreError> {
        let mut parked = Parked::default();
        for row in self.client.query(NAMES, &[]).await.map_err(StoreError::Load)? {
            if let Some(view) = StoredView::named(row.get(0)) {
                parked.insert(view, row.get(1), None);
            }
        }
        Ok(parked)
    }

    /// Lists at most `most` parked aggregates after this place, the oldest first.
    pub(crate) async fn list_parked(
        &self,
        ListedAt { since_us, view, aggregate }: ListedAt<'_>,
        most: i64,
    ) -> Result<Vec<ParkedAggregate>, StoreError> {
        let list = include_str!("list_parked.sql");
        let rows = self.client.query(list, &[&since_us, &view, &aggregate, &most]).await.map_err(StoreError::Read)?;
        let parked = |row: &Row| ParkedAggregate {
            view: row.get(0),
            aggregate: row.get(1),
            records: row.get(2),
            first_version: row.get(3),
            reason: row.get(4),
            since_us: row.get(5),
        };
        Ok(rows.iter().map(parked).collect())
    }

    /// Folds an aggregate's parked records, in offset order. Returns the partition and the new revision of its rows, or
    /// `None` if nothing is parked.
    ///
    /// # Errors
    /// [`StoreError::Refused`] or [`StoreError::Fold`] if the view still cannot take the records, and
    /// [`StoreError::OtherFold`] if the view waits for a rebuild. The records stay parked.
    pub(crate) async fn retry_parked(
        &self,
        view: StoredView,
        aggregate: &str,
    ) -> Result<Option<(u32, i64)>, StoreError> {
        if !self.of_other_folds(Feeds::only(FeedId::View(view))).await?.is_empty() {
            return Err(StoreError::OtherFold(view.name().to_owned()));
        }
        self.in_transaction(self.retry(view, aggregate)).await
    }

    async fn retry(&self, view: StoredView, aggregate: &str) -> Result<Option<(u32, i64)>, StoreError> {
        let Some((partition, revision)) = self.revise(view.name(), aggregate).await? else { return Ok(None) };
        let rows = self.client.query(RECORDS, &[&view.name(), &aggregate]).await.map_err(StoreError::Read)?;
        let batch = Batch::of(rows.iter().map(|row| (partition.cast_unsigned(), row.get(0), row.get(1))));
        let mut folder = Folder::default();
        // Parked records were decoded before, so no exception can be needed.
        let records = Records::of(&batch, &Exceptions::default()).map_err(StoreError::Fold)?;
        let missing = folder.missing(&records, Feeds::only(FeedId::View(view)));
        folder.remember(self.rows(&missing).await?);
        let changes = folder.fold_parked(&records, view).map_err(StoreError::Fold)?;
        let failed = AtomicBool::new(false);
        for (view, columns) in written(&changes)? {
            self.write(InCommit { client: &self.client, failed: &failed }, view, &columns).await?;
        }
        self.client.execute(FORGET, &[&view.name(), &aggregate]).await.map_err(StoreError::Commit)?;
        Ok(Some((partition.cast_unsigned(), revision)))
    }

    /// Returns an aggregate's records that are parked for the reactor, in offset order, or `None` if there are none.
    pub(crate) async fn parked_reactions(&self, aggregate: &str) -> Result<Option<Batch>, StoreError> {
        let found = self.client.query_opt(PARTITION, &[&REACTOR, &aggregate]).await.map_err(StoreError::Read)?;
        let Some(partition) = found.map(|row| row.get::<_, i32>(0)) else { return Ok(None) };
        let rows = self.client.query(RECORDS, &[&REACTOR, &aggregate]).await.map_err(StoreError::Read)?;
        Ok(Some(Batch::of(rows.iter().map(|row| (partition.cast_unsigned(), row.get(0), row.get(1))))))
    }

    /// Returns at most `most` records that are parked for the reactor after an aggregate and offset, or `None` if there
    /// are no more.
    pub(crate) async fn parked_reactions_after(
        &self,
        ParkedAt { aggregate, offset }: &ParkedAt,
        most: i64,
    ) -> Result<Option<ReactionsPage>, StoreError> {
        let sql = "SELECT partition, \"offset\", record, aggregate FROM parked \
                   WHERE view = $1 AND (aggregate, \"offset\") > ($2, $3) ORDER BY aggregate, \"offset\" LIMIT $4";
        let rows = self.client.query(sql, &[&REACTOR, aggregate, offset, &most]).await.map_err(StoreError::Read)?;
        let Some(last) = rows.last().map(|row| ParkedAt { aggregate: row.get(3), offset: row.get(1) }) else {
            return Ok(None);
        };
        let records = Batch::of(rows.iter().map(|row| (row.get::<_, i32>(0).cast_unsigned(), row.get(1), row.get(2))));
        Ok(Some(ReactionsPage { records, last }))
    }

    /// Makes the parked records after an aggregate and offset due for an immediate retry by the reactors. Returns their
    /// number.
    pub(crate) async fn try_reactions_after(&self, after: &ParkedAt) -> Result<u64, StoreError> {
        let sql = "UPDATE parked SET retry_at = now() WHERE view = $1 AND (aggregate, \"offset\") > ($2, $3)";
        self.client.execute(sql, &[&REACTOR, &after.aggregate, &after.offset]).await.map_err(StoreError::Commit)
    }

    /// Deletes parked reactions that are done.
    pub(crate) async fn forget_reactions(&self, done: &[ParkedAt]) -> Result<(), StoreError> {
        let (aggregates, offsets) = ParkedAt::columns(done);
        let forget = include_str!("../reactor/forget_parked.sql");
        self.client.execute(forget, &[&REACTOR, &aggregates, &offsets]).await.map_err(StoreError::Commit)?;
        Ok(())
    }

    /// Makes all failed deadlines due again. Returns their number.
    pub(crate) async fn fire_all_again(&self) -> Result<u64, StoreError> {
        let sql = "UPDATE deadlines SET reason = NULL, leased_until = '-infinity' WHERE reason IS NOT NULL";
        self.client.execute(sql, &[]).await.map_err(StoreError::Commit)
    }

    /// Makes an aggregate's failed deadlines due again. Returns false if there are none.
    pub(crate) async fn fire_again(&self, aggregate: &str) -> Result<bool, StoreError> {
        let sql = "UPDATE deadlines SET reason = NULL, leased_until = '-infinity' \
                   WHERE aggregate = $1 AND reason IS NOT NULL";
        Ok(self.client.execute(sql, &[&aggregate]).await.map_err(StoreError::Commit)? > 0)
    }

    /// Discards an aggregate's failed deadlines. Returns false if there are none.
    pub(crate) async fn discard_deadlines(&self, aggregate: &str) -> Result<bool, StoreError> {
        let sql = "DELETE FROM deadlines WHERE aggregate = $1 AND reason IS NOT NULL";
        let discarded = self.client.execute(sql, &[&aggregate]).await.map_err(StoreError::Commit)? > 0;
        if discarded {
            tracing::warn!(aggregate, "failed deadlines discarded");
        }
        Ok(discarded)
    }

    /// Discards an aggregate's parked records and records that in the table `discarded`. Its later records are folded
    /// again. Returns false if nothing is parked.
    pub(crate) async fn discard_parked(&self, view: &str, aggregate: &str) -> Result<bool, StoreError> {
        self.in_transaction(async {
            if self.revise(view, aggregate).await?.is_none() {
                return Ok(false);
            }
            let discard = include_str!("discard_parked.sql");
            self.client.execute(discard, &[&view, &aggregate]).await.map_err(StoreError::Commit)?;
            Ok(true)
        })
        .await
    }

    /// Increments the revision of a view's rows in the aggregate's partition. This blocks folding and parking there
    /// until the transaction ends, and then rejects the commits of a projector that has not loaded the new revision.
    /// Returns the partition and the revision, or `None` if nothing is parked.
    async fn revise(&self, view: &str, aggregate: &str) -> Result<Option<(i32, i64)>, StoreError> {
        let found = self.client.query_opt(PARTITION, &[&view, &aggregate]).await.map_err(StoreError::Read)?;
        let Some(partition) = found.map(|row| row.get::<_, i32>(0)) else { return Ok(None) };
        let revised = self.client.query_opt(REVISE, &[&view, &partition]).await.map_err(StoreError::Commit)?;
        // The reactor has no rows, and thus no revision.
        Ok(Some((partition, revised.map_or(0, |row| row.get(0)))))
    }

    async fn in_transaction<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.client.batch_execute("BEGIN").await.map_err(StoreError::Commit)?;
        let outcome = work.await;
        let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
        self.client.batch_execute(end).await.map_err(StoreError::Commit)?;
        outcome
    }
}
