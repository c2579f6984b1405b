//! Address of a Postgres server, its account, and how its connections are protected.

use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PostgresError;
use crate::env::{Env, EnvError, LiveSecret, Secret};
use crate::tls;

/// A Postgres server and the account there.
///
/// `sslmode=verify-full` in the URL means TLS with a server that a certificate of a trusted authority names;
/// `sslmode=disable`, the default, means plaintext. `require` and `verify-ca` mean the same as `verify-full`, because
/// TLS with a server that nobody verified keeps out none that can intercept it. `prefer` and `allow` are refused: they
/// fall back to plaintext as soon as somebody in between says that the server has no TLS.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    url: Secret,
    password: Option<LiveSecret>,
    ca_file: Option<PathBuf>,
}

impl PostgresSettings {
    /// Reads the settings of the primary server.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let url = env.secret("POSTGRES_URL")?;
        Self::with_url(env, url)
    }

    /// Reads the settings of the primary server, or returns `None` without `POSTGRES_URL`.
    pub fn optional_from_env(env: &Env) -> Result<Option<Self>, EnvError> {
        let url = env.optional_secret("POSTGRES_URL")?;
        // The others are read in any case, for the reference.
        let others = Self::with_url(env, url.clone().unwrap_or_else(|| Secret::from("")));
        url.map(|_| others).transpose()
    }

    fn with_url(env: &Env, url: Secret) -> Result<Self, EnvError> {
        // `POSTGRES_PASSWORD`: password of the account, in place of one in the URL. Each new connection takes the
        // current content of its file.
        let password = env.optional_live_secret("POSTGRES_PASSWORD")?;
        // `POSTGRES_CA_FILE`, default `TLS_CA_FILE`, or else the system's: PEM file of the authorities that sign the
        // server's certificate. The URL then contains `sslmode=verify-full`.
        let own_ca = env.optional::<PathBuf>("POSTGRES_CA_FILE")?;
        let ca_file = own_ca.clone().or(tls::ca_file(env)?);
        let settings = Self { url, password, ca_file };
        settings.check("POSTGRES_URL", own_ca.is_some())?;
        Ok(settings)
    }

    /// Returns the settings of another server, with the same password and authorities. `name` is the setting that has
    /// its URL.
    pub fn at(&self, url: Secret, name: &str) -> Result<Self, EnvError> {
        let settings = Self { url, ..self.clone() };
        settings.check(name, false)?;
        Ok(settings)
    }

    /// Refuses settings that contradict each other, and files that cannot be used.
    fn check(&self, name: &str, has_own_ca: bool) -> Result<(), EnvError> {
        let unfit = |name: &str, reason| Err(EnvError::Unfit { name: name.to_owned(), reason });
        let Protection { is_tls, url } = match protection(self.url.expose()) {
            Ok(protection) => protection,
            Err(reason) => return unfit(name, reason),
        };
        if has_own_ca && !is_tls {
            return unfit("POSTGRES_CA_FILE", "POSTGRES_URL has no TLS: add sslmode=verify-full to it, or unset this");
        }
        // The parser's error might show a part of the URL.
        let Ok(config) = url.parse::<Config>() else {
            return unfit(name, "it is no URL such as postgres://user@host:5432/database");
        };
        if config.get_password().is_some() && self.password.is_some() {
            return unfit("POSTGRES_PASSWORD", "the URL has a password, too: remove one of them");
        }
        if is_tls {
            let name = if has_own_ca { "POSTGRES_CA_FILE" } else { "TLS_CA_FILE" };
            tls::client(self.ca_file.as_deref()).map_err(|error| EnvError::certificates(name, &error))?;
        }
        Ok(())
    }

    /// Returns the client's configuration, without the password if it is a setting of its own.
    pub(super) fn config(&self) -> Result<Config, PostgresError> {
        let Protection { is_tls, url } = protection(self.url.expose()).map_err(PostgresError::SslMode)?;
        let mut config: Config = url.parse().map_err(PostgresError::Url)?;
        config.ssl_mode(if is_tls { SslMode::Require } else { SslMode::Disable });
        Ok(config)
    }

    pub(super) fn password(&self) -> Option<LiveSecret> {
        self.password.clone()
    }

    /// Returns what makes TLS of a connection to a server whose URL asks for it.
    pub(super) fn tls(&self) -> Result<MakeRustlsConnect, PostgresError> {
        let client = tls::client(self.ca_file.as_deref())?;
        Ok(MakeRustlsConnect::new(client.as_ref().clone()))
    }
}

/// Settings of a server by its URL alone. TLS trusts the system's authorities.
impl<S: Into<String>> From<S> for PostgresSettings {
    fn from(url: S) -> Self {
        Self { url: Secret::from(url), password: None, ca_file: None }
    }
}

