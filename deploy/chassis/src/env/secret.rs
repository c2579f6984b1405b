//! Secrets, read from a variable or from the file that `{NAME}_FILE` names.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::setting::file_variable;
use super::{Env, EnvError, Fallback};

/// A text that neither `Debug` nor `Display` shows: a password, a token, or a URL that contains one.
///
/// It deliberately has no `PartialEq`: `==` stops at the first difference, so its duration reveals how much of a guess
/// is right. It deliberately has no `FromStr` either, so that [`Env`] returns secrets only through the methods below,
/// and every secret can come from a file.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Returns the text itself, for the one place that sends it to a server.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns whether both are clones of one secret, which says nothing about their texts.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Env {
    /// Returns the secret, or `None` if neither the variable nor its file is set. White space around a file's content
    /// is trimmed, because editors append a newline.
    pub fn optional_secret(&self, name: &str) -> Result<Option<Secret>, EnvError> {
        self.record_secret(name, Fallback::Unset);
        self.read_secret(name)
    }

    fn read_secret(&self, name: &str) -> Result<Option<Secret>, EnvError> {
        Ok(self.read_secret_with_file(name)?.map(|(secret, _)| secret))
    }

    /// Returns the secret, and the file that has it unless it comes from the variable.
    pub(super) fn read_secret_with_file(&self, name: &str) -> Result<Option<(Secret, Option<PathBuf>)>, EnvError> {
        if self.wrong.contains(name) {
            return Ok(None);
        }
        let told = self.read::<String>(name)?;
        let file = self.read::<String>(&file_variable(name))?.map(PathBuf::from);
        match (told, file) {
            (Some(_), Some(_)) => Err(EnvError::Both { name: name.to_owned() }),
            (None, Some(file)) => Ok(Some((read(name, &file)?, Some(file)))),
            (told, None) => Ok(told.map(|text| (Secret::from(text), None))),
        }
    }

    /// Returns the secret; fails if it is unset.
    pub fn secret(&self, name: &str) -> Result<Secret, EnvError> {
        self.record_secret(name, Fallback::Required);
        self.read_secret(name)?.map_or_else(|| self.missing(name), Ok)
    }

    /// Returns the error of a required secret, or a placeholder if a survey has that error already.
    pub(super) fn missing(&self, name: &str) -> Result<Secret, EnvError> {
        if self.wrong.contains(name) {
            return Ok(Secret::from(""));
        }
        let expected = "a secret, or the path of its file in the variable of this name with _FILE added";
        Err(EnvError::Missing { name: name.to_owned(), expected })
    }
}

pub(super) fn read(name: &str, file: &Path) -> Result<Secret, EnvError> {
    // If the two variables are confused, the file's name is the secret itself, so it is not shown either.
    let content = std::fs::read_to_string(file)
        .map_err(|error| EnvError::File { name: name.to_owned(), reason: error.to_string() })?;
    match content.trim() {
        "" => Err(EnvError::EmptyFile { name: name.to_owned() }),
        content => Ok(Secret::from(content)),
    }
}

impl<S: Into<String>> From<S> for Secret {
    fn from(text: S) -> Self {
        Self(text.into().into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A temporary file, deleted when dropped.
    pub(crate) struct File(PathBuf);

    impl File {
        pub(crate) fn new(name: &str, content: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("stampede-secret-{}-{name}", std::process::id()));
            std::fs::write(&path, content).unwrap();
            Self(path)
        }

        pub(crate) fn write(&self, content: &[u8]) {
            std::fs::write(&self.0, content).unwrap();
        }

        pub(crate) fn remove(&self) {
            std::fs::remove_file(&self.0).unwrap();
        }

        /// Returns an environment in which this is the file of `PASSWORD`.
        pub(crate) fn told(&self) -> Env {
            Env::from([("PASSWORD_FILE", self.0.as_os_str())])
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_secret_comes_from_its_variable_or_from_its_file_without_surrounding_white_space() {
        let env = Env::from([("PASSWORD", "hunter2")]);
        assert_eq!(env.secret("PASSWORD").unwrap().expose(), "hunter2");
        let file = File::new("editor", b" hunter2\r\n\n");
        assert_eq!(file.told().secret("PASSWORD").unwrap().expose(), "hunter2");
        assert!(Env::default().optional_secret("PASSWORD").unwrap().is_none());
        let empty = Env::from([("PASSWORD", ""), ("PASSWORD_FILE", "")]);
        assert!(empty.optional_secret("PASSWORD").unwrap().is_none());
    }

    #[test]
    fn an_unusable_file_is_an_error_that_names_only_the_setting() {
        let error = |env: &Env| {
            let error = env.optional_secret("PASSWORD").unwrap_err().to_string();
            assert!(error.starts_with("PASSWORD") && !error.contains("hunter2"), "{error}");
            error
        };
        assert!(error(&File::new("empty", b" \n").told()).contains("is empty"));
        assert!(error(&File::new("binary", b"hunter2\xff").told()).contains("cannot be read"));
        assert!(error(&Env::from([("PASSWORD_FILE", "hunter2")])).contains("No such file"));
        assert!(error(&Env::from([("PASSWORD_FILE", "/")])).contains("cannot be read"));
        let file = File::new("both", b"hunter2");
        let both =
            [("PASSWORD".into(), "hunter2".into()), ("PASSWORD_FILE".to_owned(), file.0.clone().into_os_string())];
        assert!(error(&Env::from(both)).contains("both set"));
    }

    #[test]
    fn a_secret_that_is_missing_is_named() {
        let error = Env::default().secret("PASSWORD").unwrap_err().to_string();
        assert!(error.starts_with("PASSWORD must be set"), "{error}");
    }

    #[test]
    fn a_secret_is_never_printed() {
        let env = Env::from([("PASSWORD", "hunter2")]);
        let secret = env.secret("PASSWORD").unwrap();
        assert_eq!(format!("{secret} {secret:?} {env:?}"), "*** *** {\"PASSWORD\"}");
    }
}
