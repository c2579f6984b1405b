//! The part of the log and of the views that one process folds.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemas::feeds::FeedId;

use crate::config::Feeds;

/// A feed (a view or the journal) in a partition.
pub(crate) type Place = (FeedId, u32);

/// The feeds and partitions that one projector folds.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) feeds: Feeds,
    pub(crate) partitions: Arc<BTreeSet<u32>>,
}

impl Share {
    /// Returns each feed in each partition.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.partitions.iter().flat_map(|partition| self.feeds.iter().map(move |feed| (feed, *partition)))
    }
}
