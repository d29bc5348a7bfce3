//! Names: the tables, the chains that exist once, the chains of a Service port, and the jumps from the kernel's own
//! chains. All are what kube-proxy uses, so that operators and tools find what they know.

use std::fmt;

use proxy_core::model::ServicePortName;
use sha2::{Digest, Sha256};

/// The tables we write, in the order in which a restore commits them. Where a Service leaves what a filter does to it, the
/// filter is committed again after `nat` ([`crate::Op::Then`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Holds nothing of ours but a canary.
    Mangle,
    /// Refuses, drops and accepts.
    Filter,
    /// Translates and masquerades.
    Nat,
}

impl Table {
    /// In the order in which a restore commits them.
    pub const ALL: [Self; 3] = [Self::Mangle, Self::Filter, Self::Nat];

    /// As `iptables -t` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// In `nat` leads from addresses to Services, in `filter` refuses cluster IPs without endpoints.
pub const SERVICES: &str = "KUBE-SERVICES";
/// Refuses or drops at external addresses and node ports.
pub const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
/// In `nat` leads from node ports to Services, in `filter` accepts health check node ports.
pub const NODE_PORTS: &str = "KUBE-NODEPORTS";
/// Masquerades what is marked.
pub const POSTROUTING: &str = "KUBE-POSTROUTING";
/// Marks what is to be masqueraded.
pub const MARK_MASQUERADE: &str = "KUBE-MARK-MASQ";
/// Accepts what is forwarded for Services.
pub const FORWARD: &str = "KUBE-FORWARD";
/// Drops what source ranges do not admit.
pub const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
/// Shared with kubelet, which writes the same rule: never deleted.
pub const KUBELET_FIREWALL: &str = "KUBE-FIREWALL";
/// Empty, in all three tables: gone when somebody deleted the table's chains.
pub const CANARY: &str = "KUBE-PROXY-CANARY";

/// Chains that hold one or more rules of every Service port concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dispatcher {
    /// [`SERVICES`] of `filter`.
    FilterServices,
    /// [`EXTERNAL_SERVICES`].
    FilterExternalServices,
    /// [`NODE_PORTS`] of `filter`.
    FilterNodePorts,
    /// [`PROXY_FIREWALL`].
    FilterProxyFirewall,
    /// [`SERVICES`] of `nat`.
    NatServices,
    /// [`NODE_PORTS`] of `nat`.
    NatNodePorts,
}

impl Dispatcher {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::FilterServices,
        Self::FilterExternalServices,
        Self::FilterNodePorts,
        Self::FilterProxyFirewall,
        Self::NatServices,
        Self::NatNodePorts,
    ];

    /// The table it is in.
    pub fn table(self) -> Table {
        match self {
            Self::NatServices | Self::NatNodePorts => Table::Nat,
            _ => Table::Filter,
        }
    }

    /// The name of its chain.
    pub fn chain(self) -> &'static str {
        match self {
            Self::FilterServices | Self::NatServices => SERVICES,
            Self::FilterExternalServices => EXTERNAL_SERVICES,
            Self::FilterNodePorts | Self::NatNodePorts => NODE_PORTS,
            Self::FilterProxyFirewall => PROXY_FIREWALL,
        }
    }
}

/// What a chain of a Service port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Endpoints under traffic policy Cluster.
    Cluster,
    /// Endpoints under traffic policy Local.
    Local,
    /// All traffic to external destinations.
    External,
    /// Sources that may use the load balancer IPs.
    Firewall,
    /// One endpoint.
    Endpoint,
}

impl Role {
    const ALL: [Self; 5] = [Self::Cluster, Self::Local, Self::External, Self::Firewall, Self::Endpoint];

    fn prefix(self) -> &'static str {
        match self {
            Self::Cluster => "KUBE-SVC-",
            Self::Local => "KUBE-SVL-",
            Self::External => "KUBE-EXT-",
            Self::Firewall => "KUBE-FW-",
            Self::Endpoint => "KUBE-SEP-",
        }
    }
}

/// A chain of one Service port, in table `nat`: a prefix and 16 characters of a hash. (The kernel allows 28 characters.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceChain {
    /// What it is for.
    pub role: Role,
    hash: [u8; 16],
}

impl ServiceChain {
    /// `endpoint` as `address:port`.
    pub(crate) fn endpoint(name: &ChainStem, endpoint: &str) -> Self {
        Self { role: Role::Endpoint, hash: hash(&[&name.0, endpoint]) }
    }

    /// A chain found in the kernel, if its name is one that only we and kube-proxy give.
    pub fn parse(chain: &str) -> Option<Self> {
        Role::ALL.into_iter().find_map(|role| {
            let hash: [u8; 16] = chain.strip_prefix(role.prefix())?.as_bytes().try_into().ok()?;
            hash.is_ascii().then_some(Self { role, hash })
        })
    }

    pub(crate) fn write(self, to: &mut String) {
        to.push_str(self.role.prefix());
        to.push_str(str::from_utf8(&self.hash).expect("a hash is base32 text"));
    }
}

impl fmt::Display for ServiceChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = String::with_capacity(25);
        self.write(&mut name);
        f.write_str(&name)
    }
}

/// Whether kube-proxy takes a chain of `nat` with this name for one of a Service's.
pub fn is_service_chain(chain: &str) -> bool {
    Role::ALL.iter().any(|role| chain.starts_with(role.prefix()))
}

/// What every chain name of a Service port is hashed from: `namespace/name:port` and the protocol.
pub(crate) struct ChainStem(String);

impl ChainStem {
    pub(crate) fn new(name: &str, port: &ServicePortName) -> Self {
        Self(format!("{name}{}", port.protocol))
    }

