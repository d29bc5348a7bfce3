//! Conntrack entries: walking them without holding the table in memory, deleting exactly the ones meant.

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    attr::{Attributes, Writer},
    error::Error,
    ip::{AddressFamily, read_ip, write_ip},
    message::{Message, flags},
    pipeline::Pipeline,
    socket::{Dump, Socket},
};

const FAMILY_HEADER: usize = 4;
const SUBSYSTEM: u16 = 1;
/// `IPCTNL_MSG_CT_*`.
pub(crate) const NEW: u16 = SUBSYSTEM << 8;
const GET: u16 = SUBSYSTEM << 8 | 1;
pub(crate) const DELETE: u16 = SUBSYSTEM << 8 | 2;
const GET_STATISTICS: u16 = SUBSYSTEM << 8 | 5;

/// `CTA_*`.
pub(crate) mod cta {
    pub(super) const TUPLE_ORIGINAL: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(crate) const STATUS: u16 = 3;
    pub(super) const PROTOCOL_INFO: u16 = 4;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const MARK: u16 = 8;
    pub(super) const COUNTERS_ORIGINAL: u16 = 9;
    pub(super) const COUNTERS_REPLY: u16 = 10;
    pub(crate) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const MARK_MASK: u16 = 21;
    pub(super) const FILTER: u16 = 25;
    pub(super) const STATUS_MASK: u16 = 26;

    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTOCOL: u16 = 2;
    pub(super) const V4_SOURCE: u16 = 1;
    pub(super) const V4_DESTINATION: u16 = 2;
    pub(super) const V6_SOURCE: u16 = 3;
    pub(super) const V6_DESTINATION: u16 = 4;
    pub(super) const PROTOCOL_NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
    pub(super) const ICMP_ID: u16 = 4;
    pub(super) const ICMP_TYPE: u16 = 5;
    pub(super) const ICMP_CODE: u16 = 6;
    /// The same for ICMPv6 is three higher.
    pub(super) const ICMPV6_OFFSET: u16 = 3;
    pub(super) const INFO_TCP: u16 = 1;
    pub(super) const TCP_STATE: u16 = 1;
    pub(super) const FILTER_ORIGINAL: u16 = 1;
    pub(super) const COUNTED_PACKETS: u16 = 1;
    pub(super) const COUNTED_BYTES: u16 = 2;

    /// `CTA_FILTER_F_CTA_*` of net/netfilter/nf_internals.h, part of the interface though not in its headers.
    pub(super) const FILTER_DESTINATION: u32 = 1 << 1;
    pub(super) const FILTER_PROTOCOL: u32 = 1 << 3;
    pub(super) const FILTER_DESTINATION_PORT: u32 = 1 << 5;
}

/// Protocol numbers that matter here.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// `IPS_*`: bits of an entry's status.
pub mod status {
    pub const SEEN_REPLY: u32 = 0x2;
    pub const ASSURED: u32 = 0x4;
    pub const CONFIRMED: u32 = 0x8;
    pub const SNAT: u32 = 0x10;
    pub const DNAT: u32 = 0x20;
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// 0 for a protocol without ports.
    pub source_port: u16,
    pub destination_port: u16,
    pub icmp: Option<Icmp>,
}

/// What identifies a flow of ICMP or ICMPv6 in place of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Icmp {
    pub id: u16,
    pub kind: u8,
    pub code: u8,
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// As the first packet came in.
    pub original: Tuple,
    /// As answers come in: its source is where the flow was sent to after NAT.
    pub reply: Tuple,
    pub zone: u16,
    /// [`status`]
    pub status: u32,
    /// Tells this entry from a later one of the same tuple.
    pub id: Option<u32>,
    /// Seconds until it expires.
    pub timeout: u32,
    pub mark: u32,
    /// `TCP_CONNTRACK_*`, for TCP.
    pub tcp_state: Option<u8>,
}

/// `TCP_CONNTRACK_*`: how far a TCP connection is, as conntrack sees it.
pub mod tcp_state {
    pub const SYN_SENT: u8 = 1;
    pub const SYN_RECEIVED: u8 = 2;
    pub const ESTABLISHED: u8 = 3;
    pub const TIME_WAIT: u8 = 7;
    /// Ended by a reset.
    pub const CLOSE: u8 = 8;
}

/// What one direction of a flow carried, where `net.netfilter.nf_conntrack_acct` was 1 when it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counted {
    pub packets: u64,
    /// With the headers from IP on.
    pub bytes: u64,
}

