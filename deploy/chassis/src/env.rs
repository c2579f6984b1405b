//! Typed access to a snapshot of the process's environment.

mod contradictions;
mod live;
mod secret;
mod setting;
mod strange;
mod survey;
mod tokens;

use std::any::type_name;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::num::ParseIntError;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use contradictions::{Contradiction, Contradictions};
pub use live::LiveSecret;
pub use secret::Secret;
pub use setting::{Fallback, Origin, Setting};
pub use strange::Strange;
pub use survey::{Survey, WrongSettings};
pub use tokens::Tokens;

use crate::tls::TlsError;

/// Maximum duration of a setting: any current time plus this fits in 64 bits of milliseconds, and in Postgres.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// A snapshot of the environment: later changes to the process's variables have no effect.
///
/// An empty variable counts as unset. `Debug` shows names only.
#[derive(Clone, Default)]
pub struct Env {
    variables: BTreeMap<String, OsString>,
    /// The variables that were read, in their order. Clones share them.
    settings: Arc<Mutex<Vec<Setting>>>,
    /// Settings that a [`Survey`] has found to be wrong. To read one again returns its default, or a placeholder.
    wrong: BTreeSet<String>,
}

/// A variable that is missing or invalid. The error never contains the variable's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("{name} must be set (expected: {expected})")]
    Missing { name: String, expected: &'static str },
    #[error("{name} is set but invalid (expected: {expected}): {reason}")]
    Unparsable { name: String, expected: &'static str, reason: String },
    #[error("{name} and {name}_FILE are both set: unset one of them")]
    Both { name: String },
    #[error("{name}_FILE names a file that cannot be read as text: {reason}")]
    File { name: String, reason: String },
    #[error("{name}_FILE names a file that is empty")]
    EmptyFile { name: String },
    #[error("{name} cannot be used: {reason}")]
    Unfit { name: String, reason: &'static str },
    #[error("{name} names certificates that cannot be used: {reason}")]
    Certificates { name: String, reason: String },
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Contradictions(Vec<Contradiction>),
}

impl EnvError {
    /// Returns the error of a setting whose certificates cannot be used.
    pub(crate) fn certificates(name: &str, error: &TlsError) -> Self {
        let source = std::error::Error::source(error).map_or(String::new(), |source| format!(": {source}"));
        Self::Certificates { name: name.to_owned(), reason: format!("{error}{source}") }
    }

    /// Returns the name of the setting, or of the first of several.
    pub fn name(&self) -> &str {
        match self {
            Self::Missing { name, .. }
            | Self::Unparsable { name, .. }
            | Self::Both { name }
            | Self::File { name, .. }
            | Self::EmptyFile { name }
            | Self::Unfit { name, .. }
            | Self::Certificates { name, .. } => name,
            Self::Contradictions(all) => all.first().and_then(|one| one.settings.first()).copied().unwrap_or_default(),
        }
    }
}

impl Env {
    /// Takes a snapshot of this process's variables. Variables whose names are not UTF-8 are left out: no setting has
    /// such a name.
    pub fn process() -> Self {
        let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        variables.collect()
    }

    /// Returns the variables that were read so far, for the reference of the settings.
    pub fn settings(&self) -> Vec<Setting> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the value, or `None` if it is unset or empty.
    ///
    /// The parser's message becomes part of the error: a type with secret values must not repeat its input there.
    /// [`Secret`] has no parser: see [`Env::secret`].
    pub fn optional<T>(&self, name: &str) -> Result<Option<T>, EnvError>
    where
        T: FromStr<Err: fmt::Display>,
    {
        self.record(name, expected::<T>(), Fallback::Unset);
        self.read(name)
    }

    /// Returns the file that a setting names, without adding the setting to the reference: other code reads it.
    pub(crate) fn file(&self, name: &str) -> Option<PathBuf> {
        self.variables.get(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// Returns the value, or `default` if it is unset or empty.
    pub fn or<T>(&self, name: &str, default: T) -> Result<T, EnvError>
    where
        T: FromStr<Err: fmt::Display> + fmt::Display,
    {
        self.record(name, expected::<T>(), Fallback::Value(default.to_string()));
        Ok(self.read(name)?.unwrap_or(default))
    }

    /// Returns the value; fails if it is unset or empty.
    pub fn required<T>(&self, name: &str) -> Result<T, EnvError>
    where
        T: FromStr<Err: fmt::Display>,
    {
        self.record(name, expected::<T>(), Fallback::Required);
        self.read(name)?.ok_or_else(|| EnvError::Missing { name: name.to_owned(), expected: expected::<T>() })
    }

    /// Returns the value of a setting that another one needs, as read before; fails if it has none. In a survey that has
    /// this error already, returns `None`, so that those after it are found as well.
    pub(crate) fn needed<T>(
        &self,
        name: &str,
        value: Option<T>,
        expected: &'static str,
    ) -> Result<Option<T>, EnvError> {
        if value.is_none() && !self.wrong.contains(name) {
            return Err(EnvError::Missing { name: name.to_owned(), expected });
        }
        Ok(value)
    }

    /// Returns a duration given as a whole number of milliseconds.
    pub fn millis_or(&self, name: &str, default: Duration) -> Result<Duration, EnvError> {
        self.record(name, "milliseconds", Fallback::Value(default.as_millis().to_string()));
        self.duration_or(name, "a whole number of milliseconds", Duration::from_millis, default)
    }

    /// Returns a duration given as a whole number of seconds.
    pub fn secs_or(&self, name: &str, default: Duration) -> Result<Duration, EnvError> {
        self.record(name, "seconds", Fallback::Value(default.as_secs().to_string()));
        self.duration_or(name, "a whole number of seconds", Duration::from_secs, default)
    }

    fn duration_or(
        &self,
        name: &str,
        expected: &'static str,
        unit: fn(u64) -> Duration,
        default: Duration,
    ) -> Result<Duration, EnvError> {
        let duration = self.parse(name, expected, |text| {
            let number = text.parse().map_err(|error: ParseIntError| error.to_string())?;
            Some(unit(number)).filter(|duration| *duration <= LONGEST).ok_or_else(|| "over ten years".to_owned())
        })?;
        Ok(duration.unwrap_or(default))
    }

    fn read<T>(&self, name: &str) -> Result<Option<T>, EnvError>
    where
        T: FromStr<Err: fmt::Display>,
    {
        self.parse(name, expected::<T>(), |text| text.parse::<T>().map_err(|error| error.to_string()))
    }

    fn parse<T>(
        &self,
        name: &str,
        expected: &'static str,
        parser: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, EnvError> {
        let is_usable = |value: &&OsString| !value.is_empty() && !self.wrong.contains(name);
        let Some(value) = self.variables.get(name).filter(is_usable) else { return Ok(None) };
        let text = value.to_str().ok_or_else(|| "not UTF-8".to_owned());
        match text.and_then(parser) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(reason) => Err(EnvError::Unparsable { name: name.to_owned(), expected, reason }),
        }
    }
}

impl<K: Into<String>, V: Into<OsString>, const N: usize> From<[(K, V); N]> for Env {
    fn from(variables: [(K, V); N]) -> Self {
        variables.into_iter().collect()
    }
}

impl<K: Into<String>, V: Into<OsString>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { variables, settings: Arc::default(), wrong: BTreeSet::new() }
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// Returns the type's name without its path, which is enough for the person who sets the variable: `u16`, `SocketAddr`.
fn expected<T>() -> &'static str {
    let name = type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn unset_and_empty_variables_take_the_default() {
        let env = Env::from([("EMPTY", "")]);
        assert_eq!(env.or("EMPTY", 7_u16), Ok(7));
        assert_eq!(env.or("UNSET", 7_u16), Ok(7));
        assert_eq!(env.optional::<u16>("UNSET"), Ok(None));
        assert_eq!(env.millis_or("UNSET", Duration::from_secs(1)), Ok(Duration::from_secs(1)));
    }

    #[test]
    fn set_variables_are_parsed() {
        let env = Env::from([("PORT", "8081"), ("GRACE_MS", "250"), ("WINDOW_SECS", "900")]);
        assert_eq!(env.or("PORT", 1_u16), Ok(8081));
        assert_eq!(env.required::<String>("PORT"), Ok("8081".to_owned()));
        assert_eq!(env.millis_or("GRACE_MS", Duration::ZERO), Ok(Duration::from_millis(250)));
        assert_eq!(env.secs_or("WINDOW_SECS", Duration::ZERO), Ok(Duration::from_secs(900)));
    }

    #[test]
    fn an_unparsable_variable_never_defaults_and_its_value_is_not_shown() {
        let env = Env::from([("PORT", "eighty"), ("GRACE_MS", "-3")]);
        let port = env.or("PORT", 1_u16).unwrap_err().to_string();
        assert_eq!(port, "PORT is set but invalid (expected: u16): invalid digit found in string");
        let grace = env.millis_or("GRACE_MS", Duration::ZERO).unwrap_err().to_string();
        assert!(grace.starts_with("GRACE_MS is set but invalid (expected: a whole number of milliseconds)"));
        let env = Env::from([("WINDOW_SECS", u64::MAX.to_string())]);
        assert!(env.secs_or("WINDOW_SECS", Duration::ZERO).is_err(), "adding it to a time would overflow");
    }

    #[test]
    fn a_variable_that_is_not_utf8_never_defaults() {
        let env = Env::from([("NAME", OsString::from_vec(vec![0xff]))]);
        assert!(matches!(env.or("NAME", String::new()), Err(EnvError::Unparsable { .. })));
    }
}
