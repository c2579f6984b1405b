//! The listeners of a service, and the rule that all of them follow.
//!
//! Invariant: nothing is served in plain text to other machines unless the operator allowed it by a word. Every listener
//! of every service comes from [`Listeners`].

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::env::{Env, EnvError};
use crate::exit::Misuse;
use crate::http;
use crate::telemetry::Telemetry;
use crate::tls::expiry::CertificateFiles;
use crate::tls::server::{ServerTls, failures};

/// Settings of a service's listeners.
#[derive(Debug, Clone, Default)]
pub struct ListenerSettings {
    /// Files of the certificate and of its key, if the service has one.
    certificate: Option<(PathBuf, PathBuf)>,
    is_plaintext_allowed: bool,
    /// All files with certificates that this service uses, as a server or a client.
    certificate_files: CertificateFiles,
}

impl ListenerSettings {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        // `TLS_CERT_FILE`: PEM file with the certificate of this service's listeners, followed by those of intermediate
        // authorities; read again when it changes. With it, the public and internal listeners use TLS, and so does the
        // admin listener unless its address is on loopback. Default: no TLS.
        let certificate: Option<PathBuf> = env.optional("TLS_CERT_FILE")?;
        // `TLS_KEY_FILE`: PEM file with the private key of that certificate; read again when it changes.
        let key: Option<PathBuf> = env.optional("TLS_KEY_FILE")?;
        // `PLAINTEXT`: `allowed` lets listeners beyond loopback serve without TLS, for networks that encrypt by
        // themselves. Default: such listeners are refused.
        let plaintext: Option<Allowed> = env.optional("PLAINTEXT")?;
        let certificate = if certificate.is_some() || key.is_some() {
            let certificate = env.needed("TLS_CERT_FILE", certificate, "the certificate of TLS_KEY_FILE")?;
            certificate.zip(env.needed("TLS_KEY_FILE", key, "the key of TLS_CERT_FILE")?)
        } else {
            None
        };
        let certificate_files = CertificateFiles::from_env(env);
        Ok(Self { certificate, is_plaintext_allowed: plaintext.is_some(), certificate_files })
    }

    /// Returns whether the listeners for clients and peers serve TLS.
    pub fn has_tls(&self) -> bool {
        self.certificate.is_some()
    }

    /// Returns why nothing may listen on `addr`.
    pub(crate) fn refusal(&self, addr: SocketAddr) -> Option<String> {
        let is_refused = !self.has_tls() && !self.is_plaintext_allowed && !is_local(addr);
        is_refused.then(|| refusal(addr))
    }
}

fn is_local(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

fn refusal(addr: SocketAddr) -> String {
    format!(
        "other machines can reach {addr}, and it would be served in plain text: set TLS_CERT_FILE and TLS_KEY_FILE, or \
         listen on loopback, or set PLAINTEXT=allowed if the network encrypts by itself"
    )
}

/// The only value of `PLAINTEXT`.
struct Allowed;

impl FromStr for Allowed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "allowed" { Ok(Self) } else { Err("the only value is `allowed`") }
    }
}

/// Binds the listeners of one service.
#[derive(Debug)]
pub struct Listeners {
    tls: Option<ServerTls>,
    is_plaintext_allowed: bool,
}

/// A bound listener, with the TLS that it serves.
#[derive(Debug)]
pub struct Listener {
    pub(crate) tcp: TcpListener,
    pub(crate) tls: Option<ServerTls>,
}

/// Kind of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Service,
    Admin,
}

impl Listeners {
    /// Reads the certificate, if there is one.
    ///
    /// # Errors
    /// [`Misuse`] if it cannot be used.
    pub fn new(settings: &ListenerSettings, telemetry: &Telemetry) -> Result<Self, Misuse> {
        let server = |(certificate, key): &(PathBuf, PathBuf)| ServerTls::new(certificate, key, telemetry);
        let tls = settings.certificate.as_ref().map(server).transpose().map_err(Misuse::new)?;
        if tls.is_none() {
            failures(telemetry);
        }
        settings.certificate_files.observe(telemetry);
        Ok(Self { tls, is_plaintext_allowed: settings.is_plaintext_allowed })
    }

    /// Returns the scheme of the service's URLs.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Listens on `addr` for clients or peers; port 0 takes any free one.
    ///
    /// # Errors
    /// [`Misuse`] if the address is beyond loopback and there is neither TLS nor permission to do without.
    pub fn bind(&self, addr: SocketAddr) -> anyhow::Result<Listener> {
        let tls = self.tls_at(addr, Kind::Service)?;
        let tcp = http::bind(addr).with_context(|| format!("listen on {addr}"))?;
        Ok(Listener { tcp, tls })
    }

    /// Returns the TLS of an admin listener on `addr`. On loopback it has none: probes there need no certificate.
    pub(crate) fn tls_of_admin(&self, addr: SocketAddr) -> Result<Option<ServerTls>, Misuse> {
        self.tls_at(addr, Kind::Admin)
    }

    fn tls_at(&self, addr: SocketAddr, kind: Kind) -> Result<Option<ServerTls>, Misuse> {
        let is_local = is_local(addr);
        match &self.tls {
            Some(tls) => Ok((kind == Kind::Service || !is_local).then(|| tls.clone())),
            None if is_local || self.is_plaintext_allowed => Ok(None),
            None => Err(Misuse::new(refusal(addr))),
        }
    }
}

impl Listener {
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// Returns a listener without TLS.
impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(settings: &[(&str, &str)]) -> Listeners {
        let env: Env = settings.iter().copied().collect();
        let telemetry = Telemetry::new("test").unwrap();
        Listeners::new(&ListenerSettings::from_env(&env).unwrap(), &telemetry).unwrap()
    }

    #[test]
    fn beyond_loopback_plain_text_needs_a_word() {
        let (plain, allowed) = (listeners(&[]), listeners(&[("PLAINTEXT", "allowed")]));
        for address in ["127.0.0.1:0", "127.8.8.8:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            assert!(plain.tls_at(address.parse().unwrap(), Kind::Service).unwrap().is_none(), "{address}");
        }
        for address in ["0.0.0.0:0", "[::]:0", "10.0.0.1:0", "[::ffff:10.0.0.1]:0"] {
            for kind in [Kind::Service, Kind::Admin] {
                let refused = plain.tls_at(address.parse().unwrap(), kind).unwrap_err().to_string();
                assert!(refused.contains(address) && refused.contains("TLS_CERT_FILE"), "{refused}");
                assert!(allowed.tls_at(address.parse().unwrap(), kind).unwrap().is_none());
            }
        }
    }

    #[test]
    fn half_a_certificate_and_other_words_are_refused() {
        for (name, value, told) in [
            ("TLS_CERT_FILE", "c.pem", "TLS_KEY_FILE must be set"),
            ("TLS_KEY_FILE", "c.key", "TLS_CERT_FILE must be set"),
            ("PLAINTEXT", "yes", "PLAINTEXT is set but invalid"),
        ] {
            let error = ListenerSettings::from_env(&Env::from([(name, value)])).unwrap_err().to_string();
            assert!(error.starts_with(told), "{error}");
        }
    }
}
