//! Known state of Redis: the makings that name its rows, and their positions.

use std::sync::Arc;

use schemas::cache::{END, End, News, Shown};
use schemas::feeds::{FeedId, PerFeed};

use super::ends::{Ends, PastEnds, RedisClock};
use super::{Makings, NOTHING, Offsets, to_index};

/// State of Redis while its positions are tracked.
#[derive(Debug, Clone)]
pub(super) struct Cached {
    pub(super) makings: PerFeed<Makings>,
    /// Offsets of the feeds whose rows projectors write to Redis. Rows that readers put there follow the offsets of
    /// Postgres.
    pub(super) offsets: Offsets,
    pub(super) clock: RedisClock,
    pub(super) ends: Ends,
}

impl Cached {
    pub(super) fn none(partitions: u32, clock: RedisClock) -> Self {
        let makings: Makings = vec![None; to_index(partitions)].into();
        let makings = FeedId::all().map(|_| makings.clone());
        Self { makings, offsets: Offsets::none(partitions), clock, ends: Ends::none(partitions) }
    }

    /// Drops the positions that are below the floor.
    pub(super) fn distrust(&mut self, floor: &Offsets) {
        for feed in FeedId::all().into_iter().filter(|feed| feed.has_rows_in_redis()) {
            for (index, floor) in floor.of(feed).iter().enumerate() {
                if self.makings[feed][index].is_some() && self.offsets.of(feed)[index] < *floor {
                    Arc::make_mut(&mut self.makings[feed])[index] = None;
                    Arc::make_mut(&mut self.offsets.0[feed])[index] = NOTHING;
                }
            }
        }
    }

    /// Drops the positions of a partition.
    pub(super) fn lose(&mut self, partition: u32) {
        for feed in FeedId::all() {
            if let Some(making) = Arc::make_mut(&mut self.makings[feed]).get_mut(to_index(partition)) {
                *making = None;
                Arc::make_mut(&mut self.offsets.0[feed])[to_index(partition)] = NOTHING;
            }
        }
    }

    /// Applies a notification and returns the positions that moved.
    pub(super) fn take(
        &mut self,
        news: &News<'_>,
        floor: Option<&Offsets>,
        past: &mut PastEnds,
    ) -> Vec<(FeedId, u32, i64)> {
        let mut moved = Vec::new();
        for (name, value) in &news.values {
            if *name == END {
                let end = End::parse(value).unwrap_or_default();
                self.ends.know(news.partition, end);
                past.know(news.partition, end);
            } else if let Some(feed) = FeedId::named(name) {
                moved.extend(self.know(feed, news.partition, Shown::parse(value), floor));
            }
        }
        moved
    }

    /// Records a position and returns it if it moved. A new incarnation may start behind the previous one.
    pub(super) fn know(
        &mut self,
        feed: FeedId,
        partition: u32,
        shown: Option<Shown>,
        floor: Option<&Offsets>,
    ) -> Option<(FeedId, u32, i64)> {
        let index = to_index(partition);
        let floor = floor.and_then(|floor| floor.of(feed).get(index)).copied().unwrap_or(NOTHING);
        let shown = shown.filter(|shown| !feed.has_rows_in_redis() || shown.offset >= floor);
        let (known, at) = (*self.makings[feed].get(index)?, self.offsets.of(feed)[index]);
        let making = shown.map(|shown| shown.making);
        let offset = shown.map_or(NOTHING, |shown| shown.offset);
        if known != making {
            Arc::make_mut(&mut self.makings[feed])[index] = making;
        } else if offset <= at {
            return None;
        }
        Arc::make_mut(&mut self.offsets.0[feed])[index] = offset;
        Some((feed, partition, offset))
    }
}
