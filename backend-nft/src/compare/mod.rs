//! What the table holds against what it should, frontend by frontend. Reads only; the rules are written once into a network
//! namespace of their own, to be compared with those in force.
//!
//! Reading all elements takes the kernel a time that grows with the square of a set's size (0.3 s for 100,000).

mod content;
mod resolve;
mod rules;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use netlink::{Protocol as SocketProtocol, Socket};
use nft_netlink::list;
use proxy_core::{
    backend::Planner as _,
    difference::{Comparison, DifferenceKind, Unreadable},
    environment::Environment,
    model::{Family, ServicePortName},
    route::Route,
};

use content::Content;
use resolve::{Endpoints, Resolved, Way, is_named, words};

use crate::{
    kernel::{live_generation, table},
    plan::Planner,
    schema::{
        element::Key,
        found::{Found, generation_of},
        name::{Set, SetName, TABLE},
    },
};

/// Compares one family's table with what these routes (sorted by name) want, in the caller's network namespace. `now` is any
/// instant.
///
/// # Errors
/// Where nf_tables cannot be read.
pub fn compare(
    routes: &[(ServicePortName, Arc<Route>)],
    environment: &Environment,
    now: Instant,
) -> Result<Comparison, Unreadable> {
    let mut socket = Socket::open(SocketProtocol::Netfilter).map_err(|error| unreadable(&error))?;
    comparison(&mut socket, routes, environment, now).map_err(|error| unreadable(&error))
}

/// What a table holds of whoever wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Chains, base chains among them.
    pub chains: usize,
    /// Rules in them.
    pub rules: usize,
    /// Sets and maps.
    pub sets: usize,
    /// Its base chains lead to a generation of ours; else a kube-proxy wrote it.
    pub ours: bool,
}

/// What there is of the table `kube-proxy` of one family; `None`: no such table.
///
/// # Errors
/// Where nf_tables cannot be read.
pub fn standing(family: Family) -> Result<Option<Standing>, Unreadable> {
    let read = || -> Result<Option<Standing>, netlink::Error> {
        let mut socket = Socket::open(SocketProtocol::Netfilter)?;
        let table = table(family);
        if !list::tables(&mut socket, table.family)?.iter().any(|found| &*found.name == TABLE) {
            return Ok(None);
        }
        let chains = list::chains(&mut socket, table)?;
        let sets = list::sets(&mut socket, table)?;
        let rules = list::rules(&mut socket, table, None)?.len();
        let ours = live_generation(&chains).is_some();
        Ok(Some(Standing { chains: chains.len(), rules, sets: sets.len(), ours }))
    };
    read().map_err(|error| unreadable(&error))
}

fn unreadable(error: &netlink::Error) -> Unreadable {
    let (what, reason) = ("the nftables rules", error.to_string());
    if reason.contains("not permitted") || reason.contains("ermission denied") {
        return Unreadable::NotAllowed { what, reason };
    }
    Unreadable::NotThere {
        what,
        reason,
        mend: "The nftables mode needs a kernel with nf_tables, 5.13 or later",
    }
}

