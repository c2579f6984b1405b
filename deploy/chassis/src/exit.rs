//! Exit codes of a service, those of `sysexits.h`: they tell a supervisor whether a restart can help.

use std::error::Error;
use std::process::ExitCode;

use crate::env::{EnvError, WrongSettings};
use crate::kafka::topic::TopicError;
use crate::postgres::PostgresError;
use crate::redis::RedisSetupError;

/// Result of a check that differs from what was expected, as with `diff` and `grep`.
const DIFFERS: u8 = 1;
/// A wrong setting or argument, or a topic that does not fit the settings (`EX_USAGE`): a restart does not mend it.
const USAGE: u8 = 64;
/// A fault (`EX_SOFTWARE`).
const SOFTWARE: u8 = 70;

/// A wrong setting or argument that is not an [`EnvError`].
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Misuse(Box<dyn Error + Send + Sync>);

impl Misuse {
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

/// A difference that a check found.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Differs(pub String);

/// Returns an error if there is an argument left.
pub fn no_arguments(mut args: impl Iterator<Item = String>) -> Result<(), Misuse> {
    let unexpected = |argument| Err(Misuse::new(format!("unexpected argument {argument:?}")));
    args.next().map_or(Ok(()), unexpected)
}

/// Prints the error to standard error, if there is one, and returns the exit code of `main`.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("Error: {error:?}");
    ExitCode::from(code(&error))
}

fn code(error: &anyhow::Error) -> u8 {
    let has = |is: fn(&(dyn Error + 'static)) -> bool| error.chain().any(is);
    if has(is_misuse) {
        USAGE
    } else if has(|cause| cause.is::<Differs>()) {
        DIFFERS
    } else {
        SOFTWARE
    }
}

fn is_misuse(cause: &(dyn Error + 'static)) -> bool {
    cause.is::<EnvError>()
        || cause.is::<WrongSettings>()
        || cause.is::<Misuse>()
        || matches!(cause.downcast_ref::<TopicError>(), Some(TopicError::Refused { .. }))
        || matches!(
            cause.downcast_ref::<PostgresError>(),
            Some(PostgresError::Url(_) | PostgresError::SslMode(_) | PostgresError::Tls(_))
        )
        || matches!(
            cause.downcast_ref::<RedisSetupError>(),
            Some(RedisSetupError::Url(_) | RedisSetupError::Authorities { .. })
        )
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};
    use rdkafka::error::KafkaError;

    use super::*;
    use crate::env::Env;
    use crate::{postgres, redis};

    #[test]
    fn a_wrong_setting_a_difference_and_a_fault_have_codes_of_their_own() {
        let missing = || Env::default().required::<u16>("PORT").unwrap_err();
        let refused = TopicError::Refused { topic: "events".into(), differences: "it has 3 partitions, not 2".into() };
        for (error, expected) in [
            (missing().into(), USAGE),
            (anyhow::Error::from(missing()).context("read the settings"), USAGE),
            (Env::default().survey(|env| env.required::<u16>("PORT")).into_result().unwrap_err().into(), USAGE),
            (Misuse::new("unknown subcommand").into(), USAGE),
            (Misuse::new(anyhow!("not a number").context("PARTITION")).into(), USAGE),
            (refused.into(), USAGE),
            (TopicError::Client(KafkaError::Canceled).into(), SOFTWARE),
            (Differs("the views differ".to_owned()).into(), DIFFERS),
            (anyhow!("the log cannot be read"), SOFTWARE),
        ] {
            assert_eq!(code(&error), expected, "{error:?}");
            assert_eq!(code(&error.context("start")), expected);
        }
        assert_eq!(code(&Err::<(), _>(missing()).context("start").unwrap_err()), USAGE);
    }

    #[test]
    fn a_malformed_url_is_a_wrong_setting() {
        let (postgres, redis) = (postgres::pool(&"nonsense".into(), "", 1, "test"), redis::connect(&"nonsense".into()));
        let (Err(postgres), Err(redis)) = (postgres, redis) else {
            panic!("a malformed URL was accepted");
        };
        assert_eq!([code(&postgres.into()), code(&redis.into())], [USAGE; 2]);
    }

    #[test]
    fn an_argument_that_is_left_is_named() {
        let args = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>().into_iter();
        assert!(no_arguments(args(&[])).is_ok());
        assert_eq!(no_arguments(args(&["--x", "1"])).unwrap_err().to_string(), "unexpected argument \"--x\"");
    }

    #[test]
    fn a_misuse_reads_like_its_reason() {
        let misuse = anyhow::Error::from(Misuse::new(anyhow!("not a number").context("PARTITION")));
        assert_eq!(format!("{misuse:#}"), "PARTITION: not a number");
    }
}
