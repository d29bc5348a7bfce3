//! Who changed what in the nf_tables rule set, told as it happens.
//!
//! The kernel builds an event for every element of a transaction as soon as anyone listens, so a monitor makes large
//! loads dearer; [`crate::generation`] costs the same whatever the rule set holds.

use std::os::fd::{AsFd, BorrowedFd};

use netlink::{Error, Message, Protocol, Socket};

use crate::uapi::{FAMILY_HEADER, SUBSYSTEM, generation, message, message_kind, table};

/// `NFNLGRP_NFTABLES` is group 7.
const GROUP: u32 = 1 << 6;

/// A transaction that some process made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The generation it led to.
    pub generation: u32,
    /// Who made it (0 where the kernel does not say).
    pub process: u32,
    pub process_name: Box<str>,
    /// What it touched, each table once.
    pub touched: Vec<Touched>,
}

/// What a transaction did in one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// `NFPROTO_*`.
    pub family: u8,
    pub table: Box<str>,
    pub table_deleted: bool,
    /// Chains made, changed or deleted.
    pub chains: bool,
    /// Rules made or deleted.
    pub rules: bool,
    /// Sets made or deleted.
    pub sets: bool,
    /// Elements added or deleted.
    pub elements: bool,
}

/// What was waiting in an [`NftMonitor`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Events were lost: anything may have changed.
    pub overrun: bool,
    pub transactions: Vec<Transaction>,
}

impl Changes {
    /// Whether a process other than this one changed this table, as far as is known.
    pub fn others_touched(&self, own_process: u32, family: u8, table: &str) -> bool {
        self.overrun
            || self.transactions.iter().filter(|transaction| transaction.process != own_process).any(
                |transaction| {
                    transaction
                        .touched
                        .iter()
                        .any(|touched| touched.family == family && *touched.table == *table)
                },
            )
    }
}

/// Events of nf_tables.
#[derive(Debug)]
pub struct NftMonitor {
    socket: Socket,
    /// Of the transaction whose end has not been announced yet.
    pending: Vec<Touched>,
}

impl NftMonitor {
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::join(Protocol::Netfilter, GROUP)?, pending: Vec::new() })
    }

    /// Takes all events that are waiting.
    pub fn drain(&mut self) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        loop {
            match self.socket.receive_now() {
                Ok(Some(messages)) => {
                    for message in messages {
                        if message.kind == message_kind(message::NEW_GENERATION) {
                            let touched = std::mem::take(&mut self.pending);
                            changes.transactions.push(transaction(&message, touched));
                        } else {
                            note(&mut self.pending, &message);
                        }
                    }
                }
                Ok(None) => return Ok(changes),
                Err(Error::RepliesLost) => changes.overrun = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for NftMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn transaction(message: &Message<'_>, touched: Vec<Touched>) -> Transaction {
    let attributes = message.attributes(FAMILY_HEADER);
    Transaction {
        generation: attributes.get(generation::ID).and_then(|id| id.be32()).unwrap_or(0),
        process: attributes.get(generation::PROCESS_ID).and_then(|id| id.be32()).unwrap_or(0),
        process_name: attributes
            .get(generation::PROCESS_NAME)
            .and_then(|name| name.str())
            .unwrap_or("")
            .into(),
        touched,
    }
}

fn note(pending: &mut Vec<Touched>, message: &Message<'_>) {
    if message.kind >> 8 != SUBSYSTEM {
        return;
    }
    let Some(family) = message.payload.first().copied() else { return };
    // The table's name is the first attribute of every object.
    let Some(table) = message.attributes(FAMILY_HEADER).get(table::NAME).and_then(|name| name.str()) else {
        return;
    };
    let touched = match pending.iter_mut().position(|known| known.family == family && *known.table == *table)
    {
        Some(index) => &mut pending[index],
        None => {
            pending.push(Touched { family, table: table.into(), ..Touched::default() });
            let last = pending.len() - 1;
            &mut pending[last]
        }
    };
    match message.kind & 0xff {
        message::DELETE_TABLE => touched.table_deleted = true,
        message::NEW_CHAIN | message::DELETE_CHAIN => touched.chains = true,
        message::NEW_RULE | message::DELETE_RULE => touched.rules = true,
        message::NEW_SET | message::DELETE_SET => touched.sets = true,
        message::NEW_ELEMENT | message::DELETE_ELEMENT => touched.elements = true,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_event_is_noted_without_panic(
            kind in 0u16..40,
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let message = Message { kind: SUBSYSTEM << 8 | kind, flags: 0, sequence: 0, payload: &payload };
            let mut pending = Vec::new();
            note(&mut pending, &message);
            let transaction = transaction(&message, pending);
            prop_assert!(transaction.touched.len() <= 1);
        }
    }
}
