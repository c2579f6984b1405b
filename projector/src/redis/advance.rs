//! How far rows bring what Redis shows.

use schemas::feeds::FeedId;

use super::Place;
use crate::fold::Progress;
use crate::postgres::CheckpointMove;

/// How far rows bring a place: they show what comes behind `from`, up to and with `to`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Advance {
    pub(super) place: Place,
    pub(super) from: i64,
    pub(super) to: i64,
    /// Of what was counted up to there.
    pub(super) hash: u64,
}

impl Advance {
    /// Returns the step of a place from one standing of its partition to another; `None`: it stands still.
    pub(crate) fn between(place @ (feed, _): Place, before: &Progress, now: &Progress) -> Option<Self> {
        let offset = |progress: &Progress| progress.readers[feed].next_offset - 1;
        let to = offset(now);
        // Behind the last commit nothing has changed a row.
        let from = before.last_commit.min(offset(before));
        (to > offset(before)).then(|| Self { place, from, to, hash: now.tallies[feed].hash })
    }

    /// Tells whether another step is of the same place.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.place == other.place
    }

    /// Takes in the step that comes after this one.
    pub(crate) fn extend(&mut self, next: &Self) {
        (self.to, self.hash) = (next.to, next.hash);
    }

    /// Returns the steps of a commit.
    pub(crate) fn of(moves: &[CheckpointMove]) -> Vec<Self> {
        let advance = |CheckpointMove { name, partition, from, to, tally, .. }: &CheckpointMove| {
            let place = (FeedId::named(name)?, *partition);
            Some(Self { place, from: from.next_offset - 1, to: to.next_offset - 1, hash: tally.hash })
        };
        moves.iter().filter_map(advance).collect()
    }
}
