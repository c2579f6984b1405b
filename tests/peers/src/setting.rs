//! Settings from the environment.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// Returns a required variable.
pub fn required(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} has to be set"))
}

/// Returns a variable, or `default` if it is not set.
pub fn or<T: FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| anyhow!("{name}: {text:?} does not read")),
        Err(_) => Ok(default),
    }
}

/// Returns `SECONDS`, default 10: the duration of a client's run.
pub fn duration() -> Result<Duration> {
    Ok(Duration::from_secs(or("SECONDS", 10)?))
}
