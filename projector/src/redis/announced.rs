//! Positions that a previous projector left ahead of the checkpoints. They are correct only if the log contains the
//! records that they cover: it may have lost its end, or be another log.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::fold::Progress;
use crate::share::Place;

/// Time in which folding must reach an announced position. No projector is ahead by more than a few seconds of folding.
const REACHED_WITHIN: Duration = Duration::from_secs(10);

/// Announced positions that folding has not reached yet.
#[derive(Default)]
pub(super) struct Announced(HashMap<Place, Position>);

/// The offset that a place must reach, and the hash that its counted records must have there.
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

    /// Returns the first offset after the lowest announced position of each partition, or `None` without such
    /// positions.
    pub(super) fn until(&self, partitions: u32) -> Option<Vec<i64>> {
        if self.0.is_empty() {
            return None;
        }
        let mut until = vec![i64::MAX; partitions as usize];
        for (Place { partition, .. }, Position { offset, .. }) in &self.0 {
            let until = &mut until[*partition as usize];
            *until = (*until).min(offset + 1);
        }
        Some(until)
    }

    /// Returns the places that reached their position by other records, or did not reach it in time. Positions that
    /// were reached are removed.
    pub(super) fn contradicted(&mut self, all_progress: &[Progress]) -> Vec<Place> {
        let mut contradicted = Vec::new();
        self.0.retain(|place @ Place { feed, partition }, Position { offset, hash, since }| {
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
