//! What a generation's elements mean for each frontend. Numbers of lists, slots and ids follow from the history of changes;
//! what they lead to does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use proxy_core::model::{Protocol, ServicePortName};

use crate::{
    compare::content::{Content, Value},
    schema::{
        element::Key,
        name::Set,
        size_class::SizeClass,
        value::{
            INDEX_BITS, MARKED, Meaning, PLAIN_CLASS, Plain, STICKY_BASE, STICKY_CLASS, base_mask, group_key,
            meaning,
        },
    },
};

/// An endpoint.
pub(super) type Place = (IpAddr, u16);

/// A list of endpoints as packets find it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Endpoints {
    /// Each with the keys of the elements that lead to it.
    pub(super) places: BTreeMap<Place, Vec<Key>>,
    /// How many the rules choose among.
    pub(super) size: Option<SizeClass>,
    /// Slots that rules may draw and that hold nothing, or ids that lead nowhere.
    pub(super) holes: usize,
    /// There are slots behind a gap.
    pub(super) gap: bool,
    /// The set that holds its elements.
    pub(super) set: Option<Set>,
}

impl Endpoints {
    /// Packets are spread over as many as there are.
    pub(super) fn is_even(&self) -> bool {
        let slots: usize = self.places.values().map(Vec::len).sum::<usize>() + self.holes;
        !self.gap && self.size.is_none_or(|size| size == SizeClass::of(slots))
    }
}

/// What happens at a frontend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// What is done with its packets, in words; `None`: its map has no such key.
    pub(super) does: Option<String>,
    /// Endpoints for traffic that may go anywhere.
    pub(super) anywhere: Option<Endpoints>,
    /// Endpoints on this node, where traffic is kept to those.
    pub(super) here: Option<Endpoints>,
    pub(super) refused: bool,
    pub(super) dropped: bool,
    pub(super) sources: BTreeSet<IpNet>,
}

/// A whole generation.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub(super) frontends: BTreeMap<Key, Way>,
    /// Keys of sets that hold nothing but keys, and are no frontends.
    pub(super) members: BTreeSet<(Set, Key)>,
    /// Classes of values in use whose way to their chains is missing or another one: the class, what stands and what should.
    pub(super) lost_ways: BTreeSet<(Set, u32, String, String)>,
    /// Elements that no frontend leads to.
    pub(super) unused: BTreeMap<Set, usize>,
    /// Elements of a list that is in use, which no slot leads to: the Service port by the list's comment.
    pub(super) strays: Vec<(Set, Key, Place, Option<Box<str>>)>,
    /// Ways to remember clients that are in use: the chain that they lead to.
    pub(super) stems: BTreeSet<String>,
}

impl Resolved {
    pub(super) fn of(content: &Content) -> Self {
        let mut resolver =
            Resolver { content, out: Self::default(), used: BTreeSet::new(), bases: BTreeMap::new() };
        resolver.frontends();
        resolver.members();
        resolver.leftovers();
        resolver.out
    }
}

struct Resolver<'a> {
    content: &'a Content,
    out: Resolved,
    used: BTreeSet<(Set, Key)>,
    /// Sticky Service ports that are in use, by the base of their ids: whether wide, and their name.
    bases: BTreeMap<u32, (bool, Option<Box<str>>)>,
}

