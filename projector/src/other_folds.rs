//! Views whose rows were made by another version of the fold than this build's. They are not folded until they are
//! rebuilt; all other views are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::feeds::FeedId;

use crate::config::Feeds;
use crate::metrics::Metrics;
use crate::postgres::{Store, StoreError};

/// Interval between checks whether a waiting view was rebuilt.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The views that a session does not fold because they wait for a rebuild.
#[derive(Debug, Clone)]
pub(crate) struct OtherFolds {
    /// The configured feeds, waiting or not.
    wanted: Feeds,
    waiting: Feeds,
    last_look: Instant,
}

impl OtherFolds {
    pub(crate) async fn find(store: &Store, wanted: Feeds) -> Result<Self, StoreError> {
        let waiting = store.of_other_folds(wanted).await?;
        Ok(Self { wanted, waiting, last_look: Instant::now() })
    }

    /// Returns the feeds that can be folded.
    pub(crate) fn others(&self) -> Feeds {
        self.wanted.filter(|feed| !self.waiting.contain(feed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns whether the set of waiting views has changed. Queries Postgres once a second, and only while a view
    /// waits.
    pub(crate) async fn have_changed(&mut self, store: &Store) -> Result<bool, StoreError> {
        if self.is_empty() || self.last_look.elapsed() < LOOK_EVERY {
            return Ok(false);
        }
        self.last_look = Instant::now();
        Ok(store.of_other_folds(self.wanted).await? != self.waiting)
    }
}

/// The log warnings and metrics about views that wait for a rebuild.
#[derive(Debug)]
pub(crate) struct Notice {
    metrics: Arc<Metrics>,
    told: Option<(Feeds, Instant)>,
}

impl Notice {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, told: None }
    }

    /// Updates the metrics, and logs a warning on every change and once a minute while a view waits.
    pub(crate) fn tell(&mut self, OtherFolds { wanted, waiting, .. }: &OtherFolds) {
        for view in wanted.views() {
            self.metrics.waits_for_rebuild(view, waiting.contain(FeedId::View(view)));
        }
        let is_told = |(feeds, at): (Feeds, Instant)| feeds == *waiting && at.elapsed() < TELL_EVERY;
        if waiting.is_empty() {
            self.told = None;
        } else if !self.told.is_some_and(is_told) {
            self.told = Some((*waiting, Instant::now()));
            let views = waiting.names().replace('+', " ");
            tracing::warn!(
                views,
                "views not folded, because another version of the fold made their rows: run `projector rebuild` \
                 (`cargo stack rebuild`) with their names; other views are unaffected"
            );
        }
    }
}
