//! The reader's rule: which records of a partition count.

use crate::record::{Epoch, Record};

/// How far one partition was read, and what must come next. A checkpoint stores all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// The offset to read next.
    pub next_offset: i64,
    /// `None` only before offset 0 was read.
    pub epoch: Option<Epoch>,
    /// Of the epoch's last record that counted; 0 right after its claim.
    pub last_seq: u64,
    /// Of the last record that counted, a claim included. Read again at start, it tells whether the log is
    /// still the one that this state came from. −1 before offset 0 was read.
    pub last_counted: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A claim: a new epoch began.
    Claimed(Epoch),
    /// A commit or a fence that counts.
    Counts,
    /// Nothing happened, whatever the record says.
    PassedOver(Passed),
}

/// Why a record does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Passed {
    /// Not a record of ours.
    Foreign,
    /// Of an epoch that ended, or never was.
    OtherEpoch,
    /// A record before it was lost or stands later, or it stands twice.
    OutOfSequence,
}

/// The log is not what this reader's state came from. It halts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("expected offset {expected}, the log gave {found}: records between them are gone")]
    Gap { expected: i64, found: i64 },
    #[error("offset 0 holds no claim: the topic was not begun by this system")]
    NoFirstClaim,
}

impl Reader {
    /// At the beginning of a partition.
    pub const START: Self = Self { next_offset: 0, epoch: None, last_seq: 0, last_counted: -1 };

    /// Right behind a record that is known to count, in an epoch whose claim is known too.
    pub fn behind(epoch: Epoch, last_seq: u64, last_counted: i64) -> Self {
        Self { next_offset: last_counted + 1, epoch: Some(epoch), last_seq, last_counted }
    }

    /// Reads the record at `offset`; `None` is a record that is not ours. Offsets come without gaps; one below
    /// the state is a mistake of the caller and an error too.
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
            Some(Record::Claim(claim)) => self.begin(Epoch { claim: offset, nonce: claim.nonce }),
            Some(Record::Commit(commit)) => self.follow(offset, commit.epoch, commit.seq),
            Some(Record::Fence(fence)) => self.follow(offset, fence.epoch, fence.seq),
        })
    }

    /// Whether `record`, found at `last_counted`, is the one that this state counted there.
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
