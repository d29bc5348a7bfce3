//! What IPVS knows: virtual servers, their destinations, timeouts and counters.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::uapi;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A transport protocol that IPVS balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// A number that this crate has no name for; a dump may hold it.
    Other(u16),
}

impl Protocol {
    /// The number of IP's protocol field.
    pub fn number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Other(number) => number,
        }
    }

    /// The protocol with this number.
    pub fn from_number(number: u16) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            132 => Self::Sctp,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Sctp => f.write_str("sctp"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

/// What identifies a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceKey {
    /// Packets to one address, port and protocol. Port 0 is every port, and needs persistence.
    Address {
        /// The virtual address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// The transport protocol.
        protocol: Protocol,
    },
    /// Packets of one family that carry a firewall mark.
    Mark {
        /// The family.
        family: Family,
        /// The mark, not 0.
        mark: u32,
    },
}

impl ServiceKey {
    /// The key of an address, port and protocol.
    pub fn new(address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self::Address { address, port, protocol }
    }

    /// The family of the virtual server.
    pub fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Mark { family, .. } => *family,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address { address: IpAddr::V6(address), port, protocol } => {
                write!(f, "{protocol} [{address}]:{port}")
            }
            Self::Address { address, port, protocol } => write!(f, "{protocol} {address}:{port}"),
            Self::Mark { family: Family::V4, mark } => write!(f, "mark {mark}"),
            Self::Mark { family: Family::V6, mark } => write!(f, "mark {mark} of IPv6"),
        }
    }
}

/// A short name that the kernel compares byte by byte: of a scheduler or of a persistence engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    bytes: [u8; uapi::NAME_MAXLEN],
    length: u8,
}

/// A name the kernel cannot hold: empty, longer than 15 bytes, or with a NUL inside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be a name for IPVS: it needs 1 to 15 bytes and no NUL")]
pub struct InvalidName(pub String);

impl Name {
    /// The name, if the kernel can hold it.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        Self::from_bytes(name.as_bytes())
            .filter(|_| !name.is_empty())
            .ok_or_else(|| InvalidName(name.to_owned()))
    }

    /// A dumped name; the kernel says `none` for a virtual server without a scheduler.
    pub(crate) fn from_bytes(name: &[u8]) -> Option<Self> {
        if name.len() >= uapi::NAME_MAXLEN || name.contains(&0) || std::str::from_utf8(name).is_err() {
            return None;
        }
        Some(Self::copy(name))
    }

    const fn literal(name: &str) -> Self {
        assert!(name.len() < uapi::NAME_MAXLEN);
        Self::copy(name.as_bytes())
    }

    const fn copy(name: &[u8]) -> Self {
        let mut bytes = [0; uapi::NAME_MAXLEN];
        let mut at = 0;
        while at < name.len() {
            bytes[at] = name[at];
            at += 1;
        }
        Self { bytes, length: name.len() as u8 }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("checked when made")
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a virtual server picks a destination: the name of a kernel module `ip_vs_NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scheduler(pub Name);

impl Scheduler {
    /// Round robin.
    pub const RR: Self = Self(Name::literal("rr"));
    /// Weighted round robin.
    pub const WRR: Self = Self(Name::literal("wrr"));
    /// Least connections.
    pub const LC: Self = Self(Name::literal("lc"));
    /// Weighted least connections.
    pub const WLC: Self = Self(Name::literal("wlc"));
    /// Least connections by locality: one destination per client destination address.
    pub const LBLC: Self = Self(Name::literal("lblc"));
    /// The same with a set of destinations.
    pub const LBLCR: Self = Self(Name::literal("lblcr"));
    /// Source hashing.
    pub const SH: Self = Self(Name::literal("sh"));
    /// Destination hashing.
    pub const DH: Self = Self(Name::literal("dh"));
    /// Shortest expected delay.
    pub const SED: Self = Self(Name::literal("sed"));
    /// Never queue.
    pub const NQ: Self = Self(Name::literal("nq"));
    /// Maglev hashing.
    pub const MH: Self = Self(Name::literal("mh"));
    /// Weighted failover.
    pub const FO: Self = Self(Name::literal("fo"));
    /// Weighted overflow.
    pub const OVF: Self = Self(Name::literal("ovf"));
    /// Power of two choices; since Linux 6.1.
    pub const TWOS: Self = Self(Name::literal("twos"));

    /// Every scheduler of the kernel's own.
    pub const ALL: [Self; 14] = [
        Self::RR,
        Self::WRR,
        Self::LC,
        Self::WLC,
        Self::LBLC,
        Self::LBLCR,
        Self::SH,
        Self::DH,
        Self::SED,
        Self::NQ,
        Self::MH,
        Self::FO,
        Self::OVF,
        Self::TWOS,
    ];

    /// The name of the scheduler.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for Scheduler {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        Name::new(name).map(Self)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The flags of a virtual server, `IP_VS_SVC_F_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceFlags(pub u32);

impl ServiceFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// A client stays with its destination for the timeout.
    pub const PERSISTENT: Self = Self(0x01);
    /// The kernel's own mark of a virtual server that is in its table; set in every dump.
    pub const HASHED: Self = Self(0x02);
    /// Every UDP datagram is scheduled alone.
    pub const ONE_PACKET: Self = Self(0x04);
    /// First flag of the scheduler's own: for `sh` and `mh`, fall back when a destination is unusable.
    pub const SCHEDULER_1: Self = Self(0x08);
    /// Second flag of the scheduler's own: for `sh` and `mh`, hash the source port too.
    pub const SCHEDULER_2: Self = Self(0x10);
    /// Third flag of the scheduler's own.
    pub const SCHEDULER_3: Self = Self(0x20);
    /// Every bit.
    pub const ALL: Self = Self(u32::MAX);

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The flags of `self` that are not of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// How much of a client's address persistence looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Netmask {
    /// An IPv4 mask.
    V4(Ipv4Addr),
    /// An IPv6 prefix length, 1 to 128.
    V6(u8),
}

