//! Address of Redis, the account there, and how its connections are protected.

use std::path::PathBuf;

use futures_util::{Stream, StreamExt as _, stream};
use redis::{BasicAuth, ConnectionInfo, RedisResult, StreamingCredentialsProvider, TlsCertificates};

use super::RedisSetupError;
use super::place::Place;
use crate::env::{Env, EnvError, LiveSecret, Secret};
use crate::tls;

/// Redis servers and the account there. The scheme of the URL says what they are:
///
/// - `redis://[user:password@]host:port[/database]`: one server;
/// - `redis-cluster://…host:port[?node=host:port&…]`: some nodes of a cluster;
/// - `redis-sentinel://…host:port/name[?node=host:port&…]`: some sentinels, and the name of the master that they watch.
///   The account is that of the servers; with `sentinels=same`, also that of the sentinels.
///
/// `rediss` in place of `redis` means TLS with servers that certificates of a trusted authority name.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    url: Secret,
    password: Option<LiveSecret>,
    ca_file: Option<PathBuf>,
}

impl RedisSettings {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        // `REDIS_PASSWORD`: password of the account, in place of one in the URL. Each new connection takes the current
        // content of its file, and an open one takes a new password when the file changes.
        let password = env.optional_live_secret("REDIS_PASSWORD")?;
        // `REDIS_CA_FILE`, default `TLS_CA_FILE`, or else the system's: PEM file of the authorities that sign the
        // servers' certificates. The URL then begins with `rediss`.
        let own_ca = env.optional::<PathBuf>("REDIS_CA_FILE")?;
        let ca_file = own_ca.clone().or(tls::ca_file(env)?);
        let settings = Self { url: env.secret("REDIS_URL")?, password, ca_file };
        settings.check(own_ca.is_some())?;
        Ok(settings)
    }

    /// Refuses settings that contradict each other, a malformed URL, and files that cannot be used.
    fn check(&self, has_own_ca: bool) -> Result<(), EnvError> {
        let unfit = |name: &str, reason| Err(EnvError::Unfit { name: name.to_owned(), reason });
        // A survey of all settings reads an empty URL in the place of one that it has refused.
        if self.url.expose().is_empty() {
            return Ok(());
        }
        let Ok(place) = Place::parse(&self.url) else {
            return unfit(
                "REDIS_URL",
                "it is no URL such as redis://host:6379, and neither of a cluster nor of sentinels",
            );
        };
        if has_own_ca && !place.is_tls() {
            return unfit("REDIS_CA_FILE", "REDIS_URL has no TLS: let it begin with rediss, or unset this");
        }
        if self.password.is_some() && place.account().password().is_some() {
            return unfit("REDIS_PASSWORD", "REDIS_URL has a password, too: remove one of them");
        }
        if place.is_tls() {
            let name = if has_own_ca { "REDIS_CA_FILE" } else { "TLS_CA_FILE" };
            tls::client(self.ca_file.as_deref()).map_err(|error| EnvError::certificates(name, &error))?;
        }
        Ok(())
    }

    pub(super) fn place(&self) -> Result<Place, RedisSetupError> {
        Place::parse(&self.url).map_err(RedisSetupError::Url)
    }

    /// Returns the authorities that a TLS connection trusts, unless they are the system's.
    pub(super) fn certificates(&self) -> Result<Option<TlsCertificates>, RedisSetupError> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let read = std::fs::read(path).map_err(|source| RedisSetupError::Authorities { path: path.clone(), source })?;
        Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(read) }))
    }

    /// Returns the credentials that clients follow, if the password is a setting of its own.
    pub(super) fn credentials(&self, place: &Place) -> Option<Credentials> {
        let user = place.account().username().unwrap_or("default").to_owned();
        self.password.clone().map(|password| Credentials { user, password })
    }
}

/// Settings of servers by their URL alone. TLS trusts the system's authorities.
impl<S: Into<String>> From<S> for RedisSettings {
    fn from(url: S) -> Self {
        Self { url: Secret::from(url), password: None, ca_file: None }
    }
}

/// An account whose password may change.
#[derive(Clone)]
pub(super) struct Credentials {
    user: String,
    password: LiveSecret,
}

impl Credentials {
    /// Returns `info` with the current password.
    pub(super) fn apply(&self, info: ConnectionInfo) -> ConnectionInfo {
        let account = info.redis_settings().clone();
        info.set_redis_settings(account.set_username(&self.user).set_password(self.password.current().expose()))
    }

    fn with(user: &str, password: &Secret) -> RedisResult<BasicAuth> {
        Ok(BasicAuth::new(user.to_owned(), password.expose().to_owned()))
    }
}

impl StreamingCredentialsProvider for Credentials {
    /// Returns the current password, and each later one.
    fn subscribe(&self) -> std::pin::Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
        let (Self { user, password }, first) = (self.clone(), self.password.current());
        let now = Self::with(&user, &first);
        let later = stream::unfold((user, password, first), async |(user, password, seen)| {
            let next = password.changed(&seen).await;
            Some((Self::with(&user, &next), (user, password, next)))
        });
        stream::once(std::future::ready(now)).chain(later).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(told: &[(&str, &str)]) -> Result<RedisSettings, EnvError> {
        RedisSettings::from_env(&told.iter().copied().collect())
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_with_what_to_do() {
        let refused = |told: &[(&str, &str)], name: &str, hint: &str| {
            let error = settings(told).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains(hint), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        };
        for url in ["redis://:hunter2@h:1", "redis-cluster://:hunter2@h:1", "redis-sentinel://:hunter2@h:1/shop"] {
            refused(&[("REDIS_URL", url), ("REDIS_PASSWORD", "hunter2")], "REDIS_PASSWORD", "remove one");
            refused(&[("REDIS_URL", url), ("REDIS_CA_FILE", "/ca.pem")], "REDIS_CA_FILE", "rediss");
            settings(&[("REDIS_URL", url), ("TLS_CA_FILE", "/ca.pem")]).unwrap();
            let tls = url.replace("redis", "rediss");
            refused(&[("REDIS_URL", &tls), ("REDIS_CA_FILE", "/no/such.pem")], "REDIS_CA_FILE", "/no/such.pem");
        }
    }

    #[tokio::test]
    async fn the_user_of_the_url_gets_the_password_and_nothing_shows_it() {
        let told = settings(&[("REDIS_URL", "redis://me@h:1"), ("REDIS_PASSWORD", "hunter2")]).unwrap();
        assert!(!format!("{told:?}").contains("hunter2"));
        let place = told.place().unwrap();
        let credentials = told.credentials(&place).unwrap();
        let first = credentials.subscribe().next().await.unwrap().unwrap();
        assert_eq!((first.username(), first.password()), ("me", "hunter2"));
        let Place::Server(info) = place else { panic!("expected a server") };
        assert_eq!(credentials.apply(info).redis_settings().password(), Some("hunter2"));
    }
}
