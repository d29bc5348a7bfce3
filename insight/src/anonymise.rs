//! The same state under other names and addresses, so that it answers every question as before.
//!
//! Names are numbered in their order, since that order decides between twins. Addresses keep their family and all that they
//! share: two that are in one network of any size are in one of that size afterwards, in no other, and equal ones stay equal
//! (the idea is that of Crypto-PAn: each bit is turned, or not, by what is before it). The first 8 bits of IPv4 and the first
//! 16 of IPv6 stay, so that private addresses look like such; loopback addresses stay altogether. The texts of errors and the
//! configuration are left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::BuildHasher,
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;
use proxy_core::model::{ObjectName, Service, Slice};
use serde_json::Value;

use crate::{
    digest,
    engine::{Engine, engine},
    state::{Filter, Installed, LocalPods, NodePorts, State},
};

/// What was said in words that may hold names.
const REMOVED: &str = "(removed)";

/// The state under other names and addresses. `key` is what they depend on: whoever has it can tell what an address was.
/// `now`: any time.
pub fn anonymise(state: &State, key: &impl BuildHasher, now: Instant) -> State {
    let names = Names::of(state);
    let mut new = state.clone();
    let turn = |address: &IpAddr| turned(*address, key);
    let net = |net: &IpNet| {
        let address = turned(net.network(), key);
        IpNet::new(address, net.prefix_len()).map_or(*net, |net| net.trunc())
    };
    for service in &mut new.services {
        *service = Arc::new(of_service(service, &names, &turn, &net));
    }
    for slice in &mut new.slices {
        *slice = Arc::new(of_slice(slice, &names, &turn));
    }
    let header = &mut new.header;
    header.anonymised = true;
    header.node = "node".to_owned();
    header.configuration = Value::Null;
    header.filter = Filter::default();
    let facts = &mut header.facts;
    facts.zone = facts.zone.as_deref().map(|zone| names.zone(zone));
    facts.service_cidrs.iter_mut().for_each(|cidr| *cidr = net(cidr));
    for address in facts.node_ips.iter_mut().chain(&mut facts.interface_addresses) {
        *address = turn(address);
    }
    if let LocalPods::Cidrs(cidrs) = &mut header.environment.local_pods {
        cidrs.iter_mut().for_each(|cidr| *cidr = net(cidr));
    }
    if let NodePorts::Within(given) | NodePorts::PrimaryAndWithin(given) = &mut header.environment.node_ports
    {
        given.iter_mut().for_each(|given| *given = net(given));
    }
    for cidr in header.ipvs.iter_mut().flat_map(|ipvs| &mut ipvs.exclude_cidrs) {
        *cidr = net(cidr);
    }
    new.asides.iter_mut().for_each(|aside| {
        aside.service = names.full(&aside.service);
        aside.reason = REMOVED.to_owned();
    });
    for conflict in &mut new.conflicts {
        conflict.service = names.full(&conflict.service);
        conflict.winner = names.full(&conflict.winner);
        conflict.address = conflict.address.as_ref().map(turn);
    }
    for sync in &mut new.syncs {
        for name in sync.changed.iter_mut().chain(&mut sync.set_aside) {
            *name = names.full(name);
        }
        sync.error = sync.error.as_ref().map(|_| REMOVED.to_owned());
    }
    for installed in &mut new.installed {
        installed.ports.iter_mut().for_each(|port| port.port = names.port(&port.port));
        installed.service = names.full(&installed.service);
    }
    // What was in force is in force.
    let (before, after) = (engine(state, now), engine(&new, now));
    for (old, new) in state.installed.iter().zip(&mut new.installed) {
        redigest(old, new, &before, &after);
    }
    new.sort();
    new
}

/// A digest is of the route as it is called now, where it was that of what is intended.
fn redigest(old: &Installed, new: &mut Installed, before: &Engine, after: &Engine) {
    let intended = |engine: &Engine, installed: &Installed, at: usize| {
        let port = &installed.ports[at];
        let (namespace, name) = installed.service.split_once('/')?;
        let routes = engine.instance(installed.family)?.installed(&ObjectName::new(namespace, name));
        let (_, route) =
            routes.iter().find(|(name, _)| *name.port == *port.port && name.protocol == port.protocol)?;
        Some(digest::of_route(route))
    };
    for at in 0..new.ports.len() {
        let was_intended = intended(before, old, at).is_some_and(|digest| digest == old.ports[at].digest);
        if let Some(digest) = intended(after, new, at).filter(|_| was_intended) {
            new.ports[at].digest = digest;
        }
    }
    new.ports.sort_by(|a, b| (&a.port, a.protocol).cmp(&(&b.port, b.protocol)));
}

fn of_service(
    service: &Service,
    names: &Names,
    turn: &dyn Fn(&IpAddr) -> IpAddr,
    net: &dyn Fn(&IpNet) -> IpNet,
) -> Service {
    let turned = |all: &[IpAddr]| all.iter().map(turn).collect();
    let mut new = service.clone();
    new.name = names.object(&service.name, &names.services);
    new.cluster_ips = turned(&service.cluster_ips);
    new.external_ips = turned(&service.external_ips);
    new.ignored_external_ips = turned(&service.ignored_external_ips);
    new.load_balancer_ips = turned(&service.load_balancer_ips);
    new.source_ranges = service.source_ranges.as_deref().map(|ranges| ranges.iter().map(net).collect());
    new.ports.iter_mut().for_each(|port| port.name = names.port(&port.name).into());
    new
}

