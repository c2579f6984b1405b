//! One Kafka record: a claim, a commit or a fence.
//!
//! Layout: the mark `st`, the format number in decimal, then a JSON object with one member that names the kind:
//! `st1{"commit":{"epoch":[1042,"00c0ffee00c0ffee"],"seq":17,…}}`.
//!
//! Invariant: one record is one command, so that a command is atomic however many events it has.
//!
//! Invariant: a value that does not begin with the mark is not ours and may be passed over. One that does, but
//! cannot be read, stops its reader in its partition: to skip it might be to lose an event. Whoever reads the log decodes
//! it by [`crate::exceptions`], which may pass it.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::events::WireEvent;

/// The format that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
pub(crate) const MARK: &[u8] = b"st";
const PREFIX: &[u8] = b"st1";

/// A claim and the records under it: the claim's offset, and a random number that tells it from another claim
/// at the same offset of another history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch {
    pub claim: i64,
    pub nonce: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Record<'a> {
    #[serde(rename = "claim", borrow)]
    Claim(Claim<'a>),
    #[serde(rename = "commit", borrow)]
    Commit(Commit<'a>),
    #[serde(rename = "fence")]
    Fence(Fence),
}

/// Makes its sender the owner of the partition from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claim<'a> {
    #[serde(with = "hex")]
    #[schemars(schema_with = "hex::schema")]
    pub nonce: u64,
    /// Where the owner's internal listener answers.
    #[serde(borrow)]
    pub url: Cow<'a, str>,
    /// Of the topic, for ever: the place of every aggregate follows from their number. Claims of builds before this field
    /// have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
}

/// The log was written by owners that spread the aggregates over another number of partitions: read on, an aggregate would
/// have two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the topic has {found} partitions, and the log was written over {claimed}; their number cannot change. Instances that \
     run go on. To start new ones, copy those {claimed}, offset by offset, to a topic that has no more, and name it by \
     EVENTS_TOPIC"
)]
pub struct OtherPartitions {
    pub claimed: u32,
    pub found: u32,
}

/// One accepted command with all its events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Commit<'a> {
    #[serde(with = "epoch")]
    #[schemars(schema_with = "epoch::schema")]
    pub epoch: Epoch,
    /// 1 for the first record of the epoch; commits and fences share the count.
    pub seq: u64,
    /// The idempotency key of the command.
    #[serde(borrow)]
    pub command_id: Cow<'a, str>,
    /// Never less than that of an earlier record of the partition.
    pub at_ms: u64,
    /// `type/id`.
    #[serde(borrow)]
    pub aggregate: Cow<'a, str>,
    /// Of the aggregate after these events: the number of its events so far.
    pub version: u64,
    #[serde(borrow)]
    pub events: Vec<WireEvent<'a>>,
    /// Of what the command asked for; tells a repeat from another command under the same key.
    #[serde(with = "hex")]
    #[schemars(schema_with = "hex::schema")]
    pub fingerprint: u64,
    /// The event that a reaction answers, as a token.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cow<'a, str>>,
    /// The request's `traceparent`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Cow<'a, str>>,
}

/// Proves, once acknowledged, that its sender still owned the partition when it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fence {
    #[serde(with = "epoch")]
    #[schemars(schema_with = "epoch::schema")]
    pub epoch: Epoch,
    pub seq: u64,
}

/// A record of ours that this build cannot read. Its reader halts.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the record has format {0}, newer than {FORMAT}, the newest that this build reads")]
    NewerFormat(u32),
    #[error("the record does not read as format {FORMAT}")]
    Unreadable(#[source] serde_json::Error),
    #[error("the record's mark is not followed by a format number")]
    NoFormat,
}

impl Claim<'_> {
    /// Compares what the owner took the topic to have with what it has.
    pub fn check_partitions(&self, found: u32) -> Result<(), OtherPartitions> {
        match self.partitions {
            Some(claimed) if claimed != found => Err(OtherPartitions { claimed, found }),
            Some(_) | None => Ok(()),
        }
    }
}

impl<'a> Record<'a> {
    /// Appends the record's bytes to `buffer`.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(PREFIX);
        serde_json::to_writer(buffer, self).expect("records hold nothing that JSON cannot");
    }

    /// `None`: not ours.
    pub fn decode(value: &'a [u8]) -> Result<Option<Self>, RecordError> {
        let Some(rest) = value.strip_prefix(MARK) else { return Ok(None) };
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let format = std::str::from_utf8(&rest[..digits]).ok().and_then(|text| text.parse().ok());
        match format {
            Some(FORMAT) => serde_json::from_slice(&rest[digits..]).map(Some).map_err(RecordError::Unreadable),
            Some(newer) if newer > FORMAT => Err(RecordError::NewerFormat(newer)),
            Some(_) | None => Err(RecordError::NoFormat),
        }
    }
}

/// A `u64` as 16 hexadecimal digits: readers in other languages lose the low bits of large JSON numbers.
pub(crate) mod hex {
    use schemars::{Schema, SchemaGenerator, json_schema};
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        parse(text).ok_or_else(|| D::Error::custom("expected 16 hexadecimal digits"))
    }

    pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9a-fA-F]{16}$" })
    }

    pub(super) fn parse(text: &str) -> Option<u64> {
        // `from_str_radix` alone would let a sign pass for a digit.
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    }
}

mod epoch {
    use schemars::{Schema, SchemaGenerator, json_schema};
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Epoch, hex};

    struct Hex(u64);

    impl Serialize for Hex {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            hex::serialize(&self.0, serializer)
        }
    }

    pub(super) fn serialize<S: Serializer>(epoch: &Epoch, serializer: S) -> Result<S::Ok, S::Error> {
        (epoch.claim, Hex(epoch.nonce)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Epoch, D::Error> {
        let (claim, nonce) = <(i64, &str)>::deserialize(deserializer)?;
        let nonce = hex::parse(nonce).ok_or_else(|| D::Error::custom("expected 16 hexadecimal digits"))?;
        Ok(Epoch { claim, nonce })
    }

    /// In words that every draft of JSON Schema has.
    pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The offset of the claim, and its nonce.",
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": { "type": ["integer", "string"] },
        })
    }
}

#[cfg(test)]
mod tests;
