//! The writer's rule, which decides when a writer may acknowledge its own records.

use std::collections::BTreeMap;

use super::Reader;
use crate::record::Epoch;

/// One epoch from the point of view of its writer.
///
/// Record n may be acknowledged once every record k ≤ n has been reported at offset `base + k`. Those offsets then hold
/// exactly these records, so no foreign claim can lie between them.
#[derive(Debug, Clone)]
pub struct Writer {
    epoch: Epoch,
    /// Record k is expected at offset `base + k`. Initially the offset of the claim.
    base: i64,
    sent: u64,
    acknowledged: u64,
    /// Offsets reported for records that cannot be acknowledged yet, by sequence number. Bounded by the number of
    /// records in flight, and empty while reports arrive in order.
    reported: BTreeMap<u64, i64>,
}

/// A delivery report with an unexpected offset: foreign records lie between the writer's own. The doubt covers the
/// reported record and all later ones, and is resolved by reading the log up to and including `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    pub offset: i64,
}

/// Outcome of reading the log for an epoch in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The writer is still the owner and no record is missing; the epoch continues.
    Continues,
    /// Another claim ended the epoch. Records that have not counted by now never will.
    Deposed,
    /// A record was lost but a later one was appended. No record after the gap counts; the owner must claim again.
    Broken,
}

impl Writer {
    /// Creates the writer of the epoch of a claim that was acknowledged with its offset.
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, base: epoch.claim, sent: 0, acknowledged: 0, reported: BTreeMap::new() }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the sequence number of the next record. Only [`Self::sent`] consumes it.
    pub fn next_seq(&self) -> u64 {
        self.sent + 1
    }

    /// Notes that the Kafka client accepted the record numbered [`Self::next_seq`], and returns that number.
    pub fn sent(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    pub fn last_sent(&self) -> u64 {
        self.sent
    }

    /// Returns the highest sequence number up to which every record is certain to count.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Returns the offset of an acknowledged record, provided the base has not moved since.
    pub fn offset_of(&self, seq: u64) -> i64 {
        self.base + i64::try_from(seq).expect("fewer records than offsets")
    }

    /// Applies a delivery report that names `offset` for record `seq`.
    pub fn delivered(&mut self, seq: u64, offset: i64) -> Result<(), Doubt> {
        if seq == self.acknowledged + 1 && self.reported.is_empty() && offset == self.offset_of(seq) {
            self.acknowledged = seq;
            return Ok(());
        }
        if seq > self.acknowledged {
            self.reported.insert(seq, offset);
        }
        self.advance()
    }

    /// Returns a reader positioned right after the last acknowledged record, from which a doubt is resolved.
    pub fn reader(&self) -> Reader {
        Reader::behind(self.epoch, self.acknowledged, self.offset_of(self.acknowledged))
    }

    /// Resolves a doubt. `reader` started as [`Self::reader`] and has read at least through the offset of the doubt.
    /// On [`Settled::Continues`] the records it counted are acknowledged and the base has moved.
    ///
    /// # Errors
    /// Returns a new [`Doubt`] raised by reports that arrived in the meantime.
    pub fn settle(&mut self, reader: &Reader) -> Result<Settled, Doubt> {
        if reader.epoch != Some(self.epoch) {
            return Ok(Settled::Deposed);
        }
        if reader.last_seq > self.acknowledged {
            self.acknowledged = reader.last_seq;
            self.base = reader.last_counted - i64::try_from(reader.last_seq).expect("fewer records than offsets");
        }
        self.reported.retain(|seq, _| *seq > reader.last_seq);
        if self.reported.values().any(|offset| *offset < reader.next_offset) {
            return Ok(Settled::Broken);
        }
        self.advance().map(|()| Settled::Continues)
    }

    fn advance(&mut self) -> Result<(), Doubt> {
        while let Some(first) = self.reported.first_entry() {
            if *first.key() != self.acknowledged + 1 {
                break;
            }
            if *first.get() != self.base + i64::try_from(*first.key()).expect("fewer records than offsets") {
                let offset = *self.reported.values().max().expect("it holds the first");
                return Err(Doubt { offset });
            }
            self.acknowledged += 1;
            first.remove();
        }
        Ok(())
    }
}
