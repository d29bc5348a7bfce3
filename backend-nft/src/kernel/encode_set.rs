//! Our sets as the kernel declares them, and elements as bytes.

use std::net::IpAddr;

use ipnet::IpNet;
use nft_netlink::{Data as Declared, Field, Set as Declaration};

use crate::schema::{
    element::{Data, Key},
    name::Set,
};

/// The fields of a set's key and of its data; no data for a plain set, empty data for verdicts.
pub(crate) fn fields(set: Set, v4: bool) -> (Vec<Field>, Option<Vec<Field>>) {
    let address = if v4 { Field::IPV4_ADDRESS } else { Field::IPV6_ADDRESS };
    let source = if v4 { Field::IP_SOURCE } else { Field::IP6_SOURCE };
    let destination = if v4 { Field::IP_DESTINATION } else { Field::IP6_DESTINATION };
    let (protocol, port, class) = (Field::PROTOCOL, Field::PORT, Field::CLASS);
    let endpoint = || Some(vec![destination, Field::DESTINATION_PORT]);
    match set {
        Set::Vips => (vec![address, protocol, port], Some(vec![class])),
        Set::NodePorts => (vec![protocol, port], Some(vec![class])),
        Set::Endpoints => (vec![Field::PRIORITY, Field::L4_PROTOCOL, Field::SLOT], endpoint()),
        Set::LocalGroups | Set::StickySizes | Set::StickyLocalSizes => (vec![class], Some(vec![class])),
        Set::Dispatch | Set::DispatchLocal | Set::DispatchSticky | Set::Picks | Set::PicksBySource => {
            (vec![class], Some(Vec::new()))
        }
        Set::ClusterIps | Set::OutsideVips | Set::ServiceCidrs | Set::NodeAddrs => (vec![address], None),
        Set::RefuseVips | Set::DropVips => (vec![address, protocol, port], None),
        Set::RefuseNodePorts => (vec![protocol, port], None),
        Set::EndpointPorts => (vec![address, address, port], None),
        Set::AllowedSources => (vec![address, protocol, port, address], None),
        Set::StickySlots => (vec![Field::PRIORITY, Field::SLOT], Some(vec![Field::PRIORITY])),
        Set::StickyEndpoints | Set::StickyLocal => (vec![Field::PRIORITY, Field::L4_PROTOCOL], endpoint()),
        Set::Clients => (vec![source, Field::PRIORITY], Some(vec![Field::PRIORITY])),
    }
}

/// Calls `declare` with the declaration of a set.
pub(crate) fn declare<T>(
    set: Set,
    name: &str,
    v4: bool,
    capacity: Option<u32>,
    declare: impl FnOnce(&Declaration<'_>) -> T,
) -> T {
    let (key, data) = fields(set, v4);
    let mut declaration = Declaration::new(name, &key);
    declaration.data = data.as_deref().map(|data| match data {
        [] => Declared::Verdict,
        fields => Declared::Value(fields),
    });
    declaration.size = capacity;
    match set {
        Set::ServiceCidrs => declaration.interval = true,
        Set::Clients => {
            declaration.dynamic = true;
            declaration.aging = true;
            // No interval for the kernel's walk over it: nft 1.0.6 lists one and cannot read it again, and a node's ruleset that
            // was saved by a listing would not load.
        }
        _ => {}
    }
    declare(&declaration)
}

/// A key or datum as it stands in the registers, without the heap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes {
    bytes: [u8; 64],
    length: usize,
}

impl Bytes {
    fn new() -> Self {
        Self { bytes: [0; 64], length: 0 }
    }

    /// Appends a part, padded to four bytes if another follows it.
    fn part(mut self, part: &[u8]) -> Self {
        self.length = self.length.next_multiple_of(4);
        self.bytes[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len();
        self
    }

    fn addr(self, addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => self.part(&addr.octets()),
            IpAddr::V6(addr) => self.part(&addr.octets()),
        }
    }

    /// Pads the last part as well, as in a concatenation.
    fn concatenated(mut self) -> Self {
        self.length = self.length.next_multiple_of(4);
        self
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The bytes of a key; for networks, of the first and of the last key.
pub(crate) fn key_bytes(key: &Key) -> (Bytes, Option<Bytes>) {
    let new = Bytes::new();
    let bytes = match key {
        Key::Address(addr) => new.addr(*addr),
        Key::Frontend(addr, protocol, port) => {
            new.addr(*addr).part(&[protocol.number()]).part(&port.to_be_bytes()).concatenated()
        }
        Key::Port(protocol, port) => new.part(&[protocol.number()]).part(&port.to_be_bytes()).concatenated(),
        Key::Twice(addr, port) => new.addr(*addr).addr(*addr).part(&port.to_be_bytes()).concatenated(),
        Key::Allowed(addr, protocol, port, net) => {
            new.addr(*addr).part(&[protocol.number()]).part(&port.to_be_bytes()).addr(net.network())
        }
        Key::Network(net) => {
            let (first, last) = bounds(net);
            return (new.addr(first), Some(new.addr(last)));
        }
        Key::Id(id) => new.part(&id.to_ne_bytes()),
        Key::IdProtocol(id, protocol) => {
            new.part(&id.to_ne_bytes()).part(&[protocol.number()]).concatenated()
        }
        Key::IdSlot(id, slot) => new.part(&id.to_ne_bytes()).part(&slot.to_ne_bytes()),
        Key::IdProtocolSlot(id, protocol, slot) => {
            new.part(&id.to_ne_bytes()).part(&[protocol.number()]).part(&slot.to_ne_bytes())
        }
    };
    (bytes, None)
}

/// The bytes of a datum that is no verdict.
pub(crate) fn data_bytes(data: &Data) -> Bytes {
    let new = Bytes::new();
    match data {
        Data::Id(id) | Data::Named(id, _) => new.part(&id.to_ne_bytes()),
        Data::Target(addr, port) => new.addr(*addr).part(&port.to_be_bytes()).concatenated(),
        Data::None | Data::Goto(_) | Data::Jump(_) => new,
    }
}

fn bounds(net: &IpNet) -> (IpAddr, IpAddr) {
    (net.network(), net.broadcast())
}
