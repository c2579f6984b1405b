//! Consistency tokens, which name the events that an answer is guaranteed to reflect.
//!
//! `k7x2.3-1042,7-99` names, in the log `k7x2`, all events of partition 3 up to and including offset 1042, and of
//! partition 7 up to and including 99.
//!
//! A position may select one of several commands in the message at its offset by an index: `3-1042:5`. This build
//! writes one command per message and no index. When it reads an index, it takes the position to mean the whole
//! message.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// Maximum number of positions in one token, enough for every partition of a large log.
pub const MAX_POSITIONS: usize = 1024;

const BLANKS: [char; 2] = [' ', '\t'];

/// Short ID of a log, derived from the nonce of the claim at offset 0 of partition 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId([u8; 4]);

impl LogId {
    /// Lower-case alphabet without letters and digits that are easily confused.
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

    pub fn of_nonce(nonce: u64) -> Self {
        Self([0, 5, 10, 15].map(|shift| Self::ALPHABET[usize::try_from(nonce >> shift & 31).expect("five bits")]))
    }

    /// Returns the lowest nonce with this id.
    pub fn lowest_nonce(self) -> u64 {
        let bits =
            |byte: &u8| Self::ALPHABET.iter().position(|letter| letter == byte).expect("a letter of the alphabet");
        self.0.iter().zip([0, 5, 10, 15]).map(|(byte, shift)| (bits(byte) as u64) << shift).sum()
    }
}

impl Display for LogId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.0).expect("the alphabet is ASCII"))
    }
}

/// Consistency token of one log, with at least one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub log: LogId,
    /// Offsets by partition.
    pub positions: BTreeMap<u32, i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("a Consistency-Token has the form k7x2.3-1042,7-99")]
    Malformed,
    #[error("the Consistency-Token combines positions of different logs")]
    MixedLogs,
    #[error("a Consistency-Token names at most {MAX_POSITIONS} partitions")]
    TooLong,
}

impl Token {
    pub fn new(log: LogId, partition: u32, offset: i64) -> Self {
        Self { log, positions: BTreeMap::from([(partition, offset)]) }
    }
}

impl Display for Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.log)?;
        for (index, (partition, offset)) in self.positions.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{partition}-{offset}")?;
        }
        Ok(())
    }
}

impl Token {
    /// Parses tokens joined by commas, one for each log that they name. If a partition of a log occurs twice, the
    /// higher offset counts.
    ///
    /// # Errors
    /// [`TokenError::Malformed`] or [`TokenError::TooLong`].
    pub fn parse_each(text: &str) -> Result<Vec<Self>, TokenError> {
        let (id, _) = text.split_once('.').ok_or(TokenError::Malformed)?;
        let log = parse_log(id.trim_matches(BLANKS)).ok_or(TokenError::Malformed)?;
        let mut tokens = vec![Self { log, positions: BTreeMap::new() }];
        let (mut current, mut count) = (0, 0);
        for part in text.split(',') {
            let mut position = part.trim_matches(BLANKS);
            if let Some((id, rest)) = position.split_once('.') {
                let log = parse_log(id).ok_or(TokenError::Malformed)?;
                position = rest;
                current = tokens.iter().position(|token| token.log == log).unwrap_or(tokens.len());
                if current == tokens.len() {
                    tokens.push(Self { log, positions: BTreeMap::new() });
                }
            }
            let (partition, offset) = parse_position(position).ok_or(TokenError::Malformed)?;
            let positions = &mut tokens[current].positions;
            count += usize::from(!positions.contains_key(&partition));
            let highest = positions.entry(partition).or_insert(offset);
            *highest = offset.max(*highest);
            if count > MAX_POSITIONS {
                return Err(TokenError::TooLong);
            }
        }
        Ok(tokens)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Parses a token, or several of one log joined by commas.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        match <[Self; 1]>::try_from(Self::parse_each(text)?) {
            Ok([token]) => Ok(token),
            Err(_) => Err(TokenError::MixedLogs),
        }
    }
}

fn parse_log(text: &str) -> Option<LogId> {
    let bytes: [u8; 4] = text.as_bytes().try_into().ok()?;
    bytes.iter().all(|byte| LogId::ALPHABET.contains(byte)).then_some(LogId(bytes))
}

fn parse_position(text: &str) -> Option<(u32, i64)> {
    let (partition, mut offset) = text.split_once('-')?;
    if let Some((of_message, index)) = offset.split_once(':') {
        parse_digits::<u32>(index)?;
        offset = of_message;
    }
    Some((parse_digits(partition)?, parse_digits(offset)?))
}

/// Parses digits only, where `parse` would also accept a sign.
fn parse_digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_id_comes_first_and_once_or_with_each_token() {
        for (text, written) in [
            ("k7x2.3-1042", "k7x2.3-1042"),
            ("k7x2.7-99,3-1042", "k7x2.3-1042,7-99"),
            ("k7x2.3-1042,k7x2.7-99", "k7x2.3-1042,7-99"),
            ("k7x2.3-5, k7x2.3-9,3-7", "k7x2.3-9"),
            ("k7x2.3-1042:5,7-99:0", "k7x2.3-1042,7-99"),
        ] {
            assert_eq!(text.parse::<Token>().unwrap().to_string(), written);
        }
    }

    #[test]
    fn tokens_of_several_logs_are_told_apart() {
        let each = |text| Token::parse_each(text).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(each("k7x2.3-5,1-2,abcd.3-9,1-7,k7x2.3-6"), ["k7x2.1-2,3-6", "abcd.1-7,3-9"]);
    }

    #[test]
    fn the_lowest_nonce_of_an_id_has_that_id() {
        for nonce in [0, 31, 32, 0x000f_ffff, u64::MAX, 0x1234_5678_9abc_def0] {
            let id = LogId::of_nonce(nonce);
            assert_eq!((LogId::of_nonce(id.lowest_nonce()), id.lowest_nonce()), (id, nonce & 0x000f_ffff));
        }
    }

    #[test]
    fn malformed_tokens_are_refused() {
        for text in [
            "",
            "k7x2",
            "k7x2.",
            "3-1",
            "k7x2.3",
            "k7x2.-1-2",
            "k7x2.3-+1",
            "k7x2.3--1",
            "k7x2.3-1:",
            "k7x2.3-1:-1",
            "k7x2.3-1:1:1",
            "k7x2.3:1-1",
            "kkkkk.1-1",
            "K7X2.1-1",
            "k7x2.1-1,",
            "3-1,k7x2.3-1",
            "k7x2.1-99999999999999999999",
        ] {
            assert_eq!(text.parse::<Token>(), Err(TokenError::Malformed), "{text:?}");
        }
        assert_eq!("k7x2.1-1,k7x3.1-1".parse::<Token>(), Err(TokenError::MixedLogs));
    }

    #[test]
    fn a_token_is_bounded() {
        let many: Vec<String> = (0..=MAX_POSITIONS).map(|partition| format!("{partition}-1")).collect();
        assert_eq!(format!("k7x2.{}", many.join(",")).parse::<Token>(), Err(TokenError::TooLong));
    }
}
