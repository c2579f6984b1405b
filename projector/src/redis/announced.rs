//! Positions that another projector left ahead of the checkpoints. They are right only if the log has what they showed: it may
//! have lost its end, or be another one.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Place;
use crate::fold::Progress;

/// Nobody is ahead by more than a few seconds of folding.
const REACHED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Announced(HashMap<Place, Position>);

/// What a place is to come to: this offset, by records of this hash.
struct Position {
    offset: i64,
    hash: u64,
    since: Instant,
}

impl Announced {
    pub(super) fn add(&mut self, positions: impl IntoIterator<Item = (Place, i64, u64)>) {
        let since = Instant::now();
        self.0.extend(positions.into_iter().map(|(place, offset, hash)| (place, Position { offset, hash, since })));
    }

    pub(super) fn contains(&self, place: Place) -> bool {
        self.0.contains_key(&place)
    }

    pub(super) fn forget(&mut self, places: &[Place]) {
        self.0.retain(|place, _| !places.contains(place));
    }

    /// Returns the first offset of each partition that is behind a position; `None`: there is no position.
    pub(super) fn until(&self, partitions: u32) -> Option<Vec<i64>> {
        if self.0.is_empty() {
            return None;
        }
        let mut until = vec![i64::MAX; partitions as usize];
        for ((_, partition), Position { offset, .. }) in &self.0 {
            let until = &mut until[*partition as usize];
            *until = (*until).min(offset + 1);
        }
        Some(until)
    }

    /// Returns the places that came to their position by other records, or did not come to it in time. Those that came to it
    /// are forgotten.
    pub(super) fn contradicted(&mut self, all_progress: &[Progress]) -> Vec<Place> {
        let mut contradicted = Vec::new();
        self.0.retain(|place @ (feed, partition), Position { offset, hash, since }| {
            let progress = &all_progress[*partition as usize];
            let next = progress.readers[*feed].next_offset;
            let is_reached = next > *offset;
            let is_same = next == *offset + 1 && progress.tallies[*feed].hash == *hash;
            if (is_reached && !is_same) || (!is_reached && since.elapsed() > REACHED_WITHIN) {
                contradicted.push(*place);
            }
            !is_reached
        });
        contradicted
    }
}
