//! Settings that cannot hold together.

use std::fmt;
use std::net::SocketAddr;

use super::EnvError;
use crate::listeners::ListenerSettings;

/// Settings that cannot hold together, with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    pub(super) settings: Vec<&'static str>,
    advice: String,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.advice)
    }
}

/// The contradictions that a service finds between its settings, once each is right by itself.
#[derive(Debug, Default)]
pub struct Contradictions(Vec<Contradiction>);

impl Contradictions {
    /// Notes a contradiction between the settings, if there is one.
    pub fn refuse_if(&mut self, contradicts: bool, settings: &[&'static str], advice: impl Into<String>) {
        if contradicts {
            self.0.push(Contradiction { settings: settings.to_vec(), advice: advice.into() });
        }
    }

    /// Notes each setting that is zero, of those that are given with their values.
    pub fn refuse_zeros<N: PartialEq + Default, const COUNT: usize>(&mut self, values: [(&'static str, N); COUNT]) {
        for (name, value) in values {
            self.refuse_if(value == N::default(), &[name], format!("{name} must be greater than 0"));
        }
    }

    /// Notes listeners that would take each other's port, or that nothing allows to serve in plain text.
    pub fn check_listeners(&mut self, settings: &ListenerSettings, listeners: &[(&'static str, SocketAddr)]) {
        for (index, (name, addr)) in listeners.iter().enumerate() {
            for (other, other_addr) in &listeners[..index] {
                let advice = format!("{other} and {name} have the same port: give each listener one of its own");
                self.refuse_if(overlap(*other_addr, *addr), &[other, name], advice);
            }
            if let Some(reason) = settings.refusal(*addr) {
                self.refuse_if(
                    true,
                    &[name, "TLS_CERT_FILE", "TLS_KEY_FILE", "PLAINTEXT"],
                    format!("{name}: {reason}"),
                );
            }
        }
    }

    pub fn into_result(self) -> Result<(), EnvError> {
        if self.0.is_empty() { Ok(()) } else { Err(EnvError::Contradictions(self.0)) }
    }
}

/// Returns whether only one of two listeners can have its address.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_same_host = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && is_same_host
}

#[cfg(test)]
mod tests {
    use super::super::Env;
    use super::*;

    #[test]
    fn two_listeners_cannot_have_one_port() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            assert_eq!(overlap(addr(one), addr(other)), expected, "{one} {other}");
        }
    }

    #[test]
    fn a_survey_shows_every_contradiction_between_right_settings() {
        let read = |env: &Env| {
            let (most, least) = (env.or("MOST", 1_u8)?, env.or("LEAST", 2_u8)?);
            env.or("LEVEL", 1_u8)?;
            let mut contradictions = Contradictions::default();
            contradictions.refuse_if(least > most, &["MOST", "LEAST"], "LEAST exceeds MOST: lower it");
            contradictions.refuse_zeros([("MOST", most), ("LEAST", least)]);
            contradictions.into_result()
        };
        let errors = |variables: &[(&str, &str)]| {
            let survey = variables.iter().copied().collect::<Env>().survey(read);
            survey.errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(errors(&[]), ["LEAST exceeds MOST: lower it"]);
        assert_eq!(errors(&[("MOST", "0")]), ["LEAST exceeds MOST: lower it", "MOST must be greater than 0"]);
        assert_eq!(errors(&[("MOST", "x"), ("LEVEL", "x")]).len(), 2, "a wrong setting contradicts no other");
    }
}
