//! What the rules of all tables do with single packets, told by the kernel as it happens.
//!
//! A packet is traced from the moment a rule sets its mark ([`crate::expression::trace`]): from then on each rule that
//! matches, each chain that ends and each policy that decides is one event, whatever table it belongs to. Rules of legacy
//! iptables are not nf_tables' and are not told.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
};

use netlink::{Attributes, Error, Message, Protocol, Socket};

use crate::{
    expression::Verdict,
    object::Family,
    uapi::{FAMILY_HEADER, data, message, message_kind, trace},
};

/// `NFNLGRP_NFTRACE` is group 9.
const GROUP: u32 = 1 << 8;

/// What came at this point of a packet's way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A rule whose every expression matched.
    Rule { handle: u64, verdict: TraceVerdict },
    /// The end of a chain, or a `return` in it.
    Return,
    /// The policy of a base chain decided, as no rule did.
    Policy { accepts: bool },
}

/// What a rule decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TraceVerdict {
    /// As a rule says it.
    Plain(Verdict),
    /// To a queue of a program in user space (`NF_QUEUE`).
    Queue,
    /// Somebody took the packet (`NF_STOLEN`).
    Stolen,
    Other(i32),
}

/// The packet as it was where the event was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// 0 for a protocol without ports.
    pub source_port: u16,
    pub destination_port: u16,
    /// SYN, ACK and so on as in TCP's header.
    pub tcp_flags: u8,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TraceEvent {
    /// The same for all events of one packet, until it passes the loopback interface. The kernel makes it from the packet's
    /// place in memory, so it comes again.
    pub id: u32,
    /// Of the table; `None` for one that this crate does not know.
    pub family: Option<Family>,
    pub table: Box<str>,
    pub chain: Box<str>,
    pub step: Step,
    /// Told with the first event of each base chain.
    pub packet: Option<Packet>,
    /// The interface's index, told with the packet.
    pub input: Option<u32>,
    pub output: Option<u32>,
    pub mark: u32,
}

/// What was waiting in a [`TraceMonitor`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "events may have been missed"]
pub struct Taken {
    pub events: u64,
    /// Events that found no room, since the last time.
    pub missed: u64,
}

/// Traces of the network namespace in which it was opened.
#[derive(Debug)]
pub struct TraceMonitor {
    socket: Socket,
    missed: u64,
}

impl TraceMonitor {
    /// `buffer`: bytes that may wait to be read; an event takes up to 900.
    pub fn open(buffer: usize) -> Result<Self, Error> {
        let socket = Socket::open(Protocol::Netfilter)?;
        socket.set_receive_buffer(buffer)?;
        socket.subscribe(GROUP)?;
        Ok(Self { socket, missed: 0 })
    }

    /// Hands what is waiting to `each`, at most about `most` events.
    pub fn drain(&mut self, most: u64, mut each: impl FnMut(TraceEvent)) -> Result<Taken, Error> {
        let mut taken = Taken::default();
        let mut overran = false;
        while taken.events < most {
            match self.socket.receive_now() {
                Ok(Some(messages)) => {
                    for event in messages.filter_map(|message| TraceEvent::decode(&message)) {
                        taken.events += 1;
                        each(event);
                    }
                }
                Ok(None) => break,
                Err(Error::RepliesLost) => overran = true,
                Err(error) => return Err(error),
            }
        }
        let missed = self.socket.dropped().unwrap_or_else(|_| self.missed + u64::from(overran));
        taken.missed = missed.saturating_sub(self.missed);
        self.missed = missed;
        Ok(taken)
    }
}

impl AsFd for TraceMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl TraceEvent {
    /// Reads an event; `None` for a message that is none.
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        if message.kind != message_kind(message::TRACE) {
            return None;
        }
        let attributes = message.attributes(FAMILY_HEADER);
        let number = |kind| attributes.get(kind).and_then(|number| number.be32());
        let text = |kind| attributes.get(kind).and_then(|text| text.str()).map(Box::<str>::from);
        let step = match number(trace::TYPE)? {
            // Without a handle it is the mark behind a chain's last rule.
            trace::TYPE_RULE => match attributes.get(trace::RULE_HANDLE).and_then(|handle| handle.be64()) {
                Some(handle) => Step::Rule { handle, verdict: verdict(&attributes)? },
                None => Step::Return,
            },
            trace::TYPE_RETURN => Step::Return,
            // `NF_ACCEPT` is 1.
            trace::TYPE_POLICY => Step::Policy { accepts: number(trace::POLICY)? == 1 },
            _ => return None,
        };
        let network = attributes.get(trace::NETWORK_HEADER).map_or(&[][..], |header| header.value);
        let transport = attributes.get(trace::TRANSPORT_HEADER).map_or(&[][..], |header| header.value);
        Some(Self {
            id: number(trace::ID)?,
            family: Family::from_raw(*message.payload.first()?),
            table: text(trace::TABLE)?,
            chain: text(trace::CHAIN).unwrap_or_default(),
            step,
            packet: Packet::decode(network, transport),
            input: number(trace::INPUT),
            output: number(trace::OUTPUT),
            mark: number(trace::MARK).unwrap_or(0),
        })
    }
}