fn comparison(
    socket: &mut Socket,
    routes: &[(ServicePortName, Arc<Route>)],
    environment: &Environment,
    now: Instant,
) -> Result<Comparison, netlink::Error> {
    let family = environment.family;
    let mut comparison = Comparison::default();
    let found = list::chains(socket, table(family))?;
    let generation = live_generation(&found).unwrap_or(0);
    let sets: BTreeSet<Box<str>> = list::sets(socket, table(family))?
        .into_iter()
        .filter(|set| !set.is_anonymous())
        .map(|set| set.name)
        .collect();
    let dormant = list::tables(socket, table(family).family)?
        .iter()
        .any(|found| &*found.name == TABLE && found.dormant);
    if dormant {
        let what = format!("table {TABLE} sleeps (flags dormant): none of its rules is in force");
        comparison.differs(None, DifferenceKind::Different, what, None);
    }

    // A first start in this environment: what there must be, whatever the numbers are.
    let mut planner = Planner::new(family);
    let plan = planner.plan_full(routes, environment, Found::default(), now);
    let wanted = Content::written(&plan);
    let (parts, classes, mut prefixes) = planner.planned();
    let allowed = SetName::allowed(0, generation).to_string();
    let (before, after) = allowed.split_once("-0-").unwrap_or((&allowed, ""));
    let of_kernel = sets.iter().filter_map(|name| {
        let rest = name.strip_prefix(before)?.strip_prefix('-')?;
        rest.strip_suffix(after)?.strip_suffix('-')?.parse::<u8>().ok()
    });
    prefixes.extend(of_kernel);
    prefixes.sort_unstable();
    prefixes.dedup();

    let is = Content::read(socket, family, generation, &prefixes)?;
    comparison.compared += is.len();
    let owners = Owners::of(routes);
    let resolved = Resolved::of(&is);
    sets_stand(family, generation, &sets, &mut comparison);
    strange(&is, &mut comparison);
    networks(&is, &wanted, &mut comparison);
    frontends(&Resolved::of(&wanted), &resolved, &owners, generation, family, &mut comparison);
    let expected =
        rules::Expected { environment, generation, parts, prefixes, classes, stems: resolved.stems };
    rules::compare(socket, &found, &expected, &mut comparison)?;
    if family == Family::V4 && environment.localhost_node_ports && !localnet::is_safe(socket)? {
        let what = "the guard of 127.0.0.0/8 (table localnet) is missing while route_localnet is open";
        comparison.differs(None, DifferenceKind::Missing, what, None);
    }
    comparison.settle();
    Ok(comparison)
}

/// By what an element is known as a Service port's.
struct Owners<'a> {
    frontends: HashMap<Key, &'a ServicePortName>,
    addresses: HashMap<IpAddr, &'a ServicePortName>,
    endpoints: HashMap<(IpAddr, u16), &'a ServicePortName>,
    names: Vec<&'a ServicePortName>,
}

impl<'a> Owners<'a> {
    fn of(routes: &'a [(ServicePortName, Arc<Route>)]) -> Self {
        let mut owners = Self {
            frontends: HashMap::new(),
            addresses: HashMap::new(),
            endpoints: HashMap::new(),
            names: routes.iter().map(|(name, _)| name).collect(),
        };
        for (name, route) in routes {
            for frontend in &route.frontends {
                let key = match frontend.at {
                    Some(addr) => Key::Frontend(addr, route.protocol, frontend.port),
                    None => Key::Port(route.protocol, frontend.port),
                };
                owners.frontends.entry(key).or_insert(name);
                if let Some(addr) = frontend.at {
                    owners.addresses.entry(addr).or_insert(name);
                }
            }
            for target in route.cluster.iter().chain(&route.local) {
                owners.endpoints.entry((target.addr, target.port)).or_insert(name);
            }
        }
        owners
    }

    fn of_key(&self, key: &Key) -> Option<&'a ServicePortName> {
        match key {
            Key::Frontend(addr, ..) => self.frontends.get(key).or_else(|| self.addresses.get(addr)).copied(),
            Key::Address(addr) => self.addresses.get(addr).copied(),
            Key::Twice(addr, port) => self.endpoints.get(&(*addr, *port)).copied(),
            _ => self.frontends.get(key).copied(),
        }
    }
}

fn nft(family: Family, verb: &str, set: Set, generation: u32, element: &str) -> String {
    let family = table(family).family.name();
    format!("nft {verb} element {family} {TABLE} {} {{ {element} }}", SetName::new(set, generation))
}

fn sets_stand(family: Family, generation: u32, sets: &BTreeSet<Box<str>>, comparison: &mut Comparison) {
    for set in Set::ALL.into_iter().filter(|set| !matches!(set, Set::AllowedSources | Set::Clients)) {
        let name = SetName::new(set, generation).to_string();
        comparison.compared += 1;
        if !sets.contains(name.as_str()) {
            comparison.differs(None, DifferenceKind::Missing, format!("set {name}"), None);
        }
    }
    let clients = format!("{}.", Set::Clients.as_str());
    for name in sets {
        let ours = Set::ALL
            .into_iter()
            .any(|set| name.strip_prefix(set.as_str()).is_some_and(|rest| rest.starts_with('-')));
        let of_now = ours && generation_of(name) == Some(generation);
        if !of_now && !name.starts_with(&clients) {
            let which = if ours { "of another generation" } else { "which is none of ours" };
            let native = format!("nft delete set {} {TABLE} {name}", table(family).family.name());
            comparison.differs(None, DifferenceKind::Extra, format!("set {name}, {which}"), Some(native));
        }
    }
}

