//! The reader's rule: which records of a partition count.

use crate::record::{Epoch, Record};

/// Progress of reading one partition, and the sequence number expected next. A checkpoint stores all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// The offset to read next.
    pub next_offset: i64,
    /// Current epoch; `None` only before offset 0 has been read.
    pub epoch: Option<Epoch>,
    /// Sequence number of the epoch's last record that counted; 0 right after its claim.
    pub last_seq: u64,
    /// Offset of the last record that counted, claims included; −1 before offset 0 has been read. The record is read
    /// again at startup to verify that the log is still the one this state was derived from.
    pub last_counted: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The record is a claim and begins a new epoch.
    Claimed(Epoch),
    /// The record is a commit or a fence that counts.
    Counts,
    /// The record has no effect, regardless of its content.
    PassedOver(Passed),
}

/// Reason why a record does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Passed {
    /// The value was not written by this system.
    Foreign,
    /// The record belongs to an epoch that has ended or never existed.
    OtherEpoch,
    /// An earlier record was lost or appended later, or this one is a duplicate.
    OutOfSequence,
}

/// The log does not match the state of this reader, which must halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("expected offset {expected} but read {found}: the records in between are missing")]
    Gap { expected: i64, found: i64 },
    #[error("offset 0 holds no claim: the topic was not initialized by this system")]
    NoFirstClaim,
}

impl Reader {
    /// State at the beginning of a partition.
    pub const START: Self = Self { next_offset: 0, epoch: None, last_seq: 0, last_counted: -1 };

    /// Returns whether a claim has closed the partition, so that nothing after it counts.
    pub fn is_closed(&self) -> bool {
        self.epoch.is_some_and(|epoch| epoch.nonce == Epoch::CLOSED)
    }

    /// Returns the state right after a record that is known to count, in an epoch whose claim is known as well.
    pub fn behind(epoch: Epoch, last_seq: u64, last_counted: i64) -> Self {
        Self { next_offset: last_counted + 1, epoch: Some(epoch), last_seq, last_counted }
    }

    /// Advances over the record at `offset`; `None` is a value that this system did not write. Offsets must be
    /// contiguous. One below the expected offset is a bug of the caller and also reported as an error.
    pub fn read(&mut self, offset: i64, record: Option<&Record<'_>>) -> Result<Verdict, ChainError> {
        if offset != self.next_offset {
            return Err(ChainError::Gap { expected: self.next_offset, found: offset });
        }
        if offset == 0 && !matches!(record, Some(Record::Claim(_))) {
            return Err(ChainError::NoFirstClaim);
        }
        self.next_offset = offset + 1;
        Ok(match record {
            None => Verdict::PassedOver(Passed::Foreign),
            Some(_) if self.is_closed() => Verdict::PassedOver(Passed::OtherEpoch),
            Some(Record::Claim(claim)) => self.begin(Epoch { claim: offset, nonce: claim.nonce }),
            Some(Record::Commit(commit)) => self.follow(offset, commit.epoch, commit.seq),
            Some(Record::Fence(fence)) => self.follow(offset, fence.epoch, fence.seq),
        })
    }

    /// Returns whether `record`, found at `last_counted`, is the one that this state counted there.
    pub fn recognizes(&self, record: Option<&Record<'_>>) -> bool {
        let (epoch, seq) = match record {
            None => return false,
            Some(Record::Claim(claim)) => (Epoch { claim: self.last_counted, nonce: claim.nonce }, 0),
            Some(Record::Commit(commit)) => (commit.epoch, commit.seq),
            Some(Record::Fence(fence)) => (fence.epoch, fence.seq),
        };
        self.epoch == Some(epoch) && self.last_seq == seq
    }

    fn begin(&mut self, epoch: Epoch) -> Verdict {
        self.epoch = Some(epoch);
        self.last_seq = 0;
        self.last_counted = epoch.claim;
        Verdict::Claimed(epoch)
    }

    fn follow(&mut self, offset: i64, epoch: Epoch, seq: u64) -> Verdict {
        if self.epoch != Some(epoch) {
            return Verdict::PassedOver(Passed::OtherEpoch);
        }
        if seq != self.last_seq + 1 {
            return Verdict::PassedOver(Passed::OutOfSequence);
        }
        self.last_seq = seq;
        self.last_counted = offset;
        Verdict::Counts
    }
}
