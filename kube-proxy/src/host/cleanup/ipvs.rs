//! The virtual servers of the ipvs modes, and the device that holds their addresses.

use std::{
    collections::HashSet,
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use backend_ipvs::{
    OURS,
    marks::{TAG, TAG_MASK},
    settings::{DEVICE, ROUTE_PROTOCOL},
};
use ipnet::IpNet;
use ipvs_netlink::{Batch, Service, ServiceKey};
use netlink::{
    Pipeline, Socket, address, link,
    route::{self, AddressFamily, Filter, Route, table},
};

/// How often connections are counted while they drain.
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Ipvs(#[from] ipvs_netlink::Error),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error("virtual server refused: {0}")]
    Refused(ipvs_netlink::Failure),
}

/// Removes our virtual servers and kube-proxy's, then the device. Connections have until `drain` to end: those through
/// a virtual server end with it.
pub(super) fn remove(node_ports: &HashSet<u16>, excluded: &[IpNet], drain: Duration) -> Result<(), Error> {
    let mut socket = Socket::open(netlink::Protocol::Route)?;
    let device = link::find(&mut socket, DEVICE)?;
    let (mut bound, routes) = match &device {
        Some(device) => bound(&mut socket, device.index)?,
        None => (HashSet::new(), Vec::new()),
    };
    bound.extend(routes.iter().map(|route| route.destination));
    remove_servers(&bound, node_ports, excluded, drain)?;
    // With the device everything bound to it would go at once, in one request that keeps the kernel busy for long.
    let mut requests = Pipeline::new();
    for route in &routes {
        route.push_delete(&mut requests);
    }
    // What could not be deleted goes with the device.
    requests.run(&mut socket)?;
    if let Some(device) = device {
        link::delete(&mut socket, device.index)?;
    }
    Ok(())
}

/// What is bound to the device: addresses, as kube-proxy does it, and local routes.
fn bound(socket: &mut Socket, device: u32) -> Result<(HashSet<IpAddr>, Vec<Route>), netlink::Error> {
    let addresses = address::list(socket)?;
    let addresses = addresses.iter().filter(|found| found.interface == device).map(|found| found.address);
    let mut routes = Vec::new();
    for family in [AddressFamily::V4, AddressFamily::V6] {
        let filter = Filter { family, table: Some(table::LOCAL), protocol: Some(ROUTE_PROTOCOL) };
        // What a route that comes or goes meanwhile hides goes with the device.
        let _ = route::list(socket, filter, |route| {
            if route.output == Some(device) {
                routes.push(route);
            }
        })?;
    }
    Ok((addresses.collect(), routes))
}

#[expect(clippy::disallowed_methods, reason = "waits for connections to end")]
fn remove_servers(
    bound: &HashSet<IpAddr>,
    node_ports: &HashSet<u16>,
    excluded: &[IpNet],
    drain: Duration,
) -> Result<(), Error> {
    // There while IPVS is; asking by netlink would load it.
    if !Path::new("/proc/net/ip_vs").exists() {
        return Ok(());
    }
    let mut ipvs = ipvs_netlink::Socket::open()?;
    let services = ipvs.services()?;
    let owned: Vec<Service> = services
        .into_iter()
        .map(|entry| entry.service)
        .filter(|service| is_owned(service, bound, node_ports, excluded))
        .collect();
    let started = Instant::now();
    while started.elapsed() < drain && has_connections(&mut ipvs, &owned)? {
        thread::sleep(POLL);
    }
    let mut batch = Batch::new();
    owned.iter().for_each(|service| batch.del_service(&service.key));
    const ESRCH: i32 = 3;
    let gone = |error: &ipvs_netlink::Failure| error.errno == ESRCH;
    match ipvs.send(&mut batch)?.into_iter().find(|failure| !gone(failure)) {
        Some(failure) => Err(Error::Refused(failure)),
        None => Ok(()),
    }
}

/// Whether we or a kube-proxy made it: it has our flag or mark; its address is bound to the device; or its port is one
/// that kube-proxy noted as a NodePort.
fn is_owned(
    service: &Service,
    bound: &HashSet<IpAddr>,
    node_ports: &HashSet<u16>,
    excluded: &[IpNet],
) -> bool {
    match service.key {
        ServiceKey::Mark { mark, .. } => mark & TAG_MASK == TAG,
        ServiceKey::Address { address, port, .. } => {
            !excluded.iter().any(|net| net.contains(&address))
                && (service.flags.contains(OURS) || bound.contains(&address) || node_ports.contains(&port))
        }
    }
}

fn has_connections(ipvs: &mut ipvs_netlink::Socket, services: &[Service]) -> Result<bool, Error> {
    for service in services {
        if ipvs.destinations(&service.key)?.iter().any(|entry| entry.active_connections > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use ipvs_netlink::{Protocol, Scheduler};

    use super::*;

    fn server(addr: &str, port: u16) -> Service {
        let key = ServiceKey::new(addr.parse().expect("an address"), port, Protocol::Tcp);
        Service::new(key, Scheduler::RR)
    }

    #[test]
    fn only_what_a_proxy_made_is_owned() {
        let bound = HashSet::from(["172.30.0.1".parse().expect("an address")]);
        let node_ports = HashSet::from([30080]);
        let excluded = ["172.31.0.0/16".parse().expect("a network")];
        let owned = |service: &Service| is_owned(service, &bound, &node_ports, &excluded);
        assert!(owned(&server("172.30.0.1", 80)));
        assert!(owned(&server("192.168.0.10", 30080)));
        assert!(!owned(&server("192.168.0.10", 80)), "somebody else's");
        let ours = Service { flags: OURS, ..server("192.168.0.10", 80) };
        assert!(owned(&ours));
        let excluded = Service { flags: OURS, ..server("172.31.0.1", 80) };
        assert!(!owned(&excluded));
        let by_mark =
            |mark| Service::new(ServiceKey::Mark { family: ipvs_netlink::Family::V4, mark }, Scheduler::RR);
        assert!(owned(&by_mark(TAG | 7)));
        assert!(!owned(&by_mark(7)));
    }
}
