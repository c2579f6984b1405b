//! Secrets whose files are read again.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::secret::{self, Secret};
use super::{Env, EnvError, Fallback};

/// Interval between reads of a secret's file, and so the time after which a change takes effect.
const READ_EVERY: Duration = Duration::from_secs(2);
/// Interval between reads while a server refuses the secret.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// A secret that follows its file: [`current`](Self::current) returns a changed content within two seconds, without a
/// restart. A secret from a variable never changes. Clones are cheap and share the content.
///
/// A file that has vanished, is empty or is unfit leaves the last good content in effect, and is logged once.
///
/// The caller's thread reads the file: these are a few bytes every two seconds, and only while the secret is used.
#[derive(Clone)]
pub struct LiveSecret(Arc<Source>);

/// Checks a secret's text; an error says what is wrong with it, without the text.
pub(super) type Check = fn(&str) -> Result<(), &'static str>;

struct Source {
    name: String,
    /// `None` if the secret comes from a variable.
    file: Option<PathBuf>,
    check: Check,
    read_every: Duration,
    content: Mutex<Content>,
}

struct Content {
    secret: Secret,
    read: Instant,
    /// Set while the file is unusable and a line of the log says so.
    has_complained: bool,
}

impl LiveSecret {
    /// Returns the secret as its file has it, or had it within the last two seconds.
    pub fn current(&self) -> Secret {
        let mut content = self.0.content.lock().unwrap_or_else(PoisonError::into_inner);
        if content.read.elapsed() >= self.0.read_every {
            self.0.read_again(&mut content);
        }
        content.secret.clone()
    }

    /// Waits until the secret is another one than `seen`, which [`current`](Self::current) returned, and returns it.
    /// Cancel safe.
    pub async fn changed(&self, seen: &Secret) -> Secret {
        loop {
            let current = self.current();
            if !current.is_same(seen) {
                return current;
            }
            tokio::time::sleep(self.0.read_every).await;
        }
    }

