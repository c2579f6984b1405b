//! The part of the log and of the views that one process folds.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use schemas::feeds::FeedId;

use crate::config::Feeds;

/// A feed (a view or the journal) in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) feed: FeedId,
    pub(crate) partition: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in partition {}", self.feed.name(), self.partition)
    }
}

/// The feeds and partitions that one projector folds.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) feeds: Feeds,
    pub(crate) partitions: Arc<BTreeSet<u32>>,
}

impl Share {
    /// Returns each feed in each partition.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        let of = |partition: &u32| {
            let partition = *partition;
            self.feeds.iter().map(move |feed| Place { feed, partition })
        };
        self.partitions.iter().flat_map(of)
    }
}
