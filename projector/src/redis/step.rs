//! What a projector knows of Redis, and how a batch moves it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use schemas::cache::Shown;
use schemas::feeds::FeedId;

use super::{Advance, CacheError, Place, name};

/// What this projector knows of Redis while nobody else writes its share there.
pub(super) struct Step {
    /// As this projector wrote them; without those that are out of step.
    pub(super) shown: HashMap<Place, Shown>,
    /// Up to and with which offset Postgres has each place.
    pub(super) stored: HashMap<Place, i64>,
    /// All of the share.
    pub(super) places: Vec<Place>,
    pub(super) partitions: u32,
    pub(super) looked: Instant,
}

/// A position that a script looks at, and moves from what is expected there.
pub(super) struct Position {
    pub(super) feed: FeedId,
    pub(super) expected: String,
    pub(super) shown: Shown,
    pub(super) moves: bool,
    /// What Postgres is known to show.
    pub(super) stored: Option<i64>,
}

impl Step {
    /// Returns the positions that move in each partition, of what is in step, and the places that have missed a batch.
    pub(super) fn positions(&self, advances: &[Advance]) -> (BTreeMap<u32, Vec<Position>>, Vec<Place>) {
        let (mut positions, mut missed) = (BTreeMap::<u32, Vec<Position>>::new(), Vec::new());
        for Advance { place: place @ (feed, partition), from, to, hash } in advances {
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

    pub(super) fn lose(&mut self, places: &[Place]) -> Result<(), CacheError> {
        self.shown.retain(|place, _| !places.contains(place));
        match places {
            [] => Ok(()),
            [place] => Err(CacheError::Mixed(name(*place))),
            [place, others @ ..] => Err(CacheError::Mixed(format!("{} and {} more", name(*place), others.len()))),
        }
    }
}