fn strange(is: &Content, comparison: &mut Comparison) {
    for (set, key) in &is.strange {
        let what = format!("element of {set} that is none of ours: {key:02x?}");
        comparison.differs(None, DifferenceKind::Extra, what, None);
    }
}

fn networks(is: &Content, wanted: &Content, comparison: &mut Comparison) {
    // Where the last range ends is told by the kernel or not (a range to the last of all addresses has no end).
    let starts = |content: &Content| -> BTreeSet<Vec<u8>> {
        content.networks.iter().filter(|(_, end)| !end).map(|(bytes, _)| bytes.clone()).collect()
    };
    let ends = |content: &Content| -> BTreeSet<Vec<u8>> {
        content.networks.iter().filter(|(_, end)| *end).map(|(bytes, _)| bytes.clone()).collect()
    };
    for (is, wanted) in [(starts(is), starts(wanted)), (ends(is), ends(wanted))] {
        if is != wanted {
            let kind =
                if is.is_subset(&wanted) { DifferenceKind::Missing } else { DifferenceKind::Different };
            comparison.differs(None, kind, "the Service networks (set service-cidrs)", None);
        }
    }
}

fn frontends(
    wanted: &Resolved,
    is: &Resolved,
    owners: &Owners<'_>,
    generation: u32,
    family: Family,
    comparison: &mut Comparison,
) {
    let keys: BTreeSet<&Key> = wanted.frontends.keys().chain(is.frontends.keys()).collect();
    for key in keys {
        let none = Way::default();
        let owner = owners.of_key(key);
        let one = wanted.frontends.get(key).unwrap_or(&none);
        let other = is.frontends.get(key).unwrap_or(&none);
        let at = words(key);
        let by_address = matches!(key, Key::Frontend(..));
        let serve = if by_address { Set::Vips } else { Set::NodePorts };
        match (&one.does, &other.does) {
            (Some(wanted), None) => {
                comparison.differs(
                    owner,
                    DifferenceKind::Missing,
                    format!("{at} ({wanted}) is not served"),
                    None,
                );
            }
            (None, Some(is)) => {
                let native = Some(nft(family, "delete", serve, generation, &key.to_string()));
                comparison.differs(owner, DifferenceKind::Extra, format!("{at} is served ({is})"), native);
            }
            (Some(wanted), Some(is)) if wanted != is => {
                let what = format!("{at} is served as {is} instead of {wanted}");
                comparison.differs(owner, DifferenceKind::Different, what, None);
            }
            _ => {}
        }
        let refuse = if by_address { Set::RefuseVips } else { Set::RefuseNodePorts };
        for (set, words, wanted, is) in [
            (refuse, "refused", one.refused, other.refused),
            (Set::DropVips, "dropped", one.dropped, other.dropped),
        ] {
            let element = key.to_string();
            if wanted && !is {
                let native = Some(nft(family, "add", set, generation, &element));
                comparison.differs(owner, DifferenceKind::Missing, format!("{at} is not {words}"), native);
            } else if is && !wanted {
                let native = Some(nft(family, "delete", set, generation, &element));
                comparison.differs(owner, DifferenceKind::Extra, format!("{at} is {words}"), native);
            }
        }
        for net in one.sources.difference(&other.sources) {
            comparison.differs(owner, DifferenceKind::Missing, format!("{at} does not admit {net}"), None);
        }
        for net in other.sources.difference(&one.sources) {
            comparison.differs(owner, DifferenceKind::Extra, format!("{at} admits {net}"), None);
        }
        // Where the frontend itself is missing, all has been said.
        if one.does.is_some() && other.does.is_some() {
            let lists = [("", &one.anywhere, &other.anywhere), (" on this node", &one.here, &other.here)];
            for (which, wanted, is) in lists {
                endpoints(owner, which, wanted.as_ref(), is.as_ref(), generation, family, comparison);
            }
        }
    }
    members(wanted, is, owners, generation, family, comparison);
    for (set, class, verdict, wanted) in &is.lost_ways {
        let name = SetName::new(*set, generation);
        let (kind, what) = match verdict.as_str() {
            "" => (DifferenceKind::Missing, format!("element {class:#x} of {name}: {wanted}")),
            is => {
                (DifferenceKind::Different, format!("element {class:#x} of {name}: {is} instead of {wanted}"))
            }
        };
        comparison.differs(None, kind, what, None);
    }
    for (set, key, (addr, port), comment) in &is.strays {
        let named = comment
            .as_ref()
            .and_then(|comment| owners.names.iter().copied().find(|name| is_named(comment, name)));
        // A list without affinity is known by its endpoints.
        let owner = named.or_else(|| match key {
            Key::IdProtocolSlot(id, ..) => list_owner(is, owners, *id),
            _ => None,
        });
        let what = format!("endpoint {}", std::net::SocketAddr::new(*addr, *port));
        let native = Some(nft(family, "delete", *set, generation, &key.to_string()));
        comparison.differs(owner, DifferenceKind::Extra, what, native);
    }
    for (set, count) in is.unused.iter().filter(|(_, count)| **count > 0) {
        comparison.owes(
            None,
            format!("{count} elements of {} that nothing leads to any more", SetName::new(*set, generation)),
        );
    }
}

