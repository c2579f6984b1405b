//! Computes the hashes of the journal's segments from the log.

use std::collections::BTreeMap;

use schemas::journal::{SEGMENT_OFFSETS, SegmentHash};

pub(super) type Hash = [u8; 32];

/// Hashes of a partition's segments.
#[derive(Default)]
pub(super) struct Chain {
    next_offset: i64,
    /// Number and hash of the segment that the last record is in.
    open: Option<(i64, SegmentHash)>,
    closed: BTreeMap<i64, Hash>,
}

impl Chain {
    /// Adds a record, in the order of the log; ignores one that it has already.
    pub(super) fn take(&mut self, offset: i64, record: &[u8]) {
        if offset < self.next_offset {
            return;
        }
        self.next_offset = offset + 1;
        let segment = offset / SEGMENT_OFFSETS;
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            self.begin(segment);
        }
        if let Some((_, hash)) = &mut self.open {
            hash.take(offset, record);
        }
    }

    fn begin(&mut self, segment: i64) {
        if let Some((closed, hash)) = self.open.take() {
            self.closed.insert(closed, hash.end());
        }
        let before = self.closed.values().next_back();
        self.open = Some((segment, SegmentHash::after(before.map(|hash| &hash[..]))));
    }

    /// Returns the hash of a segment's records, as far as they were added.
    pub(super) fn hash(&self, segment: i64) -> Option<Hash> {
        let open = self.open.as_ref().filter(|(open, _)| *open == segment);
        self.closed.get(&segment).copied().or_else(|| open.map(|(_, hash)| hash.clone().end()))
    }
}
