//! Elements of our sets and maps, typed; one element a value.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use proxy_core::model::Protocol;

use crate::schema::{
    name::{ChainName, Set, SetName},
    text::ClassId,
};

/// An element of a set of the present generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) set: Set,
    pub(crate) key: Key,
    pub(crate) data: Data,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Key {
    Address(IpAddr),
    /// address . protocol . port
    Frontend(IpAddr, Protocol, u16),
    /// protocol . port
    Port(Protocol, u16),
    /// address . address . port, both addresses the same
    Twice(IpAddr, u16),
    /// address . protocol . port . source network
    Allowed(IpAddr, Protocol, u16, IpNet),
    Network(IpNet),
    /// A 32-bit id or class.
    Id(u32),
    /// id . protocol
    IdProtocol(u32, Protocol),
    /// id . slot
    IdSlot(u32, u32),
    /// id . protocol . slot
    IdProtocolSlot(u32, Protocol, u32),
}

/// An endpoint's address and port.
pub(crate) type Place = (IpAddr, u16);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Data {
    /// An element of a set, or one to be deleted.
    None,
    Id(u32),
    /// An id whose element carries the name of its Service port as a comment, for people and for the next start.
    Named(u32, Box<str>),
    Target(IpAddr, u16),
    Goto(ChainName),
    Jump(ChainName),
}

impl Element {
    /// The set of this generation that it belongs to.
    pub(crate) fn set_name(&self, generation: u32) -> SetName {
        match self.key {
            Key::Allowed(.., net) => SetName::allowed(net.prefix_len(), generation),
            _ => SetName::new(self.set, generation),
        }
    }

    pub(crate) fn member(set: Set, key: Key) -> Self {
        Self { set, key, data: Data::None }
    }

    /// The id or value that it holds.
    pub(crate) fn value(&self) -> Option<u32> {
        match &self.data {
            Data::Id(id) | Data::Named(id, _) => Some(*id),
            _ => None,
        }
    }

    pub(crate) fn id(set: Set, key: Key, id: u32) -> Self {
        Self { set, key, data: Data::Id(id) }
    }

    pub(crate) fn target(set: Set, key: Key, addr: IpAddr, port: u16) -> Self {
        Self { set, key, data: Data::Target(addr, port) }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => write!(f, "{addr}"),
            Self::Frontend(addr, protocol, port) => write!(f, "{addr} . {protocol} . {port}"),
            Self::Port(protocol, port) => write!(f, "{protocol} . {port}"),
            Self::Twice(addr, port) => write!(f, "{addr} . {addr} . {port}"),
            Self::Allowed(addr, protocol, port, net) => write!(f, "{addr} . {protocol} . {port} . {net}"),
            Self::Network(net) => write!(f, "{net}"),
            Self::Id(id) => write!(f, "{}", ClassId(*id)),
            Self::IdProtocol(id, protocol) => write!(f, "{} . {protocol}", ClassId(*id)),
            Self::IdSlot(id, slot) => write!(f, "{} . {slot}", ClassId(*id)),
            Self::IdProtocolSlot(id, protocol, slot) => write!(f, "{} . {protocol} . {slot}", ClassId(*id)),
        }
    }
}

/// Key, comment and data as nft writes them.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.data {
            Data::None => write!(f, "{key}"),
            Data::Id(id) => write!(f, "{key} : {}", ClassId(*id)),
            Data::Named(id, name) => write!(f, "{key} comment \"{name}\" : {}", ClassId(*id)),
            Data::Target(addr, port) => write!(f, "{key} : {addr} . {port}"),
            Data::Goto(chain) => write!(f, "{key} : goto {chain}"),
            Data::Jump(chain) => write!(f, "{key} : jump {chain}"),
        }
    }
}
