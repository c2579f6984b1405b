//! What the views do not take: their readers are told.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use schemas::aggregate::type_name;
use schemas::feeds::{PerView, StoredView, ViewId};
use schemas::views::Source;

/// Aggregates, as Postgres told last: about a second ago. Cheap to ask where there are none.
#[derive(Debug, Default)]
pub(crate) struct Parked(RwLock<Option<Arc<PerView<HashSet<String>>>>>);

impl Parked {
    /// As (view, aggregate).
    pub(crate) fn know<'a>(&self, parked: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut aggregates: PerView<HashSet<String>> = Default::default();
        for (name, aggregate) in parked {
            if let Some(view) = StoredView::named(name) {
                aggregates[view].insert(aggregate.to_owned());
            }
        }
        let is_any = aggregates.iter().any(|aggregates| !aggregates.is_empty());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = is_any.then(|| Arc::new(aggregates));
    }

    /// Tells whether something that feeds a row is left out of it; of a list (`None`), of any of its rows.
    pub(crate) fn feeds(&self, view: ViewId, key: Option<&str>) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let view = view.base();
        let Some(aggregates) = known.as_ref().map(|known| &known[view]) else { return false };
        match (view.view().source, key) {
            (Source::Aggregate(row), Some(key)) => aggregates.contains(&[type_name(row.aggregate), "/", key].concat()),
            // Whose sums it would be in, nobody knows.
            (Source::Sum(_) | Source::View(_), _) | (Source::Aggregate(_), None) => !aggregates.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_told_of_its_own_aggregate_and_a_sum_of_any() {
        let parked = Parked::default();
        let feeds = |view: &str, key| parked.feeds(ViewId::named(view).unwrap(), key);
        assert!(!feeds("product", Some("cd")));
        parked.know([("product", "product/cd"), ("customer", "order/o")].into_iter());
        assert!(feeds("product", Some("cd")) && !feeds("product", Some("other")) && feeds("product", None));
        assert!(feeds("customer", Some("c")) && !feeds("order", Some("o")) && !feeds("revenue", None));
        parked.know(std::iter::empty());
        assert!(!feeds("product", Some("cd")));
    }
}