/// What both directions of a flow carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Carried {
    pub original: Counted,
    pub reply: Counted,
}

impl Carried {
    pub const fn bytes(&self) -> u64 {
        self.original.bytes.saturating_add(self.reply.bytes)
    }

    /// `None` where nothing was counted.
    pub(crate) fn decode(message: &Message<'_>) -> Option<Self> {
        let attributes = message.attributes(FAMILY_HEADER);
        let counted = |kind| {
            let fields = attributes.get(kind)?.nested();
            let number = |kind| fields.get(kind).and_then(|number| number.be64());
            Some(Counted { packets: number(cta::COUNTED_PACKETS)?, bytes: number(cta::COUNTED_BYTES)? })
        };
        match (counted(cta::COUNTERS_ORIGINAL), counted(cta::COUNTERS_REPLY)) {
            (None, None) => None,
            (original, reply) => {
                Some(Self { original: original.unwrap_or_default(), reply: reply.unwrap_or_default() })
            }
        }
    }
}

/// Which entries to walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub family: Option<AddressFamily>,
    pub protocol: Option<u8>,
    /// Address and port of the original direction; of use only with the family and a protocol.
    pub destination: Option<IpAddr>,
    pub destination_port: Option<u16>,
    pub zone: Option<u16>,
    /// (value, mask)
    pub mark: Option<(u32, u32)>,
    /// (value, mask), [`status`]
    pub status: Option<(u32, u32)>,
}

impl Filter {
    pub fn matches(&self, flow: &Flow) -> bool {
        let v4 = flow.original.source.is_ipv4();
        self.family.is_none_or(|family| (family == AddressFamily::V4) == v4)
            && self.protocol.is_none_or(|protocol| protocol == flow.original.protocol)
            && self.destination.is_none_or(|destination| destination == flow.original.destination)
            && self.destination_port.is_none_or(|port| port == flow.original.destination_port)
            && self.zone.is_none_or(|zone| zone == flow.zone)
            && self.mark.is_none_or(|(value, mask)| flow.mark & mask == value)
            && self.status.is_none_or(|(value, mask)| flow.status & mask == value)
    }

    /// Writes what the kernel can filter by. One that cannot (before 5.8) ignores it and sends everything, so `matches`
    /// is asked in any case.
    fn write(&self, writer: &mut Writer) {
        writer.raw(&[self.family.map_or(0, AddressFamily::number), 0, 0, 0]);
        if let Some((value, mask)) = self.mark {
            writer.be32(cta::MARK, value);
            writer.be32(cta::MARK_MASK, mask);
        }
        if let Some((value, mask)) = self.status {
            writer.be32(cta::STATUS, value);
            writer.be32(cta::STATUS_MASK, mask);
        }
        // It filters tuples of one family only (EOPNOTSUPP otherwise).
        let (Some(_), Some(protocol)) = (self.family, self.protocol) else { return };
        let mut by = cta::FILTER_PROTOCOL;
        let tuple = writer.begin(cta::TUPLE_ORIGINAL);
        if let Some(destination) = self.destination {
            by |= cta::FILTER_DESTINATION;
            writer.nest(cta::TUPLE_IP, |ip| {
                let kind = if destination.is_ipv4() { cta::V4_DESTINATION } else { cta::V6_DESTINATION };
                write_ip(ip, kind, destination);
            });
        }
        writer.nest(cta::TUPLE_PROTOCOL, |inner| {
            inner.u8(cta::PROTOCOL_NUMBER, protocol);
            if let Some(port) = self.destination_port {
                by |= cta::FILTER_DESTINATION_PORT;
                inner.be16(cta::DESTINATION_PORT, port);
            }
        });
        writer.end(tuple);
        writer.nest(cta::FILTER, |filter| filter.u32(cta::FILTER_ORIGINAL, by));
    }
}

/// Hands every entry that the filter lets through to `each`, as they come from the kernel.
///
/// The kernel's table may change meanwhile: an entry that lives through the walk is seen, others may be or not.
pub fn walk(socket: &mut Socket, filter: &Filter, mut each: impl FnMut(&Flow)) -> Result<Dump, Error> {
    socket.dump(
        GET,
        |writer| filter.write(writer),
        |message| {
            if let Some(flow) = Flow::decode(message).filter(|flow| filter.matches(flow)) {
                each(&flow);
            }
        },
    )
}