fn verdict(attributes: &Attributes<'_>) -> Option<TraceVerdict> {
    let nest = attributes.get(trace::VERDICT)?.nested();
    if let Some(plain) = Verdict::decode(&nest) {
        return Some(TraceVerdict::Plain(plain));
    }
    let code = nest.get(data::VERDICT_CODE)?.be32()?.cast_signed();
    if code < 0 {
        return Some(TraceVerdict::Other(code));
    }
    // `NF_VERDICT_MASK`: above it are a reason or a queue's number.
    Some(match code & 0xff {
        0 => TraceVerdict::Plain(Verdict::Drop),
        1 => TraceVerdict::Plain(Verdict::Accept),
        2 => TraceVerdict::Stolen,
        3 => TraceVerdict::Queue,
        code => TraceVerdict::Other(code),
    })
}

impl Packet {
    /// From the beginning of the two headers: the kernel shows 40 bytes of the one and 20 of the other.
    pub fn decode(network: &[u8], transport: &[u8]) -> Option<Self> {
        let address4 = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 4] = network.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes).into())
        };
        let address6 = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = network.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        };
        let (source, destination, protocol) = match network.first()? >> 4 {
            4 => (address4(12)?, address4(16)?, *network.get(9)?),
            6 => (address6(8)?, address6(24)?, *network.get(6)?),
            _ => return None,
        };
        const TCP: u8 = 6;
        let has_ports = matches!(protocol, TCP | 17 | 132 | 136);
        let port = |at: usize| {
            let bytes: Option<[u8; 2]> = transport.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
            bytes.filter(|_| has_ports).map_or(0, u16::from_be_bytes)
        };
        Some(Self {
            source,
            destination,
            protocol,
            source_port: port(0),
            destination_port: port(2),
            tcp_flags: transport.get(13).copied().filter(|_| protocol == TCP).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use netlink::{Messages, Writer};
    use proptest::prelude::*;

    use super::*;

    fn event(fill: impl FnOnce(&mut Writer)) -> Option<TraceEvent> {
        let mut writer = Writer::new();
        let start = writer.begin_message(message_kind(message::TRACE), 0);
        writer.raw(&[Family::Ip as u8, 0, 0, 0]);
        fill(&mut writer);
        writer.end_message(start);
        let message = Messages::new(writer.as_bytes()).next().expect("one message");
        TraceEvent::decode(&message)
    }

    #[test]
    fn an_event_is_read_with_the_packet_that_it_shows() {
        let mut network = [0; 40];
        network[0] = 0x45;
        network[9] = 6;
        network[12..20].copy_from_slice(&[10, 0, 0, 1, 172, 30, 0, 1]);
        let mut transport = [0; 20];
        transport[..4].copy_from_slice(&[0x30, 0x39, 0, 80]);
        transport[13] = 2;
        let found = event(|writer| {
            writer.be32(trace::ID, 7);
            writer.be32(trace::TYPE, trace::TYPE_RULE);
            writer.str(trace::TABLE, "t");
            writer.str(trace::CHAIN, "c");
            writer.be64(trace::RULE_HANDLE, 9);
            writer.nest(trace::VERDICT, |verdict| {
                verdict.be32(data::VERDICT_CODE, (-3_i32).cast_unsigned());
                verdict.str(data::VERDICT_CHAIN, "d");
            });
            writer.bytes(trace::NETWORK_HEADER, &network[..20]);
            writer.bytes(trace::TRANSPORT_HEADER, &transport);
            writer.be32(trace::INPUT, 3);
        })
        .expect("an event");
        let verdict = TraceVerdict::Plain(Verdict::Jump("d".into()));
        assert_eq!(found.step, Step::Rule { handle: 9, verdict });
        assert_eq!((found.id, &*found.table, &*found.chain, found.input), (7, "t", "c", Some(3)));
        let packet = found.packet.expect("a packet");
        assert_eq!((packet.source_port, packet.destination_port, packet.tcp_flags), (12_345, 80, 2));
        assert_eq!(packet.destination.to_string(), "172.30.0.1");
    }

    #[test]
    fn verdicts_with_a_reason_or_a_queue_above_them_are_read() {
        for (code, expected) in [
            (0x0002_0000, TraceVerdict::Plain(Verdict::Drop)),
            (2, TraceVerdict::Stolen),
            (0x0001_0003, TraceVerdict::Queue),
            (4, TraceVerdict::Other(4)),
        ] {
            let found = event(|writer| {
                writer.be32(trace::ID, 7);
                writer.be32(trace::TYPE, trace::TYPE_RULE);
                writer.str(trace::TABLE, "t");
                writer.be64(trace::RULE_HANDLE, 9);
                writer.nest(trace::VERDICT, |verdict| verdict.be32(data::VERDICT_CODE, code));
            });
            let Some(TraceEvent { step: Step::Rule { verdict, .. }, .. }) = found else {
                panic!("{code:#x}: {found:?}")
            };
            assert_eq!(verdict, expected);
        }
    }

    proptest! {
        #[test]
        fn any_event_is_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let message =
                Message { kind: message_kind(message::TRACE), flags: 0, sequence: 0, payload: &payload };
            let _ = TraceEvent::decode(&message);
        }

        #[test]
        fn any_headers_are_read_without_panic(
            network in proptest::collection::vec(any::<u8>(), 0..50),
            transport in proptest::collection::vec(any::<u8>(), 0..30),
        ) {
            let _ = Packet::decode(&network, &transport);
        }
    }
}
