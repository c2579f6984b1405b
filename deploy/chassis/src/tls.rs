//! TLS of our clients and servers: rustls with one provider, `ring`, given explicitly. OpenSSL serves librdkafka alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};

/// Certificates or a key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the certificates in {} cannot be read", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{} contains no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("a certificate cannot be used")]
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
pub fn client(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    ca_file.map_or_else(of_system, authorities).map(trusting)
}

/// Returns the configuration of a client that trusts nobody, for libraries that want one even if every URL is plain.
pub fn trusting_nobody() -> Arc<ClientConfig> {
    trusting(RootCertStore::empty())
}

fn trusting(roots: RootCertStore) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites for the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
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
