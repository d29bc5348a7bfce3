//! What the kernel holds against what it should: virtual servers with their destinations, bound addresses, and the tables of
//! nftables that go with them. Reads only; the rules are written once into a network namespace of its own, to be compared
//! with those in force.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::IpAddr,
    sync::{Arc, mpsc},
    time::Instant,
};

use ipvs_netlink::{Destination, Service, ServiceFlags, ServiceKey};
use netlink::{Dump, link, scratch};
use nft_netlink::list::{self, FoundData};
use proxy_core::{
    backend::{Executor as _, Plan, Planner as _},
    difference::{Comparison, DifferenceKind, Unreadable},
    environment::Environment,
    model::{Family, ServicePortName},
    route::Route,
};

use crate::{
    kernel::{IpvsExecutor, sysctl, tables},
    plan::IpvsPlanner,
    schema::{
        element::{self, Bytes},
        found::{Found, FoundServer},
        op::{Element, Op},
        render,
        scaffold::{self, BASE_CHAINS, CHAINS},
    },
    settings::{DEVICE, Settings},
};

/// How often a set is read again while others commit.
const TRIES: usize = 4;

/// Compares one family with what these routes (sorted by name) want, in the caller's network namespace. `now` is any instant.
///
/// # Errors
/// Where IPVS, addresses or rules cannot be read.
pub fn compare(
    routes: &[(ServicePortName, Arc<Route>)],
    environment: &Environment,
    settings: &Settings,
    now: Instant,
) -> Result<Comparison, Unreadable> {
    let family = environment.family;
    let (mut executor, found) = read(family, settings)?;
    let open = || {
        netlink::Socket::open(netlink::Protocol::Netfilter).map_err(|error| unreadable("nf_tables", &error))
    };
    let mut comparison = Comparison::default();

    // Which way around a missing scheduler was taken is seen in what stands: trying one would write.
    let (wanted, left) = [false, true]
        .map(|without_maglev| {
            let planner = || {
                let planner = IpvsPlanner::alone(settings.clone());
                if without_maglev { planner.without_maglev() } else { planner }
            };
            let wanted = Servers::of(&planner().plan_full(routes, environment, Found::default(), now));
            let left = planner().plan_full(routes, environment, found.clone(), now);
            (wanted, left)
        })
        .into_iter()
        .min_by_key(|(wanted, _)| wanted.unlike(&found))
        .expect("there are two");
    let at = Addresses::of(routes);
    let entry = |owner: Option<u32>| owner.and_then(|at| routes.get(at as usize));
    let name = |owner: Option<u32>| entry(owner).map(|(name, _)| name);
    let keeps = |owner: Option<u32>, service: &Service, to: &Destination| {
        entry(owner).is_some_and(|(_, route)| render::keeps(route, service, (to.address, to.port)))
    };

    servers(&wanted, &found, settings, &at, (&name, &keeps), &mut comparison);
    bindings(&left, &at, &name, &mut comparison);
    device(&mut executor.bindings.socket, &mut comparison)?;
    for (setting, wanted, is) in sysctl::differing(settings, family) {
        let what = format!("{setting} is {is} instead of {wanted}");
        let native = format!("sysctl -w {}={wanted}", setting.replace('/', "."));
        comparison.differs(None, DifferenceKind::Different, what, Some(native));
    }
    let mut socket = open()?;
    rules(&mut socket, environment, settings, &mut comparison)
        .map_err(|error| unreadable("nf_tables", &error))?;
    elements(&mut socket, family, &left, &at, &name, &mut comparison)
        .map_err(|error| unreadable("nf_tables", &error))?;
    comparison.settle();
    Ok(comparison)
}

/// What a full plan needs to know, without anything that opening the backend tries.
///
/// # Errors
/// Where IPVS, addresses or rules cannot be read.
pub fn survey(family: Family, settings: &Settings) -> Result<Found, Unreadable> {
    Ok(read(family, settings)?.1)
}

