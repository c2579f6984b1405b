//! Signed exceptions, which let readers of the log skip a value that has the marker of a record but cannot be decoded.
//!
//! An operator signs an exception for one value at one position. Exceptions are kept on a topic beside the log,
//! [`crate::topic::exceptions`], and readers are configured with the public keys of the permitted signers.
//!
//! Invariant: an exception applies only to an undecodable value. It is consulted only after decoding has failed, and
//! identifies the value by its hash. An excepted value counts for no reader but occupies its offset for every reader.
//!
//! Invariant: every reader decodes the log with [`Exceptions::decode`], so no two readers can disagree.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::{PoisonError, RwLock};

use ed25519_dalek::{Signature, Signer as _, VerifyingKey};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::record::{Record, RecordError};

/// Prefix of every signed message, so that signatures made for another purpose are not valid here.
const CONTEXT: &[u8] = b"stampede log exception 1\n";

/// A value of the log, identified by its position and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stray {
    pub partition: u32,
    pub offset: i64,
    sha256: [u8; 32],
}

/// A value that can neither be decoded nor is excepted. Its reader halts at this position, in this partition only.
#[derive(Debug, thiserror::Error)]
#[error("the record at offset {} of partition {} cannot be read", stray.offset, stray.partition)]
pub struct Unreadable {
    pub stray: Stray,
    pub source: RecordError,
}

/// Statement that an operator signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    pub partition: u32,
    pub offset: i64,
    /// SHA-256 of the value, as 64 hexadecimal digits.
    pub sha256: String,
    /// Explanation why skipping the value loses no event.
    pub reason: String,
    pub at_ms: u64,
}

/// A record of the exceptions topic.
#[derive(Debug, Serialize, Deserialize)]
struct Signed {
    exception: Exception,
    /// Ed25519 signature, as 128 hexadecimal digits.
    signature: String,
}

/// Public keys whose exceptions are honoured.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<VerifyingKey>);

#[derive(Debug, thiserror::Error)]
#[error("not an Ed25519 key of 64 hexadecimal digits")]
pub struct NoKey;

/// Signs exceptions.
pub struct SigningKey(ed25519_dalek::SigningKey);

/// Honoured exceptions that have been read so far.
#[derive(Debug, Default)]
pub struct Exceptions {
    keys: Keys,
    known: RwLock<HashSet<Stray>>,
}

impl Stray {
    pub fn new(partition: u32, offset: i64, value: &[u8]) -> Self {
        Self { partition, offset, sha256: Sha256::digest(value).into() }
    }

    /// Returns the statement to sign so that readers skip the value.
    pub fn exception(&self, reason: &str, at_ms: u64) -> Exception {
        let Self { partition, offset, sha256 } = *self;
        Exception { partition, offset, sha256: hex(&sha256), reason: reason.to_owned(), at_ms }
    }
}

impl Exception {
    fn message(&self) -> Vec<u8> {
        let mut message = CONTEXT.to_vec();
        serde_json::to_writer(&mut message, self).expect("an exception consists of values that JSON can represent");
        message
    }
}

impl Exceptions {
    pub fn honouring(keys: Keys) -> Self {
        Self { keys, known: RwLock::default() }
    }

    /// Decodes a value of the log; `None` if it is foreign or excepted.
    ///
    /// # Errors
    /// [`Unreadable`] if it has the marker of a record but cannot be decoded and is not excepted.
    pub fn decode<'a>(
        &self,
        (partition, offset): (u32, i64),
        value: &'a [u8],
    ) -> Result<Option<Record<'a>>, Unreadable> {
        Record::decode(value).or_else(|source| {
            let stray = Stray::new(partition, offset, value);
            if self.pass(&stray) { Ok(None) } else { Err(Unreadable { stray, source }) }
        })
    }

    /// Returns whether a known exception covers the undecodable value.
    pub fn pass(&self, stray: &Stray) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains(stray)
    }

    /// Adds exceptions from the values of the exceptions topic. Values without a valid signature are ignored.
    pub fn learn(&self, values: &[impl AsRef<[u8]>]) {
        let honoured = values.iter().filter_map(|value| self.keys.verify(value.as_ref()));
        let honoured: Vec<_> = honoured.collect();
        self.known.write().unwrap_or_else(PoisonError::into_inner).extend(honoured);
    }
}

impl Keys {
    /// Returns the log value that a value of the topic excepts; `None` if none of these keys signed it.
    fn verify(&self, value: &[u8]) -> Option<Stray> {
        let Signed { exception, signature } = serde_json::from_slice(value).ok()?;
        let (signature, message) = (Signature::from_bytes(&bytes(&signature)?), exception.message());
        let is_signed = self.0.iter().any(|key| key.verify_strict(&message, &signature).is_ok());
        let Exception { partition, offset, sha256, .. } = exception;
        is_signed.then_some(Stray { partition, offset, sha256: bytes(&sha256)? })
    }

    pub fn contain(&self, key: &SigningKey) -> bool {
        self.0.contains(&key.0.verifying_key())
    }
}

/// Parses keys separated by commas or white space.
impl FromStr for Keys {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let key = |text: &str| VerifyingKey::from_bytes(&bytes(text).ok_or(NoKey)?).map_err(|_| NoKey);
        let texts = text.split([',', ' ', '\n', '\r', '\t']).filter(|text| !text.is_empty());
        texts.map(key).collect::<Result<_, _>>().map(Self)
    }
}

impl SigningKey {
    /// Creates the key from `seed`, 32 random bytes, which are the secret key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Returns the public key in the format that [`Keys`] parses.
    pub fn public(&self) -> String {
        hex(self.0.verifying_key().as_bytes())
    }

    /// Returns the record for the exceptions topic.
    pub fn sign(&self, exception: Exception) -> Vec<u8> {
        let signature = hex(&self.0.sign(&exception.message()).to_bytes());
        serde_json::to_vec(&Signed { exception, signature })
            .expect("an exception consists of values that JSON can represent")
    }
}

impl FromStr for SigningKey {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        bytes(text).map(|seed| Self::from_seed(&seed)).ok_or(NoKey)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Returns whether a newer build may be able to decode the value. It would then count there, and an exception would
/// make the builds disagree.
pub fn may_be_of_a_newer_build(value: &[u8], error: &RecordError) -> bool {
    let body = || value.iter().position(|byte| *byte == b'{').map(|start| &value[start..]);
    match error {
        RecordError::NewerFormat(_) => true,
        RecordError::Unreadable(_) => body().is_some_and(|body| serde_json::from_slice::<IgnoredAny>(body).is_ok()),
        RecordError::NoFormat => false,
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    // `from_str_radix` alone would accept a sign in place of a digit.
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
