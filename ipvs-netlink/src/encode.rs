//! Requests as bytes: appended one behind the other to one buffer, nothing allocated per message.

use std::net::IpAddr;

use crate::types::{
    Destination, Family, Forwarding, Name, Netmask, Service, ServiceFlags, ServiceKey, Timeouts, TunnelKind,
};
use crate::uapi::{self, AF_INET, AF_INET6};

/// Requests in the order in which the kernel shall carry them out.
///
/// Filling it cannot fail. [`Socket::send`](crate::Socket::send) delivers it and reports failures by
/// the index of the message, in the order of the calls below.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where each message begins.
    starts: Vec<u32>,
}

impl Batch {
    /// A batch without messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Messages in the batch.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Forget the messages, keep the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
    }

    /// Add a virtual server: `EEXIST` where there is one with this key.
    pub fn new_service(&mut self, service: &Service) {
        self.service(uapi::CMD_NEW_SERVICE, service, ServiceFlags::ALL);
    }

    /// Change a virtual server: `ESRCH` where there is none with this key. Connections stay.
    pub fn set_service(&mut self, service: &Service) {
        self.service(uapi::CMD_SET_SERVICE, service, ServiceFlags::ALL);
    }

    /// Change a virtual server, and of its flags only those of `mask`.
    pub fn set_service_masked(&mut self, service: &Service, mask: ServiceFlags) {
        self.service(uapi::CMD_SET_SERVICE, service, mask);
    }

    /// Remove a virtual server and its destinations.
    pub fn del_service(&mut self, key: &ServiceKey) {
        self.keyed(uapi::CMD_DEL_SERVICE, key);
    }

    /// Add a destination to a virtual server.
    pub fn new_destination(&mut self, key: &ServiceKey, destination: &Destination) {
        self.destination(uapi::CMD_NEW_DEST, key, destination);
    }

    /// Change a destination of a virtual server.
    pub fn set_destination(&mut self, key: &ServiceKey, destination: &Destination) {
        self.destination(uapi::CMD_SET_DEST, key, destination);
    }

    /// Remove a destination from a virtual server; packets of its connections are dropped from then on.
    pub fn del_destination(&mut self, key: &ServiceKey, address: IpAddr, port: u16) {
        let message = self.begin(uapi::CMD_DEL_DEST);
        self.key(key);
        let nest = nest(&mut self.bytes, uapi::ATTR_DEST);
        self.destination_key(address, port);
        end(&mut self.bytes, nest);
        self.finish(message);
    }

    /// Remove every virtual server of the network namespace, whoever made it.
    pub fn flush(&mut self) {
        let message = self.begin(uapi::CMD_FLUSH);
        self.finish(message);
    }

    /// Set the counters of one virtual server to zero, or of all.
    pub fn zero(&mut self, key: Option<&ServiceKey>) {
        match key {
            Some(key) => self.keyed(uapi::CMD_ZERO, key),
            None => {
                let message = self.begin(uapi::CMD_ZERO);
                self.finish(message);
            }
        }
    }

    /// Change those timeouts that are given. The kernel keeps a value that is given as 0.
    pub fn set_timeouts(&mut self, timeouts: &Timeouts) {
        let message = self.begin(uapi::CMD_SET_CONFIG);
        let of = [
            (uapi::ATTR_TIMEOUT_TCP, timeouts.tcp),
            (uapi::ATTR_TIMEOUT_TCP_FIN, timeouts.tcp_fin),
            (uapi::ATTR_TIMEOUT_UDP, timeouts.udp),
        ];
        for (attribute, seconds) in of {
            if let Some(seconds) = seconds {
                put_u32(&mut self.bytes, attribute, seconds);
            }
        }
        self.finish(message);
    }

    /// The bytes of the messages, each with the family id, sequence number and acknowledgement still
    /// unset; a socket fills those in.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One request that is answered by data: a dump or a single object.
    pub(crate) fn request(command: u8, key: Option<&ServiceKey>) -> Self {
        let mut batch = Self::new();
        match key {
            Some(key) => batch.keyed(command, key),
            None => {
                let message = batch.begin(command);
                batch.finish(message);
            }
        }
        batch
    }

    /// The question for the id of the generic netlink family.
    pub(crate) fn resolve_family() -> Self {
        let mut batch = Self::new();
        let message = batch.begin(uapi::CTRL_CMD_GETFAMILY);
        put_string(&mut batch.bytes, uapi::CTRL_ATTR_FAMILY_NAME, uapi::GENL_NAME.as_bytes());
        batch.finish(message);
        batch
    }

    /// Address the messages of `range` to a family, number them from `sequence` and set their flags;
    /// the last of them asks for an acknowledgement if `acknowledge`. Returns their bytes.
    pub(crate) fn stamp(
        &mut self,
        range: std::ops::Range<usize>,
        family: u16,
        sequence: u32,
        flags: u16,
        acknowledge: bool,
    ) -> &[u8] {
        let last = range.end - 1;
        for (message, sequence) in range.clone().zip((0..).map(|n| sequence.wrapping_add(n))) {
            let at = self.starts[message] as usize;
            let mut flags = uapi::NLM_F_REQUEST | flags;
            if acknowledge && message == last {
                flags |= uapi::NLM_F_ACK;
            }
            self.bytes[at + 4..at + 6].copy_from_slice(&family.to_ne_bytes());
            self.bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
            self.bytes[at + 8..at + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
        let end = self.starts.get(range.end).map_or(self.bytes.len(), |&at| at as usize);
        &self.bytes[self.starts[range.start] as usize..end]
    }

    fn service(&mut self, command: u8, service: &Service, mask: ServiceFlags) {
        let message = self.begin(command);
        let bytes = &mut self.bytes;
        let outer = nest(bytes, uapi::ATTR_SERVICE);
        put_key(bytes, &service.key);
        put_name(bytes, uapi::SVC_SCHED_NAME, &service.scheduler.0);
        if let Some(engine) = &service.engine {
            put_name(bytes, uapi::SVC_PE_NAME, engine);
        }
        header(bytes, uapi::SVC_FLAGS, 8);
        bytes.extend_from_slice(&service.flags.0.to_ne_bytes());
        bytes.extend_from_slice(&mask.0.to_ne_bytes());
        put_u32(bytes, uapi::SVC_TIMEOUT, service.timeout);
        match service.netmask {
            Netmask::V4(mask) => put_u32(bytes, uapi::SVC_NETMASK, u32::from_ne_bytes(mask.octets())),
            Netmask::V6(prefix) => put_u32(bytes, uapi::SVC_NETMASK, u32::from(prefix)),
        }
        end(bytes, outer);
        self.finish(message);
    }

    fn destination(&mut self, command: u8, key: &ServiceKey, destination: &Destination) {
        let message = self.begin(command);
        self.key(key);
        let outer = nest(&mut self.bytes, uapi::ATTR_DEST);
        self.destination_key(destination.address, destination.port);
        let (method, tunnel) = match destination.forwarding {
            Forwarding::Masquerade => (0, None),
            Forwarding::Local => (1, None),
            Forwarding::Tunnel(tunnel) => (2, Some(tunnel)),
            Forwarding::DirectRoute => (3, None),
            Forwarding::Bypass => (4, None),
            Forwarding::Other(number) => (number, None),
        };
        let bytes = &mut self.bytes;
        put_u32(bytes, uapi::DEST_FWD_METHOD, method);
        put_u32(bytes, uapi::DEST_WEIGHT, destination.weight);
        put_u32(bytes, uapi::DEST_U_THRESH, destination.upper_threshold);
        put_u32(bytes, uapi::DEST_L_THRESH, destination.lower_threshold);
        if let Some(tunnel) = tunnel {
            let kind = match tunnel.kind {
                TunnelKind::Ipip => 0,
                TunnelKind::Gue => 1,
                TunnelKind::Gre => 2,
                TunnelKind::Other(number) => number,
            };
            header(bytes, uapi::DEST_TUN_TYPE, 1);
            bytes.extend_from_slice(&[kind, 0, 0, 0]);
            put_u16(bytes, uapi::DEST_TUN_PORT, tunnel.port.to_be_bytes());
            put_u16(bytes, uapi::DEST_TUN_FLAGS, tunnel.flags.to_ne_bytes());
        }
        end(bytes, outer);
        self.finish(message);
    }

    fn keyed(&mut self, command: u8, key: &ServiceKey) {
        let message = self.begin(command);
        self.key(key);
        self.finish(message);
    }

    fn key(&mut self, key: &ServiceKey) {
        let outer = nest(&mut self.bytes, uapi::ATTR_SERVICE);
        put_key(&mut self.bytes, key);
        end(&mut self.bytes, outer);
    }

    fn destination_key(&mut self, address: IpAddr, port: u16) {
        let bytes = &mut self.bytes;
        put_address(bytes, uapi::DEST_ADDR, address);
        put_u16(bytes, uapi::DEST_PORT, port.to_be_bytes());
        put_u16(bytes, uapi::DEST_ADDR_FAMILY, family_number(Family::of(address)).to_ne_bytes());
    }

    /// Append the netlink and generic netlink headers; returns where the message starts.
    fn begin(&mut self, command: u8) -> usize {
        let start = self.bytes.len();
        self.starts.push(start as u32);
        self.bytes.extend_from_slice(&[0; 16]);
        self.bytes.extend_from_slice(&[command, uapi::GENL_VERSION, 0, 0]);
        start
    }

    fn finish(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

fn put_key(bytes: &mut Vec<u8>, key: &ServiceKey) {
    put_u16(bytes, uapi::SVC_AF, family_number(key.family()).to_ne_bytes());
    match *key {
        ServiceKey::Address { address, port, protocol } => {
            put_u16(bytes, uapi::SVC_PROTOCOL, protocol.number().to_ne_bytes());
            put_address(bytes, uapi::SVC_ADDR, address);
            put_u16(bytes, uapi::SVC_PORT, port.to_be_bytes());
        }
        ServiceKey::Mark { mark, .. } => put_u32(bytes, uapi::SVC_FWMARK, mark),
    }
}

fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

fn put_address(bytes: &mut Vec<u8>, attribute: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            header(bytes, attribute, 4);
            bytes.extend_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            header(bytes, attribute, 16);
            bytes.extend_from_slice(&address.octets());
        }
    }
}

fn put_name(bytes: &mut Vec<u8>, attribute: u16, name: &Name) {
    put_string(bytes, attribute, name.as_str().as_bytes());
}

/// Text with its NUL, padded.
fn put_string(bytes: &mut Vec<u8>, attribute: u16, text: &[u8]) {
    header(bytes, attribute, text.len() as u16 + 1);
    bytes.extend_from_slice(text);
    bytes.push(0);
    while !bytes.len().is_multiple_of(4) {
        bytes.push(0);
    }
}

fn put_u16(bytes: &mut Vec<u8>, attribute: u16, value: [u8; 2]) {
    header(bytes, attribute, 2);
    bytes.extend_from_slice(&[value[0], value[1], 0, 0]);
}

fn put_u32(bytes: &mut Vec<u8>, attribute: u16, value: u32) {
    header(bytes, attribute, 4);
    bytes.extend_from_slice(&value.to_ne_bytes());
}

fn header(bytes: &mut Vec<u8>, attribute: u16, payload: u16) {
    let length = (payload + 4).to_ne_bytes();
    let kind = attribute.to_ne_bytes();
    bytes.extend_from_slice(&[length[0], length[1], kind[0], kind[1]]);
}

fn nest(bytes: &mut Vec<u8>, attribute: u16) -> usize {
    let start = bytes.len();
    header(bytes, attribute | uapi::NLA_F_NESTED, 0);
    start
}

fn end(bytes: &mut [u8], start: usize) {
    // A nest here holds at most a few hundred bytes, far below the 64 KiB of its length field.
    let length = (bytes.len() - start) as u16;
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}
