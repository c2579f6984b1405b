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

/// A row as readers see it.
#[derive(Debug)]
pub(crate) struct ReadRow {
    pub(crate) key: String,
    pub(crate) version: u64,
    pub(crate) data: String,
}

impl ReadRow {
    /// Returns the row whose columns are key, version and data.
    pub(crate) fn of(row: &Row) -> Self {
        Self { key: row.get(0), version: row.get::<_, i64>(1).cast_unsigned(), data: row.get(2) }
    }
}

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
        let parse = |ReadRow { key, version, data }| Ok((key, (version, (row.read)(&data).map_err(StoreError::Row)?)));
        rows.iter().map(ReadRow::of).map(parse).collect()
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
