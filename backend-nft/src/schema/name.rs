//! Names of what we own in the kernel.
//!
//! The table and the base chains are named as kube-proxy's, so that a start over kube-proxy's rules, and kube-proxy's
//! start over ours, exchange the rules of the same base chains. Every other name carries the generation that made it,
//! is used by no version of kube-proxy, does not begin with `affinity-` and holds no `/`: kube-proxy fails for ever on
//! a set of its own name and another type, and deletes what matches those two patterns.

use std::fmt;

use proxy_core::model::Protocol;

use crate::schema::size_class::SizeClass;

pub(crate) const TABLE: &str = "kube-proxy";

/// A set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Set {
    Vips,
    NodePorts,
    Endpoints,
    LocalGroups,
    Dispatch,
    DispatchLocal,
    DispatchSticky,
    ClusterIps,
    RefuseVips,
    DropVips,
    RefuseNodePorts,
    /// Every endpoint: who may reach itself, and whose INVALID packets are dropped.
    EndpointPorts,
    /// Addresses of Services that lie in none of the Service networks.
    OutsideVips,
    AllowedSources,
    StickySizes,
    StickyLocalSizes,
    StickySlots,
    StickyEndpoints,
    StickyLocal,
    Picks,
    /// As `Picks`, by the client's address.
    PicksBySource,
    ServiceCidrs,
    NodeAddrs,
    /// Written by the packet path; outlives generations. There are [`SHARES`].
    Clients,
}

/// Among so many maps of clients the sticky Service ports are spread, so that a flood at one fills its own share only.
pub(crate) const SHARES: u16 = 64;

impl Set {
    pub(crate) const ALL: [Self; 24] = [
        Self::Vips,
        Self::NodePorts,
        Self::Endpoints,
        Self::LocalGroups,
        Self::Dispatch,
        Self::DispatchLocal,
        Self::DispatchSticky,
        Self::ClusterIps,
        Self::RefuseVips,
        Self::DropVips,
        Self::RefuseNodePorts,
        Self::EndpointPorts,
        Self::OutsideVips,
        Self::AllowedSources,
        Self::StickySizes,
        Self::StickyLocalSizes,
        Self::StickySlots,
        Self::StickyEndpoints,
        Self::StickyLocal,
        Self::Picks,
        Self::PicksBySource,
        Self::ServiceCidrs,
        Self::NodeAddrs,
        Self::Clients,
    ];

    /// Whether it may hold many elements: it is given a size, and replaced by a larger one before it is full.
    pub(crate) const fn grows(self) -> bool {
        !matches!(
            self,
            Self::Dispatch
                | Self::DispatchLocal
                | Self::DispatchSticky
                | Self::AllowedSources
                | Self::Picks
                | Self::PicksBySource
                | Self::ServiceCidrs
                | Self::NodeAddrs
                | Self::Clients
        )
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Vips => "vips",
            Self::NodePorts => "nodeports",
            Self::Endpoints => "endpoints",
            Self::LocalGroups => "local-groups",
            Self::Dispatch => "dispatch",
            Self::DispatchLocal => "dispatch-local",
            Self::DispatchSticky => "dispatch-sticky",
            Self::ClusterIps => "clusterips",
            Self::RefuseVips => "refuse-vips",
            Self::DropVips => "drop-vips",
            Self::RefuseNodePorts => "refuse-nodeports",
            Self::EndpointPorts => "endpoint-ports",
            Self::OutsideVips => "outside-vips",
            Self::AllowedSources => "allowed",
            Self::StickySizes => "sticky-sizes",
            Self::StickyLocalSizes => "sticky-local-sizes",
            Self::StickySlots => "sticky-slots",
            Self::StickyEndpoints => "sticky-endpoints",
            Self::StickyLocal => "sticky-local",
            Self::Picks => "picks",
            Self::PicksBySource => "picks-by-source",
            Self::ServiceCidrs => "service-cidrs",
            Self::NodeAddrs => "node-addrs",
            Self::Clients => "clients",
        }
    }
}

/// A set or map of one generation; allowed sources have one for each prefix length in use. Clients have one for each share,
/// and no generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SetName {
    pub(crate) set: Set,
    pub(crate) generation: u32,
    /// The prefix length, or the share.
    pub(crate) part: Option<u8>,
}

impl SetName {
    pub(crate) fn new(set: Set, generation: u32) -> Self {
        Self { set, generation, part: None }
    }

    pub(crate) fn clients(share: u8) -> Self {
        Self { set: Set::Clients, generation: 0, part: Some(share) }
    }

    /// The sources of one prefix length that may use a restricted address.
    pub(crate) fn allowed(prefix: u8, generation: u32) -> Self {
        Self { set: Set::AllowedSources, generation, part: Some(prefix) }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.set, self.part) {
            // No hyphen: the number is no generation.
            (Set::Clients, share) => write!(f, "{}.{}", self.set.as_str(), share.unwrap_or(0)),
            (set, None) => write!(f, "{}-{}", set.as_str(), self.generation),
            (set, Some(prefix)) => write!(f, "{}-{prefix}-{}", set.as_str(), self.generation),
        }
    }
}

/// A base chain, named as kube-proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Base {
    NatPrerouting,
    NatOutput,
    NatPostrouting,
    FilterInput,
    FilterForward,
    FilterOutput,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) nat: bool,
    /// `NF_INET_*` of linux/netfilter.h.
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

