//! The end of an ipvs mode under another one. The new mode's translation keeps new connections away from the virtual
//! servers, so they can stand, at weight 0 and with their addresses local, for as long as somebody uses them.
//!
//! What a connection through a virtual server needs is that server with its destination, and its address local: packets
//! reach IPVS on the input hook. No rule is needed: masquerading was settled with its first packet (conntrack keeps it),
//! and marks only choose a server. So rules and ipsets may go at once, but for what accepts answers in FORWARD.

use std::{collections::HashSet, net::IpAddr, path::Path};

use ipnet::IpNet;
use ipvs_netlink::{Batch, Destination, DestinationEntry, Service, ServiceKey};
use netlink::{
    Pipeline, Socket,
    address::{self, InterfaceAddress},
    link,
    route::{self, AddressFamily, Filter, Route, scope, table},
};

use crate::{
    leaving::{ipset, usage::Usage},
    schema::{
        found::{NodePort, is_owned},
        ownership::{OURS, is_ours},
    },
    settings::{DEVICE, ROUTE_PROTOCOL},
};

/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;

/// What keeps it from going on.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// IPVS cannot be asked.
    #[error(transparent)]
    Ipvs(#[from] ipvs_netlink::Error),
    /// Addresses, routes or ipsets cannot be asked for.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// IPVS does not do what it is asked for.
    #[error("virtual server refused: {0}")]
    Refused(ipvs_netlink::Failure),
}

/// What is still there, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Virtual servers.
    pub servers: usize,
    /// Their destinations.
    pub destinations: usize,
    /// Connections through them that are in use.
    pub connections: u64,
}

impl Remaining {
    /// Whether nothing is left.
    pub fn is_nothing(&self) -> bool {
        self.servers == 0
    }
}

/// An ipvs mode that ends. It belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub struct Exit {
    route: Socket,
    excluded: Box<[IpNet]>,
    node_ports: HashSet<NodePort>,
}

impl Exit {
    /// Reads kube-proxy's notes, which may go afterwards: what needs them is marked by the first [`Exit::look`]. Virtual
    /// servers in `excluded` are never touched.
    pub fn open(excluded: &[IpNet]) -> Result<Self, ExitError> {
        Ok(Self {
            route: Socket::open(netlink::Protocol::Route)?,
            excluded: excluded.into(),
            node_ports: ipset::node_ports()?,
        })
    }

    /// Ends new connections through virtual servers of ours and kube-proxy's, and removes those that nobody uses, with
    /// their addresses; all of them by `force`. Everything is read anew each time, so that a new process goes on where the
    /// last one ended.
    pub fn look(&mut self, force: bool) -> Result<Remaining, ExitError> {
        let bound = Bound::read(&mut self.route)?;
        let (remaining, held) = self.servers(&bound, force)?;
        bound.let_go(&mut self.route, &held)?;
        Ok(remaining)
    }

    /// What remains, and the addresses that it needs.
    fn servers(&self, bound: &Bound, force: bool) -> Result<(Remaining, HashSet<IpAddr>), ExitError> {
        let mut remaining = Remaining::default();
        let mut held = HashSet::new();
        // There while IPVS is; asking by netlink would load it.
        if !Path::new("/proc/net/ip_vs").exists() {
            return Ok((remaining, held));
        }
        let mut ipvs = ipvs_netlink::Socket::open()?;
        let mut standing: Vec<(Service, Vec<DestinationEntry>)> = Vec::new();
        for service in ipvs.services()?.into_iter().map(|entry| entry.service) {
            if is_owned(&service, |addr| bound.has(addr), &self.node_ports, &self.excluded) {
                standing.push((service, ipvs.destinations(&service.key)?));
            }
        }
        let connected = |to: &DestinationEntry| to.active_connections + to.inactive_connections > 0;
        let usage = match !force && standing.iter().any(|(_, all)| all.iter().any(connected)) {
            // Where they cannot be listed, a connection is in use while it is known.
            true => Usage::read().ok(),
            false => None,
        };
        let mut batch = Batch::new();
        for (service, destinations) in &standing {
            let key = service.key;
            let mut left = 0;
            for to in destinations {
                let Destination { address, port, .. } = to.destination;
                let connections = in_use(&key, to, usage.as_ref());
                if force || connections == 0 {
                    batch.del_destination(&key, address, port);
                    continue;
                }
                if to.destination.weight != 0 {
                    batch.set_destination(&key, &Destination { weight: 0, ..to.destination });
                }
                left += 1;
                remaining.connections += u64::from(connections);
            }
            if left == 0 {
                batch.del_service(&key);
                continue;
            }
            remaining.servers += 1;
            remaining.destinations += left;
            if let ServiceKey::Address { address, .. } = key {
                held.insert(address);
            }
            if !service.flags.contains(OURS) {
                batch.set_service(&Service { flags: service.flags.union(OURS), ..*service });
            }
        }
        if remaining.servers > 0 {
            // Those of marks have no address of their own.
            held.extend(usage.map(|usage| usage.addresses).unwrap_or_default());
        }
        let gone = |failure: &ipvs_netlink::Failure| matches!(failure.errno, ENOENT | ESRCH);
        match ipvs.send(&mut batch)?.into_iter().find(|failure| !gone(failure)) {
            Some(failure) => Err(ExitError::Refused(failure)),
            None => Ok((remaining, held)),
        }
    }
}

