//! How much memory the aggregates of all partitions may take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys of all partitions that stay in memory though Postgres has them, too: about 60 MiB.
const MAX_KEYS: usize = 500_000;

/// The part of the memory for aggregates that events may take which wait for their states, while partitions are read.
const UNFOLDED_PART: usize = 8;
/// In each partition, whatever the part comes to: about what is handed over at once.
const MIN_UNFOLDED_BYTES: usize = 256 * 1024;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct MemoryBudget {
    max_bytes: usize,
    /// By partition.
    shares: Arc<[AtomicUsize]>,
}

impl MemoryBudget {
    pub(crate) fn new(max_bytes: usize, partitions: u32) -> Self {
        Self { max_bytes, shares: (0..partitions).map(|_| AtomicUsize::new(0)).collect() }
    }

    /// Takes note of what a partition's aggregates take, and returns what they may: `None`, while there is room for all.
    pub(crate) fn limit(&self, partition: u32, bytes: usize) -> Option<usize> {
        self.shares[partition as usize].store(bytes, Ordering::Relaxed);
        let all: usize = self.shares.iter().map(|share| share.load(Ordering::Relaxed)).sum();
        if all <= self.max_bytes {
            return None;
        }
        // Each gives in proportion, and a little more, so that it is not asked again at once.
        let share = bytes as u128 * self.max_bytes as u128 / all as u128;
        Some(usize::try_from(share * 9 / 10).expect("a part of a usize"))
    }

    /// Bytes of events in one partition that may wait for their states.
    pub(crate) fn unfolded_bytes(&self) -> usize {
        (self.max_bytes / UNFOLDED_PART / self.shares.len().max(1)).max(MIN_UNFOLDED_BYTES)
    }

    /// Keys that one partition keeps in memory.
    pub(crate) fn keys(&self) -> usize {
        MAX_KEYS / self.shares.len().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_give_in_proportion_once_there_is_no_room_for_all() {
        let budget = MemoryBudget::new(1000, 2);
        assert_eq!(budget.limit(0, 600), None);
        assert_eq!(budget.limit(1, 400), None);
        assert_eq!(budget.limit(1, 1400), Some(630));
        assert_eq!(budget.limit(0, 600), Some(270));
        assert_eq!(budget.limit(1, 300), None);
    }
}
