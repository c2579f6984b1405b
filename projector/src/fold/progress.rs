//! The progress of each view in a partition, by the reader's rule.

use schemas::chain::{Digest, Passed, Reader, Tally, Verdict};
use schemas::feeds::{FeedId, PerFeed};
use schemas::idempotency::IdempotencyKey;
use schemas::record::{Commit, Record};

use super::error::FoldError;
use crate::config::Feeds;
use crate::log_reader::RawRecord;

/// The progress of the feeds in one partition.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) readers: PerFeed<Reader>,
    /// The feeds that this process folds.
    feeds: Feeds,
    /// Tallies of the records that each feed counted.
    pub(crate) tallies: PerFeed<Tally>,
    /// Generation of each view's rows, which a rebuild increments.
    pub(crate) generations: PerFeed<i32>,
    /// Revision of each view's rows, see `V7__parked.sql`.
    pub(crate) revisions: PerFeed<i64>,
    /// Set once the record that each feed counted last has been read again since the start.
    recognized: PerFeed<bool>,
    /// Nonce of the partition's first claim, once known.
    pub(crate) nonce: Option<u64>,
    pub(crate) times: Times,
    /// Offset after which no record has changed a row yet.
    pub(crate) last_commit: i64,
}

/// Times of the commits that were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) last_at_ms: u64,
    /// Latest time in an idempotency key.
    pub(crate) max_key_ms: u64,
}

impl Times {
    pub(super) fn note(&mut self, commit: &Commit<'_>) {
        self.last_at_ms = self.last_at_ms.max(commit.at_ms);
        let key = IdempotencyKey::from_bare(&commit.command_id).ok().and_then(|key| key.time());
        self.max_key_ms = self.max_key_ms.max(key.map_or(0, |time| time.0));
    }
}

impl Progress {
    pub(crate) fn new(readers: PerFeed<Reader>, feeds: Feeds, nonce: Option<u64>) -> Self {
        let recognized = readers.map(|reader| reader.last_counted < 0);
        let (tallies, generations, revisions) = (Default::default(), [1; FeedId::COUNT], [0; FeedId::COUNT]);
        let last_commit = feeds.iter().map(|feed| readers[feed].last_counted).max().unwrap_or(-1);
        let times = Times::default();
        Self { recognized, readers, feeds, nonce, tallies, generations, revisions, times, last_commit }
    }

    /// Returns the offset to read from. The last record that the slowest feed counted is read again.
    pub(crate) fn from(&self) -> i64 {
        self.feeds.iter().map(|feed| self.readers[feed].last_counted.max(0)).min().unwrap_or(0)
    }
}

impl Progress {
    /// Returns whether the feed is folded here and has not read this offset yet.
    pub(super) fn passes(&self, feed: FeedId, offset: i64) -> bool {
        self.feeds.contain(feed) && offset >= self.readers[feed].next_offset
    }

    /// Reads a record, and returns for which feeds it counts.
    pub(super) fn read(
        &mut self,
        RawRecord { partition, offset, value }: RawRecord<'_>,
        record: Option<&Record<'_>>,
        passed_over: &mut Vec<Passed>,
    ) -> Result<PerFeed<bool>, FoldError> {
        if let (0, Some(Record::Claim(claim))) = (offset, record)
            && *self.nonce.get_or_insert(claim.nonce) != claim.nonce
        {
            return Err(FoldError::OtherLog { partition });
        }
        let mut counts = [false; FeedId::COUNT];
        let mut passed = None;
        let digest = Digest::of(value);
        for feed in self.feeds.iter() {
            let (reader, recognized) = (&mut self.readers[feed], &mut self.recognized[feed]);
            if offset < reader.next_offset {
                if offset == reader.last_counted && !reader.recognizes(record) {
                    return Err(FoldError::OtherHistory { partition, offset });
                }
                *recognized |= offset == reader.last_counted;
                continue;
            }
            if !*recognized {
                return Err(FoldError::OtherHistory { partition, offset: reader.last_counted });
            }
            match reader.read(offset, record).map_err(|source| FoldError::Chain { partition, source })? {
                Verdict::Counts => {
                    counts[feed] = true;
                    self.tallies[feed].take(offset, digest);
                }
                Verdict::Claimed(_) => self.tallies[feed].take(offset, digest),
                Verdict::PassedOver(reason) => passed = Some(reason),
            }
        }
        passed_over.extend(passed);
        Ok(counts)
    }
}