/// As [`walk`], with what each flow carried so far.
pub fn walk_counted(
    socket: &mut Socket,
    filter: &Filter,
    mut each: impl FnMut(&Flow, Option<Carried>),
) -> Result<Dump, Error> {
    socket.dump(
        GET,
        |writer| filter.write(writer),
        |message| {
            if let Some(flow) = Flow::decode(message).filter(|flow| filter.matches(flow)) {
                each(&flow, Carried::decode(message));
            }
        },
    )
}

/// How many entries there are, and how many there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub entries: u32,
    /// Not told by kernels before 5.1.
    pub limit: Option<u32>,
}

/// Counts the entries of all families without walking them.
pub fn count(socket: &mut Socket) -> Result<Count, Error> {
    const ENTRIES: u16 = 1;
    const LIMIT: u16 = 2;
    socket.ask(
        GET_STATISTICS,
        0,
        |writer| writer.raw(&[0; FAMILY_HEADER]),
        |message| {
            let attributes = message.attributes(FAMILY_HEADER);
            let limit = attributes.get(LIMIT).and_then(|limit| limit.be32());
            Some(Count { entries: attributes.get(ENTRIES)?.be32()?, limit })
        },
    )
}

impl Flow {
    /// Reads an entry; `None` for a message that is none.
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        if message.kind == NEW { Self::read(message) } else { None }
    }

    /// Reads the entry of a message of any kind.
    pub(crate) fn read(message: &Message<'_>) -> Option<Self> {
        let (mut original, mut reply) = (None, None);
        let (mut zone, mut status, mut id, mut timeout, mut mark, mut tcp_state) = (0, 0, None, 0, 0, None);
        for attribute in message.attributes(FAMILY_HEADER) {
            match attribute.kind {
                cta::TUPLE_ORIGINAL => original = Tuple::decode(attribute.nested()),
                cta::TUPLE_REPLY => reply = Tuple::decode(attribute.nested()),
                cta::STATUS => status = attribute.be32()?,
                cta::TIMEOUT => timeout = attribute.be32()?,
                cta::MARK => mark = attribute.be32()?,
                cta::ID => id = attribute.be32(),
                cta::ZONE => zone = attribute.be16()?,
                cta::PROTOCOL_INFO => {
                    tcp_state = attribute
                        .nested()
                        .get(cta::INFO_TCP)
                        .and_then(|tcp| tcp.nested().get(cta::TCP_STATE))
                        .and_then(|state| state.u8());
                }
                _ => {}
            }
        }
        Some(Self { original: original?, reply: reply?, zone, status, id, timeout, mark, tcp_state })
    }

    /// Adds to the pipeline that this very entry be deleted: by its tuple, zone and id, so never a later one of the
    /// same tuple. `ENOENT` if it is gone already. Answers the request's index.
    pub fn push_delete(&self, pipeline: &mut Pipeline) -> usize {
        pipeline.push(DELETE, 0, |writer| {
            writer.raw(&[self.original.family(), 0, 0, 0]);
            self.original.write(writer, cta::TUPLE_ORIGINAL);
            if self.zone != 0 {
                writer.be16(cta::ZONE, self.zone);
            }
            if let Some(id) = self.id {
                writer.be32(cta::ID, id);
            }
        })
    }

    /// Adds to the pipeline that this entry be made, without a packet having come. `EEXIST` if its tuple is taken.
    pub fn push_insert(&self, pipeline: &mut Pipeline) -> usize {
        pipeline.push(NEW, flags::CREATE | flags::EXCLUSIVE, |writer| {
            writer.raw(&[self.original.family(), 0, 0, 0]);
            self.original.write(writer, cta::TUPLE_ORIGINAL);
            self.reply.write(writer, cta::TUPLE_REPLY);
            writer.be32(cta::TIMEOUT, self.timeout);
            if self.status != 0 {
                // An entry made this way is confirmed already, and that bit cannot be taken back (EBUSY).
                writer.be32(cta::STATUS, self.status | status::CONFIRMED);
            }
            if self.mark != 0 {
                writer.be32(cta::MARK, self.mark);
            }
            if self.zone != 0 {
                writer.be16(cta::ZONE, self.zone);
            }
            if let Some(state) = self.tcp_state {
                writer.nest(cta::PROTOCOL_INFO, |info| {
                    info.nest(cta::INFO_TCP, |tcp| tcp.u8(cta::TCP_STATE, state));
                });
            }
        })
    }
}

