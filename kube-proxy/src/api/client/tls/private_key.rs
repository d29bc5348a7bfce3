//! A client's certificate and private key, in every form that openssl, kubeadm and others write.

use anyhow::Context as _;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer},
    sign::CertifiedKey,
};

use super::{authority::blocks, certificate::Certificate, curve};

/// Both may stand in one text, in any order.
pub(in super::super) fn certified(certificate: &[u8], key: &[u8]) -> anyhow::Result<CertifiedKey> {
    let chain: Vec<CertificateDer<'static>> = blocks(certificate)
        .into_iter()
        .filter(|block| block.tag() == "CERTIFICATE")
        .map(|block| CertificateDer::from(block.into_contents()))
        .collect();
    let first = chain.first().context("the client certificate has no CERTIFICATE block")?;
    let first =
        Certificate::parse(first).map_err(|reason| anyhow::anyhow!("the client certificate {reason}"))?;
    let block = blocks(key).into_iter().find(|block| block.tag().ends_with("PRIVATE KEY"));
    let block = block.context("the client key has no PRIVATE KEY block")?;
    let encrypted = block.tag().contains("ENCRYPTED") || block.headers().get("DEK-Info").is_some();
    anyhow::ensure!(!encrypted, "the client key is encrypted, and nobody is here to type the pass phrase");
    let key = block.into_contents();
    // The label does not always tell the form.
    let forms: [PrivateKeyDer<'static>; 3] = [
        PrivatePkcs8KeyDer::from(key.clone()).into(),
        PrivatePkcs1KeyDer::from(key.clone()).into(),
        PrivateSec1KeyDer::from(key).into(),
    ];
    let provider = curve::provider();
    let key = forms.into_iter().find_map(|form| provider.key_provider.load_private_key(form).ok());
    let key = key.context(
        "the client key is of no kind that is accepted (RSA of 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, Ed25519)",
    )?;
    if let Some(public) = key.public_key() {
        anyhow::ensure!(
            public.as_ref() == first.parsed.public_key().raw,
            "the client key does not belong to the client certificate ({})",
            first.subject()
        );
    }
    Ok(CertifiedKey::new(chain, key))
}
