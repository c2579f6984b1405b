//! TLS of a service's listeners, with a certificate that may be replaced while they serve.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use opentelemetry::metrics::Counter;
use rustls::ServerConfig;
use rustls::crypto::ring::{Ticketer, sign};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{TlsError, certificates, provider};
use crate::telemetry::{Telemetry, with_causes};

/// Time limit for a handshake, in which a client costs memory and has proved nothing.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Interval between reads of the files.
const READ_EVERY: Duration = Duration::from_secs(2);

/// TLS 1.3 and 1.2 of a service's listeners. Clones share the certificate.
#[derive(Clone)]
pub(crate) struct ServerTls {
    acceptor: TlsAcceptor,
    certificate: Arc<Certificate>,
    failed: Counter<u64>,
}

impl ServerTls {
    /// Reads the certificate, with those of intermediate authorities, and its key.
    pub(crate) fn new(certificate: &Path, key: &Path, telemetry: &Telemetry) -> Result<Self, TlsError> {
        let certificate = Arc::new(Certificate::read(certificate, key)?);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites for the default versions")
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // The edge opens many connections, and resumes its session in all of them.
        config.ticketer = Ticketer::new().map_err(TlsError::Certificate)?;
        let failed = failures(telemetry);
        Ok(Self { acceptor: Arc::new(config).into(), certificate, failed })
    }

    /// Performs the handshake.
    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shaken = tokio::time::timeout(HANDSHAKE_WITHIN, self.acceptor.accept(stream)).await;
        let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if shaken.is_err() {
            self.failed.add(1, &[]);
        }
        shaken
    }

    /// Replaces the certificate whenever its files have changed. Never returns.
    pub(crate) async fn follow_files(&self) {
        loop {
            tokio::time::sleep(READ_EVERY).await;
            let certificate = self.certificate.clone();
            // A read that panicked changes nothing.
            let _read = tokio::task::spawn_blocking(move || certificate.refresh()).await;
        }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.certificate).finish()
    }
}

/// Creates the counter of handshakes that failed.
pub(crate) fn failures(telemetry: &Telemetry) -> Counter<u64> {
    telemetry.counter("stampede_tls_handshakes_failed", &[], "TLS handshakes of clients that failed or timed out.")
}

/// A certificate and its key, as last read from two files.
struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
    /// Content of the files when last read, usable or not.
    seen: Mutex<Content>,
}

/// Content of the two files; `None` if one cannot be read.
type Content = Option<(Vec<u8>, Vec<u8>)>;

impl Certificate {
    fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let seen = Mutex::new(content(certificate, key));
        let current = RwLock::new(Arc::new(certified(certificate, key)?));
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), current, seen })
    }

    /// Reads the files again if they have changed. Files that cannot be used are logged once, and the certificate stays:
    /// one of the two may have been replaced a moment before the other.
    fn refresh(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = content(&self.certificate, &self.key);
        if now == *seen {
            return;
        }
        *seen = now;
        let file = self.certificate.display();
        match certified(&self.certificate, &self.key) {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                tracing::info!(tls.certificate = %file, "certificate replaced");
            }
            Err(error) => {
                let error = with_causes(&error);
                tracing::error!(
                    tls.certificate = %file,
                    error,
                    "the new certificate or key cannot be used; the old certificate is still presented"
                );
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificate").field(&self.certificate).finish()
    }
}

fn content(certificate: &Path, key: &Path) -> Content {
    Some((std::fs::read(certificate).ok()?, std::fs::read(key).ok()?))
}

fn certified(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate)?;
    let unreadable = |source| TlsError::Key { path: key.to_owned(), source };
    let private = sign::any_supported_type(&PrivateKeyDer::from_pem_file(key).map_err(unreadable)?);
    let certified = CertifiedKey::new(chain, private.map_err(TlsError::Certificate)?);
    // A key whose certificate is another one would fail every handshake.
    certified.keys_match().map_err(TlsError::Certificate)?;
    Ok(certified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Files;

    #[test]
    fn a_replaced_certificate_is_used_and_an_unusable_one_is_not() {
        let files = Files::new("replaced");
        let certificate = Certificate::read(&files.certificate, &files.key).unwrap();
        let presented = || certificate.current.read().unwrap().clone();
        let first = presented();
        certificate.refresh();
        assert!(Arc::ptr_eq(&presented(), &first), "nothing has changed");
        files.renew();
        certificate.refresh();
        let second = presented();
        assert_ne!(second.cert, first.cert);
        let good = std::fs::read(&files.key).unwrap();
        let other = Files::new("other");
        for broken in [b"".to_vec(), b"no key".to_vec(), std::fs::read(&other.key).unwrap()] {
            std::fs::write(&files.key, broken).unwrap();
            certificate.refresh();
            assert!(Arc::ptr_eq(&presented(), &second));
        }
        std::fs::remove_file(&files.certificate).unwrap();
        certificate.refresh();
        assert!(Arc::ptr_eq(&presented(), &second));
        files.renew();
        certificate.refresh();
        assert_ne!(presented().cert, second.cert);
        std::fs::write(&files.key, good).unwrap();
        assert!(
            Certificate::read(&files.certificate, &files.key).is_err(),
            "the key is that of an earlier certificate"
        );
    }
}