impl Tuple {
    /// The same flow seen from the other side, as it is without NAT.
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        }
    }

    const fn family(&self) -> u8 {
        AddressFamily::of(self.source).number()
    }

    fn write(&self, writer: &mut Writer, kind: u16) {
        let tuple = writer.begin(kind);
        let (source, destination) = if self.source.is_ipv4() {
            (cta::V4_SOURCE, cta::V4_DESTINATION)
        } else {
            (cta::V6_SOURCE, cta::V6_DESTINATION)
        };
        writer.nest(cta::TUPLE_IP, |ip| {
            write_ip(ip, source, self.source);
            write_ip(ip, destination, self.destination);
        });
        writer.nest(cta::TUPLE_PROTOCOL, |inner| {
            inner.u8(cta::PROTOCOL_NUMBER, self.protocol);
            if let Some(icmp) = self.icmp {
                let offset = if self.protocol == protocol::ICMPV6 { cta::ICMPV6_OFFSET } else { 0 };
                inner.be16(cta::ICMP_ID + offset, icmp.id);
                inner.u8(cta::ICMP_TYPE + offset, icmp.kind);
                inner.u8(cta::ICMP_CODE + offset, icmp.code);
            } else {
                inner.be16(cta::SOURCE_PORT, self.source_port);
                inner.be16(cta::DESTINATION_PORT, self.destination_port);
            }
        });
        writer.end(tuple);
    }

    fn decode(attributes: Attributes<'_>) -> Option<Self> {
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut tuple = Self {
            source: unspecified,
            destination: unspecified,
            protocol: 0,
            source_port: 0,
            destination_port: 0,
            icmp: None,
        };
        let mut addresses = 0;
        for part in attributes {
            match part.kind {
                cta::TUPLE_IP => {
                    for field in part.nested() {
                        match field.kind {
                            cta::V4_SOURCE | cta::V6_SOURCE => tuple.source = read_ip(&field)?,
                            cta::V4_DESTINATION | cta::V6_DESTINATION => tuple.destination = read_ip(&field)?,
                            _ => continue,
                        }
                        addresses += 1;
                    }
                }
                cta::TUPLE_PROTOCOL => {
                    let fields = part.nested();
                    let icmp = |offset: u16| {
                        Some(Icmp {
                            id: fields.get(cta::ICMP_ID + offset)?.be16()?,
                            kind: fields.get(cta::ICMP_TYPE + offset)?.u8()?,
                            code: fields.get(cta::ICMP_CODE + offset)?.u8()?,
                        })
                    };
                    tuple.protocol = fields.get(cta::PROTOCOL_NUMBER)?.u8()?;
                    match tuple.protocol {
                        protocol::ICMP => tuple.icmp = icmp(0),
                        protocol::ICMPV6 => tuple.icmp = icmp(cta::ICMPV6_OFFSET),
                        _ => {
                            let port = |kind| fields.get(kind).and_then(|port| port.be16()).unwrap_or(0);
                            tuple.source_port = port(cta::SOURCE_PORT);
                            tuple.destination_port = port(cta::DESTINATION_PORT);
                        }
                    }
                }
                _ => {}
            }
        }
        (addresses == 2).then_some(tuple)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Messages;

    fn flow() -> Flow {
        let original = Tuple {
            source: [192, 0, 2, 1].into(),
            destination: [172, 30, 0, 1].into(),
            protocol: protocol::TCP,
            source_port: 1000,
            destination_port: 80,
            icmp: None,
        };
        Flow {
            original,
            reply: original.reversed(),
            zone: 3,
            status: status::CONFIRMED,
            id: None,
            timeout: 9,
            mark: 0x4000,
            tcp_state: Some(3),
        }
    }

    #[test]
    fn an_entry_written_is_the_entry_read() {
        let mut writer = Writer::new();
        let mut pipeline = Pipeline::new();
        flow().push_insert(&mut pipeline);
        writer.raw(pipeline.bytes());
        let message = Messages::new(writer.as_bytes()).next().expect("one message");
        assert_eq!(Flow::decode(&message), Some(flow()));
    }

    proptest! {
        #[test]
        fn messages_with_bytes_changed_are_decoded_without_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut writer = Writer::new();
            let mut pipeline = Pipeline::new();
            flow().push_insert(&mut pipeline);
            writer.raw(pipeline.bytes());
            for (index, byte) in changes {
                writer.patch(index.index(writer.len()), &[byte]);
            }
            for mut message in Messages::new(writer.as_bytes()) {
                message.kind = NEW;
                let _ = Flow::decode(&message);
            }
        }

        #[test]
        fn any_payload_is_decoded_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Flow::decode(&Message { kind: NEW, flags: 0, sequence: 0, payload: &payload });
        }
    }
}
