//! Settings that all services of one log have to be told alike: rows of the table `settings`.
//!
//! The first service that is told one keeps it there; a later one that is told otherwise does not start. `projector
//! settings` changes what is kept.

use std::fmt;
use std::time::Duration;

/// How long keys are remembered: what the tables forget before command-api refuses the key could take effect twice.
pub const IDEMPOTENCY_WINDOW_SECS: &str = "IDEMPOTENCY_WINDOW_SECS";
/// How long a confirmed order waits to be paid, whichever reactor sees it.
pub const PAYMENT_WINDOW_SECS: &str = "PAYMENT_WINDOW_SECS";
/// How long a line of a placed order may be refused, whichever reactor sees it.
pub const CONFIRM_WITHIN_SECS: &str = "CONFIRM_WITHIN_SECS";
/// Where the projector writes in Redis, and the query services read.
pub const REDIS_PREFIX: &str = "REDIS_PREFIX";
/// The topic's partitions as they are: the place of every aggregate follows from their number.
pub const PARTITIONS: &str = "EVENTS_PARTITIONS";

/// Those that may be changed once they are kept.
pub const CHANGEABLE: [&str; 4] = [IDEMPOTENCY_WINDOW_SECS, PAYMENT_WINDOW_SECS, CONFIRM_WITHIN_SECS, REDIS_PREFIX];

/// Keeps what nothing is kept of yet. Its parameters are the columns of [`Settings`].
pub const KEEP: &str = "INSERT INTO settings (name, value) SELECT name, value FROM unnest($1::text[], $2::text[]) \
                        AS told (name, value) ON CONFLICT (name) DO NOTHING";
/// Reads all that is kept: name and value.
pub const READ: &str = "SELECT name, value FROM settings ORDER BY name";

/// The settings of one service that the others share, by column.
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

    /// Returns the first setting that differs from what is kept of it. What nothing is kept of agrees.
    pub fn difference<'a>(&self, kept: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<Difference> {
        kept.into_iter().find_map(|(name, kept)| {
            let (told, value) = self.names.iter().zip(&self.values).find(|(told, _)| **told == name)?;
            let differs = value != kept;
            differs.then(|| Difference { name: told, told: value.clone(), kept: kept.to_owned() })
        })
    }
}

/// Why a service does not start.
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
            return write!(f, "the topic has {told} partitions, and the log was made with {kept}: they cannot change");
        }
        write!(
            f,
            "{name} is {told:?} here, and {kept:?} for this log: start with {name}={kept}, or change it for all services \
             by `projector settings set {name} {told}` and start them anew"
        )
    }
}

/// Checks a value that is to be kept for all services.
///
/// # Errors
/// A sentence that says why it cannot be.
pub fn check(name: &str, value: &str) -> Result<(), String> {
    if name == PARTITIONS {
        return Err(format!("{name} is the topic's, and cannot change"));
    }
    if !CHANGEABLE.contains(&name) {
        return Err(format!("there is no setting {name:?} that services share; there are {}", CHANGEABLE.join(", ")));
    }
    match name {
        REDIS_PREFIX if value.is_empty() => Err(format!("{name} is not empty")),
        REDIS_PREFIX => Ok(()),
        _ => match value.parse::<u64>() {
            // As a service writes what it is told: 0900 would differ from every one.
            Ok(secs) if secs.to_string() == value => Ok(()),
            Ok(_) | Err(_) => Err(format!("{name} is a whole number of seconds, not {value:?}")),
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
    fn what_differs_is_named_with_both_values_and_the_way_to_change_it() {
        assert_eq!(told().difference([(IDEMPOTENCY_WINDOW_SECS, "60"), (PARTITIONS, "3"), (REDIS_PREFIX, "x")]), None);
        assert_eq!(told().difference([]), None);
        let difference = told().difference([(IDEMPOTENCY_WINDOW_SECS, "900")]).unwrap().to_string();
        for part in [
            "IDEMPOTENCY_WINDOW_SECS is \"60\" here",
            "\"900\" for this log",
            "settings set IDEMPOTENCY_WINDOW_SECS 60",
        ] {
            assert!(difference.contains(part), "{difference}");
        }
        let difference = told().difference([(PARTITIONS, "2")]).unwrap().to_string();
        assert!(difference.contains("3 partitions, and the log was made with 2"), "{difference}");
    }

    #[test]
    fn only_a_value_that_a_service_could_be_told_is_kept() {
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