/// Whose list this is.
fn list_owner<'a>(is: &Resolved, owners: &Owners<'a>, id: u32) -> Option<&'a ServicePortName> {
    let uses = |list: &Endpoints| {
        list.places.values().flatten().any(|key| matches!(key, Key::IdProtocolSlot(own, ..) if *own == id))
    };
    is.frontends.iter().find_map(|(key, way)| {
        let uses = way.anywhere.iter().chain(&way.here).any(uses);
        owners.of_key(key).filter(|_| uses)
    })
}

fn endpoints(
    owner: Option<&ServicePortName>,
    which: &str,
    wanted: Option<&Endpoints>,
    is: Option<&Endpoints>,
    generation: u32,
    family: Family,
    comparison: &mut Comparison,
) {
    let none = BTreeMap::new();
    let wanted_places = wanted.map_or(&none, |list| &list.places);
    let is_places = is.map_or(&none, |list| &list.places);
    let socket = |(addr, port): &(IpAddr, u16)| std::net::SocketAddr::new(*addr, *port);
    let mut same = true;
    for place in wanted_places.keys().filter(|place| !is_places.contains_key(*place)) {
        same = false;
        comparison.differs(
            owner,
            DifferenceKind::Missing,
            format!("endpoint {}{which}", socket(place)),
            None,
        );
    }
    for (place, keys) in is_places {
        let wanted = wanted_places.get(place).map_or(0, Vec::len);
        for key in keys.iter().skip(wanted) {
            same = false;
            let native = is
                .and_then(|list| list.set)
                .map(|set| nft(family, "delete", set, generation, &key.to_string()));
            let twice = if wanted > 0 { ", which is there already" } else { "" };
            let what = format!("endpoint {}{which}{twice}", socket(place));
            comparison.differs(owner, DifferenceKind::Extra, what, native);
        }
    }
    if same && is.is_some_and(|list| !list.is_even() || list.holes > 0) {
        let what = format!("the rules choose among another number of endpoints{which} than there are");
        comparison.differs(owner, DifferenceKind::Different, what, None);
    }
}

fn members(
    wanted: &Resolved,
    is: &Resolved,
    owners: &Owners<'_>,
    generation: u32,
    family: Family,
    comparison: &mut Comparison,
) {
    let words = |set: Set, key: &Key| format!("{key} in {}", SetName::new(set, generation));
    for (set, key) in wanted.members.difference(&is.members) {
        let native = Some(nft(family, "add", *set, generation, &key.to_string()));
        comparison.differs(owners.of_key(key), DifferenceKind::Missing, words(*set, key), native);
    }
    for (set, key) in is.members.difference(&wanted.members) {
        let native = Some(nft(family, "delete", *set, generation, &key.to_string()));
        comparison.differs(owners.of_key(key), DifferenceKind::Extra, words(*set, key), native);
    }
}
