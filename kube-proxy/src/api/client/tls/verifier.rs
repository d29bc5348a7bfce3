//! What rustls asks about a server's certificate, answered.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, PeerMisbehaved, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{
    authority::Authority,
    certificate::Certificate,
    path::{self, Host, Refusal, Rules},
};

/// Believes those whom an authority vouches for, if they have the key of the certificate that they show.
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None`: nobody needs to be vouched for.
    authority: Option<Arc<Authority>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(authority: Option<Arc<Authority>>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { authority, algorithms }
    }
}

fn refused(refusal: Refusal) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<Certificate<'a>, Error> {
    Certificate::parse(der).map_err(|reason| refused(Refusal(format!("the certificate {reason}"))))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        let server = parse(server)?;
        // One that nobody can read leads nowhere; another may.
        let between: Vec<_> = between.iter().filter_map(|der| Certificate::parse(der).ok()).collect();
        let host = match name {
            ServerName::DnsName(name) => Host::Name(name.as_ref()),
            ServerName::IpAddress(ip) => Host::Ip((*ip).into()),
            _ => return Err(Error::UnsupportedNameType),
        };
        let authority = authority.certificates();
        let roots: Vec<_> = authority.iter().filter_map(|der| Certificate::parse(der).ok()).collect();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let rules = Rules { roots: &roots, algorithms: self.algorithms.all, now };
        path::verify(&server, &between, host, &rules).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature(&self.algorithms, message, server, signed, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature(&self.algorithms, message, server, signed, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether the server has the key of the certificate that it shows. The certificate was looked at before: only its key
/// counts here.
fn signature(
    algorithms: &WebPkiSupportedAlgorithms,
    message: &[u8],
    server: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    tls13: bool,
) -> Result<HandshakeSignatureValid, Error> {
    use SignatureScheme::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512};
    let of_scheme = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
    let of_scheme = of_scheme.map(|(_, possible)| *possible).filter(|_| {
        // They sign certificates only (RFC 8446, 4.2.3).
        !(tls13 && matches!(signed.scheme, RSA_PKCS1_SHA256 | RSA_PKCS1_SHA384 | RSA_PKCS1_SHA512))
    });
    let of_scheme = of_scheme.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    // Up to 1.2 a scheme does not fix the curve; from 1.3 on it does, and the first of the list is the one.
    let of_scheme = if tls13 { &of_scheme[..of_scheme.len().min(1)] } else { of_scheme };
    let server = parse(server)?;
    for algorithm in of_scheme {
        if let Some(verdict) = server.check(*algorithm, message, signed.signature()) {
            let hint = server.small_key();
            return match verdict {
                Ok(()) => Ok(HandshakeSignatureValid::assertion()),
                Err(_) if hint.is_empty() => Err(CertificateError::BadSignature.into()),
                Err(_) => Err(refused(Refusal(format!("the server's key is too small{hint}")))),
            };
        }
    }
    Err(refused(Refusal(format!(
        "its key ({}) is of a kind that is not accepted (RSA of 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, Ed25519)",
        server.parsed.public_key().algorithm.algorithm
    ))))
}
