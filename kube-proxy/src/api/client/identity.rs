//! The certificate that this client shows, which changes while the process runs.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::config::AuthInfo;
use rustls::{SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};
use secrecy::ExposeSecret as _;

use super::{stream::Connections, tls::private_key};

const INTERVAL: Duration = Duration::from_secs(30);

/// Asked for by every handshake.
#[derive(Debug, Default)]
pub(super) struct Identity(RwLock<Option<Arc<CertifiedKey>>>);

impl Identity {
    /// Whether it is another one now.
    pub(super) fn set(&self, new: Option<CertifiedKey>) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let chain = |key: &CertifiedKey| key.cert.clone();
        let differs = current.as_deref().map(chain) != new.as_ref().map(chain);
        *current = new.map(Arc::new);
        differs
    }

    fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.get()
    }

    fn has_certs(&self) -> bool {
        self.get().is_some()
    }
}

/// Where one half of it is.
#[derive(Debug)]
enum Source {
    Data(Vec<u8>),
    File(PathBuf),
}

impl Source {
    fn new(data: Option<&str>, file: Option<&String>, what: &str) -> anyhow::Result<Option<Self>> {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let decoded =
                STANDARD.decode(data.trim()).with_context(|| format!("{what}-data is not base64"))?;
            return Ok(Some(Self::Data(decoded)));
        }
        Ok(file.filter(|file| !file.is_empty()).map(|file| Self::File(file.into())))
    }

    fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Data(data) => Ok(data.clone()),
            Self::File(path) => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// A client certificate that a kubeconfig names, followed where it lives in files.
#[derive(Debug)]
pub(super) struct Followed {
    certificate: Source,
    key: Source,
    read: (Vec<u8>, Vec<u8>),
    identity: Arc<Identity>,
    connections: Connections,
}

impl Followed {
    /// `None`: the kubeconfig names none.
    pub(super) fn open(
        user: &AuthInfo,
        identity: &Arc<Identity>,
        connections: &Connections,
    ) -> anyhow::Result<Option<Self>> {
        let data = user.client_certificate_data.as_deref();
        let certificate = Source::new(data, user.client_certificate.as_ref(), "client-certificate")?;
        let data = user.client_key_data.as_ref().map(|data| data.expose_secret());
        let key = Source::new(data, user.client_key.as_ref(), "client-key")?;
        let (certificate, key) = match (certificate, key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => anyhow::bail!("client-certificate is given without client-key"),
            (None, Some(_)) => anyhow::bail!("client-key is given without client-certificate"),
        };
        let read = (certificate.read()?, key.read()?);
        identity.set(Some(private_key::certified(&read.0, &read.1)?));
        let (identity, connections) = (Arc::clone(identity), connections.clone());
        Ok(Some(Self { certificate, key, read, identity, connections }))
    }

    /// Uses what the files hold from now on, for ever. The two are not replaced in the same moment: what does not fit
    /// together is looked at again later.
    pub(super) async fn follow(mut self) {
        if !matches!((&self.certificate, &self.key), (Source::Data(_), Source::Data(_))) {
            let mut complained = None;
            loop {
                tokio::time::sleep(INTERVAL).await;
                let (Ok(certificate), Ok(key)) = (self.certificate.read(), self.key.read()) else { continue };
                let now = (certificate, key);
                if now == self.read || complained.as_ref() == Some(&now) {
                    continue;
                }
                match private_key::certified(&now.0, &now.1) {
                    Ok(key) => {
                        self.identity.set(Some(key));
                        self.read = now;
                        tracing::info!(
                            "The client certificate was renewed: the API server is asked with it from now on"
                        );
                        self.connections.renew();
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = %format!("{error:#}"),
                            "The client certificate or its key changed and cannot be used yet; the last ones stay in use"
                        );
                        complained = Some(now);
                    }
                }
            }
        }
        std::future::pending().await
    }
}
