//! The settings of the edge's image, listed in `deploy/SETTINGS.md`.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::edge::access_log;
use crate::edge::config::ServicesTls;
use crate::edge::limits::{Limits, items};
use crate::edge::origins::Origins;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// `HTTP_ADDR`: listener, for clients.
    pub(super) listen: SocketAddr,
    /// `PUBLIC_URL`: URL at which clients reach the edge, for the page at `/`.
    pub(super) url: String,
    /// `COMMAND_APIS`: addresses of command-api's public listeners as `host:port`, separated by commas. A name stands
    /// for all its addresses.
    pub(super) commands: Vec<String>,
    /// `QUERY_APIS`: addresses of query-api, likewise.
    pub(super) queries: Vec<String>,
    /// `EVENTS_PARTITIONS`: number of the topic's partitions, by which commands are sent to owners. Another number
    /// costs only time.
    pub(super) partitions: u16,
    /// `LIMITS`: limits for each client address, such as `commands=100,rows=400`.
    /// `UNLIMITED`: networks without these limits, separated by commas.
    pub(super) limits: Limits,
    /// `CORS_ORIGINS`: the same as that of both tiers.
    pub(super) origins: Origins,
    /// `TLS_CERT_FILE`: PEM file of the certificate for clients, with those of intermediate authorities; read again when
    /// it changes. Without it, clients are served in plain text.
    /// `TLS_KEY_FILE`: PEM file of its key.
    pub(super) certificate: Option<(PathBuf, PathBuf)>,
    /// `PLAINTEXT`: `allowed` lets the listener serve beyond loopback without a certificate, for networks that encrypt by
    /// themselves. Default: that is refused.
    is_plaintext_allowed: bool,
    /// `TLS_CA_FILE`: PEM file of the authorities of the services' certificates. With it, services are reached by TLS.
    /// `SERVICES_TLS_NAME`: name in the certificates of the services of both tiers; required with `TLS_CA_FILE`.
    pub(super) services: Option<ServicesTls>,
    /// `ACCESS_LOG_LINES`: lines of the access log that each worker writes a second to the standard output before it
    /// leaves lines out; 0 switches it off.
    pub(super) access_log_lines: u32,
    /// `TRACED_PERCENT`: share of the requests without a `traceparent` that get one; 0 to 100.
    pub(super) traced_percent: u8,
    /// `SHUTDOWN_GRACE_MS`: time for requests in flight to finish at shutdown.
    pub(super) grace: Duration,
    /// `EDGE_PORT`: first of two ports on loopback, for the list of instances, and for the edge itself and probes.
    port: u16,
    /// `EDGE_DIR`: folder that nginx may write, for its cache and large bodies.
    pub(super) folder: PathBuf,
    /// `EDGE_SOURCE`: folder of the templates and of the Lua modules.
    pub(super) source: PathBuf,
}

impl Settings {
    /// Returns the content of the edge's certificate and key, as far as they can be read.
    pub(super) fn content_of_certificate(&self) -> [Option<Vec<u8>>; 2] {
        let content = |file: &PathBuf| std::fs::read(file).ok();
        self.certificate.as_ref().map_or([None, None], |(certificate, key)| [content(certificate), content(key)])
    }

    /// Returns the port of the listener that takes the list of instances.
    pub(super) fn control(&self) -> u16 {
        self.port
    }

    /// Returns the port of the listener for the edge itself and for probes.
    pub(super) fn itself(&self) -> u16 {
        self.port + 1
    }

    /// Reads the settings from variables.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let read = Variables(variable);
        let invalid = |name: &'static str| move |reason| anyhow!("{name} is set but invalid: {reason}");
        let settings = Self {
            listen: read.or("HTTP_ADDR", "127.0.0.1:8080")?,
            url: read.or::<String>("PUBLIC_URL", "http://127.0.0.1:8080")?.trim_end_matches('/').to_owned(),
            commands: read.addresses("COMMAND_APIS")?,
            queries: read.addresses("QUERY_APIS")?,
            partitions: read.or("EVENTS_PARTITIONS", "12")?,
            limits: Limits::parse(&read.or::<String>("LIMITS", "")?, (read.0)("UNLIMITED").as_deref())
                .map_err(invalid("LIMITS or UNLIMITED"))?,
            origins: Origins::parse(&read.or::<String>("CORS_ORIGINS", "")?).map_err(invalid("CORS_ORIGINS"))?,
            certificate: read
                .pair("TLS_CERT_FILE", "TLS_KEY_FILE")?
                .map(|(certificate, key)| (certificate.into(), key.into())),
            is_plaintext_allowed: match (read.0)("PLAINTEXT").as_deref() {
                None => false,
                Some("allowed") => true,
                Some(_) => bail!("PLAINTEXT is set but invalid: the only value is `allowed`"),
            },
            services: read
                .pair("TLS_CA_FILE", "SERVICES_TLS_NAME")?
                .map(|(authority, name)| ServicesTls { authority: authority.into(), name }),
            access_log_lines: read.or("ACCESS_LOG_LINES", &access_log::LINES.to_string())?,
            traced_percent: read.or("TRACED_PERCENT", &access_log::TRACED_PERCENT.to_string())?,
            grace: Duration::from_millis(read.or("SHUTDOWN_GRACE_MS", "10000")?),
            port: read.or("EDGE_PORT", "8088")?,
            folder: read.or("EDGE_DIR", "/var/lib/edge")?,
            source: read.or("EDGE_SOURCE", "/usr/local/share/edge")?,
        };
        ensure!(settings.traced_percent <= 100, "TRACED_PERCENT must be from 0 to 100");
        ensure!((1..u16::MAX).contains(&settings.port), "EDGE_PORT must be from 1 to 65534");
        settings.check_listener()?;
        Ok(settings)
    }

    /// Refuses what the services refuse as well: to serve other machines in plain text, unless a word allows it.
    fn check_listener(&self) -> Result<()> {
        let is_local = self.listen.ip().to_canonical().is_loopback();
        ensure!(
            is_local || self.certificate.is_some() || self.is_plaintext_allowed,
            "other machines can reach {}, and it would be served in plain text: set TLS_CERT_FILE and TLS_KEY_FILE, or \
             listen on loopback, or set PLAINTEXT=allowed if the network encrypts by itself",
            self.listen
        );
        Ok(())
    }
}

