//! The token of staff.

use chassis::env::{Env, EnvError, Secret};

const NAME: &str = "STAFF_TOKEN";
/// Maximum number of tokens that are accepted at the same time: the new one and the one that it replaces.
const MAX_TOKENS: usize = 2;
const MIN_CHARS: usize = 16;

/// The tokens that callers may prove with that they are staff.
#[derive(Debug, Clone)]
pub struct StaffToken(Vec<Secret>);

impl StaffToken {
    pub(super) fn from_env(env: &Env) -> Result<Option<Self>, EnvError> {
        env.optional_secret(NAME)?.map(|secret| Self::parse(&secret)).transpose()
    }

    /// Parses one token, or two on lines of their own.
    fn parse(secret: &Secret) -> Result<Self, EnvError> {
        let unfit = |reason| EnvError::Unfit { name: NAME.to_owned(), reason };
        let lines: Vec<_> = secret.expose().lines().map(str::trim).collect();
        if lines.len() > MAX_TOKENS {
            return Err(unfit("it has at most two lines, each a token"));
        }
        let fits = |line: &&str| line.len() >= MIN_CHARS && line.bytes().all(|byte| byte.is_ascii_graphic());
        if !lines.iter().all(fits) {
            return Err(unfit("a token consists of at least 16 visible ASCII characters"));
        }
        Ok(Self(lines.into_iter().map(Secret::from).collect()))
    }

    /// Returns whether `sent` is one of the tokens, in a time that does not reveal how much of a guess is right.
    pub(crate) fn is(&self, sent: &[u8]) -> bool {
        self.0.iter().fold(false, |found, token| found | equals(sent, token.expose().as_bytes()))
    }
}

/// Compares in a time that depends on the lengths alone.
pub(crate) fn equals(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lines_are_two_tokens() {
        let token = |text: &str| StaffToken::from_env(&Env::from([(NAME, text)]));
        let both = token("0123456789abcdef\n fedcba9876543210\n").unwrap().unwrap();
        assert!(both.is(b"0123456789abcdef") && both.is(b"fedcba9876543210"));
        assert!(!both.is(b"0123456789abcdeF") && !both.is(b"") && !both.is(b"0123456789abcdef\nfedcba9876543210"));
        assert!(token("").unwrap().is_none());
        for text in ["short", "0123456789abcdef\nshort", "0123456789abcdef\n\nfedcba9876543210", "0123456789 abcdef"] {
            let error = token(text).unwrap_err().to_string();
            assert!(error.starts_with(NAME) && !error.contains("0123"), "{error}");
        }
    }
}
