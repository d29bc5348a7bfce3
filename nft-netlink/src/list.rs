//! Reading back what the kernel has: tables, chains, rules, sets, and the elements of small sets.
//!
//! The kernel starts a dump of elements over from the first bucket for every datagram, so reading a set takes time that
//! grows with the square of its size (1,000,000 elements: 45 s). Never read a large set to learn what is in it.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use netlink::{Attribute, Attributes, Dump, Error, Message, Socket, Writer};

use crate::{
    expression::Verdict,
    object::{Family, Table},
    uapi::{FAMILY_HEADER, LIST_ELEMENT, chain, data, element, message, message_kind, rule, set, table},
};

/// A table there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundTable {
    pub family: Family,
    pub name: Box<str>,
    pub handle: u64,
    /// Put to sleep (`flags dormant`): its chains are not hooked in.
    pub dormant: bool,
    /// Goes with the socket that made it (`flags owner`): that socket's port.
    pub owner: Option<u32>,
    pub comment: Option<Box<str>>,
}

/// A chain there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundChain {
    pub name: Box<str>,
    pub handle: u64,
    /// Hook number and priority of a base chain.
    pub hook: Option<(u32, i32)>,
    /// `filter`, `nat` or `route` for a base chain.
    pub kind: Option<Box<str>>,
    /// A base chain whose policy is to drop.
    pub drops: bool,
    /// Rules in it, and rules and elements that lead to it.
    pub uses: u32,
}

/// A rule there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRule {
    pub chain: Box<str>,
    pub handle: u64,
    /// Names of its expressions, in order.
    pub expressions: Vec<Box<str>>,
    /// Packets that its counters counted.
    pub counted: u64,
    /// Differs where the rule does (its handle stays when it is replaced), whatever its counters counted. To be compared
    /// within one process only.
    pub fingerprint: u64,
    pub comment: Option<Box<str>>,
}

/// A set or map there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSet {
    pub name: Box<str>,
    pub handle: u64,
    /// `NFT_SET_*`
    pub flags: u32,
    /// nft's number, see [`crate::Set::key_type`].
    pub key_type: u32,
    pub key_length: u32,
    pub data_type: u32,
    pub data_length: u32,
    pub size: Option<u32>,
    pub timeout: Option<Duration>,
    /// What nft (or [`crate::Set`]) noted about types and comment.
    pub userdata: Vec<u8>,
    /// Number of elements, where the kernel tells (Linux 6.17).
    pub elements: Option<u32>,
}

impl FoundSet {
    pub const fn is_map(&self) -> bool {
        self.flags & set::MAP != 0
    }

    pub const fn is_anonymous(&self) -> bool {
        self.flags & set::ANONYMOUS != 0
    }
}

/// An element there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundElement {
    pub key: Vec<u8>,
    pub key_end: Option<Vec<u8>>,
    pub data: FoundData,
    pub interval_end: bool,
    pub timeout: Option<Duration>,
    pub expires: Option<Duration>,
    /// Packets that the counter attached to it counted, if it has one.
    pub counted: Option<u64>,
    pub comment: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundData {
    None,
    Value(Vec<u8>),
    Verdict(Verdict),
}

/// The tables of one family.
pub fn tables(socket: &mut Socket, family: Family) -> Result<Vec<FoundTable>, Error> {
    collect(socket, message::GET_TABLE, family, |_| {}, FoundTable::decode)
}

/// The chains of a table; none if there is no such table. While others change chains all the time, some may be missing:
/// ask for [`chain`] or [`chains_named`] where that matters.
pub fn chains(socket: &mut Socket, of: Table<'_>) -> Result<Vec<FoundChain>, Error> {
    // The kernel cannot select chains by table.
    collect(
        socket,
        message::GET_CHAIN,
        of.family,
        |_| {},
        |message| FoundChain::decode(message).filter(|_| names_table(message, of)),
    )
}

/// One chain of a table, at a cost that does not depend on how many others there are.
pub fn chain(socket: &mut Socket, of: Table<'_>, name: &str) -> Result<Option<FoundChain>, Error> {
    one(socket, message::GET_CHAIN, of, (chain::TABLE, chain::NAME, name), FoundChain::decode)
}

