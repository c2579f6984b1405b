//! Views whose rows were made by another fold than this build's. Their rows are not folded further: each waits for its
//! rebuild, while all others go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::feeds::FeedId;

use crate::config::Feeds;
use crate::metrics::Metrics;
use crate::postgres::{Store, StoreError};

/// Between looks at views that wait.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The views that a stretch of folding leaves out.
#[derive(Debug, Clone)]
pub(crate) struct OtherFolds {
    /// What is folded where none waits.
    wanted: Feeds,
    waiting: Feeds,
    last_look: Instant,
}

impl OtherFolds {
    pub(crate) async fn find(store: &Store, wanted: Feeds) -> Result<Self, StoreError> {
        let waiting = store.of_other_folds(wanted).await?;
        Ok(Self { wanted, waiting, last_look: Instant::now() })
    }

    /// Returns what can be folded.
    pub(crate) fn others(&self) -> Feeds {
        self.wanted.filter(|feed| !self.waiting.contain(feed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Tells whether a view was rebuilt meanwhile. It asks once a second, and never where no view waits.
    pub(crate) async fn have_changed(&mut self, store: &Store) -> Result<bool, StoreError> {
        if self.is_empty() || self.last_look.elapsed() < LOOK_EVERY {
            return Ok(false);
        }
        self.last_look = Instant::now();
        Ok(store.of_other_folds(self.wanted).await? != self.waiting)
    }
}

/// Keeps the log and the metrics at which views wait.
#[derive(Debug)]
pub(crate) struct Notice {
    metrics: Arc<Metrics>,
    told: Option<(Feeds, Instant)>,
}

impl Notice {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, told: None }
    }

    /// Warns at the first time, at every change, and once a minute.
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
                "these views wait, and others go on: another fold than this build's made their rows; `projector rebuild` \
                 (`cargo stack rebuild`) with their names makes them anew"
            );
        }
    }
}
