//! Connections as they begin, change and end, told by conntrack as it happens.
//!
//! With `net.netfilter.nf_conntrack_events` at 2 (the default since Linux 5.19) the kernel tells of an entry only if somebody
//! listened when it was made: the end of a connection older than the monitor is not told. At 0 nothing is told.

use std::os::fd::{AsFd, BorrowedFd};

use socket2::{SockFilter, SockRef};

use crate::{
    conntrack::{Carried, DELETE, Flow, NEW, cta, status},
    error::Error,
    message::{HEADER, Message, flags},
    socket::{Protocol, Socket},
};

/// `NFNLGRP_CONNTRACK_NEW`, `_UPDATE` and `_DESTROY` are groups 1, 2 and 3.
const GROUP_NEW: u32 = 1;
const GROUP_UPDATE: u32 = 1 << 1;
const GROUP_DESTROY: u32 = 1 << 2;

/// Opcodes of linux/bpf_common.h, and the extension of linux/filter.h that finds a netlink attribute: it begins to look at
/// the offset in the accumulator for the type in the index register.
const LOAD_CONSTANT: u16 = 0x00;
const LOAD_INDEX: u16 = 0x01;
const LOAD_WORD: u16 = 0x20;
const LOAD_WORD_INDEXED: u16 = 0x40;
const TO_INDEX: u16 = 0x07;
const AND: u16 = 0x54;
const MODULO: u16 = 0x94;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const FIND_ATTRIBUTE: u32 = 0xffff_f000 + 12;
/// Where attributes begin: behind the header and `struct nfgenmsg`.
const ATTRIBUTES: u32 = HEADER as u32 + 4;

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Its first packet passed all hooks.
    New,
    /// Its state changed.
    Changed,
    /// It is forgotten: it expired, was deleted, or was reset before anybody answered.
    Ended,
}

/// A connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowEvent {
    pub moment: Moment,
    pub flow: Flow,
    /// At the end, where connections are counted (`net.netfilter.nf_conntrack_acct`).
    pub carried: Option<Carried>,
}

/// Which events the kernel queues; the others cost no more than being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Changes of state too; TCP has several in each connection.
    pub changes: bool,
    /// Only flows whose destination is translated. (IPVS translates without saying so.)
    pub translated: bool,
    /// One flow in so many, all events of it; 0 and 1: every flow.
    pub one_in: u32,
}

impl Default for Interest {
    fn default() -> Self {
        Self { changes: true, translated: false, one_in: 1 }
    }
}

/// What was waiting in a [`FlowMonitor`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "events may have been missed"]
pub struct Taken {
    pub events: u64,
    /// Events that found no room, since the last time.
    pub missed: u64,
}

/// Tells of connections in the network namespace in which it was opened.
#[derive(Debug)]
pub struct FlowMonitor {
    socket: Socket,
    missed: u64,
}

impl FlowMonitor {
    /// `buffer`: bytes that may wait to be read; an event takes 500 to 800.
    pub fn open(interest: Interest, buffer: usize) -> Result<Self, Error> {
        let changes = if interest.changes { GROUP_UPDATE } else { 0 };
        // The filter comes before the groups, or what came in between would not be filtered.
        let socket = Socket::open(Protocol::Netfilter)?;
        socket.set_receive_buffer(buffer)?;
        if let Some(filter) = filter(interest) {
            SockRef::from(&socket)
                .attach_filter(&filter)
                .map_err(|source| Error::Os { doing: "filter conntrack's events", source })?;
        }
        socket.subscribe(GROUP_NEW | GROUP_DESTROY | changes)?;
        Ok(Self { socket, missed: 0 })
    }

    /// Hands what is waiting to `each`, at most about `most` events, so that a flood holds nobody up.
    pub fn drain(&mut self, most: u64, mut each: impl FnMut(&FlowEvent)) -> Result<Taken, Error> {
        let mut taken = Taken::default();
        let mut overran = false;
        while taken.events < most {
            match self.socket.receive_now() {
                Ok(Some(messages)) => {
                    for event in messages.filter_map(|message| FlowEvent::decode(&message)) {
                        taken.events += 1;
                        each(&event);
                    }
                }
                Ok(None) => break,
                Err(Error::RepliesLost) => overran = true,
                Err(error) => return Err(error),
            }
        }
        // Older kernels do not say how many.
        let missed = self.socket.dropped().unwrap_or_else(|_| self.missed + u64::from(overran));
        taken.missed = missed.saturating_sub(self.missed);
        self.missed = missed;
        Ok(taken)
    }
}

impl AsFd for FlowMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl FlowEvent {
    /// Reads an event; `None` for a message that is none.
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        let moment = match message.kind {
            NEW if message.flags & flags::CREATE != 0 => Moment::New,
            NEW => Moment::Changed,
            DELETE => Moment::Ended,
            _ => return None,
        };
        Some(Self { moment, flow: Flow::read(message)?, carried: Carried::decode(message) })
    }
}

/// The socket's filter. An event without the attribute that is looked for passes.
fn filter(interest: Interest) -> Option<Vec<SockFilter>> {
    let mut program = Vec::new();
    // Six steps that put an attribute's value into the accumulator; where it is not there the rest of the block is skipped.
    let mut block = |attribute: u16, operation: (u16, u32), pass_if_zero: bool| {
        let step = |code, to_if, to_else, value| SockFilter::new(code, to_if, to_else, value);
        program.extend([
            step(LOAD_CONSTANT, 0, 0, ATTRIBUTES),
            step(LOAD_INDEX, 0, 0, attribute.into()),
            step(LOAD_WORD, 0, 0, FIND_ATTRIBUTE),
            step(JUMP_IF_EQUAL, 5, 0, 0),
            step(TO_INDEX, 0, 0, 0),
            step(LOAD_WORD_INDEXED, 0, 0, 4),
            step(operation.0, 0, 0, operation.1),
            if pass_if_zero { step(JUMP_IF_EQUAL, 1, 0, 0) } else { step(JUMP_IF_EQUAL, 0, 1, 0) },
            step(RETURN, 0, 0, 0),
        ]);
    };
    if interest.translated {
        block(cta::STATUS, (AND, status::DNAT), false);
    }
    if interest.one_in > 1 {
        block(cta::ID, (MODULO, interest.one_in), true);
    }
    if program.is_empty() {
        return None;
    }
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    Some(program)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_event_is_read_without_panic(
            kind in 0x100_u16..0x104,
            flags in any::<u16>(),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = FlowEvent::decode(&Message { kind, flags, sequence: 0, payload: &payload });
        }
    }
}