impl Netmask {
    /// The mask of one whole address.
    pub fn host(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(Ipv4Addr::BROADCAST),
            Family::V6 => Self::V6(128),
        }
    }
}

/// A virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// What identifies it.
    pub key: ServiceKey,
    /// How it picks a destination.
    pub scheduler: Scheduler,
    /// Its flags; [`ServiceFlags::HASHED`] is the kernel's and left out here.
    pub flags: ServiceFlags,
    /// Seconds of persistence. The kernel keeps it for a server that is not persistent, too.
    pub timeout: u32,
    /// Which clients persistence takes for one.
    pub netmask: Netmask,
    /// The persistence engine: `sip`, if any.
    pub engine: Option<Name>,
}

impl Service {
    /// A virtual server without persistence or flags.
    pub fn new(key: ServiceKey, scheduler: Scheduler) -> Self {
        Self {
            key,
            scheduler,
            flags: ServiceFlags::NONE,
            timeout: 0,
            netmask: Netmask::host(key.family()),
            engine: None,
        }
    }

    /// The same with clients kept on their destination for `seconds` after their last connection.
    #[must_use]
    pub fn persistent(mut self, seconds: u32) -> Self {
        self.flags = self.flags.union(ServiceFlags::PERSISTENT);
        self.timeout = seconds;
        self
    }
}

/// How packets reach a destination, `IP_VS_CONN_F_FWD_MASK`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Forwarding {
    /// The destination address and port are rewritten.
    #[default]
    Masquerade,
    /// The destination is this host.
    Local,
    /// The packet is encapsulated.
    Tunnel(Tunnel),
    /// The packet goes to the destination's link address unchanged.
    DirectRoute,
    /// Past the virtual server, to the packet's own address.
    Bypass,
    /// A number that this crate has no name for; a dump may hold it.
    Other(u32),
}

/// The encapsulation of [`Forwarding::Tunnel`]; other than `Ipip` needs Linux 5.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tunnel {
    /// `IP_VS_CONN_F_TUNNEL_TYPE_*`.
    pub kind: TunnelKind,
    /// The UDP port of `Gue`.
    pub port: u16,
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*`: 1 for a checksum, 2 for a remote checksum offload.
    pub flags: u16,
}

/// `IP_VS_CONN_F_TUNNEL_TYPE_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TunnelKind {
    /// IP in IP.
    #[default]
    Ipip,
    /// Generic UDP encapsulation.
    Gue,
    /// Generic routing encapsulation.
    Gre,
    /// A number that this crate has no name for; a dump may hold it.
    Other(u8),
}

/// A destination ("real server") of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// How packets reach it.
    pub forwarding: Forwarding,
    /// Its share; 0 takes no new connections and keeps the old ones. At most `i32::MAX`.
    pub weight: u32,
    /// Above so many connections it gets no new ones; 0 is no limit.
    pub upper_threshold: u32,
    /// Below so many it gets new ones again.
    pub lower_threshold: u32,
}

impl Destination {
    /// A destination reached by rewriting addresses, without thresholds.
    pub fn new(address: IpAddr, port: u16, weight: u32) -> Self {
        Self {
            address,
            port,
            forwarding: Forwarding::Masquerade,
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
        }
    }
}

/// A virtual server as dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Its configuration.
    pub service: Service,
    /// Its counters.
    pub stats: Stats,
}

/// A destination as dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationEntry {
    /// Its configuration.
    pub destination: Destination,
    /// Connections that are established.
    pub active_connections: u32,
    /// Connections in any other state.
    pub inactive_connections: u32,
    /// Clients kept on it by persistence.
    pub persistent_connections: u32,
    /// Its counters.
    pub stats: Stats,
}

/// Counters of a virtual server or destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets in.
    pub packets_in: u64,
    /// Packets out.
    pub packets_out: u64,
    /// Bytes in.
    pub bytes_in: u64,
    /// Bytes out.
    pub bytes_out: u64,
    /// Connections per second.
    pub connection_rate: u64,
    /// Packets in per second.
    pub packet_rate_in: u64,
    /// Packets out per second.
    pub packet_rate_out: u64,
    /// Bytes in per second.
    pub byte_rate_in: u64,
    /// Bytes out per second.
    pub byte_rate_out: u64,
}

/// How long idle connections are remembered, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP; `None` in a request leaves it.
    pub tcp: Option<u32>,
    /// TCP after a FIN.
    pub tcp_fin: Option<u32>,
    /// UDP.
    pub udp: Option<u32>,
}

/// The kernel's IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Major, minor and patch version.
    pub version: (u8, u8, u8),
    /// Buckets of the connection table.
    pub connection_table_size: u32,
}
