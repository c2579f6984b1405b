//! Bearer tokens, which are replaced without an interruption.

use super::{Env, EnvError, Fallback, LiveSecret, Secret};

/// Minimum length of a token: shorter ones can be guessed.
const MIN_TOKEN_CHARS: usize = 16;

/// A bearer token, or two during a rotation, a line each: the first is sent, and both are accepted. Follows its file.
///
/// So a token is replaced in three steps, each on every service before the next: add the new one as the second line, swap
/// the lines, remove the old one.
#[derive(Debug, Clone)]
pub struct Tokens(LiveSecret);

impl Tokens {
    /// Returns the token to send.
    pub fn sent(&self) -> Secret {
        let both = self.0.current();
        both.expose().lines().next().map_or_else(|| both.clone(), Secret::from)
    }

    /// Returns whether a caller that shows this text holds one of the tokens. Takes a time that does not reveal how much
    /// of a guess is right.
    pub fn accept(&self, shown: &[u8]) -> bool {
        self.0.current().expose().lines().fold(false, |accepted, token| accepted | equals(shown, token.as_bytes()))
    }
}

fn equals(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// Creates tokens that never change.
impl<S: Into<String>> From<S> for Tokens {
    fn from(text: S) -> Self {
        Self(LiveSecret::from(text))
    }
}

impl Env {
    /// Returns tokens that fit into an HTTP header and are too long to guess, or `None` if they are unset.
    pub fn optional_tokens(&self, name: &str) -> Result<Option<Tokens>, EnvError> {
        self.record_live_secret(name, Fallback::Unset);
        Ok(self.read_live(name, check)?.map(Tokens))
    }

    /// Returns tokens as [`Self::optional_tokens`] does; fails if they are unset.
    pub fn tokens(&self, name: &str) -> Result<Tokens, EnvError> {
        self.record_live_secret(name, Fallback::Required);
        match self.read_live(name, check)? {
            Some(tokens) => Ok(Tokens(tokens)),
            None => self.missing(name).map(|placeholder| Tokens::from(placeholder.expose())),
        }
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    let mut lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    if !lines.clone().all(|token| token.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err("a token must consist of visible ASCII characters, without spaces");
    }
    if lines.any(|token| token.len() < MIN_TOKEN_CHARS) {
        return Err("a token must have at least 16 characters");
    }
    if text.split('\n').count() > 2 { Err("it has more than two tokens, a line each") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::secret::tests::File;
    use super::*;

    const OLD: &str = "0123456789abcdef";
    const NEW: &str = "ghijklmnopqrstuv";

    #[test]
    fn a_token_is_long_and_fits_into_a_header() {
        let tokens = |text: &str| Env::from([("PASSWORD", text)]).tokens("PASSWORD");
        assert_eq!(tokens(OLD).unwrap().sent().expose(), OLD);
        let lines = |tokens: &[&str]| tokens.join("\n");
        for text in ["0123456789abcde", "0123456789 abcdef", "0123456789abcdeé", &lines(&[OLD, ""]), ""] {
            let error = tokens(text).unwrap_err().to_string();
            assert!(error.starts_with("PASSWORD") && !error.contains("0123"), "{error}");
        }
        assert!(tokens(&lines(&[OLD, NEW, OLD])).is_err());
        assert!(Env::default().optional_tokens("PASSWORD").unwrap().is_none());
    }

    #[test]
    fn the_first_of_two_tokens_is_sent_and_both_are_accepted() {
        for text in [format!("{NEW}\n{OLD}"), format!("{NEW}\r\n{OLD}\r\n")] {
            let file = File::new("tokens", text.as_bytes());
            let tokens = file.told().tokens("PASSWORD").unwrap();
            assert_eq!(tokens.sent().expose(), NEW);
            assert!(tokens.accept(NEW.as_bytes()) && tokens.accept(OLD.as_bytes()));
            for other in ["", "0123456789abcdeg", "0123456789abcdef\n", text.as_str()] {
                assert!(!tokens.accept(other.as_bytes()), "{other:?}");
            }
            assert_eq!(format!("{tokens:?}"), "Tokens(***)");
        }
    }
}
