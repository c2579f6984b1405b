//! A reading of all settings that does not end at the first error.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::{Env, EnvError, Setting};

/// All settings of a service, and all that is wrong with them.
#[derive(Debug)]
pub struct Survey {
    pub settings: Vec<Setting>,
    pub errors: Vec<EnvError>,
}

/// The errors of a service's settings, at least one.
#[derive(Debug, thiserror::Error)]
pub struct WrongSettings(Vec<EnvError>);

impl Survey {
    /// Returns the errors, if there are any.
    pub fn into_result(self) -> Result<(), WrongSettings> {
        if self.errors.is_empty() { Ok(()) } else { Err(WrongSettings(self.errors)) }
    }
}

impl fmt::Display for WrongSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [error] => error.fmt(f),
            errors => {
                write!(f, "{} settings are wrong:", errors.len())?;
                errors.iter().try_for_each(|error| write!(f, "\n  {error}"))
            }
        }
    }
}

impl Env {
    /// Reads all settings by `read`, as often as it fails: each time the setting that failed last counts as unset, or
    /// as a placeholder if it is required. So the values are of no use, and are dropped.
    pub fn survey<C>(&self, read: impl Fn(&Self) -> Result<C, EnvError>) -> Survey {
        let (mut errors, mut wrong) = (Vec::new(), BTreeSet::new());
        loop {
            let env = Self { variables: self.variables.clone(), settings: Arc::default(), wrong: wrong.clone() };
            match read(&env) {
                Err(EnvError::Contradictions(all)) => {
                    // A setting that is wrong by itself contradicts others only by the value in its place.
                    let all = all.into_iter().filter(|one| one.settings.iter().all(|name| !wrong.contains(*name)));
                    errors.extend(all.map(|one| EnvError::Contradictions(vec![one])));
                    return Survey { settings: env.settings(), errors };
                }
                Err(error) if wrong.insert(error.name().to_owned()) => errors.push(error),
                // An error that stays hides those after it.
                Ok(_) | Err(_) => return Survey { settings: env.settings(), errors },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Fallback, Origin};
    use super::*;

    fn read(env: &Env) -> Result<(), EnvError> {
        env.or("PORT", 80_u16)?;
        env.secret("PASSWORD")?;
        env.optional::<u8>("LEVEL")?;
        env.tokens("TOKEN")?;
        env.millis_or("GRACE_MS", Duration::from_secs(1))?;
        Ok(())
    }

    #[test]
    fn a_survey_finds_every_error() {
        let env = Env::from([("PORT", "eighty"), ("LEVEL", "300"), ("TOKEN", "short"), ("GRACE_MS", "5")]);
        let survey = env.survey(read);
        let names: Vec<_> = survey.errors.iter().map(EnvError::name).collect();
        assert_eq!(names, ["PORT", "PASSWORD", "LEVEL", "TOKEN"]);
        let shown: Vec<_> = survey.settings.iter().map(|setting| (setting.origin, setting.shown())).collect();
        let wrong = (Origin::Wrong, None);
        assert_eq!(shown, [wrong, wrong, wrong, wrong, (Origin::Environment, Some("5"))]);
        let error = survey.into_result().unwrap_err().to_string();
        assert!(error.starts_with("4 settings are wrong:\n  PORT is set but invalid"), "{error}");
        assert!(!error.contains("eighty") && !error.contains("short"), "{error}");
    }

    #[test]
    fn a_survey_shows_where_each_value_comes_from() {
        let file = super::super::secret::tests::File::new("survey", b"hunter2");
        let variables = file.told().variables.into_iter();
        let more = [("TOKEN", "0123456789abcdef"), ("LEVEL", "3")].map(|(name, value)| (name.to_owned(), value.into()));
        let survey = variables.chain(more).collect::<Env>().survey(read);
        let shown: Vec<_> =
            survey.settings.iter().map(|it| (it.name.as_str(), it.origin, it.shown().unwrap_or("nothing"))).collect();
        assert_eq!(
            shown,
            [
                ("PORT", Origin::Fallback, "80"),
                ("PASSWORD", Origin::File, "***"),
                ("LEVEL", Origin::Environment, "3"),
                ("TOKEN", Origin::Environment, "***"),
                ("GRACE_MS", Origin::Fallback, "1000"),
            ]
        );
        assert_eq!(survey.settings[1].fallback, Fallback::Required);
        assert!(survey.into_result().is_ok());
    }

    #[test]
    fn an_error_that_stays_ends_the_survey() {
        let survey = Env::default().survey(|env| env.required::<u8>("LEVEL"));
        assert_eq!(survey.errors.len(), 1);
        assert_eq!(survey.into_result().unwrap_err().to_string(), "LEVEL must be set (expected: u8)");
    }
}
