//! Facts about a variable that a service reads.

use std::ffi::OsString;

use super::Env;

/// Type of a secret.
pub(super) const SECRET: &str = "secret";

/// A variable that a service reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    /// Type of the value, or its unit.
    pub expected: &'static str,
    pub fallback: Fallback,
    pub origin: Origin,
    /// The text of the variable, if it is set and no secret.
    pub text: Option<String>,
    /// Set if a change of the secret's file takes effect without a restart.
    pub is_live: bool,
}

/// The value of a setting whose variable is unset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fallback {
    Value(String),
    /// None, or one that depends on other facts.
    Unset,
    /// The service does not start without the variable.
    Required,
}

/// The place where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Environment,
    /// The file that the variable `{name}_FILE` names.
    File,
    Fallback,
    /// Nowhere, because the variable is set to something that is no value.
    Wrong,
}

impl Setting {
    pub fn is_secret(&self) -> bool {
        self.expected == SECRET
    }

    /// Returns the value for people, `***` if it is a secret; `None` if there is none.
    pub fn shown(&self) -> Option<&str> {
        match (self.origin, &self.fallback) {
            (Origin::Environment | Origin::File, _) if self.is_secret() => Some("***"),
            (Origin::Environment, _) => self.text.as_deref(),
            (Origin::Fallback, Fallback::Value(value)) => Some(value),
            (Origin::File | Origin::Fallback | Origin::Wrong, _) => None,
        }
    }

    /// Returns the names of the variables that hold it.
    pub fn variables(&self) -> impl Iterator<Item = String> {
        [Some(self.name.clone()), self.is_secret().then(|| file_variable(&self.name))].into_iter().flatten()
    }
}

/// Returns the name of the variable that names a secret's file.
pub(super) fn file_variable(name: &str) -> String {
    format!("{name}_FILE")
}

impl Env {
    pub(super) fn record(&self, name: &str, expected: &'static str, fallback: Fallback) {
        self.keep(name, expected, fallback, false);
    }

    pub(super) fn record_secret(&self, name: &str, fallback: Fallback) {
        self.keep(name, SECRET, fallback, false);
    }

    pub(super) fn record_live_secret(&self, name: &str, fallback: Fallback) {
        self.keep(name, SECRET, fallback, true);
    }

    fn keep(&self, name: &str, expected: &'static str, fallback: Fallback, is_live: bool) {
        let given = |name: &str| self.variables.get(name).filter(|value| !value.is_empty());
        let is_secret = expected == SECRET;
        let origin = if self.wrong.contains(name) {
            Origin::Wrong
        } else if given(name).is_some() {
            Origin::Environment
        } else if is_secret && given(&file_variable(name)).is_some() {
            Origin::File
        } else {
            Origin::Fallback
        };
        let text = given(name).filter(|_| !is_secret && origin == Origin::Environment);
        let text = text.map(OsString::as_os_str).map(|text| text.to_string_lossy().into_owned());
        let setting = Setting { name: name.to_owned(), expected, fallback, origin, text, is_live };
        let mut settings = self.settings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if settings.iter().all(|known| known.name != name) {
            settings.push(setting);
        }
    }
}
