//! Reads the table back: chains, names of sets, the elements of a small map, the generation of the rule set.

use std::net::IpAddr;

use netlink::{Attributes, Error, Message, Socket};

use crate::name::TABLE;

// linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h
const SUBSYSTEM: u16 = 10;
const HEADER: usize = 4;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const GET_SET: u16 = SUBSYSTEM << 8 | 10;
const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
const GET_GENERATION: u16 = SUBSYSTEM << 8 | 16;
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_DORMANT: u32 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_USE: u16 = 6;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const POLICY_ACCEPT: u32 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const COUNTER_PACKETS: u16 = 2;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_ANONYMOUS: u32 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_USERDATA: u16 = 6;
const DATA_VALUE: u16 = 1;
const GENERATION_ID: u16 = 1;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Family(pub(crate) u8);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadChain {
    pub(crate) name: Box<str>,
    pub(crate) base: Option<ReadBase>,
    /// Its rules and the jumps to it.
    pub(crate) uses: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadBase {
    pub(crate) nat: bool,
    pub(crate) filter: bool,
    pub(crate) number: u32,
    pub(crate) priority: i32,
    pub(crate) accepts: bool,
}

/// An element of a map whose data is no verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadElement {
    pub(crate) key: Box<[u8]>,
    pub(crate) data: Box<[u8]>,
    pub(crate) comment: Option<Box<str>>,
}

fn header(family: Family) -> [u8; 4] {
    [family.0, 0, 0, 0]
}

/// The number that every commit of anybody in this network namespace changes.
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, Error> {
    socket.ask(
        GET_GENERATION,
        0,
        |writer| writer.raw(&header(Family(0))),
        |message| message.attributes(HEADER).get(GENERATION_ID)?.be32(),
    )
}

/// Whether the table is there and not put to sleep.
pub(crate) fn table_is_awake(socket: &mut Socket, family: Family) -> Result<bool, Error> {
    let mut awake = false;
    let each = |message: &Message<'_>| {
        let attributes = message.attributes(HEADER);
        if attributes.get(TABLE_NAME).and_then(|name| name.str()) == Some(TABLE) {
            let flags = attributes.get(TABLE_FLAGS).and_then(|flags| flags.be32()).unwrap_or(0);
            awake = flags & TABLE_DORMANT == 0;
        }
    };
    let _: netlink::Dump = socket.dump(GET_TABLE, |writer| writer.raw(&header(family)), each)?;
    Ok(awake)
}

/// The table's chains; none if there is no table.
pub(crate) fn chains(socket: &mut Socket, family: Family) -> Result<Vec<ReadChain>, Error> {
    retried(|| {
        let mut chains = Vec::new();
        let each = |message: &Message<'_>| {
            let attributes = message.attributes(HEADER);
            let text = |kind| attributes.get(kind).and_then(|value| value.str());
            let number = |kind| attributes.get(kind).and_then(|value| value.be32());
            if text(CHAIN_TABLE) != Some(TABLE) {
                return;
            }
            let Some(name) = text(CHAIN_NAME) else { return };
            let base = attributes.get(CHAIN_HOOK).map(|hook| {
                let hook = hook.nested();
                let of = |kind| hook.get(kind).and_then(|value| value.be32()).unwrap_or(u32::MAX);
                ReadBase {
                    nat: text(CHAIN_TYPE) == Some("nat"),
                    filter: text(CHAIN_TYPE) == Some("filter"),
                    number: of(HOOK_NUMBER),
                    priority: of(HOOK_PRIORITY) as i32,
                    accepts: number(CHAIN_POLICY).unwrap_or(POLICY_ACCEPT) == POLICY_ACCEPT,
                }
            });
            chains.push(ReadChain { name: name.into(), base, uses: number(CHAIN_USE).unwrap_or(0) });
        };
        let dump = socket.dump(GET_CHAIN, |writer| writer.raw(&header(family)), each)?;
        Ok((dump, chains))
    })
}

/// Names of the table's sets and maps, without anonymous ones.
pub(crate) fn sets(socket: &mut Socket, family: Family) -> Result<Vec<Box<str>>, Error> {
    retried(|| {
        let mut names = Vec::new();
        let each = |message: &Message<'_>| {
            let attributes = message.attributes(HEADER);
            let text = |kind| attributes.get(kind).and_then(|value| value.str());
            let flags = attributes.get(SET_FLAGS).and_then(|flags| flags.be32()).unwrap_or(0);
            if text(SET_TABLE) == Some(TABLE)
                && flags & SET_ANONYMOUS == 0
                && let Some(name) = text(SET_NAME)
            {
                names.push(Box::from(name));
            }
        };
        let dump = socket.dump(GET_SET, |writer| writer.raw(&header(family)), each);
        Ok((or_nothing(dump)?, names))
    })
}

