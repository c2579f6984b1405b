//! The writer's rule: which of its own records a writer may acknowledge.

use std::collections::BTreeMap;

use super::Reader;
use crate::record::Epoch;

/// One epoch, as its writer sees it.
///
/// The n-th record may be acknowledged once every record k ≤ n was reported at offset `base + k`: then those
/// offsets hold exactly these records, so no foreign claim can stand among them.
#[derive(Debug, Clone)]
pub struct Writer {
    epoch: Epoch,
    /// Record k is expected at offset `base + k`. It starts as the claim's offset.
    base: i64,
    sent: u64,
    acknowledged: u64,
    /// Offsets reported for records that cannot be acknowledged yet, by sequence number. Bounded by what is in
    /// flight, empty while reports come in order.
    reported: BTreeMap<u64, i64>,
}

/// A delivery report named another offset than the chain's: records of others stand among ours. It covers its
/// record and all after it; to read the log up to and with `offset` tells what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    pub offset: i64,
}

/// What the log said about an epoch in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Still the owner, and nothing is missing: the epoch goes on.
    Continues,
    /// Another claim ended the epoch. What was not counted by now never will be.
    Deposed,
    /// A record was lost before one that stands: nothing after the hole counts. Claim anew.
    Broken,
}

impl Writer {
    /// `epoch` is that of a claim which was acknowledged with its offset.
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, base: epoch.claim, sent: 0, acknowledged: 0, reported: BTreeMap::new() }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The number that the next record carries. It is used up only by [`Self::sent`].
    pub fn next_seq(&self) -> u64 {
        self.sent + 1
    }

    /// The client accepted the record numbered [`Self::next_seq`]; returns that number.
    pub fn sent(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    pub fn last_sent(&self) -> u64 {
        self.sent
    }

    /// Every record up to and with this one counts for ever.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Where an acknowledged record stands, as long as the base did not move since.
    pub fn offset_of(&self, seq: u64) -> i64 {
        self.base + i64::try_from(seq).expect("fewer records than offsets")
    }

    /// The delivery report of record `seq` came and named `offset`.
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

    /// The state of a reader that stands right behind what is acknowledged: from there a look begins.
    pub fn reader(&self) -> Reader {
        Reader::behind(self.epoch, self.acknowledged, self.offset_of(self.acknowledged))
    }

    /// `reader` started as [`Self::reader`] and went on to or past the offset of the doubt. On
    /// [`Settled::Continues`] what it counted is acknowledged and the base has moved; the error says that
    /// reports which came meanwhile raise a doubt of their own.
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