impl Base {
    pub(crate) const ALL: [Self; 6] = [
        Self::NatPrerouting,
        Self::NatOutput,
        Self::NatPostrouting,
        Self::FilterInput,
        Self::FilterForward,
        Self::FilterOutput,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::NatPrerouting => "nat-prerouting",
            Self::NatOutput => "nat-output",
            Self::NatPostrouting => "nat-postrouting",
            Self::FilterInput => "filter-input",
            Self::FilterForward => "filter-forward",
            Self::FilterOutput => "filter-output",
        }
    }

    pub(crate) const fn hook(self) -> Hook {
        let (nat, number, priority) = match self {
            Self::NatPrerouting => (true, PREROUTING, -100),
            Self::NatOutput => (true, OUTPUT, -100),
            Self::NatPostrouting => (true, POSTROUTING, 100),
            Self::FilterInput => (false, INPUT, 0),
            Self::FilterForward => (false, FORWARD, 0),
            Self::FilterOutput => (false, OUTPUT, 0),
        };
        Hook { nat, number, priority }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.number {
            PREROUTING => "prerouting",
            INPUT => "input",
            FORWARD => "forward",
            OUTPUT => "output",
            _ => "postrouting",
        };
        write!(f, "type {} hook {hook} priority {}", if self.nat { "nat" } else { "filter" }, self.priority)
    }
}

/// Which chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    Base(Base),
    ToClass,
    /// Returns for a source that may use the address, and drops all others.
    SourceCheck,
    /// Restricted, and without endpoints.
    RestrictedOnly,
    Refuse,
    /// NodePorts of a protocol on loopback addresses: counted, and refused.
    RefusedOnLocalhost(Protocol),
    /// For translated packets: the end of the way.
    Settled,
    /// For what is not translated and goes to an address of ours, at this node and beyond it.
    VipCheck,
    NewCheck,
    /// Picks an endpoint of a group.
    Balance(SizeClass),
    ClusterIp(SizeClass),
    External(SizeClass),
    ExternalLocal(SizeClass),
    RestrictedExternal(SizeClass),
    RestrictedExternalLocal(SizeClass),
    Local(SizeClass),
    /// Picks an endpoint id of a sticky Service port.
    Pick(SizeClass),
    PickBySource(SizeClass),
    Sticky(StickyPlace, Affinity),
}

impl Place {
    /// The base chain of this name.
    pub(crate) fn base(name: &str) -> Option<Base> {
        Base::ALL.into_iter().find(|base| base.as_str() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum StickyPlace {
    Balance,
    BalanceLocal,
    ClusterIp,
    ClusterIpLocal,
    External,
    ExternalLocal,
    RestrictedExternal,
    RestrictedExternalLocal,
}

/// What the chains of sticky Services differ by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Affinity {
    pub(crate) timeout: u32,
    pub(crate) share: u8,
    pub(crate) wide: bool,
}

/// A chain of one generation (base chains have none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChainName {
    pub(crate) place: Place,
    pub(crate) generation: u32,
}

/// How the chains begin that count what is refused on loopback addresses; the protocol follows.
pub(crate) const REFUSED_ON_LOCALHOST: &str = "refused-on-localhost-";

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Base(base) => return f.write_str(base.as_str()),
            Place::ToClass => f.write_str("to-class"),
            Place::SourceCheck => f.write_str("source-check"),
            Place::RestrictedOnly => f.write_str("restricted-only"),
            Place::Refuse => f.write_str("refuse"),
            Place::RefusedOnLocalhost(protocol) => {
                write!(f, "{REFUSED_ON_LOCALHOST}{}", protocol.as_str())
            }
            Place::Settled => f.write_str("settled"),
            Place::VipCheck => f.write_str("vip-check"),
            Place::NewCheck => f.write_str("new-check"),
            Place::Balance(size) => write!(f, "lb-{size}"),
            Place::ClusterIp(size) => write!(f, "cip-{size}"),
            Place::External(size) => write!(f, "ext-{size}"),
            Place::ExternalLocal(size) => write!(f, "extl-{size}"),
            Place::RestrictedExternal(size) => write!(f, "rext-{size}"),
            Place::RestrictedExternalLocal(size) => write!(f, "rextl-{size}"),
            Place::Local(size) => write!(f, "llb-{size}"),
            Place::Pick(size) => write!(f, "pick-{size}"),
            Place::PickBySource(size) => write!(f, "pick-by-source-{size}"),
            Place::Sticky(place, affinity) => {
                let place = match place {
                    StickyPlace::Balance => "alb",
                    StickyPlace::BalanceLocal => "allb",
                    StickyPlace::ClusterIp => "acip",
                    StickyPlace::ClusterIpLocal => "acipl",
                    StickyPlace::External => "aext",
                    StickyPlace::ExternalLocal => "aextl",
                    StickyPlace::RestrictedExternal => "raext",
                    StickyPlace::RestrictedExternalLocal => "raextl",
                };
                let wide = if affinity.wide { "-wide" } else { "" };
                write!(f, "{place}{wide}-{}s.{}", affinity.timeout, affinity.share)
            }
        }?;
        write!(f, "-{}", self.generation)
    }
}
