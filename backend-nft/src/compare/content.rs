//! What the sets and maps of one generation hold, as the kernel lists it or as a plan writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netlink::{Dump, Socket};
use nft_netlink::{
    Verdict,
    list::{self, FoundData, FoundElement},
};
use proxy_core::{
    backend::Plan,
    model::{Family, Protocol},
};

use crate::{
    kernel::{key_bytes, table},
    schema::{
        element::{Data, Element, Key},
        name::{Set, SetName},
        operation::{Op, Operation},
    },
};

// asm-generic/errno.h
const ENOENT: i32 = 2;
/// How often a set is read again while others commit.
const TRIES: usize = 4;

/// What a key leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    /// It is in a set.
    Nothing,
    /// An id or class, and its element's comment.
    Id(u32, Option<Box<str>>),
    Target(IpAddr, u16),
    /// `goto` or `jump` and a chain, without the number of the generation.
    Verdict(String),
}

/// A start of a range of addresses, or what follows its end.
pub(super) type Bound = (Vec<u8>, bool);

/// The elements of one generation.
#[derive(Debug, Default)]
pub(super) struct Content {
    sets: BTreeMap<Set, BTreeMap<Key, Value>>,
    /// Of the set of Service networks.
    pub(super) networks: BTreeSet<Bound>,
    /// Elements that no plan of ours writes: the set and the key as bytes.
    pub(super) strange: Vec<(String, Vec<u8>)>,
}

impl Content {
    pub(super) fn of(&self, set: Set) -> impl Iterator<Item = (&Key, &Value)> {
        self.sets.get(&set).into_iter().flatten()
    }

    pub(super) fn get(&self, set: Set, key: &Key) -> Option<&Value> {
        self.sets.get(&set)?.get(key)
    }

    pub(super) fn id(&self, set: Set, key: &Key) -> Option<u32> {
        match self.get(set, key)? {
            Value::Id(id, _) => Some(*id),
            _ => None,
        }
    }

