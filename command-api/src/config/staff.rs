//! The token of staff.

use chassis::env::{Env, EnvError, LiveSecret};

const NAME: &str = "STAFF_TOKEN";
/// Maximum number of tokens that are accepted at the same time: the new one and the one that it replaces.
const MAX_TOKENS: usize = 2;
/// Minimum length of a token: shorter ones can be guessed.
const MIN_CHARS: usize = 16;

/// The tokens by which callers prove that they are staff. They follow their file.
#[derive(Debug, Clone)]
pub struct StaffToken(LiveSecret);

impl StaffToken {
    /// Reads one token, or two on lines of their own.
    pub(super) fn from_env(env: &Env) -> Result<Option<Self>, EnvError> {
        let Some(secret) = env.optional_live_secret(NAME)? else { return Ok(None) };
        let unfit = |reason| Err(EnvError::Unfit { name: NAME.to_owned(), reason });
        let text = secret.current();
        if text.expose().lines().count() > MAX_TOKENS {
            return unfit("it has at most two lines, each a token");
        }
        if !text.expose().lines().all(fits) {
            return unfit("a token consists of at least 16 visible ASCII characters");
        }
        Ok(Some(Self(secret)))
    }

    /// Returns whether `sent` is one of the tokens, in a time that does not reveal how much of a guess is right. A line
    /// of a changed file that is no token is none.
    pub(crate) fn is(&self, sent: &[u8]) -> bool {
        let text = self.0.current();
        let tokens = text.expose().lines().take(MAX_TOKENS).filter(|line| fits(line));
        tokens.fold(false, |found, token| found | equals(sent, token.trim().as_bytes()))
    }
}

fn fits(line: &str) -> bool {
    let token = line.trim();
    token.len() >= MIN_CHARS && token.bytes().all(|byte| byte.is_ascii_graphic())
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
