//! The beginning of each service's `main`: options that every service has, the logs, and the check of its settings.

use std::fmt::Write as _;
use std::io::Write as _;
use std::vec;

use crate::env::{Env, EnvError, Fallback, Origin, Setting, Strange, Survey};
use crate::telemetry;

const OPTIONS: &str = "
Options:
  --print-config  prints each setting with its value, grouped by where that comes from; secrets as ***
  --check-config  reports everything that is wrong with the settings; exits with 0 or 64
  --help          prints this

Settings come from the environment; deploy/SETTINGS.md lists them.
";

/// A service as its command line describes it.
pub struct Program {
    pub name: &'static str,
    /// A line for each way to run it, which says what it does, and an empty line before them.
    pub usage: &'static str,
}

/// The snapshot of the environment, and the arguments that are left for the service.
pub type Begun = (Env, vec::IntoIter<String>);

impl Program {
    /// Sets up the logs. Without arguments, that is before the service serves, also checks all of its settings, and
    /// warns of variables that look misspelt. `read` reads the service's configuration.
    ///
    /// Returns `None` if the arguments were an option that is hereby done.
    ///
    /// # Errors
    /// [`WrongSettings`](crate::env::WrongSettings) names all settings that are wrong.
    pub fn begin<C>(&self, read: impl Fn(&Env) -> Result<C, EnvError>) -> anyhow::Result<Option<Begun>> {
        let (env, args) = (Env::process(), std::env::args().skip(1).collect::<Vec<_>>());
        let survey = || env.survey(|env| telemetry::init_logs(env).and_then(|()| read(env).map(drop)));
        if args.iter().any(|argument| argument == "--help" || argument == "-h") {
            tell(&format!("Usage:{}{OPTIONS}", self.usage))?;
            return Ok(None);
        }
        match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => {
                let survey = survey();
                for Strange { name, similar } in env.strange(&survey.settings) {
                    tracing::warn!(variable = name, similar, "a variable that is no setting looks like one");
                }
                survey.into_result()?;
            }
            ["--print-config"] => {
                let survey = survey();
                tell(&self.print(&survey, &env.strange(&survey.settings)))?;
                survey.into_result()?;
                return Ok(None);
            }
            ["--check-config"] => {
                let survey = survey();
                env.strange(&survey.settings).iter().for_each(|strange| eprintln!("Warning: {strange}"));
                survey.into_result()?;
                return Ok(None);
            }
            _ => telemetry::init_logs(&env)?,
        }
        Ok(Some((env, args.into_iter())))
    }

    /// Returns the settings as lines `NAME=value`, which a program that reads files of variables takes as well.
    fn print(&self, survey: &Survey, strange: &[Strange]) -> String {
        let mut text = format!("# The settings of {} in effect\n", self.name);
        let mut group = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                // Writing to a string cannot fail.
                let _ = write!(text, "\n# {title}\n{}\n", lines.join("\n"));
            }
        };
        let mut settings: Vec<&Setting> = survey.settings.iter().collect();
        settings.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        let of = |origin: Origin| settings.iter().filter(move |setting| setting.origin == origin);
        let shown = |setting: &&&Setting| setting.shown().map(|value| format!("{}={}", setting.name, one_line(value)));
        let unset = of(Origin::Fallback).filter(|setting| setting.fallback == Fallback::Unset);
        group("From the environment", of(Origin::Environment).filter_map(|it| shown(&it)).collect());
        group("From files", of(Origin::File).filter_map(|it| shown(&it)).collect());
        group("Defaults", of(Origin::Fallback).filter_map(|it| shown(&it)).collect());
        group("Unset", unset.map(|setting| format!("#{}=", setting.name)).collect());
        group("Wrong", survey.errors.iter().map(|error| format!("# {error}")).collect());
        group("Unknown", strange.iter().map(|strange| format!("# {strange}")).collect());
        text
    }
}

/// Returns the value without line breaks and other characters that would act on a terminal.
fn one_line(value: &str) -> String {
    let escape = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    value.chars().map(escape).collect()
}

fn tell(text: &str) -> std::io::Result<()> {
    std::io::stdout().write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program { name: "shop", usage: "\n  shop  serves\n" };

    fn read(env: &Env) -> Result<(), EnvError> {
        env.or("PORT", 80_u16)?;
        env.or("NAME", "shop".to_owned())?;
        env.optional_secret("PASSWORD")?;
        env.optional::<String>("PLACE_OF_ALL")?;
        env.or("LEVEL", 1_u8).map(drop)
    }

    #[test]
    fn the_settings_in_effect_are_printed_by_origin_without_secrets() {
        let env = Env::from([
            ("PASSWORD", "hunter2"),
            ("NAME", "a\nb"),
            ("LEVEL", "hunter2"),
            ("PASSWORDS", "hunter2"),
            ("PLACE_OF_ALL", ""),
        ]);
        let survey = env.survey(read);
        let text = PROGRAM.print(&survey, &env.strange(&survey.settings));
        let expected = "# The settings of shop in effect\n\n\
            # From the environment\nNAME=a\\nb\nPASSWORD=***\n\n\
            # Defaults\nPORT=80\n\n\
            # Unset\n#PLACE_OF_ALL=\n\n\
            # Wrong\n# LEVEL is set but invalid (expected: u8): invalid digit found in string\n\n\
            # Unknown\n# PASSWORDS is no setting; is PASSWORD meant?\n";
        assert_eq!(text, expected);
    }
}