    pub(super) fn target(&self, set: Set, key: &Key) -> Option<(IpAddr, u16)> {
        match self.get(set, key)? {
            Value::Target(addr, port) => Some((*addr, *port)),
            _ => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.networks.len() + self.sets.values().map(BTreeMap::len).sum::<usize>()
    }

    /// What a plan on top of nothing writes.
    pub(super) fn written(plan: &Plan<Op>) -> Self {
        let mut content = Self::default();
        for owned in plan.steps.iter().flat_map(|step| &step.ops) {
            let adds = matches!(
                owned.op.0,
                Operation::Add { .. } | Operation::AddGroup { .. } | Operation::AddEndpoints { .. }
            );
            if adds {
                owned.op.0.elements(|element| content.write(element));
            }
        }
        content
    }

    fn write(&mut self, Element { set, key, data }: Element) {
        if let Key::Network(net) = key {
            let (start, end) = key_bytes(&key);
            self.networks.insert((start.as_slice().to_vec(), false));
            let last = end.map(|end| end.as_slice().to_vec()).unwrap_or_default();
            self.networks.extend(
                after(last)
                    .map(|end| (end, true))
                    .filter(|_| set == Set::ServiceCidrs && net.prefix_len() > 0),
            );
            return;
        }
        let value = match data {
            Data::None => Value::Nothing,
            Data::Id(id) => Value::Id(id, None),
            Data::Named(id, comment) => Value::Id(id, Some(comment)),
            Data::Target(addr, port) => Value::Target(addr, port),
            Data::Goto(chain) => Value::Verdict(format!("goto {}", stem(&chain.to_string()))),
            Data::Jump(chain) => Value::Verdict(format!("jump {}", stem(&chain.to_string()))),
        };
        self.sets.entry(set).or_default().insert(key, value);
    }

    /// What the kernel holds of a generation. `prefixes`: lengths of source ranges that have a set.
    pub(super) fn read(
        socket: &mut Socket,
        family: Family,
        generation: u32,
        prefixes: &[u8],
    ) -> Result<Self, netlink::Error> {
        let mut content = Self::default();
        for set in Set::ALL.into_iter().filter(|set| !matches!(set, Set::Clients | Set::AllowedSources)) {
            content.read_set(socket, family, SetName::new(set, generation))?;
        }
        for prefix in prefixes {
            content.read_set(socket, family, SetName::allowed(*prefix, generation))?;
        }
        Ok(content)
    }

    fn read_set(&mut self, socket: &mut Socket, family: Family, name: SetName) -> Result<(), netlink::Error> {
        let text = name.to_string();
        let mut found: Vec<FoundElement> = Vec::new();
        for _ in 0..TRIES {
            found.clear();
            match list::elements(socket, table(family), &text, |element| found.push(element)) {
                Ok(Dump::Complete) => break,
                Ok(Dump::Interrupted) => {}
                Err(error) if error.refused() == Some(ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        let own = self.sets.entry(name.set).or_default();
        for element in found {
            if name.set == Set::ServiceCidrs {
                self.networks.insert((element.key, element.interval_end));
                continue;
            }
            let value = match &element.data {
                FoundData::None => Some(Value::Nothing),
                FoundData::Verdict(Verdict::Goto(chain)) => {
                    Some(Value::Verdict(format!("goto {}", stem(chain))))
                }
                FoundData::Verdict(Verdict::Jump(chain)) => {
                    Some(Value::Verdict(format!("jump {}", stem(chain))))
                }
                FoundData::Verdict(other) => Some(Value::Verdict(format!("{other:?}"))),
                FoundData::Value(data) if data.len() == 4 => data
                    .first_chunk()
                    .map(|bytes| Value::Id(u32::from_ne_bytes(*bytes), element.comment.clone())),
                FoundData::Value(data) => target(data, family).map(|(addr, port)| Value::Target(addr, port)),
            };
            match key(name, family, &element.key).zip(value) {
                Some((key, value)) => drop(own.insert(key, value)),
                None => self.strange.push((text.clone(), element.key)),
            }
        }
        Ok(())
    }
}

/// The address after the last one of a range; `None` after the last of all.
fn after(mut addr: Vec<u8>) -> Option<Vec<u8>> {
    for byte in addr.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(addr);
        }
    }
    None
}

/// A chain's name without the number of its generation.
pub(super) fn stem(chain: &str) -> &str {
    match chain.rsplit_once('-') {
        Some((stem, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => stem,
        _ => chain,
    }
}

fn target(data: &[u8], family: Family) -> Option<(IpAddr, u16)> {
    let (addr, rest) = address(data, family)?;
    Some((addr, u16::from_be_bytes(*rest.first_chunk()?)))
}

fn address(bytes: &[u8], family: Family) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => bytes.split_first_chunk::<4>().map(|(addr, rest)| ((*addr).into(), rest)),
        Family::V6 => bytes.split_first_chunk::<16>().map(|(addr, rest)| ((*addr).into(), rest)),
    }
}

fn protocol(bytes: &[u8]) -> Option<(Protocol, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.number() == number[0])?;
    Some((protocol, rest))
}

fn port(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (port, rest) = bytes.split_first_chunk::<4>()?;
    Some((u16::from_be_bytes([port[0], port[1]]), rest))
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk::<4>().map(|(number, rest)| (u32::from_ne_bytes(*number), rest))
}

/// A key of a set from its bytes.
fn key(name: SetName, family: Family, bytes: &[u8]) -> Option<Key> {
    Some(match name.set {
        Set::Vips | Set::RefuseVips | Set::DropVips => {
            let (addr, rest) = address(bytes, family)?;
            let (protocol, rest) = protocol(rest)?;
            Key::Frontend(addr, protocol, port(rest)?.0)
        }
        Set::NodePorts | Set::RefuseNodePorts => {
            let (protocol, rest) = protocol(bytes)?;
            Key::Port(protocol, port(rest)?.0)
        }
        Set::Endpoints => {
            let (id, rest) = number(bytes)?;
            let (protocol, rest) = protocol(rest)?;
            Key::IdProtocolSlot(id, protocol, number(rest)?.0)
        }
        Set::ClusterIps | Set::OutsideVips | Set::NodeAddrs => Key::Address(address(bytes, family)?.0),
        Set::EndpointPorts => {
            let (addr, rest) = address(bytes, family)?;
            let (again, rest) = address(rest, family)?;
            (again == addr).then_some(Key::Twice(addr, port(rest)?.0))?
        }
        Set::AllowedSources => {
            let (addr, rest) = address(bytes, family)?;
            let (protocol, rest) = protocol(rest)?;
            let (port, rest) = port(rest)?;
            let net = IpNet::new(address(rest, family)?.0, name.part?).ok()?;
            Key::Allowed(addr, protocol, port, net)
        }
        Set::StickySlots => {
            let (id, rest) = number(bytes)?;
            Key::IdSlot(id, number(rest)?.0)
        }
        Set::StickyEndpoints | Set::StickyLocal => {
            let (id, rest) = number(bytes)?;
            Key::IdProtocol(id, protocol(rest)?.0)
        }
        Set::LocalGroups
        | Set::Dispatch
        | Set::DispatchLocal
        | Set::DispatchSticky
        | Set::StickySizes
        | Set::StickyLocalSizes
        | Set::Picks
        | Set::PicksBySource => Key::Id(number(bytes)?.0),
        Set::ServiceCidrs | Set::Clients => return None,
    })
}