fn read(family: Family, settings: &Settings) -> Result<(IpvsExecutor, Found), Unreadable> {
    let ipvs = ipvs_netlink::Socket::open().map_err(|error| unreadable("IPVS", &error))?;
    let nft = netlink::Socket::open(netlink::Protocol::Netfilter);
    let nft = nft.map_err(|error| unreadable("nf_tables", &error))?;
    let route = netlink::Socket::open(netlink::Protocol::Route);
    let route = route.map_err(|error| unreadable("addresses", &error))?;
    let (reports, _) = mpsc::channel();
    let executor = IpvsExecutor::new(settings.clone(), family, ipvs, route, nft, reports);
    let mut executor = executor.map_err(|error| unreadable("addresses", &error))?;
    let found = executor.survey().map_err(|error| unreadable("IPVS", &error))?;
    Ok((executor, found))
}

fn unreadable(what: &'static str, error: &dyn std::error::Error) -> Unreadable {
    let reason = error.to_string();
    if reason.contains("not permitted") || reason.contains("ermission denied") {
        return Unreadable::NotAllowed { what, reason };
    }
    Unreadable::NotThere {
        what,
        reason,
        mend: "The ipvs mode needs the modules ip_vs and dummy, and nf_tables",
    }
}

/// Virtual servers that are wanted, each with its destinations and whose it is.
struct Servers(BTreeMap<ServiceKey, (Service, Vec<Destination>, Option<u32>)>);

impl Servers {
    /// From a plan on top of nothing.
    fn of(plan: &Plan<Op>) -> Self {
        let ops = plan.steps.iter().flat_map(|step| &step.ops);
        Self(
            ops.filter_map(|owned| match &owned.op {
                Op::NewServer(service, destinations) => {
                    Some((service.key, (*service, destinations.to_vec(), owned.owner)))
                }
                _ => None,
            })
            .collect(),
        )
    }

    /// How many of them stand otherwise.
    fn unlike(&self, found: &Found) -> usize {
        found
            .servers
            .iter()
            .filter(|server| {
                self.0.get(&server.service.key).is_some_and(|(service, ..)| *service != server.service)
            })
            .count()
    }
}

/// Whose an address is.
struct Addresses<'a>(HashMap<IpAddr, &'a ServicePortName>);

impl<'a> Addresses<'a> {
    fn of(routes: &'a [(ServicePortName, Arc<Route>)]) -> Self {
        let mut at = HashMap::new();
        for (name, route) in routes {
            for addr in route.frontends.iter().filter_map(|frontend| frontend.at) {
                at.entry(addr).or_insert(name);
            }
        }
        Self(at)
    }

    fn of_key(&self, key: &ServiceKey) -> Option<&'a ServicePortName> {
        match key {
            ServiceKey::Address { address, .. } => self.0.get(address).copied(),
            ServiceKey::Mark { .. } => None,
        }
    }
}

