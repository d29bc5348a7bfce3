//! Names: whether a certificate is for the server that was asked for, and whether its issuer may speak for such names.

use std::net::IpAddr;

use x509_parser::extensions::{GeneralName, GeneralSubtree, NameConstraints};

/// Whether one name of a certificate is the host's: a wildcard stands for the whole first label (RFC 6125, 6.4.3).
pub(super) fn matches(pattern: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let pattern = pattern.to_ascii_lowercase();
    if host.is_empty() || pattern.is_empty() {
        return false;
    }
    let (mut ours, mut theirs) = (host.split('.'), pattern.split('.'));
    let mut first = true;
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) => return true,
            (Some(our), Some(their)) => {
                let wildcard = first && their == "*";
                if !(our == their || wildcard && !our.is_empty()) {
                    return false;
                }
            }
            _ => return false,
        }
        first = false;
    }
}

/// The names that an authority may, and may not, speak for (RFC 5280, 4.2.1.10).
#[derive(Debug, Default)]
pub(super) struct Limits {
    permitted: Subtrees,
    excluded: Subtrees,
    /// `false`: there are limits of another kind as well.
    pub(super) understood: bool,
}

#[derive(Debug, Default)]
struct Subtrees {
    dns: Vec<String>,
    ips: Vec<(Vec<u8>, Vec<u8>)>,
    /// Mail addresses and URIs.
    others: bool,
}

impl Limits {
    pub(super) fn read(from: &NameConstraints<'_>) -> Result<Self, String> {
        let mut limits = Self { understood: true, ..Self::default() };
        let both = [
            (&from.permitted_subtrees, &mut limits.permitted),
            (&from.excluded_subtrees, &mut limits.excluded),
        ];
        for (subtrees, into) in both {
            for GeneralSubtree { base } in subtrees.iter().flatten() {
                match base {
                    GeneralName::DNSName(name) => into.dns.push(name.to_ascii_lowercase()),
                    GeneralName::IPAddress(bytes) if matches!(bytes.len(), 8 | 32) => {
                        let (address, mask) = bytes.split_at(bytes.len() / 2);
                        into.ips.push((address.to_vec(), mask.to_vec()));
                    }
                    GeneralName::IPAddress(bytes) => {
                        return Err(format!("limits itself to a network of {} bytes", bytes.len()));
                    }
                    GeneralName::RFC822Name(_) | GeneralName::URI(_) => into.others = true,
                    _ => limits.understood = false,
                }
            }
        }
        Ok(limits)
    }

    /// The first name that is outside, with the reason.
    pub(super) fn violated(&self, dns: &[String], ips: &[IpAddr], others: bool) -> Option<String> {
        for name in dns {
            if self.excluded.dns.iter().any(|limit| within(name, limit, true)) {
                return Some(format!("the name {name} is excluded"));
            }
            let permitted = &self.permitted.dns;
            if !permitted.is_empty() && !permitted.iter().any(|limit| within(name, limit, false)) {
                return Some(format!("the name {name} is not among the permitted ones"));
            }
        }
        for ip in ips {
            let bytes = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let inside = |networks: &[(Vec<u8>, Vec<u8>)]| {
                networks.iter().any(|(network, mask)| {
                    network.len() == bytes.len()
                        && bytes
                            .iter()
                            .zip(network)
                            .zip(mask)
                            .all(|((byte, network), mask)| byte & mask == network & mask)
                })
            };
            if inside(&self.excluded.ips) {
                return Some(format!("the address {ip} is excluded"));
            }
            if !self.permitted.ips.is_empty() && !inside(&self.permitted.ips) {
                return Some(format!("the address {ip} is not among the permitted ones"));
            }
        }
        if others && (self.permitted.others || self.excluded.others) {
            return Some("it limits mail addresses or URIs, and the certificate has some".to_owned());
        }
        None
    }
}

/// Whether a name is inside a limit: the limit's labels are its last ones, and a limit that begins with a dot wants one more.
/// `anything`: a wildcard of the name counts as every label.
fn within(name: &str, limit: &str, anything: bool) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let (limit, more) = limit.strip_prefix('.').map_or((limit, false), |limit| (limit, true));
    if limit.is_empty() {
        return true;
    }
    let (name, limit): (Vec<&str>, Vec<&str>) = (name.split('.').collect(), limit.split('.').collect());
    name.len() >= limit.len() + usize::from(more)
        && name
            .iter()
            .rev()
            .zip(limit.iter().rev())
            .all(|(our, limit)| our == limit || anything && *our == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_whole_label() {
        for (pattern, host, wanted) in [
            ("kubernetes", "kubernetes", true),
            ("Kubernetes.Default", "kubernetes.DEFAULT.", true),
            ("*.example.org", "api.example.org", true),
            ("*.example.org", "example.org", false),
            ("*.example.org", "a.b.example.org", false),
            ("a*.example.org", "api.example.org", false),
            ("api.*.org", "api.example.org", false),
            ("api.example.org", "api.example.com", false),
            ("k8s_master", "k8s_master", true),
            ("", "kubernetes", false),
        ] {
            assert_eq!(matches(pattern, host), wanted, "{pattern} {host}");
        }
    }

    #[test]
    fn a_limit_is_the_end_of_a_name() {
        for (name, limit, wanted) in [
            ("api.example.org", "example.org", true),
            ("example.org", "example.org", true),
            ("example.org", ".example.org", false),
            ("api.example.org", ".example.org", true),
            ("badexample.org", "example.org", false),
            ("API.Example.org", "example.org", true),
            ("org", "example.org", false),
            ("anything", "", true),
        ] {
            assert_eq!(within(name, limit, false), wanted, "{name} {limit}");
        }
        assert!(within("*.example.org", "secret.example.org", true), "it might be just that one");
        assert!(!within("*.example.org", "secret.example.org", false));
    }
}
