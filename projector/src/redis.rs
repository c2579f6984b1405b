//! The views in Redis: each partition's rows, and the positions up to which they are complete.
//!
//! A row that a single aggregate feeds is a fold of counted records, and correct at its version. So it is shown as soon
//! as it is folded, while Postgres is still committing it. Redis records which rows Postgres may lack, so that readers
//! do not fill in older ones.
//!
//! Invariant: any failure (a timeout, a position that another process moved) puts a view of a partition out of sync.
//! Nothing more of it is written until [`Cache::resume`] finds its position to be correct, or begins a new incarnation.

mod error;
mod advance;
mod bases;
mod change;
pub(crate) mod fitness;
mod announced;
#[cfg(test)]
mod model;
mod step;
pub(crate) mod resume;
mod show;

use std::collections::HashMap;
use std::time::Duration;

use chassis::redis::{Connection, RedisSettings, RedisSetupError};
use redis::Script;
use schemas::cache::{Keys, SHOW};

use crate::fold::Progress;
use crate::parked::Parked;
use crate::share::Place;
pub(crate) use advance::Advance;
use announced::Announced;
pub(crate) use change::{await_revision, change_position, declare_stale};
pub(crate) use error::CacheError;
use step::Step;

/// Maximum number of rows in a script call, because a script blocks Redis while it runs.
pub(crate) const MAX_ROWS_A_CALL: usize = 500;
/// Timeout of a look at the positions or rows, because folding waits for it.
const LOOK_WITHIN: Duration = Duration::from_millis(200);

pub(crate) struct Cache {
    connection: Connection,
    keys: Keys,
    /// SHA1 hash of the script that shows a batch.
    script: String,
    /// `None` while all places are out of sync.
    step: Option<Step>,
    /// Incarnations that have been in sync since [`Self::lose_step`].
    held: HashMap<Place, u64>,
    announced: Announced,
}

/// Returns whether rows are shown before Postgres has them: those that a single aggregate feeds, while no aggregate of
/// their place is parked. Parked records may be folded or discarded at any moment, which a projector notices only at
/// its next commit.
pub(crate) fn is_early(place: Place, parked: &Parked, partitions: u32) -> bool {
    place.feed.has_rows_in_redis() && !parked.are_in(place, partitions)
}

impl Cache {
    pub(crate) fn connect(redis: &RedisSettings, prefix: &str) -> Result<Self, RedisSetupError> {
        Ok(Self {
            connection: chassis::redis::connect(redis)?,
            keys: Keys::new(prefix),
            script: Script::new(SHOW).get_hash().to_owned(),
            step: None,
            held: HashMap::new(),
            announced: Announced::default(),
        })
    }

    /// Returns the connection and the key names, for other writers than that of the rows and positions.
    pub(crate) fn connection(&self) -> (Connection, Keys) {
        (self.connection.clone(), self.keys.clone())
    }

    pub(crate) fn is_in_step(&self) -> bool {
        self.step.as_ref().is_some_and(|step| step.shown.len() == step.places.len())
    }

    /// Marks all places as out of sync, because another projector may have written since.
    pub(crate) fn lose_step(&mut self) {
        self.step = None;
        self.held.clear();
        self.announced = Announced::default();
    }

    /// Deletes the positions of places, which declares their rows in Redis stale. New incarnations begin later.
    pub(crate) async fn forget(&mut self, places: &[Place]) -> Result<(), CacheError> {
        let names: Vec<_> = places.iter().map(|place| self.keys.shown(place.feed.name(), place.partition)).collect();
        if let Some(step) = &mut self.step {
            step.shown.retain(|place, _| !places.contains(place));
        }
        self.held.retain(|place, _| !places.contains(place));
        self.announced.forget(places);
        Ok(redis::cmd("DEL").arg(names).query_async(&mut self.connection).await?)
    }

    /// Returns, by partition, the offsets at which the previous projector's positions are to be compared with the fold.
    /// No batch may be folded across them.
    pub(crate) fn announced(&self, partitions: u32) -> Option<Vec<i64>> {
        self.announced.until(partitions)
    }

    /// Returns the places whose announced position proved wrong, see [`Announced::contradicted`].
    pub(crate) fn contradicted(&mut self, all_progress: &[Progress]) -> Vec<Place> {
        self.announced.contradicted(all_progress)
    }
}
