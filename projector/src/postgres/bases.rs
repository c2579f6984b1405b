//! Loads and compares the rows in Postgres on which batches are folded.

use std::collections::{BTreeSet, HashMap};

use futures_util::future::try_join_all;
use schemas::aggregate;
use schemas::feeds::{FeedId, PerView, StoredView};
use schemas::views::{AggregateRow, Source};
use tokio_postgres::Row;

use super::Store;
use super::error::StoreError;
use crate::fold::{Missing, Rows};
use crate::share::Place;

/// A row as readers see it: key, version, data.
pub(crate) type ReadRow = (String, u64, String);

impl Store {
    /// Loads the missing rows, by view.
    pub(crate) async fn rows(&self, missing: &Missing) -> Result<Vec<Vec<(String, (u64, AggregateRow))>>, StoreError> {
        try_join_all(StoredView::all().map(|view| self.load(view, missing[view].keys()))).await
    }

    async fn load(
        &self,
        view: StoredView,
        keys: impl Iterator<Item = &String>,
    ) -> Result<Vec<(String, (u64, AggregateRow))>, StoreError> {
        let Source::Aggregate(row) = view.view().source else { return Ok(Vec::new()) };
        let Some(statement) = &self.statements.views[view.index()].read else { return Ok(Vec::new()) };
        let keys: Vec<_> = keys.map(String::as_str).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.client.query(statement, &[&keys]).await.map_err(StoreError::Read)?;
        let parse = |(key, version, data): ReadRow| Ok((key, (version, (row.read)(&data).map_err(StoreError::Row)?)));
        rows.iter().map(read_row).map(parse).collect()
    }

    /// Compares rows from another source that were folded on with those in Postgres.
    ///
    /// # Errors
    /// [`StoreError::Disproved`] if a row's version or content differs.
    pub(super) async fn prove(&self, bases: &PerView<Rows>, partitions: u32) -> Result<(), StoreError> {
        let mut disproved = BTreeSet::new();
        for (view, bases) in StoredView::all().into_iter().zip(bases).filter(|(_, bases)| !bases.is_empty()) {
            let Source::Aggregate(fold) = view.view().source else { continue };
            let stored: HashMap<_, _> = self.load(view, bases.keys()).await?.into_iter().collect();
            let differ = bases.iter().filter(|(key, base)| stored.get(*key) != Some(base));
            let partition = |key: &str| aggregate::partition(fold.aggregate, key, partitions);
            disproved.extend(differ.map(|(key, _)| Place { feed: FeedId::View(view), partition: partition(key) }));
        }
        match disproved.is_empty() {
            true => Ok(()),
            false => Err(StoreError::Disproved(disproved.into_iter().collect())),
        }
    }
}

fn read_row(row: &Row) -> ReadRow {
    let version: i64 = row.get(1);
    (row.get(0), version.cast_unsigned(), row.get(2))
}