fn servers<'a>(
    wanted: &Servers,
    found: &Found,
    settings: &Settings,
    at: &Addresses<'a>,
    (name, keeps): (
        &impl Fn(Option<u32>) -> Option<&'a ServicePortName>,
        &impl Fn(Option<u32>, &Service, &Destination) -> bool,
    ),
    comparison: &mut Comparison,
) {
    let mut standing: BTreeMap<ServiceKey, &FoundServer> =
        found.servers.iter().map(|server| (server.service.key, server)).collect();
    for (key, (service, destinations, index)) in &wanted.0 {
        comparison.compared += 1 + destinations.len();
        let owner = name(*index);
        let Some(server) = standing.remove(key) else {
            let what = if matches!(key, ServiceKey::Mark { mark, .. } if *mark == settings.marks.sentinel()) {
                "the virtual server that nothing uses, by which it is seen that nobody cleared the table"
                    .to_owned()
            } else {
                format!("virtual server {key} with {} destinations", destinations.len())
            };
            comparison.differs(owner, DifferenceKind::Missing, what, Some(admin_service("-A", service)));
            continue;
        };
        if server.service != *service {
            let what = format!("virtual server {key}: {}", otherwise(&server.service, service));
            comparison.differs(owner, DifferenceKind::Different, what, Some(admin_service("-E", service)));
        }
        let mut left: BTreeMap<(IpAddr, u16), &Destination> =
            server.destinations.iter().map(|to| ((to.address, to.port), to)).collect();
        for to in destinations {
            let native = |verb| Some(admin_destination(verb, key, to));
            match left.remove(&(to.address, to.port)) {
                None => {
                    let what = format!("destination {} of virtual server {key}", socket(to));
                    comparison.differs(owner, DifferenceKind::Missing, what, native("-a"));
                }
                Some(held) if held != to => {
                    let what = format!(
                        "destination {} of virtual server {key} has weight {} instead of {}",
                        socket(to),
                        held.weight,
                        to.weight
                    );
                    comparison.differs(owner, DifferenceKind::Different, what, native("-e"));
                }
                Some(_) => {}
            }
        }
        for to in left.into_values() {
            let what = format!("destination {} of virtual server {key}", socket(to));
            if to.weight == 0 && keeps(*index, service, to) {
                comparison.owes(owner, format!("{what} keeps its connections until they end"));
            } else {
                let native = Some(admin_destination("-d", key, to));
                comparison.differs(owner, DifferenceKind::Extra, what, native);
            }
        }
    }
    for (key, server) in standing {
        if !found.owns(&server.service, &settings.exclude_cidrs) {
            continue;
        }
        let drains = render::drains(&server.service) && server.destinations.iter().all(|to| to.weight == 0);
        if drains && crate::schema::ownership::is_ours(&server.service) {
            comparison
                .owes(at.of_key(&key), format!("virtual server {key} keeps its connections until they end"));
        } else {
            let what = format!("virtual server {key} with {} destinations", server.destinations.len());
            let native = Some(admin_service("-D", &server.service));
            comparison.differs(at.of_key(&key), DifferenceKind::Extra, what, native);
        }
    }
}

/// In what the options of a virtual server differ.
fn otherwise(is: &Service, wanted: &Service) -> String {
    let mut parts = Vec::new();
    if is.scheduler != wanted.scheduler {
        parts.push(format!("scheduler {} instead of {}", is.scheduler, wanted.scheduler));
    }
    let persistence =
        |service: &Service| service.flags.contains(ServiceFlags::PERSISTENT).then_some(service.timeout);
    let seconds =
        |timeout: Option<u32>| timeout.map_or_else(|| "none".to_owned(), |timeout| format!("{timeout} s"));
    if persistence(is) != persistence(wanted) {
        let (is, wanted) = (seconds(persistence(is)), seconds(persistence(wanted)));
        parts.push(format!("session affinity {is} instead of {wanted}"));
    }
    if parts.is_empty() {
        parts.push("its flags or its netmask are other ones".to_owned());
    }
    parts.join(", ")
}

fn socket(to: &Destination) -> std::net::SocketAddr {
    std::net::SocketAddr::new(to.address, to.port)
}

/// A virtual server as `ipvsadm` names it.
fn admin_key(key: &ServiceKey) -> String {
    match *key {
        ServiceKey::Address { address, port, protocol } => {
            let option = match protocol {
                ipvs_netlink::Protocol::Udp => "-u",
                ipvs_netlink::Protocol::Sctp => "--sctp-service",
                _ => "-t",
            };
            format!("{option} {}", std::net::SocketAddr::new(address, port))
        }
        ServiceKey::Mark { family, mark } => {
            let six = if family == ipvs_netlink::Family::V6 { " -6" } else { "" };
            format!("-f {mark}{six}")
        }
    }
}

