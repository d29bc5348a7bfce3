//! TLS to the API server, with the certificates, keys, curves and versions that Kubernetes' own programs accept.
//!
//! rustls speaks the protocol and aws-lc does the mathematics. Which certificates are believed is decided by
//! `verifier`, by the rules of Go's crypto/x509, because a cluster's certificates were made to please those.

use std::sync::Arc;

use rustls::{ClientConfig, client::Resumption};

pub(super) mod authority;
mod certificate;
mod curve;
pub(super) mod explain;
mod names;
mod path;
pub(super) mod private_key;
mod verifier;

#[cfg(test)]
pub(super) mod tests;

use super::identity::Identity;
use authority::Authority;
use verifier::Verifier;

/// Whom to believe.
#[derive(Debug, Clone)]
pub(super) enum Trust {
    /// Whoever the authority vouches for.
    Authority(Arc<Authority>),
    /// Anybody: `insecure-skip-tls-verify`.
    Anybody,
}

/// Everything that a handshake needs to know.
pub(super) fn config(trust: Trust, identity: &Arc<Identity>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(curve::provider());
    let authority = match trust {
        Trust::Authority(authority) => Some(authority),
        Trust::Anybody => None,
    };
    let verifier = Arc::new(Verifier::new(authority, provider.signature_verification_algorithms));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::clone(identity) as Arc<_>);
    // A resumed session is that of the certificates it began with, on both sides. There are few connections, and they
    // last; so each one looks at the certificates anew.
    config.resumption = Resumption::disabled();
    Ok(config)
}
