//! Names of what we own in the kernel.
//!
//! The table and the base chains are named as kube-proxy's, so that a start over kube-proxy's rules, and kube-proxy's
//! start over ours, exchange the rules of the same base chains. Every other name carries the generation that made it,
//! is used by no version of kube-proxy, does not begin with `affinity-` and holds no `/`: kube-proxy fails for ever on
//! a set of its own name and another type, and deletes what matches those two patterns.

use std::fmt;

use crate::size_class::SizeClass;

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
    Hairpin,
    EndpointSources,
    RestrictedVips,
    AllowedSources,
    StickySizes,
    StickyLocalSizes,
    StickySlots,
    StickyEndpoints,
    StickyLocal,
    Picks,
    ServiceCidrs,
    NodeAddrs,
    /// Written by the packet path; outlives generations.
    Clients,
}

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
        Self::Hairpin,
        Self::EndpointSources,
        Self::RestrictedVips,
        Self::AllowedSources,
        Self::StickySizes,
        Self::StickyLocalSizes,
        Self::StickySlots,
        Self::StickyEndpoints,
        Self::StickyLocal,
        Self::Picks,
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
            Self::Hairpin => "hairpin",
            Self::EndpointSources => "endpoint-sources",
            Self::RestrictedVips => "restricted-vips",
            Self::AllowedSources => "allowed",
            Self::StickySizes => "sticky-sizes",
            Self::StickyLocalSizes => "sticky-local-sizes",
            Self::StickySlots => "sticky-slots",
            Self::StickyEndpoints => "sticky-endpoints",
            Self::StickyLocal => "sticky-local",
            Self::Picks => "picks",
            Self::ServiceCidrs => "service-cidrs",
            Self::NodeAddrs => "node-addrs",
            Self::Clients => "clients",
        }
    }
}

/// A set or map of one generation; allowed sources have one for each prefix length in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SetName {
    pub(crate) set: Set,
    pub(crate) generation: u32,
    pub(crate) prefix: Option<u8>,
}

impl SetName {
    pub(crate) fn new(set: Set, generation: u32) -> Self {
        Self { set, generation, prefix: None }
    }

    /// The sources of one prefix length that may use a restricted address.
    pub(crate) fn allowed(prefix: u8, generation: u32) -> Self {
        Self { set: Set::AllowedSources, generation, prefix: Some(prefix) }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.set, self.prefix) {
            (Set::Clients, _) => f.write_str(self.set.as_str()),
            (set, None) => write!(f, "{}-{}", set.as_str(), self.generation),
            (set, Some(prefix)) => write!(f, "{}-{prefix}-{}", set.as_str(), self.generation),
        }
    }
}

/// A base chain, named as kube-proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Base {
    FilterPreroutingPreDnat,
    FilterOutputPreDnat,
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
    pub(crate) const ALL: [Self; 8] = [
        Self::FilterPreroutingPreDnat,
        Self::FilterOutputPreDnat,
        Self::NatPrerouting,
        Self::NatOutput,
        Self::NatPostrouting,
        Self::FilterInput,
        Self::FilterForward,
        Self::FilterOutput,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::FilterPreroutingPreDnat => "filter-prerouting-pre-dnat",
            Self::FilterOutputPreDnat => "filter-output-pre-dnat",
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
            Self::FilterPreroutingPreDnat => (false, PREROUTING, -110),
            Self::FilterOutputPreDnat => (false, OUTPUT, -110),
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
    ToService,
    ToClass,
    SourceCheck,
    RestrictedCheck,
    AllowedCheck,
    Refuse,
    NoEndpointsCheck,
    ClusterIpCheck,
    UntranslatedCheck,
    /// Picks an endpoint of a group.
    Balance(SizeClass),
    ClusterIp(SizeClass),
    External(SizeClass),
    ExternalLocal(SizeClass),
    Local(SizeClass),
    /// Picks an endpoint id of a sticky Service port.
    Pick(SizeClass),
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
}

/// What the chains of sticky Services differ by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Affinity {
    pub(crate) timeout: u32,
    pub(crate) wide: bool,
}

/// A chain of one generation (base chains have none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChainName {
    pub(crate) place: Place,
    pub(crate) generation: u32,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Base(base) => return f.write_str(base.as_str()),
            Place::ToService => f.write_str("to-service"),
            Place::ToClass => f.write_str("to-class"),
            Place::SourceCheck => f.write_str("source-check"),
            Place::RestrictedCheck => f.write_str("restricted-check"),
            Place::AllowedCheck => f.write_str("allowed-check"),
            Place::Refuse => f.write_str("refuse"),
            Place::NoEndpointsCheck => f.write_str("no-endpoints-check"),
            Place::ClusterIpCheck => f.write_str("clusterip-check"),
            Place::UntranslatedCheck => f.write_str("untranslated-check"),
            Place::Balance(size) => write!(f, "lb-{size}"),
            Place::ClusterIp(size) => write!(f, "cip-{size}"),
            Place::External(size) => write!(f, "ext-{size}"),
            Place::ExternalLocal(size) => write!(f, "extl-{size}"),
            Place::Local(size) => write!(f, "llb-{size}"),
            Place::Pick(size) => write!(f, "pick-{size}"),
            Place::Sticky(place, affinity) => {
                let place = match place {
                    StickyPlace::Balance => "alb",
                    StickyPlace::BalanceLocal => "allb",
                    StickyPlace::ClusterIp => "acip",
                    StickyPlace::ClusterIpLocal => "acipl",
                    StickyPlace::External => "aext",
                    StickyPlace::ExternalLocal => "aextl",
                };
                let wide = if affinity.wide { "-wide" } else { "" };
                write!(f, "{place}{wide}-{}s", affinity.timeout)
            }
        }?;
        write!(f, "-{}", self.generation)
    }
}
