//! What the log says of the journal's segments.

use std::collections::BTreeMap;

use schemas::journal::{SEGMENT_OFFSETS, SegmentHash};

pub(super) type Hash = [u8; 32];

/// The hashes of a partition's segments.
#[derive(Default)]
pub(super) struct Chain {
    next_offset: i64,
    /// Of the segment that the last record is in.
    open: Option<(i64, SegmentHash)>,
    closed: BTreeMap<i64, Hash>,
}

impl Chain {
    /// Takes records in their order; one that it has is left alone.
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

    /// Returns the hash of a segment's records, as far as they were taken.
    pub(super) fn hash(&self, segment: i64) -> Option<Hash> {
        let open = self.open.as_ref().filter(|(open, _)| *open == segment);
        self.closed.get(&segment).copied().or_else(|| open.map(|(_, hash)| hash.clone().end()))
    }
}