impl Resolver<'_> {
    fn frontends(&mut self) {
        for (set, by_address) in [(Set::Vips, true), (Set::NodePorts, false)] {
            for (key, value) in self.content.of(set) {
                let Value::Id(value, _) = value else { continue };
                let protocol = match key {
                    Key::Frontend(_, protocol, _) | Key::Port(protocol, _) => *protocol,
                    _ => continue,
                };
                let way = self.way(*value, protocol, by_address);
                self.out.frontends.insert(*key, way);
            }
        }
        for set in [Set::RefuseVips, Set::RefuseNodePorts, Set::DropVips] {
            for (key, _) in self.content.of(set) {
                let way = self.out.frontends.entry(*key).or_default();
                if set == Set::DropVips { way.dropped = true } else { way.refused = true }
            }
        }
        for (key, _) in self.content.of(Set::AllowedSources) {
            if let Key::Allowed(addr, protocol, port, net) = key {
                let key = Key::Frontend(*addr, *protocol, *port);
                self.out.frontends.entry(key).or_default().sources.insert(*net);
            }
        }
    }

    fn way(&mut self, value: u32, protocol: Protocol, by_address: bool) -> Way {
        let place = if by_address { "" } else { " (NodePort)" };
        match meaning(value) {
            None => Way { does: Some(format!("a value that means nothing: {value:#x}")), ..Way::default() },
            Some(Meaning::Plain(kind, size)) => {
                self.dispatch_plain(value & PLAIN_CLASS, kind, size);
                let group = value & !PLAIN_CLASS;
                let words = match kind {
                    Plain::ClusterIp => "cluster IP",
                    Plain::External => "external, policy Cluster",
                    Plain::ExternalLocal => "external, policy Local",
                    Plain::Local => "a local list",
                    Plain::RestrictedExternal => "external, policy Cluster, for some sources only",
                    Plain::RestrictedExternalLocal => "external, policy Local, for some sources only",
                    Plain::RestrictedOnly => "no endpoints, for some sources only",
                };
                let mut way = Way { does: Some(format!("{words}{place}")), ..Way::default() };
                if kind != Plain::RestrictedOnly {
                    way.anywhere = Some(self.group(group, size, protocol));
                }
                let key = Key::Id(group_key(group));
                if matches!(kind, Plain::ExternalLocal | Plain::RestrictedExternalLocal)
                    && let Some(local) = self.content.id(Set::LocalGroups, &key)
                {
                    self.used.insert((Set::LocalGroups, key));
                    if let Some(Meaning::Plain(Plain::Local, size)) = meaning(local) {
                        self.dispatch_plain(local & PLAIN_CLASS, Plain::Local, size);
                        way.here = Some(self.group(local & !PLAIN_CLASS, size, protocol));
                    }
                }
                way
            }
            Some(Meaning::Sticky { wide, .. }) => self.sticky_way(value, wide, protocol, place),
        }
    }

    fn sticky_way(&mut self, value: u32, wide: bool, protocol: Protocol, place: &str) -> Way {
        // In the order of `Sticky::class`.
        let (words, stem, anywhere, here) = match value >> 28 {
            5 => ("cluster IP", "acip", true, false),
            6 => ("cluster IP, policy Local", "acipl", false, true),
            7 => ("external, policy Cluster", "aext", true, false),
            8 => ("external, policy Local", "aextl", true, true),
            11 => ("external, policy Cluster, for some sources only", "raext", true, false),
            _ => ("external, policy Local, for some sources only", "raextl", true, true),
        };
        let class = value & STICKY_CLASS;
        let chain = match self.content.get(Set::DispatchSticky, &Key::Id(class)) {
            Some(Value::Verdict(verdict)) => verdict.clone(),
            _ => String::new(),
        };
        let rest = chain.strip_prefix(&format!("goto {stem}{}-", if wide { "-wide" } else { "" }));
        let timeout = rest.and_then(|rest| rest.split_once("s.")).map(|(seconds, _)| seconds);
        match timeout {
            Some(_) => drop(self.out.stems.insert(chain.trim_start_matches("goto ").to_owned())),
            None => {
                let wanted = format!("goto a chain {stem}");
                self.out.lost_ways.insert((Set::DispatchSticky, class, chain.clone(), wanted));
            }
        }
        let seconds = timeout.map_or(String::new(), |seconds| format!(", the same endpoint for {seconds} s"));
        let base = MARKED | value & STICKY_BASE;
        let (_, name) = self.bases.entry(base).or_insert((wide, None));
        if let Some(Value::Id(_, Some(comment))) = [Set::StickySizes, Set::StickyLocalSizes]
            .into_iter()
            .find_map(|set| self.content.get(set, &Key::Id(base)))
        {
            *name = Some(comment.clone());
        }
        let mut list = |sizes, usable| self.sticky_list(base, wide, protocol, sizes, usable);
        Way {
            does: Some(format!("{words}{seconds}{place}")),
            anywhere: anywhere.then(|| list(Set::StickySizes, Set::StickyEndpoints)),
            // None where there is no endpoint here, as for Services without affinity.
            here: here
                .then(|| list(Set::StickyLocalSizes, Set::StickyLocal))
                .filter(|list| list.size.is_some()),
            ..Way::default()
        }
    }

    fn sticky_list(
        &mut self,
        base: u32,
        wide: bool,
        protocol: Protocol,
        sizes: Set,
        usable: Set,
    ) -> Endpoints {
        let mut list = Endpoints { set: Some(usable), ..Endpoints::default() };
        let key = Key::Id(base);
        let Some(value) = self.content.id(sizes, &key) else { return list };
        self.used.insert((sizes, key));
        let size = SizeClass::from_index((value & 0xff) as u8);
        list.size = Some(size);
        for set in [Set::Picks, Set::PicksBySource] {
            let stem = if set == Set::Picks { "pick" } else { "pick-by-source" };
            self.dispatch(set, size.index().into(), &format!("jump {stem}-{size}"));
        }
        let slots = value & !((1 << INDEX_BITS) - 1);
        for slot in 0..size.upper() {
            let key = Key::IdSlot(slots, slot);
            let Some(id) = self.content.id(Set::StickySlots, &key) else {
                list.gap |= slot < size.lower();
                continue;
            };
            self.used.insert((Set::StickySlots, key));
            let at = Key::IdProtocol(id, protocol);
            match self.content.target(usable, &at) {
                Some(place) => {
                    self.used.insert((usable, at));
                    list.places.entry(place).or_default().push(at);
                }
                None => list.holes += 1,
            }
        }
        // What packets are led to whose endpoint went meanwhile.
        let last = Key::IdProtocol(base | !base_mask(wide), protocol);
        match self.content.target(usable, &last) {
            Some(place) if list.places.contains_key(&place) => {}
            Some(_) | None => list.gap = true,
        }
        self.used.insert((usable, last));
        list
    }

    fn group(&mut self, group: u32, size: SizeClass, protocol: Protocol) -> Endpoints {
        let mut list = Endpoints { size: Some(size), set: Some(Set::Endpoints), ..Endpoints::default() };
        let mut end = false;
        for slot in 0..size.upper() {
            let key = Key::IdProtocolSlot(group_key(group), protocol, slot);
            match self.content.target(Set::Endpoints, &key) {
                Some(place) => {
                    list.gap |= end;
                    self.used.insert((Set::Endpoints, key));
                    list.places.entry(place).or_default().push(key);
                }
                None => end = true,
            }
        }
        list
    }

    fn dispatch_plain(&mut self, class: u32, kind: Plain, size: SizeClass) {
        let (set, stem) = match kind {
            Plain::ClusterIp => (Set::Dispatch, "cip"),
            Plain::External => (Set::Dispatch, "ext"),
            Plain::ExternalLocal => (Set::Dispatch, "extl"),
            Plain::RestrictedExternal => (Set::Dispatch, "rext"),
            Plain::RestrictedExternalLocal => (Set::Dispatch, "rextl"),
            Plain::RestrictedOnly => return self.dispatch(Set::Dispatch, class, "goto restricted-only"),
            Plain::Local => (Set::DispatchLocal, "llb"),
        };
        self.dispatch(set, class, &format!("goto {stem}-{size}"));
    }

    fn dispatch(&mut self, set: Set, class: u32, wanted: &str) {
        let is = match self.content.get(set, &Key::Id(class)) {
            Some(Value::Verdict(verdict)) => verdict.as_str(),
            _ => "",
        };
        if is != wanted {
            self.out.lost_ways.insert((set, class, is.to_owned(), wanted.to_owned()));
        }
    }

    fn members(&mut self) {
        for set in [Set::ClusterIps, Set::OutsideVips, Set::EndpointPorts, Set::NodeAddrs] {
            let keys = self.content.of(set).map(|(key, _)| (set, *key));
            self.out.members.extend(keys);
        }
    }

    fn leftovers(&mut self) {
        let sets = [
            Set::Endpoints,
            Set::LocalGroups,
            Set::StickySizes,
            Set::StickyLocalSizes,
            Set::StickySlots,
            Set::StickyEndpoints,
            Set::StickyLocal,
        ];
        for set in sets {
            for (key, value) in self.content.of(set) {
                if self.used.contains(&(set, *key)) {
                    continue;
                }
                // An endpoint of a sticky Service port that is in use: its clients would be led there.
                if let (Key::IdProtocol(id, _), Value::Target(addr, port)) = (key, value)
                    && let Some((_, name)) = [false, true].into_iter().find_map(|wide| {
                        let base = self.bases.get(&(id & base_mask(wide)))?;
                        (base.0 == wide).then_some(base)
                    })
                {
                    self.out.strays.push((set, *key, (*addr, *port), name.clone()));
                    continue;
                }
                *self.out.unused.entry(set).or_default() += 1;
            }
        }
        // Slots behind the last that rules draw.
        let lists: BTreeSet<(u32, Protocol)> = self
            .used
            .iter()
            .filter_map(|(_, key)| match key {
                Key::IdProtocolSlot(id, protocol, _) => Some((*id, *protocol)),
                _ => None,
            })
            .collect();
        for (key, value) in self.content.of(Set::Endpoints) {
            if let (Key::IdProtocolSlot(id, protocol, _), Value::Target(addr, port)) = (key, value)
                && lists.contains(&(*id, *protocol))
                && !self.used.contains(&(Set::Endpoints, *key))
            {
                self.out.strays.push((Set::Endpoints, *key, (*addr, *port), None));
                if let Some(count) = self.out.unused.get_mut(&Set::Endpoints) {
                    *count -= 1;
                }
            }
        }
    }
}

/// A frontend in words.
pub(super) fn words(key: &Key) -> String {
    match key {
        Key::Frontend(addr, protocol, port) => {
            format!("{protocol} {}", std::net::SocketAddr::new(*addr, *port))
        }
        Key::Port(protocol, port) => format!("NodePort {protocol} {port}"),
        other => other.to_string(),
    }
}

/// The name that a comment holds, if it is this Service port's.
pub(super) fn is_named(comment: &str, name: &ServicePortName) -> bool {
    *crate::plan::comment(name) == *comment
}