fn of_slice(slice: &Slice, names: &Names, turn: &dyn Fn(&IpAddr) -> IpAddr) -> Slice {
    let mut new = slice.clone();
    new.name = names.object(&slice.name, &names.slices);
    new.service = names.object(&slice.service, &names.services);
    new.ports.iter_mut().for_each(|port| port.name = names.port(&port.name).into());
    for endpoint in &mut new.endpoints {
        endpoint.addr = turn(&endpoint.addr);
        if let Some(zones) = &mut endpoint.for_zones {
            *zones = zones.iter().map(|zone| names.zone(zone).into()).collect();
        }
    }
    new
}

/// The new names of everything, in the order of the old ones.
struct Names {
    namespaces: BTreeMap<String, String>,
    services: BTreeMap<String, String>,
    slices: BTreeMap<String, String>,
    ports: BTreeMap<String, String>,
    zones: BTreeMap<String, String>,
}

impl Names {
    fn of(state: &State) -> Self {
        let [mut namespaces, mut services, mut slices, mut ports, mut zones]: [BTreeSet<&str>; 5] =
            Default::default();
        for service in &state.services {
            namespaces.insert(service.name.namespace());
            services.insert(service.name.name());
            ports.extend(service.ports.iter().map(|port| &*port.name));
        }
        for slice in &state.slices {
            namespaces.extend([slice.name.namespace(), slice.service.namespace()]);
            services.insert(slice.service.name());
            slices.insert(slice.name.name());
            ports.extend(slice.ports.iter().map(|port| &*port.name));
            let of_endpoints = slice.endpoints.iter().filter_map(|endpoint| endpoint.for_zones.as_deref());
            zones.extend(of_endpoints.flatten().map(|zone| &**zone));
        }
        zones.extend(state.header.facts.zone.as_deref());
        let others = state.installed.iter().map(|installed| &installed.service);
        let conflicts = state.conflicts.iter().flat_map(|conflict| [&conflict.service, &conflict.winner]);
        let asides = state.asides.iter().map(|aside| &aside.service);
        let syncs = state.syncs.iter().flat_map(|sync| sync.changed.iter().chain(&sync.set_aside));
        for name in others.chain(conflicts).chain(asides).chain(syncs) {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            namespaces.insert(namespace);
            services.insert(name);
        }
        ports.extend(state.installed.iter().flat_map(|installed| &installed.ports).map(|port| &*port.port));
        Self {
            // As whole names are compared, with the slash.
            namespaces: numbered("namespace", namespaces, |name| format!("{name}/")),
            services: numbered("service", services, str::to_owned),
            slices: numbered("slice", slices, str::to_owned),
            ports: numbered("port", ports, str::to_owned),
            zones: numbered("zone", zones, str::to_owned),
        }
    }

    fn object(&self, name: &ObjectName, of: &BTreeMap<String, String>) -> ObjectName {
        ObjectName::new(&look_up(&self.namespaces, name.namespace()), &look_up(of, name.name()))
    }

    fn full(&self, name: &str) -> String {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        format!("{}/{}", look_up(&self.namespaces, namespace), look_up(&self.services, name))
    }

    fn port(&self, name: &str) -> String {
        look_up(&self.ports, name)
    }

    fn zone(&self, name: &str) -> String {
        look_up(&self.zones, name)
    }
}

/// Everything that is asked for was collected before.
fn look_up(names: &BTreeMap<String, String>, name: &str) -> String {
    names.get(name).cloned().unwrap_or_else(|| REMOVED.to_owned())
}

fn numbered(kind: &str, names: BTreeSet<&str>, order: impl Fn(&str) -> String) -> BTreeMap<String, String> {
    let mut sorted: Vec<&str> = names.into_iter().collect();
    sorted.sort_by_key(|name| order(name));
    let digits = sorted.len().to_string().len();
    let new = |(number, name): (usize, &&str)| {
        // A port without a name stays one.
        let new = if name.is_empty() { String::new() } else { format!("{kind}-{number:0digits$}") };
        ((*name).to_owned(), new)
    };
    sorted.iter().enumerate().map(new).collect()
}

/// Each bit is turned by a hash of the bits before it.
fn turned(address: IpAddr, key: &impl BuildHasher) -> IpAddr {
    if address.is_loopback() || address.is_unspecified() {
        return address;
    }
    let turn = |bits: u128, length: u32, kept: u32| {
        (kept..length).fold(bits, |new, at| {
            let before = bits >> (length - at);
            let turns = key.hash_one((length, at, before)) & 1 == 1;
            if turns { new ^ (1 << (length - 1 - at)) } else { new }
        })
    };
    match address {
        IpAddr::V4(v4) => {
            let bits = turn(u32::from(v4).into(), 32, 8);
            IpAddr::V4(u32::try_from(bits).unwrap_or_default().into())
        }
        IpAddr::V6(v6) => IpAddr::V6(turn(v6.into(), 128, 16).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasherDefault, DefaultHasher};

    use super::*;

    #[test]
    fn networks_hold_the_same_addresses_afterwards() {
        let key = BuildHasherDefault::<DefaultHasher>::default();
        let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
        let all = [
            "10.0.1.11",
            "10.0.1.12",
            "10.0.2.11",
            "10.1.0.1",
            "172.30.0.1",
            "fd00:10:1::11",
            "fd00:10:1::12",
            "fd00:30::1",
        ];
        for a in all.map(parse) {
            for b in all.map(parse) {
                for length in 0..=32 {
                    let Ok(net) = IpNet::new(a, length) else { continue };
                    let new =
                        IpNet::new(turned(net.trunc().network(), &key), length).expect("a network").trunc();
                    assert_eq!(net.contains(&b), new.contains(&turned(b, &key)), "{net} and {b}");
                }
                assert_eq!(a == b, turned(a, &key) == turned(b, &key));
            }
            assert_ne!(turned(a, &key), a, "one in millions is, and these are not");
        }
        assert_eq!(turned(parse("127.0.0.1"), &key), parse("127.0.0.1"));
    }
}