struct Variables<F>(F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    fn or<T: FromStr<Err: Display>>(&self, name: &str, default: &str) -> Result<T> {
        let text = (self.0)(name).unwrap_or_else(|| default.to_owned());
        text.parse().map_err(|error| anyhow!("{name} is set but invalid: {error}"))
    }

    /// Returns two settings that are set together. They are inserted into nginx's configuration as they are.
    fn pair(&self, one: &str, other: &str) -> Result<Option<(String, String)>> {
        let is_plain = |text: &String| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
        match ((self.0)(one), (self.0)(other)) {
            (None, None) => Ok(None),
            (Some(first), Some(second)) => {
                ensure!(
                    is_plain(&first) && is_plain(&second),
                    "{one} or {other} has a character that nginx might read"
                );
                Ok(Some((first, second)))
            }
            _ => bail!("{one} and {other} must be set together"),
        }
    }

    /// Returns a list of addresses, whose form is checked because they are inserted into nginx's configuration.
    fn addresses(&self, name: &str) -> Result<Vec<String>> {
        let list = (self.0)(name).with_context(|| format!("{name} must be set, e.g. to command-api:8081"))?;
        let addresses: Vec<_> = items(&list).map(str::to_owned).collect();
        let is_address = |address: &String| {
            let parts = address.rsplit_once(':');
            parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
        };
        ensure!(!addresses.is_empty() && addresses.iter().all(is_address), "{name} is not a list of host:port");
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::layout::root;

    fn read(values: &[(&str, &str)]) -> Result<Settings> {
        let required = [("COMMAND_APIS", "command-api:8081"), ("QUERY_APIS", "query-api:8082")];
        let find = |name: &str| values.iter().chain(&required).find(|(known, _)| *known == name);
        Settings::read(|name| find(name).map(|(_, value)| (*value).to_owned()).filter(|value| !value.is_empty()))
    }

    #[test]
    fn wrong_settings_are_refused() {
        read(&[("LIMITS", "rows=3"), ("UNLIMITED", "10.0.0.0/8"), ("CORS_ORIGINS", "*")]).unwrap();
        for (name, value) in [
            ("HTTP_ADDR", "8080"),
            ("COMMAND_APIS", ""),
            ("COMMAND_APIS", "command-api"),
            ("QUERY_APIS", "query-api:0"),
            ("QUERY_APIS", ","),
            ("EVENTS_PARTITIONS", "many"),
            ("ACCESS_LOG_LINES", "-1"),
            ("TRACED_PERCENT", "101"),
            ("LIMITS", "rows"),
            ("UNLIMITED", "all"),
            ("CORS_ORIGINS", "shop.example"),
            ("PLAINTEXT", "yes"),
            ("EDGE_PORT", "65535"),
            ("TLS_CERT_FILE", "edge.pem"),
            ("TLS_CA_FILE", "ca.pem"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{name}={value}: {error}");
        }
    }

    #[test]
    fn beyond_loopback_plain_text_needs_a_word() {
        for address in ["127.0.0.1:8080", "[::1]:8080", "[::ffff:127.0.0.1]:8080"] {
            read(&[("HTTP_ADDR", address)]).unwrap();
        }
        for address in ["0.0.0.0:8080", "[::]:8080", "10.0.0.1:8080", "[::ffff:10.0.0.1]:8080"] {
            let open = ("HTTP_ADDR", address);
            let refused = read(&[open]).unwrap_err().to_string();
            assert!(refused.contains(address) && refused.contains("PLAINTEXT=allowed"), "{refused}");
            read(&[open, ("PLAINTEXT", "allowed")]).unwrap();
            read(&[open, ("TLS_CERT_FILE", "edge.pem"), ("TLS_KEY_FILE", "edge.key")]).unwrap();
        }
    }

    #[test]
    fn the_reference_lists_every_setting_with_its_default() {
        let text = fs::read_to_string(root().join("deploy/SETTINGS.md")).unwrap();
        let section = text.split("\n## ").find(|section| section.starts_with("edge\n")).unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let listed: BTreeSet<_> = rows.filter_map(|row| Some(row.split_once('`')?.0)).collect();
        let source = include_str!("settings.rs").split("#[cfg(test)]").next().unwrap();
        let documented = source.lines().filter_map(|line| line.trim().strip_prefix("/// `")?.split_once('`'));
        assert_eq!(listed, documented.map(|(name, _)| name).collect());
    }
}
