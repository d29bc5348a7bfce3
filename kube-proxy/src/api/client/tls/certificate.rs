//! What a certificate says, as far as the way to an authority depends on it.

use std::net::IpAddr;

use rustls::pki_types::{InvalidSignature, SignatureVerificationAlgorithm};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{OID_X509_EXT_CERTIFICATE_POLICIES, OID_X509_EXT_CRL_DISTRIBUTION_POINTS, Oid},
    prelude::{AlgorithmIdentifier, FromDer},
};

use super::names;

/// One certificate, with what it says about names picked out.
pub(super) struct Certificate<'a> {
    pub(super) der: &'a [u8],
    pub(super) parsed: X509Certificate<'a>,
    pub(super) dns: Vec<String>,
    pub(super) ips: Vec<IpAddr>,
    /// Mail addresses and URIs; no server is asked for by them, but an authority may be limited in them.
    pub(super) other_names: bool,
    /// The whole extension with the names.
    pub(super) names_raw: Option<Vec<u8>>,
    /// The authority's own limits, where it has any.
    pub(super) limits: Option<names::Limits>,
    /// A critical extension that nobody here understands.
    pub(super) unknown_critical: Option<String>,
}

/// What basic constraints say.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Basic {
    pub(super) present: bool,
    pub(super) authority: bool,
    pub(super) longest: Option<u32>,
}

impl<'a> Certificate<'a> {
    /// The error is in words that fit behind "the certificate".
    pub(super) fn parse(der: &'a [u8]) -> Result<Self, String> {
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|error| format!("cannot be read ({error})"))?;
        if !rest.is_empty() {
            return Err(format!("is followed by {} bytes of something else", rest.len()));
        }
        let mut certificate = Self {
            der,
            parsed,
            dns: Vec::new(),
            ips: Vec::new(),
            other_names: false,
            names_raw: None,
            limits: None,
            unknown_critical: None,
        };
        certificate.read_extensions()?;
        Ok(certificate)
    }

    fn read_extensions(&mut self) -> Result<(), String> {
        let mut seen: Vec<Oid<'_>> = Vec::new();
        for extension in self.parsed.extensions() {
            if seen.contains(&extension.oid) {
                return Err(format!("has the extension {} twice", extension.oid));
            }
            seen.push(extension.oid.clone());
            let mut known = true;
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    self.names_raw = Some(extension.value.to_vec());
                    for name in &names.general_names {
                        match name {
                            GeneralName::DNSName(name) => self.dns.push((*name).to_owned()),
                            GeneralName::IPAddress(bytes) => self.ips.push(address(bytes)?),
                            GeneralName::RFC822Name(_) | GeneralName::URI(_) => self.other_names = true,
                            _ => {}
                        }
                    }
                }
                ParsedExtension::NameConstraints(limits) => {
                    let limits = names::Limits::read(limits)?;
                    known = limits.understood;
                    self.limits = Some(limits);
                }
                ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::ExtendedKeyUsage(_) => {}
                // They say nothing that would make a server another one.
                _ => {
                    known = extension.oid == OID_X509_EXT_CERTIFICATE_POLICIES
                        || extension.oid == OID_X509_EXT_CRL_DISTRIBUTION_POINTS;
                }
            }
            if let ParsedExtension::ParseError { error } = extension.parsed_extension() {
                return Err(format!("has the extension {} that cannot be read ({error})", extension.oid));
            }
            if extension.critical && !known {
                self.unknown_critical.get_or_insert_with(|| extension.oid.to_string());
            }
        }
        Ok(())
    }

    pub(super) fn subject(&self) -> String {
        let text = self.parsed.subject().to_string();
        if text.is_empty() { format!("serial number {}", self.parsed.raw_serial_as_string()) } else { text }
    }

    pub(super) fn issuer(&self) -> String {
        self.parsed.issuer().to_string()
    }

    pub(super) fn basic(&self) -> Basic {
        let found = self.parsed.basic_constraints().ok().flatten();
        found.map_or_else(Basic::default, |found| Basic {
            present: true,
            authority: found.value.ca,
            longest: found.value.path_len_constraint,
        })
    }

    /// The same subject, key and names: another certificate of the same party.
    pub(super) fn same_party(&self, other: &Self) -> bool {
        self.parsed.subject().as_raw() == other.parsed.subject().as_raw()
            && self.parsed.public_key().raw == other.parsed.public_key().raw
            && self.names_raw == other.names_raw
    }

    /// Whether `issuer`'s key made this certificate's signature.
    pub(super) fn signed_by(
        &self,
        issuer: &Self,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), String> {
        let signature = identifier(&self.parsed.signature_algorithm);
        // Both places must say the same (RFC 5280, 4.1.1.2).
        if identifier(&self.parsed.tbs_certificate.signature) != signature {
            return Err("names two different signature algorithms".to_owned());
        }
        let (key_kind, key) = issuer.key();
        let fitting = algorithms
            .iter()
            .filter(|one| *one.signature_alg_id() == *signature && *one.public_key_alg_id() == *key_kind);
        let mut tried = false;
        for algorithm in fitting {
            tried = true;
            let signed = self.parsed.tbs_certificate.as_ref();
            if algorithm.verify_signature(key, signed, &self.parsed.signature_value.data).is_ok() {
                return Ok(());
            }
        }
        Err(if tried {
            format!("has a signature that the key of {} did not make{}", issuer.subject(), issuer.small_key())
        } else {
            format!(
                "is signed with the algorithm {} by a key of kind {}, which is not accepted (RSA of 2048 to 8192 bits, \
                 ECDSA with P-256, P-384 or P-521, or Ed25519, with SHA-256 or better)",
                self.parsed.signature_algorithm.algorithm,
                issuer.parsed.public_key().algorithm.algorithm
            )
        })
    }

    /// Why an RSA key may be refused.
    pub(super) fn small_key(&self) -> String {
        match self.parsed.public_key().parsed() {
            Ok(x509_parser::public_key::PublicKey::RSA(key)) if key.key_size() < 2048 => {
                format!(" (its RSA key has {} bits; 2048 are the least that is accepted)", key.key_size())
            }
            _ => String::new(),
        }
    }

    /// The kind of the public key, and the key.
    pub(super) fn key(&self) -> (Vec<u8>, &[u8]) {
        let key = self.parsed.public_key();
        (identifier(&key.algorithm), &key.subject_public_key.data)
    }

    /// A signature of the handshake.
    pub(super) fn check(
        &self,
        algorithm: &dyn SignatureVerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Option<Result<(), InvalidSignature>> {
        let (kind, key) = self.key();
        (*algorithm.public_key_alg_id() == *kind).then(|| algorithm.verify_signature(key, message, signature))
    }
}

/// The content of an AlgorithmIdentifier (RFC 5280, 4.1.1.2), without its outer header.
fn identifier(algorithm: &AlgorithmIdentifier<'_>) -> Vec<u8> {
    let oid = algorithm.algorithm.as_bytes();
    let mut bytes = vec![6, u8::try_from(oid.len()).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(oid);
    if let Some(parameters) = &algorithm.parameters {
        bytes.extend(x509_parser::asn1_rs::ToDer::to_der_vec(parameters).unwrap_or_default());
    }
    bytes
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    let v6 = <[u8; 16]>::try_from(bytes);
    v6.map(IpAddr::from).map_err(|_| format!("has an IP address of {} bytes", bytes.len()))
}
