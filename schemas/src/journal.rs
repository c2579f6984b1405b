//! Commits as the journal stores them: the log's own records. They are read without knowing their events, which may be a
//! newer build's.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::record::{MARK, RecordError, hex};

/// How many offsets of a partition one segment covers. It stays so: a segment that is closed never changes.
pub const SEGMENT_OFFSETS: i64 = 1024;

/// The hash of a segment: SHA-256 over that of the one before, and of each record, in their order, the offset (8 bytes), the
/// length (4) and the bytes.
#[derive(Debug, Clone)]
pub struct SegmentHash(Sha256);

impl SegmentHash {
    /// Of a segment that follows one of the hash `before`.
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
    /// Of the aggregate after these events.
    pub version: u64,
    #[serde(borrow)]
    pub events: Vec<StoredEvent<'a>>,
    #[serde(deserialize_with = "hex::deserialize")]
    pub fingerprint: u64,
    #[serde(borrow, default)]
    pub cause: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub trace: Option<Cow<'a, str>>,
}

#[derive(Debug, Deserialize)]
pub struct StoredEvent<'a> {
    /// With its version, e.g. `product.reserved.v1`.
    #[serde(rename = "type", borrow)]
    pub name: Cow<'a, str>,
    /// JSON.
    #[serde(borrow)]
    pub data: &'a RawValue,
}

impl<'a> StoredCommit<'a> {
    /// # Errors
    /// Where the record is no commit, or cannot be read.
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

    /// The events that come after a version of the aggregate, each with its own.
    pub fn events_after(&self, after: u64) -> impl Iterator<Item = (u64, &StoredEvent<'a>)> {
        let first = self.version + 1 - self.events.len() as u64;
        (first..).zip(&self.events).filter(move |(version, _)| *version > after)
    }
}
