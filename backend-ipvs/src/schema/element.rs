//! Set elements as nftables wants them.

use std::net::IpAddr;

use ipnet::IpNet;
use nft_netlink::{Batch, Element as NftElement, Position, Table, Template};
use proxy_core::model::Family;

use crate::schema::{
    op::{Element, Spot},
    scaffold::{
        ALLOWED, CLUSTER_IPS, DROP, DROP_OUTSIDE, HAIRPIN, HEALTH_CHECKS, MARKS, MASQUERADE, REFUSED,
        RESTRICTED, SHORT_CIRCUITS, VIPS,
    },
};

/// Adds an element to the batch.
pub(crate) fn add(batch: &mut Batch, table: Table<'_>, element: &Element) -> Position {
    let key = Key::of(element);
    let mut elements = batch.add_elements(table, key.set);
    match &key.end {
        Some(end) => elements.push(&NftElement::key(key.bytes()).to(&end[..key.length])),
        None => elements.push_fixed(&key.template(), key.bytes(), key.data()),
    }
}

/// The set that an element belongs to.
pub(crate) fn set(element: &Element) -> &'static str {
    match element {
        Element::Vip(_) => VIPS,
        Element::ClusterIp(_) => CLUSTER_IPS,
        Element::Masquerade(_) => MASQUERADE,
        Element::ShortCircuit(..) => SHORT_CIRCUITS,
        Element::Mark(_) => MARKS,
        Element::Refused(_) => REFUSED,
        Element::Drop(_) => DROP,
        Element::DropOutside(_) => DROP_OUTSIDE,
        Element::Restricted(_) => RESTRICTED,
        Element::Allowed(..) => ALLOWED,
        Element::Hairpin(_) => HAIRPIN,
        Element::HealthCheck(_) => HEALTH_CHECKS,
    }
}

/// Takes an element out.
pub(crate) fn delete(batch: &mut Batch, table: Table<'_>, element: &Element) -> Position {
    let key = Key::of(element);
    let mut elements = batch.delete_elements(table, key.set);
    match &key.end {
        Some(end) => elements.push(&NftElement::key(key.bytes()).to(&end[..key.length])),
        None => elements.push_fixed(&Template::new(key.length, 0), key.bytes(), &[]),
    }
}

/// The address that an element is about.
pub(crate) fn address(element: &Element) -> Option<IpAddr> {
    match element {
        Element::Vip(addr) | Element::ClusterIp(addr) | Element::Hairpin(addr) => Some(*addr),
        Element::Masquerade(spot)
        | Element::Refused(spot)
        | Element::Drop(spot)
        | Element::DropOutside(spot)
        | Element::Restricted(spot)
        | Element::ShortCircuit(spot, _)
        | Element::Allowed(spot, _) => Some(spot.addr),
        Element::Mark(_) | Element::HealthCheck(_) => None,
    }
}

/// An element as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes {
    pub(crate) key: Vec<u8>,
    /// The last key of a range.
    pub(crate) end: Option<Vec<u8>>,
    pub(crate) value: Vec<u8>,
}

impl Bytes {
    /// As the kernel will list it.
    pub(crate) fn of(element: &Element) -> Self {
        let key = Key::of(element);
        Self {
            key: key.bytes().to_vec(),
            end: key.end.map(|end| end[..key.length].to_vec()),
            value: key.data().to_vec(),
        }
    }

    /// The address that a key begins with.
    pub(crate) fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => {
                self.key.first_chunk::<4>().filter(|_| self.key.len() != 2).map(|addr| (*addr).into())
            }
            Family::V6 => self.key.first_chunk::<16>().map(|addr| (*addr).into()),
        }
    }

    /// For people: the address, and protocol and port where they follow; else the bytes.
    pub(crate) fn text(&self, family: Family) -> String {
        let length = if family == Family::V4 { 4 } else { 16 };
        let Some(addr) = self.address(family) else { return format!("{:02x?}", self.key) };
        let rest = &self.key[length..];
        match rest.first_chunk::<8>() {
            Some([protocol, _, _, _, high, low, _, _]) => {
                let port = u16::from_be_bytes([*high, *low]);
                format!("protocol {protocol}, {}", std::net::SocketAddr::new(addr, port))
            }
            None => addr.to_string(),
        }
    }
}

/// The longest: two IPv6 addresses, protocol and port, each padded to four bytes.
const LONGEST: usize = 40;

struct Key {
    set: &'static str,
    start: [u8; LONGEST],
    /// The last key of a range.
    end: Option<[u8; LONGEST]>,
    length: usize,
    mark: Option<[u8; 4]>,
}

impl Key {
    fn of(element: &Element) -> Self {
        let mut key = Self { set: set(element), start: [0; LONGEST], end: None, length: 0, mark: None };
        match *element {
            Element::Vip(addr) | Element::ClusterIp(addr) => key.push_addr(addr),
            Element::Masquerade(spot)
            | Element::Refused(spot)
            | Element::Drop(spot)
            | Element::DropOutside(spot)
            | Element::Restricted(spot) => key.push_spot(spot),
            Element::ShortCircuit(spot, mark) => {
                key.mark = Some(mark.to_ne_bytes());
                key.push_spot(spot);
            }
            Element::Mark(mark) => key.push(&mark.to_ne_bytes()),
            Element::HealthCheck(port) => key.push_port(port),
            Element::Allowed(spot, net) => key.push_range(spot, net),
            Element::Hairpin(addr) => {
                key.push_addr(addr);
                key.push_addr(addr);
            }
        }
        key
    }

    fn bytes(&self) -> &[u8] {
        &self.start[..self.length]
    }

    fn data(&self) -> &[u8] {
        self.mark.as_ref().map_or(&[], |mark| mark)
    }

    fn template(&self) -> Template {
        Template::new(self.length, self.data().len())
    }

    fn push_spot(&mut self, spot: Spot) {
        self.push_addr(spot.addr);
        self.push(&[spot.protocol.number(), 0, 0, 0]);
        let port = spot.port.to_be_bytes();
        self.push(&[port[0], port[1], 0, 0]);
    }

    /// By itself it is not padded.
    fn push_port(&mut self, port: u16) {
        self.push(&port.to_be_bytes());
    }

    fn push_range(&mut self, spot: Spot, net: IpNet) {
        self.push_spot(spot);
        let (before, length) = (self.start, self.length);
        self.push_addr(net.broadcast());
        let end = self.start;
        (self.start, self.length) = (before, length);
        self.push_addr(net.network());
        self.end = Some(end);
    }

    fn push_addr(&mut self, addr: IpAddr) {
        match addr {
            IpAddr::V4(addr) => self.push(&addr.octets()),
            IpAddr::V6(addr) => self.push(&addr.octets()),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.start[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}
