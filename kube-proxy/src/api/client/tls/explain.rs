//! Why a connection failed, in words that say what to change.

use std::{error::Error as StdError, io};

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError, PeerIncompatible};

/// What is in common with no server that was told to be so strict, or so old.
const NOTHING_IN_COMMON: &str = "the API server has no cipher suite, curve or signature algorithm in common with this client, which \
    speaks TLS 1.3, and TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305 (no CBC suites, no RSA key exchange). At the API \
    server, or at what ends TLS in front of it, leave out --tls-cipher-suites or add TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 \
    (for an ECDSA certificate: TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256), or allow TLS 1.3";
const TOO_OLD: &str = "the API server speaks no TLS version that is accepted here (1.2 and 1.3). At the API server, or at what ends \
    TLS in front of it, raise the version (--tls-min-version=VersionTLS12 or VersionTLS13, or leave it out)";

/// An error of a connection, in better words where there are some.
pub(in super::super) fn explained(error: io::Error) -> io::Error {
    match words(&error) {
        Some(text) => io::Error::new(error.kind(), text),
        None => error,
    }
}

/// The same for what a connector says.
pub(in super::super) fn words(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut current = Some(error);
    while let Some(one) = current {
        if let Some(error) = one.downcast_ref::<Error>() {
            return Some(of_tls(error));
        }
        if let Some(error) = one.downcast_ref::<io::Error>() {
            // Its source is not what it wraps, but that one's source.
            if let Some(found) = error.get_ref().and_then(|inner| words(inner)) {
                return Some(found);
            }
            if error.kind() == io::ErrorKind::UnexpectedEof && error.to_string().contains("handshake") {
                return Some(
                    "the connection was closed during the TLS handshake: is there a proxy or load balancer in front of the API \
                     server that has nowhere to go, or is this no TLS port?"
                        .to_owned(),
                );
            }
        }
        current = one.source();
    }
    None
}

fn of_tls(error: &Error) -> String {
    use AlertDescription as Alert;
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => {
            format!("the API server's certificate is not accepted: {reason}")
        }
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "the API server does not have the key of the certificate that it shows".to_owned()
        }
        Error::InvalidCertificate(reason) => {
            format!("the API server's certificate is not accepted: {reason}")
        }
        Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13)
        | Error::AlertReceived(Alert::ProtocolVersion) => TOO_OLD.to_owned(),
        Error::PeerIncompatible(
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon,
        )
        | Error::AlertReceived(Alert::HandshakeFailure | Alert::InsufficientSecurity) => {
            NOTHING_IN_COMMON.to_owned()
        }
        Error::AlertReceived(Alert::UnrecognisedName) => {
            "the API server does not know the name that it was asked for: set \
            tls-server-name in the kubeconfig to a name of its certificate"
                .to_owned()
        }
        Error::AlertReceived(
            alert @ (Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError),
        ) => format!(
            "the API server does not accept this client's certificate (alert {alert:?}): look at client-certificate in the \
             kubeconfig, whether it has expired, and whether the server's --client-ca-file signed it"
        ),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the API server does not answer with TLS: is this its plain \
            HTTP port (then the address begins with http://), or another program's?"
                .to_owned()
        }
        Error::NoCertificatesPresented => "the API server shows no certificate".to_owned(),
        other => format!("TLS with the API server failed: {other}"),
    }
}