struct Protection {
    is_tls: bool,
    /// The URL without `sslmode`, of which the client's library knows only some values.
    url: String,
}

fn protection(url: &str) -> Result<Protection, &'static str> {
    let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
    // The other form is a list of `name=value`.
    let (address, separator) = if is_url { (url.split('?').next().unwrap_or(url), "&") } else { ("", " ") };
    let options = url[address.len()..].trim_start_matches('?');
    let is_mode = |option: &&str| option.starts_with("sslmode=");
    let (modes, others): (Vec<_>, Vec<_>) = options.split(separator).partition(is_mode);
    let is_tls = match modes.last().map_or("disable", |mode| &mode["sslmode=".len()..]) {
        "disable" => false,
        "verify-full" | "verify-ca" | "require" => true,
        "prefer" | "allow" => {
            return Err("sslmode=prefer and allow fall back to plaintext: write verify-full, or disable on loopback");
        }
        _ => return Err("its sslmode is neither verify-full nor disable"),
    };
    let mark = if is_url && !others.concat().is_empty() { "?" } else { "" };
    Ok(Protection { is_tls, url: format!("{address}{mark}{}", others.join(separator)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(told: &[(&str, &str)]) -> Result<PostgresSettings, EnvError> {
        PostgresSettings::from_env(&told.iter().copied().collect())
    }

    #[test]
    fn tls_is_verified_in_full_or_not_used_at_all() {
        let mode = |options: &str| {
            let config = PostgresSettings::from(format!("postgres://me@host/db{options}")).config().unwrap();
            assert_eq!((config.get_user(), config.get_dbname()), (Some("me"), Some("db")));
            config.get_ssl_mode()
        };
        for options in ["", "?sslmode=disable", "?options=-c%20jit%3Doff&sslmode=disable"] {
            assert_eq!(mode(options), SslMode::Disable, "{options}");
        }
        for options in ["?sslmode=verify-full", "?sslmode=verify-ca&options=-c%20jit%3Doff", "?sslmode=require"] {
            assert_eq!(mode(options), SslMode::Require, "{options}");
        }
        let list = PostgresSettings::from("host=h user=me sslmode=verify-full dbname=db").config().unwrap();
        assert_eq!(
            (list.get_ssl_mode(), list.get_user(), list.get_dbname()),
            (SslMode::Require, Some("me"), Some("db"))
        );
        let options =
            PostgresSettings::from("postgres://h/db?sslmode=require&options=-c%20jit%3Doff").config().unwrap();
        assert_eq!(options.get_options(), Some("-c jit=off"));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_with_what_to_do() {
        let refused = |told: &[(&str, &str)], name: &str, hint: &str| {
            let error = settings(told).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains(hint), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        };
        for mode in ["prefer", "allow"] {
            let url = format!("postgres://me:hunter2@host/db?sslmode={mode}");
            refused(&[("POSTGRES_URL", &url)], "POSTGRES_URL", "write verify-full");
            assert!(matches!(PostgresSettings::from(url).config(), Err(PostgresError::SslMode(_))));
        }
        refused(&[("POSTGRES_URL", "postgres://h/db?sslmode=full")], "POSTGRES_URL", "neither verify-full");
        let plain = ("POSTGRES_URL", "postgres://me:hunter2@h/db");
        refused(&[plain, ("POSTGRES_CA_FILE", "/ca.pem")], "POSTGRES_CA_FILE", "add sslmode=verify-full");
        refused(&[plain, ("POSTGRES_PASSWORD", "hunter2")], "POSTGRES_PASSWORD", "remove one");
        let tls = ("POSTGRES_URL", "postgres://h/db?sslmode=verify-full");
        refused(&[tls, ("POSTGRES_CA_FILE", "/no/such.pem")], "POSTGRES_CA_FILE", "/no/such.pem");
        refused(&[tls, ("TLS_CA_FILE", "/no/such.pem")], "TLS_CA_FILE", "/no/such.pem");
        settings(&[plain, ("TLS_CA_FILE", "/ca.pem")]).unwrap();
        let primary = settings(&[plain]).unwrap();
        let error = primary.at(Secret::from("postgres://h/db?sslmode=prefer"), "POSTGRES_REPLICA_URLS").unwrap_err();
        assert!(error.to_string().starts_with("POSTGRES_REPLICA_URLS"), "{error}");
    }

    #[test]
    fn no_secret_is_shown() {
        let told = settings(&[("POSTGRES_URL", "postgres://me@h/db"), ("POSTGRES_PASSWORD", "hunter2")]).unwrap();
        assert!(!format!("{told:?} {:?}", told.config().unwrap()).contains("hunter2"));
        assert!(PostgresSettings::optional_from_env(&Env::default()).unwrap().is_none());
    }
}