/// The elements of a map. The kernel's dump of a map takes time in the square of its size: for small ones only.
pub(crate) fn elements(socket: &mut Socket, family: Family, set: &str) -> Result<Vec<ReadElement>, Error> {
    retried(|| {
        let mut elements = Vec::new();
        let each = |message: &Message<'_>| {
            let Some(list) = message.attributes(HEADER).get(LIST_ELEMENTS) else { return };
            elements.extend(list.nested().filter_map(|element| read_element(&element.nested())));
        };
        let ask = |writer: &mut netlink::Writer| {
            writer.raw(&header(family));
            writer.str(LIST_TABLE, TABLE);
            writer.str(LIST_SET, set);
        };
        let dump = socket.dump(GET_ELEMENTS, ask, each);
        Ok((or_nothing(dump)?, elements))
    })
}

/// The sum of what the counters in a chain's rules counted.
pub(crate) fn counted(socket: &mut Socket, family: Family, chain: &str) -> Result<u64, Error> {
    retried(|| {
        let mut packets = 0;
        let each = |message: &Message<'_>| {
            let attributes = message.attributes(HEADER);
            if attributes.get(RULE_CHAIN).and_then(|name| name.str()) != Some(chain) {
                return;
            }
            let expressions = attributes.get(RULE_EXPRESSIONS).into_iter().flat_map(|list| list.nested());
            packets += expressions.filter_map(|expression| counter(&expression.nested())).sum::<u64>();
        };
        let ask = |writer: &mut netlink::Writer| {
            writer.raw(&header(family));
            writer.str(RULE_TABLE, TABLE);
            writer.str(RULE_CHAIN, chain);
        };
        Ok((or_nothing(socket.dump(GET_RULE, ask, each))?, packets))
    })
}

fn counter(expression: &Attributes<'_>) -> Option<u64> {
    let is_counter = expression.get(EXPRESSION_NAME)?.str() == Some("counter");
    is_counter.then(|| expression.get(EXPRESSION_DATA)?.nested().get(COUNTER_PACKETS)?.be64()).flatten()
}

fn read_element(attributes: &Attributes<'_>) -> Option<ReadElement> {
    let value = |kind| Some(attributes.get(kind)?.nested().get(DATA_VALUE)?.value);
    // User data are attributes with a type and a length of one byte each; type 0 is the comment, with its NUL.
    let comment = attributes.get(ELEMENT_USERDATA).and_then(|userdata| match userdata.value {
        [0, length, text @ ..] => {
            let text = text.get(..usize::from(*length))?;
            let text = text.strip_suffix(&[0]).unwrap_or(text);
            Some(Box::from(std::str::from_utf8(text).ok()?))
        }
        _ => None,
    });
    Some(ReadElement { key: value(ELEMENT_KEY)?.into(), data: value(ELEMENT_DATA)?.into(), comment })
}

/// An address and port as they stand in a map's data.
pub(crate) fn target(data: &[u8], v4: bool) -> Option<(IpAddr, u16)> {
    let length = if v4 { 4 } else { 16 };
    let (addr, port) = data.split_at_checked(length)?;
    let port = u16::from_be_bytes(*port.first_chunk()?);
    let addr =
        if v4 { IpAddr::from(*addr.first_chunk::<4>()?) } else { IpAddr::from(*addr.first_chunk::<16>()?) };
    Some((addr, port))
}

/// What is not there has no entries.
fn or_nothing(dump: Result<netlink::Dump, Error>) -> Result<netlink::Dump, Error> {
    const ENOENT: i32 = 2;
    match dump {
        Err(error) if error.refused() == Some(ENOENT) => Ok(netlink::Dump::Complete),
        other => other,
    }
}

/// Dumps again while somebody else changes rules meanwhile, a few times.
fn retried<T>(mut dump: impl FnMut() -> Result<(netlink::Dump, T), Error>) -> Result<T, Error> {
    const TIMES: usize = 8;
    let mut last = dump()?;
    for _ in 0..TIMES {
        if last.0 == netlink::Dump::Complete {
            break;
        }
        last = dump()?;
    }
    Ok(last.1)
}