    /// The names of all chains but those of endpoints share one hash.
    pub(crate) fn hash(&self) -> [u8; 16] {
        hash(&[&self.0])
    }
}

impl ServiceChain {
    pub(crate) fn of_service(role: Role, hash: [u8; 16]) -> Self {
        Self { role, hash }
    }
}

/// The first 16 characters of the base32 text (RFC 4648) of a SHA-256: 80 bits, hence 10 bytes.
fn hash(parts: &[&str]) -> [u8; 16] {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.as_bytes());
    }
    let digest = digest.finalize();
    let mut text = [0; 16];
    for (half, out) in digest[..10].chunks(5).zip(text.chunks_mut(8)) {
        let bits = half.iter().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
        for (at, out) in out.iter_mut().enumerate() {
            *out = ALPHABET[(bits >> (35 - 5 * at) & 31) as usize];
        }
    }
    text
}

/// A rule in one of the kernel's own chains that leads to one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// The table of both chains.
    pub table: Table,
    /// The kernel's own chain.
    pub from: &'static str,
    /// The chain of ours.
    pub to: &'static str,
    /// Only packets that begin a connection.
    pub only_new: bool,
    /// Empty: no comment.
    pub comment: &'static str,
}

impl Jump {
    /// The rule without `-A chain`.
    pub fn rule(&self) -> String {
        let mut rule = String::new();
        if self.only_new {
            rule.push_str("-m conntrack --ctstate NEW ");
        }
        if !self.comment.is_empty() {
            rule.push_str("-m comment --comment \"");
            rule.push_str(self.comment);
            rule.push_str("\" ");
        }
        rule.push_str("-j ");
        rule.push_str(self.to);
        rule
    }
}

const fn jump(
    table: Table,
    from: &'static str,
    to: &'static str,
    only_new: bool,
    comment: &'static str,
) -> Jump {
    Jump { table, from, to, only_new, comment }
}

/// In the order in which they are ensured; a missing one goes to the head, so the last of a chain comes first.
pub const JUMPS: [Jump; 12] = [
    jump(Table::Filter, "INPUT", EXTERNAL_SERVICES, true, "kubernetes externally-visible service portals"),
    jump(Table::Filter, "FORWARD", EXTERNAL_SERVICES, true, "kubernetes externally-visible service portals"),
    jump(Table::Filter, "INPUT", NODE_PORTS, false, "kubernetes health check service ports"),
    jump(Table::Filter, "FORWARD", SERVICES, true, "kubernetes service portals"),
    jump(Table::Filter, "OUTPUT", SERVICES, true, "kubernetes service portals"),
    jump(Table::Filter, "FORWARD", FORWARD, false, "kubernetes forwarding rules"),
    jump(Table::Filter, "INPUT", PROXY_FIREWALL, true, "kubernetes load balancer firewall"),
    jump(Table::Filter, "OUTPUT", PROXY_FIREWALL, true, "kubernetes load balancer firewall"),
    jump(Table::Filter, "FORWARD", PROXY_FIREWALL, true, "kubernetes load balancer firewall"),
    jump(Table::Nat, "OUTPUT", SERVICES, false, "kubernetes service portals"),
    jump(Table::Nat, "PREROUTING", SERVICES, false, "kubernetes service portals"),
    jump(Table::Nat, "POSTROUTING", POSTROUTING, false, "kubernetes postrouting rules"),
];

/// Jumps that kubelet has too: ensured, never removed.
pub const KUBELET_JUMPS: [Jump; 2] = [
    jump(Table::Filter, "INPUT", KUBELET_FIREWALL, false, ""),
    jump(Table::Filter, "OUTPUT", KUBELET_FIREWALL, false, ""),
];

/// Jumps of kube-proxy's ipvs mode that the iptables mode does not have.
pub const IPVS_JUMPS: [Jump; 5] = [
    jump(Table::Filter, "INPUT", "KUBE-NODE-PORT", false, "kubernetes health check rules"),
    jump(Table::Filter, "INPUT", PROXY_FIREWALL, false, "kube-proxy firewall rules"),
    jump(Table::Filter, "FORWARD", PROXY_FIREWALL, false, "kube-proxy firewall rules"),
    jump(Table::Filter, "INPUT", "KUBE-IPVS-FILTER", false, "kubernetes ipvs access filter"),
    jump(Table::Filter, "OUTPUT", "KUBE-IPVS-OUT-FILTER", false, "kubernetes ipvs access filter"),
];

/// Chains of kube-proxy's ipvs mode that the iptables mode does not have.
pub const IPVS_CHAINS: [(Table, &str); 6] = [
    (Table::Nat, "KUBE-NODE-PORT"),
    (Table::Nat, "KUBE-LOAD-BALANCER"),
    (Table::Filter, "KUBE-NODE-PORT"),
    (Table::Filter, "KUBE-SOURCE-RANGES-FIREWALL"),
    (Table::Filter, "KUBE-IPVS-FILTER"),
    (Table::Filter, "KUBE-IPVS-OUT-FILTER"),
];

/// The chains of ours that exist once, the canaries included.
pub const FIXED_CHAINS: [(Table, &str); 12] = [
    (Table::Mangle, CANARY),
    (Table::Filter, SERVICES),
    (Table::Filter, EXTERNAL_SERVICES),
    (Table::Filter, FORWARD),
    (Table::Filter, NODE_PORTS),
    (Table::Filter, PROXY_FIREWALL),
    (Table::Filter, CANARY),
    (Table::Nat, SERVICES),
    (Table::Nat, NODE_PORTS),
    (Table::Nat, POSTROUTING),
    (Table::Nat, MARK_MASQUERADE),
    (Table::Nat, CANARY),
];
