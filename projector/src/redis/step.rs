//! The state of Redis as the projector last wrote it, and its changes by a batch.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use schemas::cache::Shown;
use schemas::feeds::FeedId;

use super::advance::Advance;
use super::error::CacheError;
use crate::share::Place;

/// The expected state of Redis, valid while no other process writes this projector's share there.
pub(super) struct Step {
    /// Positions as this projector wrote them, without the places that are out of sync.
    pub(super) shown: HashMap<Place, Shown>,
    /// Last offset that Postgres has of each place.
    pub(super) stored: HashMap<Place, i64>,
    /// All places of the share.
    pub(super) places: Vec<Place>,
    pub(super) partitions: u32,
    pub(super) looked: Instant,
}

/// A position that a script compares with the expected value, and moves.
pub(super) struct Position {
    pub(super) feed: FeedId,
    pub(super) expected: String,
    pub(super) shown: Shown,
    pub(super) moves: bool,
    /// Last offset that Postgres is known to have, if any.
    pub(super) stored: Option<i64>,
}

impl Step {
    /// Returns the positions of synchronized places that move, by partition, and the places that have missed a batch.
    pub(super) fn positions(&self, advances: &[Advance]) -> (BTreeMap<u32, Vec<Position>>, Vec<Place>) {
        let (mut positions, mut missed) = (BTreeMap::<u32, Vec<Position>>::new(), Vec::new());
        for Advance { place: place @ Place { feed, partition }, from, to, hash } in advances {
            let stands = self.shown.get(place).filter(|stands| feed.has_rows_in_redis() && stands.offset < *to);
            let Some(stands) = stands else { continue };
            if stands.offset < *from {
                missed.push(*place);
                continue;
            }
            let shown = Shown { offset: *to, hash: Some(*hash), ..*stands };
            let (expected, stored) = (stands.to_string(), self.stored.get(place).copied());
            positions.entry(*partition).or_default().push(Position {
                feed: *feed,
                expected,
                shown,
                moves: true,
                stored,
            });
        }
        (positions, missed)
    }

    /// Marks places as out of sync.
    ///
    /// # Errors
    /// [`CacheError::Mixed`] if there is any.
    pub(super) fn lose(&mut self, places: &[Place]) -> Result<(), CacheError> {
        self.shown.retain(|place, _| !places.contains(place));
        match places {
            [] => Ok(()),
            [place] => Err(CacheError::Mixed(place.to_string())),
            [place, others @ ..] => Err(CacheError::Mixed(format!("{place} and {} more", others.len()))),
        }
    }
}