fn admin_service(verb: &str, service: &Service) -> String {
    let key = admin_key(&service.key);
    if verb == "-D" {
        return format!("ipvsadm {verb} {key}");
    }
    let persistent = if service.flags.contains(ServiceFlags::PERSISTENT) {
        format!(" -p {}", service.timeout)
    } else {
        String::new()
    };
    format!("ipvsadm {verb} {key} -s {}{persistent}", service.scheduler)
}

fn admin_destination(verb: &str, key: &ServiceKey, to: &Destination) -> String {
    let rest = if verb == "-d" { String::new() } else { format!(" -m -w {}", to.weight) };
    format!("ipvsadm {verb} {} -r {}{rest}", admin_key(key), socket(to))
}

/// What is left to do about addresses is what differs.
fn bindings<'a>(
    left: &Plan<Op>,
    at: &Addresses<'a>,
    name: &impl Fn(Option<u32>) -> Option<&'a ServicePortName>,
    comparison: &mut Comparison,
) {
    for owned in left.steps.iter().flat_map(|step| &step.ops) {
        let (kind, addr, what) = match &owned.op {
            Op::Bind(addr) => {
                (DifferenceKind::Missing, addr, format!("address {addr} is not bound to {DEVICE}"))
            }
            Op::Unbind(addr) => (DifferenceKind::Extra, addr, format!("address {addr} is bound to {DEVICE}")),
            Op::DropAddress(addr) => (
                DifferenceKind::Extra,
                addr,
                format!("{addr} is an address of {DEVICE}, where a route is meant"),
            ),
            Op::DropRoute(addr) => (
                DifferenceKind::Extra,
                addr,
                format!("{addr} is a local route, where an address of {DEVICE} is meant"),
            ),
            Op::DropOtherTable => {
                let what = "the table kube-proxy of an nftables mode";
                let native = Some("nft delete table ip kube-proxy".to_owned());
                comparison.differs(None, DifferenceKind::Extra, what, native);
                continue;
            }
            _ => continue,
        };
        comparison.compared += 1;
        let owner = name(owned.owner).or_else(|| at.0.get(addr).copied());
        comparison.differs(owner, kind, what, None);
    }
}

fn device(socket: &mut netlink::Socket, comparison: &mut Comparison) -> Result<(), Unreadable> {
    let found = link::find(socket, DEVICE).map_err(|error| unreadable("interfaces", &error))?;
    let (kind, what, native) = match found {
        None => (DifferenceKind::Missing, "the device", format!("ip link add {DEVICE} type dummy")),
        Some(device) if !device.is_up() => {
            (DifferenceKind::Different, "is down: the device", format!("ip link set {DEVICE} up"))
        }
        Some(_) => return Ok(()),
    };
    comparison.differs(None, kind, format!("{what} {DEVICE}"), Some(native));
    Ok(())
}

