//! Commits as the journal stores them, which is as the records of the log. Reading them does not interpret their
//! events, which a newer build may have written.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::record::{MARK, RecordError, hex};

/// Number of offsets of a partition that one segment covers. It is fixed because a closed segment never changes.
pub const SEGMENT_OFFSETS: i64 = 1024;

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

    pub fn end(self) -> [u8; 32] {
        self.0.finalize().into()
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
