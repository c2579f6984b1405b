//! Loads rows to fold on from Redis while Postgres does not answer.
//!
//! Rows folded on them are shown only if the position is still the one to which they belong, and committed only if
//! Postgres has the same rows.

use std::collections::BTreeMap;

use chassis::redis::Pipelines;
use schemas::aggregate;
use schemas::cache::Head;
use schemas::feeds::{FeedId, PerView, StoredView};
use schemas::views::{AggregateRow, RowFold, Source, row_data};

use super::{Cache, LOOK_WITHIN};
use crate::fold::{Missing, Rows};
use crate::share::Place;

/// A requested row, with the version that it must have.
struct Asked<'a> {
    view: StoredView,
    fold: RowFold,
    key: &'a String,
    version: u64,
}

impl Cache {
    /// Returns the missing rows as Redis shows them, or `None` if Redis lacks one, has another version of it, or one of
    /// their places is out of sync.
    pub(crate) async fn bases(&self, missing: &Missing, partitions: u32) -> Option<PerView<Rows>> {
        let step = self.step.as_ref()?;
        let (mut pipelines, mut all_asked) = (Pipelines::default(), BTreeMap::<u32, Vec<Asked<'_>>>::new());
        for view in StoredView::all() {
            let Source::Aggregate(fold) = view.view().source else { continue };
            for (key, version) in &missing[view] {
                let partition = aggregate::partition(fold.aggregate, key, partitions);
                let place = Place { feed: FeedId::View(view), partition };
                // It is not known yet whether the log contains the rows of a position that another projector left.
                let shown = step.shown.get(&place).filter(|_| !self.announced.contains(place))?;
                let row = self.keys.row(partition, shown.making.incarnation, view, key);
                pipelines.of(partition).get(row);
                all_asked.entry(partition).or_default().push(Asked { view, fold, key, version: *version });
            }
        }
        let mut bases = PerView::<Rows>::default();
        for (partition, values) in pipelines.send::<Option<Vec<u8>>>(&self.connection, LOOK_WITHIN).await {
            for (asked, value) in all_asked[&partition].iter().zip(values.ok()?) {
                bases[asked.view].insert(asked.key.clone(), (asked.version, asked.read(&value?)?));
            }
        }
        Some(bases)
    }
}

impl Asked<'_> {
    fn read(&self, value: &[u8]) -> Option<AggregateRow> {
        let head = Head::of(value).filter(|head| head.version == self.version)?;
        (self.fold.read)(row_data(&value[head.len..]).ok()?).ok()
    }
}
