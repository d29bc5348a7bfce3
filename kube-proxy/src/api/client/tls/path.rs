//! The way from a server's certificate to an authority, as Go's crypto/x509 looks for it.
//!
//! The rules are RFC 5280's (6.1) where both agree. Go is more generous in three things that clusters depend on: what the
//! server shows may itself be an authority's certificate (`openssl req -x509` makes such ones), it may be in the authority
//! file itself, and a certificate without a purpose has every purpose. It is stricter in that an authority's own
//! certificate must be valid as well.

use std::{fmt, net::IpAddr};

use rustls::pki_types::SignatureVerificationAlgorithm;

use super::{certificate::Certificate, names};

/// A server that shows a maze of certificates is not followed for ever.
const MOST_SIGNATURES: u32 = 100;

/// Who was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Host<'a> {
    Name(&'a str),
    Ip(IpAddr),
}

/// What to decide by.
pub(super) struct Rules<'a> {
    pub(super) roots: &'a [Certificate<'a>],
    pub(super) algorithms: &'a [&'static dyn SignatureVerificationAlgorithm],
    /// Seconds since 1970.
    pub(super) now: i64,
}

/// Why a certificate is not believed, for whoever has to change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String);

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(text.into()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Server,
    Between,
    Root,
}

struct Search<'a> {
    rules: &'a Rules<'a>,
    between: &'a [Certificate<'a>],
    signatures: u32,
    /// Why the way that looked best did not lead there.
    reason: Option<Refusal>,
}

/// Whether the server may be believed to be the one that was asked for.
pub(super) fn verify(
    server: &Certificate<'_>,
    between: &[Certificate<'_>],
    host: Host<'_>,
    rules: &Rules<'_>,
) -> Result<(), Refusal> {
    valid(server, Place::Server, &[], rules.now)?;
    is_for(server, host)?;
    let mut chain = vec![server];
    if rules.roots.iter().any(|root| root.der == server.der) {
        return for_servers(&chain);
    }
    let mut search = Search { rules, between, signatures: 0, reason: None };
    if search.extend(&mut chain)? {
        return Ok(());
    }
    let reason = search.reason.map(|reason| format!("; the nearest: {reason}")).unwrap_or_default();
    refuse(format!(
        "it is signed by an authority that is not known here: no certificate of the authority file leads from it ({}) to its \
         issuer ({}). Either the authority in the kubeconfig or the service account is not the one that signed it, or the \
         server does not send a certificate in between{reason}",
        server.subject(),
        server.issuer(),
    ))
}

impl<'a> Search<'a> {
    /// Tries every possible issuer of the last certificate. `Ok(false)`: none leads to an authority.
    fn extend(&mut self, chain: &mut Vec<&'a Certificate<'a>>) -> Result<bool, Refusal>
    where
        'a: 'a,
    {
        let last = chain[chain.len() - 1];
        let roots = self.rules.roots.iter().map(|root| (root, Place::Root));
        let between = self.between.iter().map(|one| (one, Place::Between));
        for (issuer, place) in roots.chain(between) {
            if issuer.parsed.subject().as_raw() != last.parsed.issuer().as_raw()
                || chain.iter().any(|one| one.same_party(issuer))
            {
                continue;
            }
            self.signatures += 1;
            if self.signatures > MOST_SIGNATURES {
                return refuse("the server shows too many certificates to find the way to an authority");
            }
            match self.step(chain, issuer, place) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(refusal) => {
                    self.reason.get_or_insert(refusal);
                }
            }
        }
        Ok(false)
    }

    fn step(
        &mut self,
        chain: &mut Vec<&'a Certificate<'a>>,
        issuer: &'a Certificate<'a>,
        place: Place,
    ) -> Result<bool, Refusal> {
        let last = chain[chain.len() - 1];
        may_sign(issuer)?;
        let signed = last.signed_by(issuer, self.rules.algorithms);
        signed.map_err(|reason| Refusal(format!("the certificate of {} {reason}", last.subject())))?;
        valid(issuer, place, chain, self.rules.now)?;
        chain.push(issuer);
        let found = match place {
            Place::Root => for_servers(chain).map(|()| true),
            _ => self.extend(chain),
        };
        chain.pop();
        found
    }
}