/// Removes what a kube-proxy in ipvs mode that took over from ours does not know: local routes and virtual servers of marks.
/// It has bound the addresses of all Services itself by then, and no packet carries our marks without our rules.
///
/// # Errors
/// Where the kernel cannot be asked, or refuses.
pub fn remove_unknown() -> Result<(), ExitError> {
    let mut socket = Socket::open(netlink::Protocol::Route)?;
    let mut requests = Pipeline::new();
    for route in Bound::read(&mut socket)?.routes {
        route.push_delete(&mut requests);
    }
    requests.run(&mut socket)?;
    if !Path::new("/proc/net/ip_vs").exists() {
        return Ok(());
    }
    let mut ipvs = ipvs_netlink::Socket::open()?;
    let mut batch = Batch::new();
    for entry in ipvs.services()? {
        if matches!(entry.service.key, ServiceKey::Mark { .. }) && is_ours(&entry.service) {
            batch.del_service(&entry.service.key);
        }
    }
    let gone = |failure: &ipvs_netlink::Failure| matches!(failure.errno, ENOENT | ESRCH);
    match ipvs.send(&mut batch)?.into_iter().find(|failure| !gone(failure)) {
        Some(failure) => Err(ExitError::Refused(failure)),
        None => Ok(()),
    }
}

/// Connections to a destination that are in use.
fn in_use(key: &ServiceKey, to: &DestinationEntry, usage: Option<&Usage>) -> u32 {
    let Destination { address, port, .. } = to.destination;
    let server = match *key {
        ServiceKey::Address { address, port, protocol } => Some((protocol, (address, port))),
        ServiceKey::Mark { .. } => None,
    };
    match usage {
        _ if to.active_connections + to.inactive_connections == 0 => 0,
        Some(usage) => usage.of_destination(server, (address, port)).max(to.active_connections),
        None => to.active_connections + to.inactive_connections,
    }
}

/// What makes virtual IPs local: addresses of the device, as kube-proxy has it, and local routes of ours.
struct Bound {
    device: Option<u32>,
    addresses: Vec<IpAddr>,
    routes: Vec<Route>,
    /// All of these.
    local: HashSet<IpAddr>,
    /// An IPv4 address of the node: what its own packets to a held address have as their source.
    source: Option<IpAddr>,
}

impl Bound {
    fn read(socket: &mut Socket) -> Result<Self, ExitError> {
        let device = link::find(socket, DEVICE)?.map(|device| device.index);
        let all = address::list(socket)?;
        let on_device = all.iter().filter(|found| Some(found.interface) == device);
        let is_link_local = |addr: &IpAddr| matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
        let addresses: Vec<IpAddr> =
            on_device.map(|found| found.address).filter(|addr| !is_link_local(addr)).collect();
        let usable = |found: &&InterfaceAddress| {
            found.address.is_ipv4()
                && Some(found.interface) != device
                && found.interface != LOOPBACK
                && found.scope == scope::UNIVERSE
        };
        let source = all.iter().find(usable).map(|found| found.address);
        let mut routes = Vec::new();
        for family in [AddressFamily::V4, AddressFamily::V6] {
            let filter = Filter { family, table: Some(table::LOCAL), protocol: Some(ROUTE_PROTOCOL) };
            // What a route that comes or goes meanwhile hides is seen at the next look, or goes with the device.
            let _ = route::list(socket, filter, |route| {
                if [device, Some(LOOPBACK)].contains(&route.output) {
                    routes.push(route);
                }
            })?;
        }
        let mut local: HashSet<IpAddr> = routes.iter().map(|route| route.destination).collect();
        local.extend(&addresses);
        Ok(Self { device, addresses, routes, local, source })
    }

    fn has(&self, addr: &IpAddr) -> bool {
        self.local.contains(addr)
    }

    /// A held address is local by a route to loopback: the device can go, and the node's own packets to it have one of the
    /// node's addresses as their source. The address itself, which they would have otherwise, is one that no answer finds.
    fn holding(&self, addr: IpAddr) -> Route {
        // IPv6 takes one of the node's by itself.
        let source = self.source.filter(|_| addr.is_ipv4());
        Route::local(addr, LOOPBACK, ROUTE_PROTOCOL).with_source(source)
    }

    /// Makes everything but `held` not local any more, and removes the device.
    fn let_go(&self, socket: &mut Socket, held: &HashSet<IpAddr>) -> Result<(), ExitError> {
        let mut requests = Pipeline::new();
        for addr in held.iter().filter(|addr| self.has(addr)) {
            self.holding(*addr).push_append(&mut requests);
        }
        // What is there already need not be made.
        requests.run(socket)?;
        // With the device everything bound to it would go at once, in one request that keeps the kernel busy for long.
        let mut requests = Pipeline::new();
        for route in &self.routes {
            if !held.contains(&route.destination) || *route != self.holding(route.destination) {
                route.push_delete(&mut requests);
            }
        }
        if let Some(device) = self.device {
            for addr in &self.addresses {
                address::push_delete(&mut requests, *addr, device);
            }
        }
        // What could not be deleted goes with the device.
        requests.run(socket)?;
        if let Some(device) = self.device {
            link::delete(socket, device)?;
        }
        Ok(())
    }
}
