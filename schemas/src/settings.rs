//! Settings on which all services of a log must agree, stored in the table `settings`.
//!
//! The first service that is configured with a setting stores it; a later one with a different value does not start.
//! `projector settings` changes the stored values.

use std::fmt;
use std::time::Duration;

/// Retention of idempotency keys. A key deleted from the tables before command-api refuses it could take effect twice.
pub const IDEMPOTENCY_WINDOW_SECS: &str = "IDEMPOTENCY_WINDOW_SECS";
/// Time that a confirmed order waits for its payment; every reactor must use the same.
pub const PAYMENT_WINDOW_SECS: &str = "PAYMENT_WINDOW_SECS";
/// Time during which a line of a placed order may be refused; every reactor must use the same.
pub const CONFIRM_WITHIN_SECS: &str = "CONFIRM_WITHIN_SECS";
/// Key prefix in Redis, under which the projector writes and the query services read.
pub const REDIS_PREFIX: &str = "REDIS_PREFIX";
/// Number of partitions of the topic, which determines the partition of every aggregate.
pub const PARTITIONS: &str = "EVENTS_PARTITIONS";

/// Settings that may be changed once they are stored.
pub const CHANGEABLE: [&str; 4] = [IDEMPOTENCY_WINDOW_SECS, PAYMENT_WINDOW_SECS, CONFIRM_WITHIN_SECS, REDIS_PREFIX];

/// Stores the settings that have no value yet. The parameters are the columns of [`Settings`].
pub const KEEP: &str = "INSERT INTO settings (name, value) SELECT name, value FROM unnest($1::text[], $2::text[]) \
                        AS told (name, value) ON CONFLICT (name) DO NOTHING";
/// Reads the name and value of all stored settings.
pub const READ: &str = "SELECT name, value FROM settings ORDER BY name";

/// Shared settings as one service is configured with them, by column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    pub names: Vec<&'static str>,
    pub values: Vec<String>,
}

impl Settings {
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.names.push(name);
        self.values.push(value.to_string());
        self
    }

    #[must_use]
    pub fn with_secs(self, name: &'static str, duration: Duration) -> Self {
        self.with(name, duration.as_secs())
    }

    /// Returns the first setting that differs from its stored value. A setting without a stored value does not differ.
    pub fn difference<'a>(&self, kept: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<Difference> {
        kept.into_iter().find_map(|(name, kept)| {
            let (told, value) = self.names.iter().zip(&self.values).find(|(told, _)| **told == name)?;
            let differs = value != kept;
            differs.then(|| Difference { name: told, told: value.clone(), kept: kept.to_owned() })
        })
    }
}

/// Mismatch between a configured and a stored setting, which keeps a service from starting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Difference {
    pub name: &'static str,
    pub told: String,
    pub kept: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, told, kept } = self;
        if *name == PARTITIONS {
            return write!(
                f,
                "the topic has {told} partitions, but the log was created with {kept}, and the number cannot change"
            );
        }
        write!(
            f,
            "{name} is configured as {told:?}, but stored as {kept:?} for this log: start with {name}={kept}, or change \
             it for all services with `projector settings set {name} {told}` and restart them"
        )
    }
}

/// Validates a value that is to be stored for all services.
///
/// # Errors
/// A message that explains why the value is invalid.
pub fn check(name: &str, value: &str) -> Result<(), String> {
    if name == PARTITIONS {
        return Err(format!("{name} is determined by the topic and cannot change"));
    }
    if !CHANGEABLE.contains(&name) {
        return Err(format!("{name:?} is not a shared setting; the shared settings are {}", CHANGEABLE.join(", ")));
    }
    match name {
        REDIS_PREFIX if value.is_empty() => Err(format!("{name} must not be empty")),
        REDIS_PREFIX => Ok(()),
        _ => match value.parse::<u64>() {
            // Services write the number in canonical form, from which 0900 would always differ.
            Ok(secs) if secs.to_string() == value => Ok(()),
            Ok(_) | Err(_) => Err(format!("{name} must be a whole number of seconds, not {value:?}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Settings {
        Settings::default().with_secs(IDEMPOTENCY_WINDOW_SECS, Duration::from_secs(60)).with(PARTITIONS, 3)
    }

    #[test]
    fn a_difference_names_both_values_and_the_command_to_change_it() {
        assert_eq!(told().difference([(IDEMPOTENCY_WINDOW_SECS, "60"), (PARTITIONS, "3"), (REDIS_PREFIX, "x")]), None);
        assert_eq!(told().difference([]), None);
        let difference = told().difference([(IDEMPOTENCY_WINDOW_SECS, "900")]).unwrap().to_string();
        for part in [
            "IDEMPOTENCY_WINDOW_SECS is configured as \"60\"",
            "stored as \"900\" for this log",
            "settings set IDEMPOTENCY_WINDOW_SECS 60",
        ] {
            assert!(difference.contains(part), "{difference}");
        }
        let difference = told().difference([(PARTITIONS, "2")]).unwrap().to_string();
        assert!(difference.contains("3 partitions, but the log was created with 2"), "{difference}");
    }

    #[test]
    fn only_a_value_that_a_service_can_be_configured_with_is_stored() {
        for name in CHANGEABLE {
            assert_eq!(check(name, "900"), Ok(()));
            assert!(check(name, "").is_err(), "{name}");
        }
        for (name, value) in [
            (PAYMENT_WINDOW_SECS, "ten"),
            (PAYMENT_WINDOW_SECS, "-1"),
            (PAYMENT_WINDOW_SECS, "0600"),
            (PARTITIONS, "4"),
            ("LOG", "1"),
        ] {
            assert!(check(name, value).is_err(), "{name} {value}");
        }
    }
}
