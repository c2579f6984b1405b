//! Memory budget that the aggregates of all partitions share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Maximum number of keys of all partitions that stay in memory although Postgres has them, too: about 60 MiB.
const MAX_KEYS: usize = 500_000;

/// Fraction (1/8) of the aggregates' memory that events may take while they wait for states during a replay.
const UNFOLDED_PART: usize = 8;
/// Minimum of that per partition: about one batch of records.
const MIN_UNFOLDED_BYTES: usize = 256 * 1024;

/// The budget, and the memory that each partition takes of it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct MemoryBudget {
    max_bytes: usize,
    /// Bytes taken, by partition.
    shares: Arc<[AtomicUsize]>,
}

impl MemoryBudget {
    pub(crate) fn new(max_bytes: usize, partitions: u32) -> Self {
        Self { max_bytes, shares: (0..partitions).map(|_| AtomicUsize::new(0)).collect() }
    }

    /// Records the memory that a partition's aggregates take. Returns their limit, or `None` while there is room for
    /// all.
    pub(crate) fn limit(&self, partition: u32, bytes: usize) -> Option<usize> {
        self.shares[partition as usize].store(bytes, Ordering::Relaxed);
        let all: usize = self.shares.iter().map(|share| share.load(Ordering::Relaxed)).sum();
        if all <= self.max_bytes {
            return None;
        }
        // Each partition gives up memory in proportion, and a little more, so that it is not asked again at once.
        let share = bytes as u128 * self.max_bytes as u128 / all as u128;
        Some(usize::try_from(share * 9 / 10).expect("a fraction of a usize"))
    }

    /// Returns the bytes of events in one partition that may wait for their states.
    pub(crate) fn unfolded_bytes(&self) -> usize {
        (self.max_bytes / UNFOLDED_PART / self.shares.len().max(1)).max(MIN_UNFOLDED_BYTES)
    }

    /// Returns the number of keys that one partition keeps in memory.
    pub(crate) fn keys(&self) -> usize {
        MAX_KEYS / self.shares.len().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_give_up_memory_in_proportion_once_there_is_no_room_for_all() {
        let budget = MemoryBudget::new(1000, 2);
        assert_eq!(budget.limit(0, 600), None);
        assert_eq!(budget.limit(1, 400), None);
        assert_eq!(budget.limit(1, 1400), Some(630));
        assert_eq!(budget.limit(0, 600), Some(270));
        assert_eq!(budget.limit(1, 300), None);
    }
}