/// Compares chains and rules with those that are written into a namespace of its own.
fn rules(
    socket: &mut netlink::Socket,
    environment: &Environment,
    settings: &Settings,
    comparison: &mut Comparison,
) -> Result<(), netlink::Error> {
    let family = environment.family;
    let table = scaffold::table(family);
    let is = tables::written(socket, family)?;
    for name in list::chains(socket, table)?.iter().map(|chain| &*chain.name) {
        if !CHAINS.contains(&name) && BASE_CHAINS.iter().all(|chain| chain.name != name) {
            let native = Some(format!("nft delete chain {} {} {name}", table.family.name(), table.name));
            comparison.differs(
                None,
                DifferenceKind::Extra,
                format!("chain {name} of table {}", table.name),
                native,
            );
        }
    }
    let wanted = scratch::in_own_namespace(|| tables::tried(environment, settings.marks));
    let wanted = match wanted.and_then(|tried| tried.map_err(io::Error::other)) {
        Ok(wanted) => wanted,
        Err(error) => {
            comparison.unseen.push(format!(
                "what the rules of table {} say: a network namespace to compare them in cannot be made ({error})",
                table.name
            ));
            return Ok(());
        }
    };
    for (chain, wanted) in wanted {
        comparison.compared += 1 + wanted.rules.len();
        let of = format!("chain {chain} of table {}", table.name);
        let native = Some(format!("nft list chain {} {} {chain}", table.family.name(), table.name));
        match is.get(chain) {
            None => comparison.differs(None, DifferenceKind::Missing, of, native),
            Some(is) if is.hook != wanted.hook => {
                let what = format!("{of} is hooked in elsewhere, or drops by its policy");
                comparison.differs(None, DifferenceKind::Different, what, native);
            }
            Some(is) if is.rules != wanted.rules => {
                let what = match is.rules.iter().zip(&wanted.rules).position(|(is, wanted)| is != wanted) {
                    Some(at) => format!("{of}: its rule {} is another one", at + 1),
                    None => format!("{of} has {} rules instead of {}", is.rules.len(), wanted.rules.len()),
                };
                comparison.differs(None, DifferenceKind::Different, what, native);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Compares the elements of all sets.
fn elements<'a>(
    socket: &mut netlink::Socket,
    family: Family,
    left: &Plan<Op>,
    at: &Addresses<'a>,
    name: &impl Fn(Option<u32>) -> Option<&'a ServicePortName>,
    comparison: &mut Comparison,
) -> Result<(), netlink::Error> {
    // A full plan empties all sets and writes every element.
    let mut wanted: BTreeMap<&str, BTreeMap<Bytes, (Element, Option<u32>)>> = BTreeMap::new();
    for owned in left.steps.iter().flat_map(|step| &step.ops) {
        if let Op::AddElement(element) = owned.op {
            let set = wanted.entry(element::set(&element)).or_default();
            set.insert(Bytes::of(&element), (element, owned.owner));
        }
    }
    let table = scaffold::table(family);
    let sets: HashSet<Box<str>> = list::sets(socket, table)?.into_iter().map(|set| set.name).collect();
    for set in scaffold::sets(family) {
        let mut missing = wanted.remove(set.name).unwrap_or_default();
        comparison.compared += 1 + missing.len();
        if !sets.contains(set.name) {
            let what = format!("set {} of table {}", set.name, table.name);
            comparison.differs(None, DifferenceKind::Missing, what, None);
        }
        let mut extra = BTreeSet::new();
        for found in read_set(socket, table, set.name)? {
            match missing.get(&found) {
                Some(_) => drop(missing.remove(&found)),
                None => drop(extra.insert(found)),
            }
        }
        for (bytes, (element, owner)) in missing {
            // The same key with another value.
            let kind = match extra.iter().find(|found| found.key == bytes.key).cloned() {
                Some(same) => {
                    extra.remove(&same);
                    DifferenceKind::Different
                }
                None => DifferenceKind::Missing,
            };
            let what = format!("element of set {}: {element}", set.name);
            let owner = name(owner).or_else(|| at.0.get(&element::address(&element)?).copied());
            comparison.differs(owner, kind, what, None);
        }
        for bytes in extra {
            let addr = bytes.address(family);
            let owner = addr.and_then(|addr| at.0.get(&addr).copied());
            let what = format!("element of set {}: {}", set.name, bytes.text(family));
            comparison.differs(owner, DifferenceKind::Extra, what, None);
        }
    }
    Ok(())
}

fn read_set(
    socket: &mut netlink::Socket,
    table: nft_netlink::Table<'_>,
    set: &str,
) -> Result<Vec<Bytes>, netlink::Error> {
    let mut elements = Vec::new();
    for _ in 0..TRIES {
        elements.clear();
        let dump = list::elements(socket, table, set, |found| {
            let value = match found.data {
                FoundData::Value(value) => value,
                _ => Vec::new(),
            };
            elements.push(Bytes { key: found.key, end: found.key_end, value });
        });
        match dump {
            Ok(Dump::Complete) => break,
            Ok(Dump::Interrupted) => {}
            Err(error) if error.refused() == Some(nix::libc::ENOENT) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(elements)
}
