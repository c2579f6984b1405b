//! What is parked: looked at, folded after all, or given up.

use std::sync::atomic::AtomicBool;

use schemas::exceptions::Exceptions;
use schemas::feeds::{FeedId, StoredView};
use tokio_postgres::Row;

use super::{Store, StoreError, written};
use crate::config::Feeds;
use crate::fold::{Folder, Records};
use crate::isolate::Parked;
use crate::log_reader::Batch;
use crate::reactor::REACTOR;

/// As what deadlines that failed are listed.
pub(crate) const DEADLINES: &str = "deadlines";

const NAMES: &str = "SELECT DISTINCT view, aggregate FROM parked";
const PARTITION: &str = "SELECT partition FROM parked WHERE view = $1 AND aggregate = $2 LIMIT 1";
const RECORDS: &str = "SELECT \"offset\", record FROM parked WHERE view = $1 AND aggregate = $2 ORDER BY \"offset\"";
/// Whoever folds the partition finds out by its next commit.
const REVISE: &str =
    "UPDATE checkpoints SET revision = revision + 1 WHERE view = $1 AND partition = $2 RETURNING revision";
const FORGET: &str = "DELETE FROM parked WHERE view = $1 AND aggregate = $2";

/// An aggregate of which a view has records parked.
#[derive(Debug)]
pub(crate) struct ParkedAggregate {
    pub(crate) view: String,
    pub(crate) aggregate: String,
    pub(crate) records: i64,
    pub(crate) first_version: i64,
    pub(crate) reason: Option<String>,
    pub(crate) since_us: i64,
}

/// What is parked of the reactor, in pages.
#[derive(Debug)]
pub(crate) struct ReactionsPage {
    pub(crate) records: Batch,
    /// The last one of it.
    pub(crate) last: (String, i64),
}

impl Store {
    /// To be read after the checkpoints that it goes with.
    pub(crate) async fn parked(&self) -> Result<Parked, StoreError> {
        let mut parked = Parked::default();
        for row in self.client.query(NAMES, &[]).await.map_err(StoreError::Load)? {
            if let Some(view) = StoredView::named(row.get(0)) {
                parked.insert(view, row.get(1), None);
            }
        }
        Ok(parked)
    }

    /// Returns the first so many behind `after`, a time, a view and an aggregate as in the list.
    pub(crate) async fn list_parked(
        &self,
        (since_us, view, aggregate): (i64, &str, &str),
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

    /// Folds what is parked, in its order. Returns its partition, and the revision of the rows there; `None`: nothing is
    /// parked.
    ///
    /// # Errors
    /// [`StoreError::Refused`] or [`StoreError::Fold`] where it still does not work: it stays parked. So it does where the
    /// view waits for a rebuild.
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
        // What is parked was read.
        let records =
            Records::of(&batch, &Exceptions::default()).map_err(|error| StoreError::Fold(error.to_string()))?;
        let missing = folder.missing(&records, Feeds::only(FeedId::View(view)));
        folder.remember(self.rows(&missing).await?);
        let changes = folder.expected(&records, view).map_err(|error| StoreError::Fold(error.to_string()))?;
        for (view, columns) in written(&changes)? {
            self.write((&self.client, &AtomicBool::default()), view, &columns).await?;
        }
        self.client.execute(FORGET, &[&view.name(), &aggregate]).await.map_err(StoreError::Commit)?;
        Ok(Some((partition.cast_unsigned(), revision)))
    }

    /// What the reactor parked, in its order. `None`: nothing is.
    pub(crate) async fn parked_reactions(&self, aggregate: &str) -> Result<Option<Batch>, StoreError> {
        let found = self.client.query_opt(PARTITION, &[&REACTOR, &aggregate]).await.map_err(StoreError::Read)?;
        let Some(partition) = found.map(|row| row.get::<_, i32>(0)) else { return Ok(None) };
        let rows = self.client.query(RECORDS, &[&REACTOR, &aggregate]).await.map_err(StoreError::Read)?;
        Ok(Some(Batch::of(rows.iter().map(|row| (partition.cast_unsigned(), row.get(0), row.get(1))))))
    }

