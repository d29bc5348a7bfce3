//! TLS as a kube-apiserver speaks it: HTTP/2 or HTTP/1.1 by ALPN, client certificates that one authority signed, and a
//! server certificate that may be replaced while it runs.

use std::fs;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::certificates::{Authority, Certified};

/// What the server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// HTTP/2 where the client offers it, as a kube-apiserver.
    Http2,
    /// HTTP/1.1 only, as some proxies in front of one.
    Http1,
}

/// How a server shows who it is, and whom it knows. Clones share what they say.
#[derive(Debug, Clone)]
pub struct Security {
    dialect: Dialect,
    /// Signs clients.
    clients: Arc<RootCertStore>,
    shown: Arc<RwLock<Arc<ServerConfig>>>,
}

impl Security {
    /// `clients` has signed the clients that are known; one without a certificate may come too.
    pub fn new(dialect: Dialect, shown: &Certified, clients: &Authority) -> io::Result<Self> {
        let mut known = RootCertStore::empty();
        for certificate in certificates(&clients.own)? {
            known.add(certificate).map_err(io::Error::other)?;
        }
        let clients = Arc::new(known);
        let shown = Arc::new(RwLock::new(config(dialect, shown, &clients)?));
        Ok(Self { dialect, clients, shown })
    }

    /// Connections from now on meet another certificate.
    pub fn show(&self, shown: &Certified) -> io::Result<()> {
        let config = config(self.dialect, shown, &self.clients)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn certificates(of: &Certified) -> io::Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(&of.certificate)?;
    CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(io::Error::other)
}

fn config(
    dialect: Dialect,
    shown: &Certified,
    clients: &Arc<RootCertStore>,
) -> io::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(clients), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(&shown.key).map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(shown)?, key)
        .map_err(io::Error::other)?;
    let protocols: &[&[u8]] = match dialect {
        Dialect::Http2 => &[b"h2", b"http/1.1"],
        Dialect::Http1 => &[b"http/1.1"],
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}
