//! Reading what the kernel has in our table: chains with the uses of each, and the names of sets.

use netlink::{Error, Message, Socket, attr::Writer};
use proxy_core::model::Family;

use crate::scaffold::TABLE;

/// `NFNL_SUBSYS_NFTABLES << 8` with `NFT_MSG_*`, linux/netfilter/nfnetlink.h and nf_tables.h.
const NEW_CHAIN: u16 = 10 << 8 | 3;
const GET_CHAIN: u16 = 10 << 8 | 4;
const NEW_SET: u16 = 10 << 8 | 9;
const GET_SET: u16 = 10 << 8 | 10;
/// `struct nfgenmsg`.
const HEADER: usize = 4;
/// `NFTA_CHAIN_*`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_USE: u16 = 6;
/// `NFTA_SET_*`.
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;

/// A chain of our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundChain {
    pub(crate) name: String,
    pub(crate) is_base: bool,
    /// How many rules it has, and how many lead to it.
    pub(crate) uses: u32,
}

/// One chain of our table; `None` if it is not there.
pub(crate) fn chain(socket: &mut Socket, family: Family, name: &str) -> Result<Option<FoundChain>, Error> {
    let fill = |writer: &mut Writer| {
        header(writer, family);
        writer.str(CHAIN_TABLE, TABLE);
        writer.str(CHAIN_NAME, name);
    };
    match socket.ask(GET_CHAIN, 0, fill, read_chain) {
        Ok(chain) => Ok(Some(chain)),
        Err(error) if error.refused() == Some(nix::libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All chains of our table.
pub(crate) fn chains(socket: &mut Socket, family: Family) -> Result<Vec<FoundChain>, Error> {
    let mut found = Vec::new();
    // An interrupted dump at worst leaves a leftover for the next time.
    let _ = socket.dump(
        GET_CHAIN,
        |writer| {
            header(writer, family);
            writer.str(CHAIN_TABLE, TABLE);
        },
        |message| {
            if message.attributes(HEADER).get(CHAIN_TABLE).and_then(|table| table.str()) == Some(TABLE) {
                found.extend(read_chain(message));
            }
        },
    )?;
    Ok(found)
}

/// The names of all sets and maps of our table.
pub(crate) fn sets(socket: &mut Socket, family: Family) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let outcome = socket.dump(
        GET_SET,
        |writer| {
            header(writer, family);
            writer.str(SET_TABLE, TABLE);
        },
        |message| {
            let attributes = message.attributes(HEADER);
            if message.kind == NEW_SET
                && let Some(name) = attributes.get(SET_NAME).and_then(|name| name.str())
            {
                found.push(name.to_owned());
            }
        },
    );
    match outcome {
        Err(error) if error.refused() == Some(nix::libc::ENOENT) => Ok(Vec::new()),
        outcome => outcome.map(|_| found),
    }
}

fn read_chain(message: &Message<'_>) -> Option<FoundChain> {
    if message.kind != NEW_CHAIN {
        return None;
    }
    let attributes = message.attributes(HEADER);
    Some(FoundChain {
        name: attributes.get(CHAIN_NAME)?.str()?.to_owned(),
        is_base: attributes.get(CHAIN_HOOK).is_some(),
        uses: attributes.get(CHAIN_USE)?.be32()?,
    })
}

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`, version 0, no resource.
fn header(writer: &mut Writer, family: Family) {
    let family = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    writer.raw(&[family, 0, 0, 0]);
}