    /// The same of all aggregates: the first so many records behind an aggregate and offset. `None`: there are no more.
    pub(crate) async fn parked_reactions_after(
        &self,
        (aggregate, offset): &(String, i64),
        most: i64,
    ) -> Result<Option<ReactionsPage>, StoreError> {
        let sql = "SELECT partition, \"offset\", record, aggregate FROM parked \
                   WHERE view = $1 AND (aggregate, \"offset\") > ($2, $3) ORDER BY aggregate, \"offset\" LIMIT $4";
        let rows = self.client.query(sql, &[&REACTOR, aggregate, offset, &most]).await.map_err(StoreError::Read)?;
        let Some(last) = rows.last().map(|row| (row.get(3), row.get(1))) else { return Ok(None) };
        let records = Batch::of(rows.iter().map(|row| (row.get::<_, i32>(0).cast_unsigned(), row.get(1), row.get(2))));
        Ok(Some(ReactionsPage { records, last }))
    }

    /// What is behind an aggregate and offset is tried by the reactors at once. Returns how many records it is.
    pub(crate) async fn try_reactions_after(&self, (aggregate, offset): &(String, i64)) -> Result<u64, StoreError> {
        let sql = "UPDATE parked SET retry_at = now() WHERE view = $1 AND (aggregate, \"offset\") > ($2, $3)";
        self.client.execute(sql, &[&REACTOR, aggregate, offset]).await.map_err(StoreError::Commit)
    }

    /// They are done, by their aggregates and offsets.
    pub(crate) async fn forget_reactions(&self, done: &[(String, i64)]) -> Result<(), StoreError> {
        let (aggregates, offsets): (Vec<&str>, Vec<i64>) =
            done.iter().map(|(aggregate, offset)| (aggregate.as_str(), *offset)).unzip();
        let forget = include_str!("../reactor/forget_parked.sql");
        self.client.execute(forget, &[&REACTOR, &aggregates, &offsets]).await.map_err(StoreError::Commit)?;
        Ok(())
    }

    /// All deadlines that failed are due again. Returns how many.
    pub(crate) async fn fire_all_again(&self) -> Result<u64, StoreError> {
        let sql = "UPDATE deadlines SET reason = NULL, leased_until = '-infinity' WHERE reason IS NOT NULL";
        self.client.execute(sql, &[]).await.map_err(StoreError::Commit)
    }

    /// Deadlines of an aggregate that failed are due again. `false`: there are none.
    pub(crate) async fn fire_again(&self, aggregate: &str) -> Result<bool, StoreError> {
        let sql = "UPDATE deadlines SET reason = NULL, leased_until = '-infinity' \
                   WHERE aggregate = $1 AND reason IS NOT NULL";
        Ok(self.client.execute(sql, &[&aggregate]).await.map_err(StoreError::Commit)? > 0)
    }

    /// They are given up. `false`: there are none.
    pub(crate) async fn discard_deadlines(&self, aggregate: &str) -> Result<bool, StoreError> {
        let sql = "DELETE FROM deadlines WHERE aggregate = $1 AND reason IS NOT NULL";
        let discarded = self.client.execute(sql, &[&aggregate]).await.map_err(StoreError::Commit)? > 0;
        if discarded {
            tracing::warn!(aggregate, "deadlines that failed are given up");
        }
        Ok(discarded)
    }

    /// Gives up what is parked, and writes that down; the aggregate's later records are folded again. `false`: nothing
    /// is.
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

    /// From here on, until the transaction ends, nothing is folded or parked where this aggregate is, and then nothing by
    /// whoever does not know what became of it. Returns its partition, and the revision of the rows there; `None`: nothing
    /// of it is parked.
    async fn revise(&self, view: &str, aggregate: &str) -> Result<Option<(i32, i64)>, StoreError> {
        let found = self.client.query_opt(PARTITION, &[&view, &aggregate]).await.map_err(StoreError::Read)?;
        let Some(partition) = found.map(|row| row.get::<_, i32>(0)) else { return Ok(None) };
        let revised = self.client.query_opt(REVISE, &[&view, &partition]).await.map_err(StoreError::Commit)?;
        // The reactor has no rows.
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