    /// Reads the file, for at most `within`, until it has another secret than `seen`, which a server has just refused.
    /// Cancel safe.
    pub(crate) async fn changed_within(&self, seen: &Secret, within: Duration) -> Option<Secret> {
        self.0.file.as_ref()?;
        let begun = Instant::now();
        loop {
            let current = {
                let mut content = self.0.content.lock().unwrap_or_else(PoisonError::into_inner);
                self.0.read_again(&mut content);
                content.secret.clone()
            };
            if !current.is_same(seen) {
                return Some(current);
            }
            if begun.elapsed() >= within {
                return None;
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    fn new(name: &str, file: Option<PathBuf>, secret: Secret, check: Check) -> Self {
        let content = Mutex::new(Content { secret, read: Instant::now(), has_complained: false });
        Self(Arc::new(Source { name: name.to_owned(), file, check, read_every: READ_EVERY, content }))
    }
}

impl Source {
    fn read_again(&self, content: &mut Content) {
        let Some(file) = &self.file else { return };
        content.read = Instant::now();
        match secret::read(&self.name, file).and_then(|secret| fit(&self.name, secret, self.check)) {
            Ok(secret) if secret.expose() != content.secret.expose() => {
                tracing::info!(setting = self.name, "the file of a secret has changed; the new one is in use");
                (content.secret, content.has_complained) = (secret, false);
            }
            Ok(_) => content.has_complained = false,
            Err(error) => {
                if !std::mem::replace(&mut content.has_complained, true) {
                    tracing::warn!(setting = self.name, error = %error, "the last good secret remains in use");
                }
            }
        }
    }
}

pub(super) fn fit(name: &str, secret: Secret, check: Check) -> Result<Secret, EnvError> {
    let unfit = |reason| EnvError::Unfit { name: name.to_owned(), reason };
    check(secret.expose()).map_err(unfit).map(|()| secret)
}

impl Env {
    /// Returns the secret, which follows its file, or `None` if neither the variable nor its file is set. White space
    /// around a file's content is trimmed.
    pub fn optional_live_secret(&self, name: &str) -> Result<Option<LiveSecret>, EnvError> {
        self.record_live_secret(name, Fallback::Unset);
        self.read_live(name, |_| Ok(()))
    }

    /// Returns the secret as [`Env::optional_live_secret`] does, for clients that keep the content with which they were
    /// made: the reference says that a change wants a restart.
    pub(crate) fn optional_secret_of_new_clients(&self, name: &str) -> Result<Option<LiveSecret>, EnvError> {
        self.record_secret(name, Fallback::Unset);
        self.read_live(name, |_| Ok(()))
    }

    pub(super) fn read_live(&self, name: &str, check: Check) -> Result<Option<LiveSecret>, EnvError> {
        let Some((secret, file)) = self.read_secret_with_file(name)? else { return Ok(None) };
        Ok(Some(LiveSecret::new(name, file, fit(name, secret, check)?, check)))
    }
}

/// Creates a secret that never changes.
impl<S: Into<String>> From<S> for LiveSecret {
    fn from(text: S) -> Self {
        Self::new("a secret", None, Secret::from(text), |_| Ok(()))
    }
}

impl fmt::Debug for LiveSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::tests::File;
    use super::*;

    /// Returns the secret of a file, which is read at each use.
    fn eager(file: &File, check: Check) -> LiveSecret {
        let env = file.told();
        let secret = env.read_live("PASSWORD", check).unwrap().unwrap();
        let mut source = Arc::into_inner(secret.0).unwrap();
        source.read_every = Duration::ZERO;
        LiveSecret(Arc::new(source))
    }

    #[test]
    fn a_changed_file_takes_effect_and_clones_share_it() {
        let file = File::new("live", b"first\n");
        let secret = eager(&file, |_| Ok(()));
        let clone = secret.clone();
        assert_eq!(clone.current().expose(), "first");
        file.write(b"second\n");
        assert_eq!(clone.current().expose(), "second");
        assert_eq!(secret.current().expose(), "second");
    }

    #[test]
    fn an_unusable_file_leaves_the_last_good_secret_in_effect() {
        let file = File::new("live-unusable", b"first");
        let secret = eager(&file, |text| if text == "unfit" { Err("it is unfit") } else { Ok(()) });
        for content in [&b" \n"[..], b"\xff", b"unfit"] {
            file.write(content);
            assert_eq!(secret.current().expose(), "first");
        }
        file.remove();
        assert_eq!(secret.current().expose(), "first");
        file.write(b"second");
        assert_eq!(secret.current().expose(), "second");
    }

    #[test]
    fn a_file_is_not_read_at_every_use() {
        let file = File::new("live-rarely", b"first");
        let secret = file.told().optional_live_secret("PASSWORD").unwrap().unwrap();
        file.write(b"second");
        assert_eq!(secret.current().expose(), "first", "it was read less than two seconds ago");
    }

    #[tokio::test]
    async fn a_waiter_gets_the_new_secret() {
        let file = File::new("live-waiter", b"first");
        let secret = eager(&file, |_| Ok(()));
        let seen = secret.current();
        let early = tokio::time::timeout(Duration::from_millis(20), secret.changed(&seen));
        assert!(early.await.is_err(), "it has not changed");
        file.write(b"second");
        let changed = tokio::time::timeout(Duration::from_secs(10), secret.changed(&seen)).await.unwrap();
        assert_eq!(changed.expose(), "second");
    }

    #[tokio::test]
    async fn a_refused_secret_is_replaced_as_soon_as_its_file_has_another_one() {
        let file = File::new("live-refused", b"first");
        let secret = file.told().optional_live_secret("PASSWORD").unwrap().unwrap();
        let seen = secret.current();
        assert!(secret.changed_within(&seen, Duration::from_millis(50)).await.is_none());
        file.write(b"second");
        let changed = secret.changed_within(&seen, Duration::from_secs(1)).await.unwrap();
        assert_eq!((changed.expose(), secret.current().expose()), ("second", "second"));
        let told = LiveSecret::from("told");
        assert!(told.changed_within(&told.current(), Duration::from_secs(60)).await.is_none());
    }

    #[test]
    fn a_secret_of_a_variable_stays_and_is_never_printed() {
        let secret = Env::from([("PASSWORD", "hunter2")]).optional_live_secret("PASSWORD").unwrap().unwrap();
        assert_eq!(secret.current().expose(), "hunter2");
        assert_eq!(format!("{secret:?}"), "***");
        assert!(Env::default().optional_live_secret("PASSWORD").unwrap().is_none());
    }
}
