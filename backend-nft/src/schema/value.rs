//! The 32 bits that a packet carries in `skb->priority` from one lookup to the next.
//!
//! Plain:  `[kind 4][size class 8][group 20]`. Sticky: `[kind 4][service port 16][wide 1][memory 11]`.
//! Once a class chain is entered, the upper bits become [`MARKED`]: `fff0:0000 | group`, or for sticky Services an
//! endpoint id `f000:0000 | service port << 12 | index`. So a packet that still carries one of ours is told from one
//! whose priority somebody else set (`tc` class ids do not reach f000:).

use crate::schema::size_class::SizeClass;

/// What to do with a packet of a plain Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Plain {
    /// A cluster IP: masquerade as the environment says, then pick an endpoint.
    ClusterIp,
    /// External traffic, policy Cluster: masquerade, then pick.
    External,
    /// External traffic, policy Local: short circuits, then the local list.
    ExternalLocal,
    /// The local list, reached from `ExternalLocal` only.
    Local,
    /// As `External` and `ExternalLocal`, for the sources that are allowed only.
    RestrictedExternal,
    RestrictedExternalLocal,
    /// No endpoint: refused, to the sources that are allowed only.
    RestrictedOnly,
}

/// What to do with a packet of a Service port with session affinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Sticky {
    ClusterIp,
    /// A cluster IP under internal policy Local.
    ClusterIpLocal,
    External,
    ExternalLocal,
    RestrictedExternal,
    RestrictedExternalLocal,
}

/// A verdict of `dispatch` covers these bits.
pub(crate) const PLAIN_CLASS: u32 = 0xfff0_0000;
/// A verdict of `dispatch-sticky` covers these bits.
pub(crate) const STICKY_CLASS: u32 = 0xf000_0fff;
/// The bits of a sticky value that name the Service port.
pub(crate) const STICKY_BASE: u32 = 0x0fff_f000;
/// All of these are set once a packet has entered a class chain, until the priority is reset.
pub(crate) const MARKED: u32 = 0xf000_0000;
/// Group ids: 1 to this.
pub(crate) const GROUPS: u32 = (1 << 20) - 1;
/// Sticky Service ports: 0 to below this.
pub(crate) const STICKY_PORTS: u32 = 1 << 16;
/// Different ways to remember clients (a timeout, and a share of the maps of clients): 0 to below this.
pub(crate) const MEMORIES: usize = 1 << 11;
/// Bits of an endpoint's index within a sticky Service port; the first index and the last are no endpoint's.
pub(crate) const INDEX_BITS: u32 = 12;
/// The same for wide Service ports, which take [`WIDE_PORTS`] consecutive ids.
pub(crate) const WIDE_INDEX_BITS: u32 = 17;
/// Service port ids of a wide one.
pub(crate) const WIDE_PORTS: u32 = 1 << (WIDE_INDEX_BITS - INDEX_BITS);
const WIDE: u32 = 1 << 11;

impl Plain {
    /// The class of a value: what `dispatch` looks up.
    pub(crate) fn class(self, size: SizeClass) -> u32 {
        let kind = match self {
            Self::ClusterIp => 1,
            Self::External => 2,
            Self::ExternalLocal => 3,
            Self::Local => 4,
            Self::RestrictedExternal => 9,
            Self::RestrictedExternalLocal => 10,
            Self::RestrictedOnly => 13,
        };
        kind << 28 | u32::from(size.index()) << 20
    }

    pub(crate) fn value(self, size: SizeClass, group: u32) -> u32 {
        self.class(size) | group
    }
}

impl Sticky {
    /// The class of a value: what `dispatch-sticky` looks up.
    pub(crate) fn class(self, memory: u16, wide: bool) -> u32 {
        let kind = match self {
            Self::ClusterIp => 5,
            Self::ClusterIpLocal => 6,
            Self::External => 7,
            Self::ExternalLocal => 8,
            Self::RestrictedExternal => 11,
            Self::RestrictedExternalLocal => 12,
        };
        kind << 28 | if wide { WIDE } else { 0 } | u32::from(memory)
    }

    pub(crate) fn value(self, memory: u16, wide: bool, port: u16) -> u32 {
        self.class(memory, wide) | u32::from(port) << INDEX_BITS
    }
}

/// What a value of `vips` or `nodeports` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    Plain(Plain, SizeClass),
    Sticky { memory: u16, wide: bool },
}

/// Reads a value.
pub(crate) fn meaning(value: u32) -> Option<Meaning> {
    let plain = match value >> 28 {
        1 => Plain::ClusterIp,
        2 => Plain::External,
        3 => Plain::ExternalLocal,
        4 => Plain::Local,
        9 => Plain::RestrictedExternal,
        10 => Plain::RestrictedExternalLocal,
        13 => Plain::RestrictedOnly,
        5..=8 | 11 | 12 => {
            let memory = (value & (WIDE - 1)) as u16;
            return Some(Meaning::Sticky { memory, wide: value & WIDE != 0 });
        }
        _ => return None,
    };
    Some(Meaning::Plain(plain, SizeClass::from_index((value >> 20) as u8)))
}

/// The key of a group in `endpoints` and `local-groups`.
pub(crate) fn group_key(group: u32) -> u32 {
    PLAIN_CLASS | group
}

/// What all endpoint ids of a sticky Service port begin with.
pub(crate) fn sticky_base(port: u16) -> u32 {
    MARKED | u32::from(port) << INDEX_BITS
}

/// The bits that all endpoint ids of a sticky Service port have in common.
pub(crate) fn base_mask(wide: bool) -> u32 {
    u32::MAX << if wide { WIDE_INDEX_BITS } else { INDEX_BITS }
}