/// These chains of a table, in their order; `None` for one that is not there. The cost depends on these alone, and each is
/// seen whole, whatever others commit meanwhile.
pub fn chains_named(
    socket: &mut Socket,
    of: Table<'_>,
    names: &[&str],
) -> Result<Vec<Option<FoundChain>>, Error> {
    let mut found: Vec<Option<FoundChain>> = names.iter().map(|_| None).collect();
    let mut refused = None;
    socket.ask_each(
        message_kind(message::GET_CHAIN),
        names.len(),
        |at, writer| {
            header(writer, of.family);
            writer.str(chain::TABLE, of.name);
            writer.str(chain::NAME, names[at]);
        },
        |at, answer| match answer {
            Ok(message) => found[at] = FoundChain::decode(message),
            Err(failure) if failure.errno == ENOENT => {}
            Err(failure) => refused = Some(failure),
        },
    )?;
    refused.map_or(Ok(found), |failure| Err(Error::Refused(failure)))
}

/// One set of a table, at a cost that does not depend on how many others there are.
pub fn set(socket: &mut Socket, of: Table<'_>, name: &str) -> Result<Option<FoundSet>, Error> {
    one(socket, message::GET_SET, of, (set::TABLE, set::NAME, name), FoundSet::decode)
}

fn one<T>(
    socket: &mut Socket,
    kind: u16,
    of: Table<'_>,
    (of_table, named, name): (u16, u16, &str),
    decode: impl FnOnce(&Message<'_>) -> Option<T>,
) -> Result<Option<T>, Error> {
    let fill = |writer: &mut Writer| {
        header(writer, of.family);
        writer.str(of_table, of.name);
        writer.str(named, name);
    };
    match socket.ask(message_kind(kind), 0, fill, decode) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.refused() == Some(ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The rules of a table, or of one of its chains; none if there is no such thing.
pub fn rules(socket: &mut Socket, of: Table<'_>, chain: Option<&str>) -> Result<Vec<FoundRule>, Error> {
    collect(
        socket,
        message::GET_RULE,
        of.family,
        |writer| {
            writer.str(rule::TABLE, of.name);
            if let Some(chain) = chain {
                writer.str(rule::CHAIN, chain);
            }
        },
        FoundRule::decode,
    )
}

/// The sets and maps of a table; none if there is no such table.
pub fn sets(socket: &mut Socket, of: Table<'_>) -> Result<Vec<FoundSet>, Error> {
    collect(socket, message::GET_SET, of.family, |writer| writer.str(set::TABLE, of.name), FoundSet::decode)
}

/// Hands the elements of a set to `each`; `ENOENT` if there is no such set.
///
/// While the hash of a set without a size still grows (in the background, after a large load), a list of many
/// datagrams may hold some elements twice and lack others, and the kernel does not say so.
pub fn elements(
    socket: &mut Socket,
    of: Table<'_>,
    name: &str,
    mut each: impl FnMut(FoundElement),
) -> Result<Dump, Error> {
    let mut generation = None;
    let mut changed = false;
    let outcome = socket.dump(
        message_kind(message::GET_ELEMENT),
        |writer| {
            header(writer, of.family);
            writer.str(element::LIST_TABLE, of.name);
            writer.str(element::LIST_SET, name);
        },
        |message| {
            // The kernel does not mark an interrupted list of elements, but each part carries the generation's lower
            // half, in `res_id` of `struct nfgenmsg`.
            let part = message.payload.get(2..FAMILY_HEADER).map(<[u8]>::to_vec);
            changed |= *generation.get_or_insert_with(|| part.clone()) != part;
            FoundElement::decode_list(message).for_each(&mut each);
        },
    )?;
    Ok(if changed { Dump::Interrupted } else { outcome })
}

/// Whether each of these elements (the name of a set of the table, and a key) is there, in their order. The cost depends on
/// these alone. One whose set is gone is not there.
pub fn elements_present(
    socket: &mut Socket,
    of: Table<'_>,
    wanted: &[(&str, &[u8])],
) -> Result<Vec<bool>, Error> {
    let mut present = vec![false; wanted.len()];
    let mut refused = None;
    socket.ask_each(
        message_kind(message::GET_ELEMENT),
        wanted.len(),
        |at, writer| {
            let (set, key) = wanted[at];
            header(writer, of.family);
            writer.str(element::LIST_TABLE, of.name);
            writer.str(element::LIST_SET, set);
            writer.nest(element::LIST_ELEMENTS, |list| {
                list.nest(LIST_ELEMENT, |one| {
                    one.nest(element::KEY, |value| value.bytes(data::VALUE, key));
                });
            });
        },
        |at, answer| match answer {
            Ok(_) => present[at] = true,
            Err(failure) if failure.errno == ENOENT => {}
            Err(failure) => refused = Some(failure),
        },
    )?;
    refused.map_or(Ok(present), |failure| Err(Error::Refused(failure)))
}

/// A dump that is begun anew when something changed meanwhile, a few times. The last one counts, complete or not.
fn collect<T>(
    socket: &mut Socket,
    kind: u16,
    family: Family,
    fill: impl Fn(&mut Writer),
    decode: impl Fn(&Message<'_>) -> Option<T>,
) -> Result<Vec<T>, Error> {
    const TRIES: u32 = 5;
    let mut found = Vec::new();
    for _ in 0..TRIES {
        found.clear();
        let outcome = socket.dump(
            message_kind(kind),
            |writer| {
                header(writer, family);
                fill(writer);
            },
            |message| found.extend(decode(message)),
        );
        match outcome {
            Ok(Dump::Complete) => return Ok(found),
            Ok(Dump::Interrupted) => {}
            // No such table.
            Err(error) if error.refused() == Some(ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// `struct nfgenmsg`: family, version 0, no resource.
fn header(writer: &mut Writer, family: Family) {
    writer.raw(&[family as u8, 0, 0, 0]);
}

const ENOENT: i32 = 2;

impl FoundTable {
    fn decode(message: &Message<'_>) -> Option<Self> {
        let attributes = of_kind(message, message::NEW_TABLE)?;
        Some(Self {
            family: Family::from_raw(*message.payload.first()?)?,
            name: text(&attributes, table::NAME)?,
            handle: attributes.get(table::HANDLE)?.be64()?,
            dormant: attributes
                .get(table::FLAGS)
                .and_then(|flags| flags.be32())
                .is_some_and(|flags| flags & table::DORMANT != 0),
            owner: attributes.get(table::OWNER).and_then(|owner| owner.be32()),
            comment: comment(&attributes, table::USERDATA),
        })
    }
}

impl FoundChain {
    fn decode(message: &Message<'_>) -> Option<Self> {
        let attributes = of_kind(message, message::NEW_CHAIN)?;
        let hook = attributes.get(chain::HOOK).map(|hook| hook.nested());
        let number = |kind| hook.as_ref().and_then(|hook| hook.get(kind)).and_then(|number| number.be32());
        Some(Self {
            name: text(&attributes, chain::NAME)?,
            handle: attributes.get(chain::HANDLE)?.be64()?,
            hook: number(chain::HOOK_NUMBER)
                .map(|hook| (hook, number(chain::HOOK_PRIORITY).unwrap_or(0).cast_signed())),
            kind: text(&attributes, chain::TYPE),
            drops: attributes.get(chain::POLICY).and_then(|policy| policy.be32()) == Some(chain::POLICY_DROP),
            uses: attributes.get(chain::USE).and_then(|uses| uses.be32()).unwrap_or(0),
        })
    }
}

/// `NFTA_EXPR_*`, `NFTA_COUNTER_PACKETS`.
const NAME: u16 = 1;
const DATA: u16 = 2;
const COUNTER_PACKETS: u16 = 2;

/// The packets that an expression counted; `None` where it is no counter.
fn counter(expression: &Attributes<'_>) -> Option<u64> {
    if text(expression, NAME).as_deref() != Some("counter") {
        return None;
    }
    expression.get(DATA)?.nested().get(COUNTER_PACKETS)?.be64()
}

impl FoundRule {
    fn decode(message: &Message<'_>) -> Option<Self> {
        let attributes = of_kind(message, message::NEW_RULE)?;
        let chain = text(&attributes, rule::CHAIN)?;
        let mut hasher = DefaultHasher::new();
        chain.hash(&mut hasher);
        let (mut expressions, mut counted) = (Vec::new(), 0_u64);
        for expression in attributes.get(rule::EXPRESSIONS).into_iter().flat_map(|list| list.nested()) {
            let expression = expression.nested();
            let Some(name) = text(&expression, NAME) else { continue };
            name.hash(&mut hasher);
            match expression.get(DATA) {
                Some(data) if &*name == "counter" => {
                    let packets = data.nested().get(COUNTER_PACKETS).and_then(|packets| packets.be64());
                    counted = counted.saturating_add(packets.unwrap_or(0));
                }
                data => data.map(|data| data.value).hash(&mut hasher),
            }
            expressions.push(name);
        }
        Some(Self {
            chain,
            handle: attributes.get(rule::HANDLE)?.be64()?,
            expressions,
            counted,
            fingerprint: hasher.finish(),
            comment: comment(&attributes, rule::USERDATA),
        })
    }
}

impl FoundSet {
    fn decode(message: &Message<'_>) -> Option<Self> {
        let attributes = of_kind(message, message::NEW_SET)?;
        let number = |kind| attributes.get(kind).and_then(|number: Attribute<'_>| number.be32());
        Some(Self {
            name: text(&attributes, set::NAME)?,
            handle: attributes.get(set::HANDLE)?.be64()?,
            flags: number(set::FLAGS).unwrap_or(0),
            key_type: number(set::KEY_TYPE).unwrap_or(0),
            key_length: number(set::KEY_LENGTH)?,
            data_type: number(set::DATA_TYPE).unwrap_or(0),
            data_length: number(set::DATA_LENGTH).unwrap_or(0),
            size: attributes
                .get(set::DESCRIPTION)
                .and_then(|description| description.nested().get(set::DESCRIPTION_SIZE))
                .and_then(|size| size.be32()),
            timeout: time(&attributes, set::TIMEOUT),
            userdata: attributes.get(set::USERDATA).map_or_else(Vec::new, |userdata| userdata.value.to_vec()),
            elements: number(set::COUNT),
        })
    }
}

impl FoundElement {
    fn decode_list<'a>(message: &Message<'a>) -> impl Iterator<Item = Self> + use<'a> {
        of_kind(message, message::NEW_ELEMENT)
            .and_then(|attributes| attributes.get(element::LIST_ELEMENTS))
            .into_iter()
            .flat_map(|list| list.nested())
            .filter(|attribute| attribute.kind == LIST_ELEMENT)
            .filter_map(|attribute| Self::decode(&attribute.nested()))
    }

    fn decode(attributes: &Attributes<'_>) -> Option<Self> {
        let value = |kind| {
            let bytes = attributes.get(kind)?.nested().get(data::VALUE)?.value;
            Some(bytes.to_vec())
        };
        let verdict = || {
            let verdict = attributes.get(element::DATA)?.nested().get(data::VERDICT)?.nested();
            Verdict::decode(&verdict)
        };
        let flags = attributes.get(element::FLAGS).and_then(|flags| flags.be32()).unwrap_or(0);
        Some(Self {
            key: value(element::KEY)?,
            key_end: value(element::KEY_END),
            data: match (value(element::DATA), verdict()) {
                (Some(bytes), _) => FoundData::Value(bytes),
                (None, Some(verdict)) => FoundData::Verdict(verdict),
                (None, None) => FoundData::None,
            },
            interval_end: flags & element::INTERVAL_END != 0,
            timeout: time(attributes, element::TIMEOUT),
            expires: time(attributes, element::EXPIRATION),
            counted: attributes.get(element::EXPRESSION).and_then(|attached| counter(&attached.nested())),
            comment: comment(attributes, element::USERDATA),
        })
    }
}

impl Verdict {
    pub(crate) fn decode(attributes: &Attributes<'_>) -> Option<Self> {
        let chain = || text(attributes, data::VERDICT_CHAIN);
        Some(match attributes.get(data::VERDICT_CODE)?.be32()?.cast_signed() {
            0 => Self::Drop,
            1 => Self::Accept,
            -1 => Self::Continue,
            -3 => Self::Jump(chain()?),
            -4 => Self::Goto(chain()?),
            -5 => Self::Return,
            _ => return None,
        })
    }
}

fn of_kind<'a>(message: &Message<'a>, kind: u16) -> Option<Attributes<'a>> {
    (message.kind == message_kind(kind)).then(|| message.attributes(FAMILY_HEADER))
}

/// Whether the object's table, its first attribute, is this one.
fn names_table(message: &Message<'_>, of: Table<'_>) -> bool {
    message.attributes(FAMILY_HEADER).get(chain::TABLE).and_then(|name| name.str()) == Some(of.name)
}

fn text(attributes: &Attributes<'_>, kind: u16) -> Option<Box<str>> {
    Some(attributes.get(kind)?.str()?.into())
}

fn time(attributes: &Attributes<'_>, kind: u16) -> Option<Duration> {
    Some(Duration::from_millis(attributes.get(kind)?.be64()?))
}

/// The comment within user data, where it has type 0.
fn comment(attributes: &Attributes<'_>, kind: u16) -> Option<Box<str>> {
    let &[0, length, ref rest @ ..] = attributes.get(kind)?.value else { return None };
    let bytes = rest.get(..usize::from(length))?.strip_suffix(&[0])?;
    Some(std::str::from_utf8(bytes).ok()?.into())
}

#[cfg(test)]
mod tests {
    use netlink::{Messages, Writer};
    use proptest::prelude::*;

    use super::*;
    use crate::{Batch, Element, Field, Rule, Set, expression};

    /// A batch as the kernel would send it in a dump.
    fn everything(kind: u16, payload: &[u8]) -> usize {
        let message = Message { kind: message_kind(kind), flags: 0, sequence: 0, payload };
        usize::from(FoundTable::decode(&message).is_some())
            + usize::from(FoundChain::decode(&message).is_some())
            + usize::from(FoundRule::decode(&message).is_some())
            + usize::from(FoundSet::decode(&message).is_some())
            + FoundElement::decode_list(&message).count()
    }

    #[test]
    fn elements_written_are_elements_read() {
        let of = Table::new(Family::Ip, "t");
        let goto = Verdict::Goto("c".into());
        let mut batch = Batch::new();
        let mut list = batch.add_elements(of, "s");
        list.push(&Element::value(&[1; 4], &[2; 8]).timeout(Duration::from_secs(3)).comment("x"));
        list.push(&Element::verdict(&[3; 4], &goto));
        list.push(&Element::key(&[4; 4]).to(&[5; 4]));
        batch.close();
        let message = Messages::new(batch.writer().as_bytes()).next().expect("one message");
        let found: Vec<_> = FoundElement::decode_list(&message).collect();
        assert_eq!(found.len(), 3);
        assert_eq!((&found[0].key[..], &found[0].data), (&[1; 4][..], &FoundData::Value(vec![2; 8])));
        assert_eq!(found[0].timeout, Some(Duration::from_secs(3)));
        assert_eq!(found[0].comment.as_deref(), Some("x"));
        assert_eq!(found[1].data, FoundData::Verdict(goto));
        assert_eq!(found[2].key_end.as_deref(), Some(&[5; 4][..]));
    }

    proptest! {
        #[test]
        fn any_payload_is_decoded_without_panic(
            kind in prop::sample::select(vec![
                message::NEW_TABLE, message::NEW_CHAIN, message::NEW_RULE, message::NEW_SET, message::NEW_ELEMENT,
            ]),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            everything(kind, &payload);
        }

        #[test]
        fn messages_with_bytes_changed_are_decoded_without_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let of = Table::new(Family::Ip, "t");
            let mut batch = Batch::new();
            batch.add_table(of, Some("comment"));
            batch.add_chain(of, &crate::Chain::base("c", crate::ChainKind::Nat, crate::Hook::Output, -100));
            batch.add_set(of, &Set::map("s", &[Field::IPV4_ADDRESS, Field::PORT], &[Field::CLASS]).size(9));
            batch.append_rule(of, "c", &Rule::new().with(expression::accept()).comment("x"));
            batch.add_elements(of, "s").push(&Element::value(&[1; 8], &[2; 4]).comment("y"));
            batch.close();
            let mut writer = Writer::new();
            writer.raw(batch.writer().as_bytes());
            for (index, byte) in changes {
                writer.patch(index.index(writer.len()), &[byte]);
            }
            for message in Messages::new(writer.as_bytes()) {
                everything(message.kind & 0xff, message.payload);
            }
        }
    }
}
