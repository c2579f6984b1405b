//! Format of a Kafka record, which is a claim, a commit or a fence.
//!
//! Layout: the marker `st`, the format number in decimal, then a JSON object with one member named after the kind:
//! `st1{"commit":{"epoch":[1042,"00c0ffee00c0ffee"],"seq":17,…}}`.
//!
//! Invariant: one record holds one command, so a command is atomic regardless of its number of events.
//!
//! Invariant: a value without the marker is foreign and may be ignored. A value with the marker that cannot be decoded
//! halts the reader of its partition, because skipping it could lose an event. Every reader of the log decodes through
//! [`crate::exceptions`], where an operator can except such a value.

mod copy;

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::events::WireEvent;

pub use copy::copied;

/// Record format that this build writes, and the newest one that it reads.
pub const FORMAT: u32 = 1;
pub(crate) const MARK: &[u8] = b"st";
const PREFIX: &[u8] = b"st1";
const CLOSED: &str = "closed:";
const COPYING: &str = "copying:";
const COPIED: &str = "copied:";

/// Identity of a claim and of the records under it: the claim's offset, and a random nonce that distinguishes it from a
/// claim at the same offset of another incarnation of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch {
    pub claim: i64,
    pub nonce: u64,
}

impl Epoch {
    /// Nonce of a claim that closes its partition: no later record of the partition counts, not even a claim. No owner
    /// draws it at random in practice.
    pub const CLOSED: u64 = u64::MAX;
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

/// Makes its sender the owner of the partition from this offset on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claim<'a> {
    #[serde(with = "hex")]
    #[schemars(schema_with = "hex::schema")]
    pub nonce: u64,
    /// URL of the owner's internal listener; `copying:TOPIC` or `copied:TOPIC` in a claim of the tool that copies
    /// another log to this one, and `closed:TOPIC` in a claim that closes the partition: the log continues in TOPIC.
    #[serde(borrow)]
    pub url: Cow<'a, str>,
    /// Number of partitions of the topic, which can never change because it determines the partition of every
    /// aggregate. Absent in claims of builds that predate this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
}

/// The log was written with a different number of partitions. To continue would spread the records of an aggregate over
/// two partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the topic has {found} partitions, but the log was written with {claimed}, and the number cannot change; running \
     instances continue. To start new ones, copy the original {claimed} partitions, preserving offsets, to a topic with \
     exactly that many, and set EVENTS_TOPIC to it; a log with more is made by `command-api grow`"
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
    /// Sequence number in the epoch, starting at 1; commits and fences share the sequence.
    pub seq: u64,
    /// The idempotency key of the command.
    #[serde(borrow)]
    pub command_id: Cow<'a, str>,
    /// Unix time in milliseconds; never earlier than that of a previous record of the partition.
    pub at_ms: u64,
    /// Aggregate as `type/id`.
    #[serde(borrow)]
    pub aggregate: Cow<'a, str>,
    /// Version of the aggregate after these events, which is the number of its events so far.
    pub version: u64,
    #[serde(borrow)]
    pub events: Vec<WireEvent<'a>>,
    /// Fingerprint of the command's content; distinguishes a retry from another command under the same key.
    #[serde(with = "hex")]
    #[schemars(schema_with = "hex::schema")]
    pub fingerprint: u64,
    /// Event that caused the command, if it is a reaction: `{partition}-{offset}-{version}`, with the ID of its log and a
    /// dot before it if that is another log than the one that this command was written to first.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cow<'a, str>>,
    /// `traceparent` of the request.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Cow<'a, str>>,
    /// Consistency token of the position at which the command was acknowledged first, if this record is a copy from a log
    /// with fewer partitions. Readers of the history see its events under this position for ever.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Cow<'a, str>>,
}

impl Commit<'_> {
    /// Returns the name of one of the events, for the causes of reactions to it. `at` is the partition and offset of this
    /// record.
    pub fn event_name(&self, at: (u32, i64), version: u64) -> String {
        match &self.origin {
            Some(first) => format!("{first}-{version}"),
            None => format!("{}-{}-{version}", at.0, at.1),
        }
    }
}

/// Proves, once acknowledged, that its sender still owned the partition when it sent the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fence {
    #[serde(with = "epoch")]
    #[schemars(schema_with = "epoch::schema")]
    pub epoch: Epoch,
    pub seq: u64,
}

/// A record of this system that this build cannot read. Its reader halts.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the record has format {0}, but this build reads only up to format {FORMAT}")]
    NewerFormat(u32),
    #[error("the record is not valid in format {FORMAT}")]
    Unreadable(#[source] serde_json::Error),
    #[error("the record's marker is not followed by a format number")]
    NoFormat,
}

impl Claim<'_> {
    /// Returns the claim that closes a partition of a log that continues in `topic`.
    pub fn closing(topic: &str, partitions: u32) -> Self {
        Self { nonce: Epoch::CLOSED, url: format!("{CLOSED}{topic}").into(), partitions: Some(partitions) }
    }

    /// Returns the claim under which the records of the log `topic` are copied to a partition of this one.
    pub fn copying(nonce: u64, topic: &str, partitions: u32) -> Self {
        Self { nonce, url: format!("{COPYING}{topic}").into(), partitions: Some(partitions) }
    }

    /// Returns the claim that ends the copy of the log `topic` to a partition, which owners may claim from then on.
    pub fn copied(nonce: u64, topic: &str, partitions: u32) -> Self {
        Self { nonce, url: format!("{COPIED}{topic}").into(), partitions: Some(partitions) }
    }

    /// Returns the topic in which the log continues if this claim closes the partition.
    pub fn continues_in(&self) -> Option<&str> {
        (self.nonce == Epoch::CLOSED).then(|| self.url.strip_prefix(CLOSED).unwrap_or_default())
    }

    /// Returns the topic of the log that is being copied to this partition under this claim.
    pub fn copies(&self) -> Option<&str> {
        self.url.strip_prefix(COPYING)
    }

    /// Returns the topic of the log whose copy to this partition this claim ends.
    pub fn ends_copy_of(&self) -> Option<&str> {
        self.url.strip_prefix(COPIED)
    }

    /// Compares the number of partitions in the claim with the number that the topic has.
    ///
    /// # Errors
    /// [`OtherPartitions`] if they differ.
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
        serde_json::to_writer(buffer, self).expect("records consist of values that JSON can represent");
    }

    /// Decodes a value of the log; `None` if this system did not write it.
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

/// A `u64` as 16 hexadecimal digits, because readers in other languages lose the low bits of large JSON numbers.
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
        // `from_str_radix` alone would accept a sign in place of a digit.
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

    /// An epoch in the form that records have it in.
    pub(super) struct Pair(pub(super) Epoch);

    impl Serialize for Pair {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self::serialize(&self.0, serializer)
        }
    }

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

    /// Returns a schema that uses only keywords common to all drafts of JSON Schema.
    pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Offset and nonce of the claim.",
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": { "type": ["integer", "string"] },
        })
    }
}

#[cfg(test)]
mod tests;
