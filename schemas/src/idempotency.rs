//! Idempotency keys, by which clients identify a command so that a retry does not execute it twice.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use domain::TimeMs;
use uuid::{Builder, Uuid};
use xxhash_rust::xxh3::xxh3_128;

pub const MAX_KEY_CHARS: usize = 255;
/// Maximum length of the key of a batch, from which the keys of its lines are derived.
pub const MAX_BATCH_KEY_CHARS: usize = MAX_KEY_CHARS - MAX_LINE_CHARS;
/// Maximum length of a line's suffix: a hyphen and five digits.
const MAX_LINE_CHARS: usize = 6;
/// Length of a UUID, including its hyphens.
const UUID_CHARS: usize = 36;

/// Key of 1 to 255 visible ASCII characters, scoped to one aggregate. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Arc<str>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an Idempotency-Key has 1 to {MAX_KEY_CHARS} visible ASCII characters, quoted or bare")]
pub struct KeyError;

impl IdempotencyKey {
    /// Parses the header's value: a structured-field string (RFC 8941, in quotes) or the bare characters.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        match text.strip_prefix('"') {
            Some(rest) => Self::from_bare(&unquote(rest.strip_suffix('"').ok_or(KeyError)?)?),
            None => Self::from_bare(text),
        }
    }

    /// Validates a key from a source that needs no quotes, such as a JSON string or a record.
    pub fn from_bare(bare: &str) -> Result<Self, KeyError> {
        let visible = bare.bytes().all(|byte| byte.is_ascii_graphic());
        if bare.is_empty() || bare.len() > MAX_KEY_CHARS || !visible {
            return Err(KeyError);
        }
        Ok(Self(bare.into()))
    }

    /// Generates a key for a command that came without one.
    pub fn random() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// Derives a reproducible key for a command that may be sent repeatedly: from `dedup_key`, which identifies its
    /// effect, and from the time of the event that caused it.
    pub fn from_dedup_key(at: TimeMs, dedup_key: &str) -> Self {
        let hash = xxh3_128(dedup_key.as_bytes()).to_le_bytes();
        let bytes = std::array::from_fn(|index| hash[index]);
        Self(Builder::from_unix_timestamp_millis(at.0, &bytes).into_uuid().to_string().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Derives the key of a line from that of its batch: `{key}-{line}`. It has the same time.
    pub fn of_line(&self, line: usize) -> Self {
        Self(format!("{}-{line}", self.0).into())
    }

    /// Returns the creation time of a UUIDv7 key, or of a line's key derived from one; `None` for any other key.
    pub fn time(&self) -> Option<TimeMs> {
        time_of(&self.0)
    }
}

/// Returns the creation time of a key given as text, see [`IdempotencyKey::time`].
pub fn time_of(key: &str) -> Option<TimeMs> {
    let uuid = Uuid::try_parse(of_batch(key).unwrap_or(key)).ok().filter(|uuid| uuid.get_version_num() == 7)?;
    let (seconds, nanos) = uuid.get_timestamp()?.to_unix();
    Some(TimeMs(seconds * 1000 + u64::from(nanos / 1_000_000)))
}

/// Returns the part of a line's key that may be a UUID.
fn of_batch(key: &str) -> Option<&str> {
    let (batch, line) = key.split_at_checked(UUID_CHARS)?;
    let digits = line.strip_prefix('-')?;
    let is_line = (1..MAX_LINE_CHARS).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_line.then_some(batch)
}

impl Display for IdempotencyKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Unescapes the content of a structured-field string: `\"` and `\\` are the only escapes.
fn unquote(inside: &str) -> Result<String, KeyError> {
    let mut text = String::with_capacity(inside.len());
    let mut chars = inside.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => return Err(KeyError),
            '\\' => text.push(chars.next().filter(|next| matches!(next, '"' | '\\')).ok_or(KeyError)?),
            char => text.push(char),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_quoted_or_bare() {
        assert_eq!(IdempotencyKey::parse("\"a-1\""), IdempotencyKey::parse("a-1"));
        assert_eq!(IdempotencyKey::parse(r#""a\"\\""#).unwrap().as_str(), r#"a"\"#);
    }

    #[test]
    fn keys_that_are_empty_long_or_not_visible_are_refused() {
        for text in ["", "\"\"", "a b", "a\tb", "ä", "\"a", "\"a\"b\"", r#""a\b""#, &"x".repeat(256)] {
            assert_eq!(IdempotencyKey::parse(text), Err(KeyError), "{text:?}");
        }
    }

    #[test]
    fn only_a_uuid_of_version_7_has_a_time() {
        let key = |text| IdempotencyKey::parse(text).unwrap();
        assert_eq!(key("017f22e2-79b0-7cc3-98c4-dc0c0c07398f").time(), Some(TimeMs(1_645_557_742_000)));
        assert_eq!(key("919108f7-52d1-4320-9bac-f847db4148a8").time(), None);
        assert_eq!(key("order-17").time(), None);
        let line = key("017f22e2-79b0-7cc3-98c4-dc0c0c07398f").of_line(10_000);
        assert_eq!(line.as_str(), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f-10000");
        assert_eq!(line.time(), Some(TimeMs(1_645_557_742_000)), "a line has the time of its batch");
        assert_eq!(key("017f22e2-79b0-7cc3-98c4-dc0c0c07398f-").time(), None);
        assert_eq!(key("017f22e2-79b0-7cc3-98c4-dc0c0c07398f-100000").time(), None);
        assert_eq!(key("017f22e2-79b0-7cc3-98c4-dc0c0c07398f-x").time(), None);
        assert_eq!(
            IdempotencyKey::parse(&"x".repeat(MAX_BATCH_KEY_CHARS)).unwrap().of_line(10_000).as_str().len(),
            255
        );
    }
}