/// Whether a certificate may sign others at all.
fn may_sign(issuer: &Certificate<'_>) -> Result<(), Refusal> {
    let basic = issuer.basic();
    // Version 1 knows no basic constraints; only an authority that is trusted anyway can have it.
    if (issuer.parsed.version.0 == 2 && !basic.present) || (basic.present && !basic.authority) {
        return refuse(format!(
            "the certificate of {} is not an authority's (basicConstraints)",
            issuer.subject()
        ));
    }
    match issuer.parsed.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => {
            refuse(format!("the key of {} may not sign certificates (keyUsage)", issuer.subject()))
        }
        _ => Ok(()),
    }
}

fn valid(one: &Certificate<'_>, place: Place, chain: &[&Certificate<'_>], now: i64) -> Result<(), Refusal> {
    if let Some(extension) = &one.unknown_critical {
        return refuse(format!(
            "the certificate of {} has the critical extension {extension}, which is not understood here",
            one.subject()
        ));
    }
    let validity = one.parsed.validity();
    if now < validity.not_before.timestamp() {
        return refuse(format!(
            "the certificate of {} is valid from {} on, and the clock of this node says {}: is one of the two wrong?",
            one.subject(),
            text(validity.not_before.timestamp()),
            text(now)
        ));
    }
    if now > validity.not_after.timestamp() {
        return refuse(format!(
            "the certificate of {} expired at {} (the clock of this node says {}): it must be renewed",
            one.subject(),
            text(validity.not_after.timestamp()),
            text(now)
        ));
    }
    if place == Place::Server {
        return Ok(());
    }
    if let Some(limits) = &one.limits {
        for name in chain {
            if let Some(reason) = limits.violated(&name.dns, &name.ips, name.other_names) {
                return refuse(format!(
                    "the authority {} may not speak for it (nameConstraints): {reason}",
                    one.subject()
                ));
            }
        }
    }
    let basic = one.basic();
    if place == Place::Between && !basic.authority {
        return refuse(format!(
            "the certificate of {} is not an authority's (basicConstraints)",
            one.subject()
        ));
    }
    if let Some(longest) = basic.longest
        && chain.len() - 1 > longest as usize
    {
        return refuse(format!(
            "the authority {} allows {longest} authorities below it, and there are {} (pathlen)",
            one.subject(),
            chain.len() - 1
        ));
    }
    Ok(())
}

/// A moment in words.
fn text(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| format!("second {seconds}"), |time| time.to_string())
}

fn is_for(server: &Certificate<'_>, host: Host<'_>) -> Result<(), Refusal> {
    let (found, asked) = match host {
        Host::Name(name) => (server.dns.iter().any(|pattern| names::matches(pattern, name)), name.to_owned()),
        Host::Ip(ip) => (server.ips.contains(&ip), ip.to_string()),
    };
    if found {
        return Ok(());
    }
    if server.dns.is_empty() && server.ips.is_empty() {
        return refuse(format!(
            "it has no subjectAltName, and the common name ({}) does not count: make it anew with {asked} in subjectAltName",
            server.subject()
        ));
    }
    let ips = server.ips.iter().map(ToString::to_string);
    let others: Vec<String> = server.dns.iter().cloned().chain(ips).take(20).collect();
    refuse(format!(
        "it is for {}, not for {asked}: ask for one of those (server), set tls-server-name in the kubeconfig to one of them, or \
         add {asked} to the certificate (kubeadm: apiServer.certSANs)",
        others.join(", ")
    ))
}

/// Every certificate of the chain that names purposes must name that of a server.
fn for_servers(chain: &[&Certificate<'_>]) -> Result<(), Refusal> {
    for one in chain {
        if let Ok(Some(purposes)) = one.parsed.extended_key_usage()
            && !(purposes.value.any || purposes.value.server_auth)
        {
            return refuse(format!(
                "the certificate of {} is not for servers (extendedKeyUsage without serverAuth)",
                one.subject()
            ));
        }
    }
    Ok(())
}
