//! TLS of our clients and servers: rustls with one provider, `ring`, given explicitly. OpenSSL serves librdkafka alone.

pub(crate) mod expiry;
pub(crate) mod server;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::env::{Env, EnvError};

/// Certificates or a key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the certificates in {} cannot be read", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("the private key in {} cannot be read", path.display())]
    Key { path: PathBuf, source: pem::Error },
    #[error("{} contains no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("a certificate or its key cannot be used")]
    Certificate(#[source] rustls::Error),
    #[error("this system has no certificates of authorities: name a file with TLS_CA_FILE")]
    NoSystemRoots,
}

/// Returns the configuration of a client that trusts the authorities in the PEM file `ca_file`, or without one those of
/// the system. The server must be named by its certificate.
///
/// The file is read once: to replace an authority, add the new one to the file, restart, and remove the old one later.
///
/// # Errors
/// [`TlsError`] if the file cannot be read or has no certificate, or the system has none.
pub fn client(ca_file: Option<&Path>) -> Result<ClientTls, TlsError> {
    ca_file.map_or_else(of_system, authorities).map(trusting)
}

/// Returns the configuration of a client that trusts nobody, for libraries that want one even if every URL is plain.
pub fn trusting_nobody() -> ClientTls {
    trusting(RootCertStore::empty())
}

fn trusting(roots: RootCertStore) -> ClientTls {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites for the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// Returns the file of the authorities that clients trust; `None` for those of the system.
pub fn ca_file(env: &Env) -> Result<Option<PathBuf>, EnvError> {
    // `TLS_CA_FILE`: PEM file with the certificates of the authorities that clients of other servers trust. Default: the
    // authorities of the system.
    env.optional("TLS_CA_FILE")
}

/// Configuration of a client. Clones share it, and the sessions that it resumes.
pub type ClientTls = Arc<ClientConfig>;

/// A connection to a server, plain or by TLS.
pub type Connection = Either<TcpStream, TlsStream<TcpStream>>;

/// Connects to a server, by TLS if there is a configuration. An IPv6 address is in brackets. The caller limits the time.
pub async fn connect(host: &str, port: u16, config: Option<&ClientTls>) -> io::Result<Connection> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let Some(config) = config else { return Ok(Either::Left(stream)) };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(Either::Right(TlsConnector::from(config.clone()).connect(name, stream).await?))
}

/// Returns the one provider of cryptography.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(TlsError::Certificate)?;
    }
    Ok(roots)
}

/// Reads all certificates of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Pem { path: path.to_owned(), source };
    let read = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let certificates = read.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

fn of_system() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // Some systems keep certificates that rustls does not support: one of them does not spoil the others.
    let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if usable == 0 { Err(TlsError::NoSystemRoots) } else { Ok(roots) }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::path::PathBuf;
    use std::process::Command;

    /// Files of a certificate for loopback that is its own authority, and of its key. They are deleted when dropped.
    pub(crate) struct Files {
        pub(crate) certificate: PathBuf,
        pub(crate) key: PathBuf,
    }

    impl Files {
        pub(crate) fn new(name: &str) -> Self {
            let file = |ending| std::env::temp_dir().join(format!("stampede-{name}-{}.{ending}", std::process::id()));
            let files = Self { certificate: file("pem"), key: file("key") };
            files.renew();
            files
        }

        /// Replaces both files.
        pub(crate) fn renew(&self) {
            self.renew_for(2);
        }

        pub(crate) fn renew_for(&self, days: u32) {
            let mut openssl = Command::new("openssl");
            openssl.args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x".split(' '));
            openssl.arg("-days").arg(days.to_string());
            openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
            openssl.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
            let made = openssl.arg("-keyout").arg(&self.key).arg("-out").arg(&self.certificate).output().unwrap();
            assert!(made.status.success(), "{made:?}");
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = [&self.certificate, &self.key].map(std::fs::remove_file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_refused_and_named() {
        let path = std::env::temp_dir().join(format!("stampede-authorities-{}", std::process::id()));
        let error = |content: &str| {
            std::fs::write(&path, content).unwrap();
            client(Some(&path)).unwrap_err().to_string()
        };
        for content in ["", "no certificate", "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n"] {
            assert!(error(content).contains(path.to_str().unwrap()), "{content}");
        }
        // A section that is well-formed PEM, but no certificate.
        error("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(client(Some(&path)), Err(TlsError::Pem { .. })));
    }
}
