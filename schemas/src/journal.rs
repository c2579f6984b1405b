//! Commits as the journal stores them, which is as the records of the log. Reading them does not interpret their
//! events, which a newer build may have written.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::record::{MARK, RecordError, hex};

/// Number of offsets of a partition that one segment covers. It is fixed because a closed segment never changes.
pub const SEGMENT_OFFSETS: i64 = 1024;

pub type Hash = [u8; 32];

/// Hash of a segment: SHA-256 over the previous segment's hash and then, for each record in order, its offset (8
/// bytes), its length (4 bytes) and its bytes.
#[derive(Debug, Clone)]
pub struct SegmentHash(Sha256);

impl SegmentHash {
    /// Begins the hash of a segment whose predecessor has the hash `before`.
    pub fn after(before: Option<&[u8]>) -> Self {
        Self(Sha256::new_with_prefix(before.unwrap_or_default()))
    }

    pub fn take(&mut self, offset: i64, record: &[u8]) {
        self.0.update(offset.to_be_bytes());
        self.0.update(u32::try_from(record.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.update(record);
    }

    pub fn end(self) -> Hash {
        self.0.finalize().into()
    }
}

/// Hashes of a partition's segments, computed from its records.
#[derive(Debug, Default)]
pub struct SegmentHashes {
    next_offset: i64,
    /// Number and hash of the segment that the last record is in.
    open: Option<(i64, SegmentHash)>,
    closed: BTreeMap<i64, Hash>,
}

impl SegmentHashes {
    /// Adds a record, in the order of the log; ignores one that it has already.
    pub fn take(&mut self, offset: i64, record: &[u8]) {
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
    pub fn hash(&self, segment: i64) -> Option<Hash> {
        let open = self.open.as_ref().filter(|(open, _)| *open == segment);
        self.closed.get(&segment).copied().or_else(|| open.map(|(_, hash)| hash.clone().end()))
    }
}

/// See [`crate::record::Commit`].
#[derive(Debug, Deserialize)]
pub struct StoredCommit<'a> {
    #[serde(borrow)]
    pub command_id: Cow<'a, str>,
    pub at_ms: u64,
    /// Version of the aggregate after these events.
    pub version: u64,
    #[serde(borrow)]
    pub events: Vec<StoredEvent<'a>>,
    #[serde(deserialize_with = "hex::deserialize")]
    pub fingerprint: u64,
    #[serde(borrow, default)]
    pub cause: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub trace: Option<Cow<'a, str>>,
    /// Position in the log that the command was written to first, if this record is a copy.
    #[serde(borrow, default)]
    pub origin: Option<Cow<'a, str>>,
}

#[derive(Debug, Deserialize)]
pub struct StoredEvent<'a> {
    /// Event type including its version, e.g. `product.reserved.v1`.
    #[serde(rename = "type", borrow)]
    pub name: Cow<'a, str>,
    /// Event data as JSON.
    #[serde(borrow)]
    pub data: &'a RawValue,
}

impl<'a> StoredCommit<'a> {
    /// Reads a commit from the bytes of its record.
    ///
    /// # Errors
    /// [`RecordError`] if the record is not a commit or cannot be decoded.
    pub fn read(record: &'a [u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Record<'a> {
            #[serde(borrow)]
            commit: StoredCommit<'a>,
        }
        let body = record.strip_prefix(MARK).ok_or(RecordError::NoFormat)?;
        let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let record: Record<'a> = serde_json::from_slice(&body[digits..]).map_err(RecordError::Unreadable)?;
        Ok(record.commit)
    }

    /// Returns the events after version `after` of the aggregate, each with its own version.
    pub fn events_after(&self, after: u64) -> impl Iterator<Item = (u64, &StoredEvent<'a>)> {
        let first = self.version + 1 - self.events.len() as u64;
        (first..).zip(&self.events).filter(move |(version, _)| *version > after)
    }
}
