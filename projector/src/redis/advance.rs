//! The advance of a view's position in Redis by new rows.

use schemas::feeds::FeedId;

use crate::fold::Progress;
use crate::postgres::checkpoints::CheckpointMove;
use crate::share::Place;

/// The advance of a place by rows that cover the records after `from`, up to and including `to`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Advance {
    pub(super) place: Place,
    pub(super) from: i64,
    pub(super) to: i64,
    /// Hash of the records that were counted up to `to`.
    pub(super) hash: u64,
}

impl Advance {
    /// Returns the advance of a place between two states of its partition, or `None` if it has not advanced.
    pub(crate) fn between(place @ Place { feed, .. }: Place, before: &Progress, now: &Progress) -> Option<Self> {
        let offset = |progress: &Progress| progress.readers[feed].next_offset - 1;
        let to = offset(now);
        // No record after the last commit has changed a row.
        let from = before.last_commit.min(offset(before));
        (to > offset(before)).then(|| Self { place, from, to, hash: now.tallies[feed].hash })
    }

    /// Returns whether both are advances of the same place.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.place == other.place
    }

    /// Extends this advance by the one that follows it.
    pub(crate) fn extend(&mut self, next: &Self) {
        (self.to, self.hash) = (next.to, next.hash);
    }

    /// Returns the advances of a commit.
    pub(crate) fn of(moves: &[CheckpointMove]) -> Vec<Self> {
        let advance = |CheckpointMove { name, partition, from, to, tally, .. }: &CheckpointMove| {
            let place = Place { feed: FeedId::named(name)?, partition: *partition };
            Some(Self { place, from: from.next_offset - 1, to: to.next_offset - 1, hash: tally.hash })
        };
        moves.iter().filter_map(advance).collect()
    }
}
