//! TLS of the clients of a secured stack.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use stack::up::Address;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use ureq::config::ConfigBuilder;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;

/// A connection, plain or by TLS.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire for S {}

/// A server of the crowd: its address, and its TLS if it has any.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Server {
    /// Returns a server that is addressed directly or through the edge, as `authority` trusts it.
    pub(crate) fn new(address: SocketAddr, authority: Option<&Path>) -> Result<Self> {
        Ok(Self { address, tls: authority.map(connector).transpose()? })
    }

    pub(crate) async fn connect(&self) -> Result<Box<dyn Wire>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        Ok(Box::new(tls.connect(ServerName::from(self.address.ip()), stream).await?))
    }
}

/// Adds the authority of a secured stack to the configuration of a client.
pub(crate) fn trusting(config: ConfigBuilder<AgentScope>, address: &Address) -> Result<ConfigBuilder<AgentScope>> {
    let Some(authority) = &address.authority else { return Ok(config) };
    let trusted = authorities(authority)?;
    let trusted: Vec<_> = trusted.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider());
    Ok(config.tls_config(tls.root_certs(RootCerts::new_with_certs(&trusted)).build()))
}

fn connector(authority: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    authorities(authority)?.into_iter().try_for_each(|certificate| roots.add(certificate))?;
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()).into())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Returns the certificates of a file: while an authority is replaced, it has the one before as well.
fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    read().with_context(|| format!("cannot read the certificates in {}", path.display()))
}
