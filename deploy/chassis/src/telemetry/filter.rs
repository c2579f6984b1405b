//! The filter of the log, which an operator can replace while the process runs.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::{EnvFilter, Registry};

/// Directive that silences a target of rdkafka, which repeats each of librdkafka's errors there, dozens a second while
/// no broker can be reached. librdkafka also logs them itself, deduplicated, and callers see them when they poll.
/// `rdkafka::client=error` in `LOG` turns them on again.
const QUIET: &str = "rdkafka::client=off";
/// Maximum length of a filter that replaces another, in bytes.
const MAX_BYTES: usize = 1000;

/// The filter of the process's log, set once the log is.
static CURRENT: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// A filter, with the defaults of this crate in front.
pub(super) struct LogFilter(pub(super) EnvFilter);

/// Reasons not to replace the filter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("a filter has {MAX_BYTES} bytes at most")]
    TooLong,
    #[error("{0:?} is neither a level nor target=level; the levels are off, error, warn, info, debug and trace")]
    Directive(String),
    #[error("the filter cannot be parsed")]
    Parse(#[from] ParseError),
    #[error("this process has no log of its own")]
    NoLog,
}

impl Default for LogFilter {
    fn default() -> Self {
        Self(EnvFilter::new(format!("{QUIET},info")))
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LogFilter {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // If two directives name the same target, the later one counts.
        format!("{QUIET},{text}").parse().map(Self)
    }
}

impl LogFilter {
    /// Returns the layer of the subscriber that filters, and the handle to [`keep`] if that is turned on.
    pub(super) fn layer(self) -> (reload::Layer<EnvFilter, Registry>, Handle<EnvFilter, Registry>) {
        reload::Layer::new(self.0)
    }
}

/// Makes the process's filter replaceable.
pub(super) fn keep(handle: Handle<EnvFilter, Registry>) {
    // Only the subscriber that was turned on, the first one, has a filter that counts.
    let _ = CURRENT.set(handle);
}

/// Returns the filter in effect, or `None` if this process has no log of its own.
pub(crate) fn current() -> Option<String> {
    CURRENT.get()?.with_current(ToString::to_string).ok()
}

/// Replaces the filter until the process ends, and logs that.
///
/// Stricter than `LOG`: a bare word that is no level would be a target, and a misspelt level silence everything.
pub(crate) fn replace(text: &str) -> Result<(), FilterError> {
    if text.len() > MAX_BYTES {
        return Err(FilterError::TooLong);
    }
    if let Some(wrong) = text.split(',').find(|directive| !is_directive(directive)) {
        return Err(FilterError::Directive(wrong.to_owned()));
    }
    let LogFilter(filter) = text.parse()?;
    let handle = CURRENT.get().ok_or(FilterError::NoLog)?;
    let tell = || tracing::info!(log.filter = text, "the log's filter was replaced");
    // The line appears if either filter lets it pass.
    let is_told = tracing::enabled!(Level::INFO);
    if is_told {
        tell();
    }
    handle.reload(filter).map_err(|_| FilterError::NoLog)?;
    if !is_told {
        tell();
    }
    Ok(())
}

fn is_directive(text: &str) -> bool {
    let is_level = |level: &str| !level.is_empty() && level.parse::<LevelFilter>().is_ok() && !is_number(level);
    let is_target = |target: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-:.".contains(&byte);
        !target.is_empty() && target.bytes().all(is_part)
    };
    match text.split_once('=') {
        None => is_level(text),
        Some((target, level)) => is_target(target) && is_level(level),
    }
}

/// Returns whether a level is one of the numbers that the parser also takes.
fn is_number(level: &str) -> bool {
    level.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_rdkafka_repeats_are_off_unless_requested() {
        let directives = |text: &str| text.parse::<LogFilter>().unwrap().0.to_string();
        assert_eq!(directives("info"), "rdkafka::client=off,info");
        assert_eq!(directives("info,rdkafka::client=warn"), "rdkafka::client=warn,info");
    }

    #[test]
    fn a_new_filter_consists_of_levels_and_of_targets_with_levels() {
        for directive in ["info", "OFF", "chassis=debug", "command_api::partition=trace", "rdkafka::client=error"] {
            assert!(is_directive(directive), "{directive}");
        }
        for directive in
            ["", "debg", "chassis", "chassis=", "chassis=loud", "=info", "3", "a=1", "[span]=info", " info"]
        {
            assert!(!is_directive(directive), "{directive}");
        }
        assert!(matches!(replace("info,debg"), Err(FilterError::Directive(wrong)) if wrong == "debg"));
        assert!(matches!(replace(&"info,".repeat(300)), Err(FilterError::TooLong)));
    }
}
