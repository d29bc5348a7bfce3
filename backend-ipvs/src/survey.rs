//! Reading from the kernel what a full plan must know.

use std::{collections::HashSet, net::IpAddr};

use ipvs_netlink::{ServiceEntry, ServiceKey};
use netlink::{
    Dump, Socket, address, link,
    route::{self, AddressFamily, Filter},
};
use proxy_core::{backend::ApplyError, model::Family};

use crate::{
    found::{Found, FoundServer, is_excluded, is_ours},
    kernel::{IpvsExecutor, ipvs_family, lost},
    settings::{DEVICE, ROUTE_PROTOCOL},
};

/// Times that a dump is repeated because something changed meanwhile.
const TRIES: usize = 5;

pub(crate) fn survey(executor: &mut IpvsExecutor) -> Result<Found, ApplyError> {
    let socket = &mut executor.bindings.socket;
    let device = link::find(socket, DEVICE).map_err(lost)?.map(|device| device.index);
    let routes = routes(socket, executor.family)?;
    let addresses = match device {
        Some(device) => addresses(socket, executor.family, device)?,
        None => HashSet::new(),
    };
    let family = ipvs_family(executor.family);
    let excluded = executor.settings.exclude_cidrs.clone();
    let foreign = |entry: &ServiceEntry| match entry.service.key {
        ServiceKey::Address { address, .. } => is_excluded(address, &excluded) && !is_ours(&entry.service),
        ServiceKey::Mark { .. } => false,
    };
    let mut servers = Vec::new();
    for entry in executor.servers.socket.services().map_err(lost)? {
        if entry.service.key.family() != family {
            continue;
        }
        // What is never touched need not be known in detail.
        let destinations = if foreign(&entry) {
            Vec::new()
        } else {
            let all = executor.servers.socket.destinations(&entry.service.key).map_err(lost)?;
            all.into_iter().map(|entry| entry.destination).collect()
        };
        servers.push(FoundServer { service: entry.service, destinations });
    }
    let translated = executor.tables.is_translated().map_err(lost)?;
    Ok(Found { servers, routes, addresses, translated })
}

/// The addresses that local routes of ours bind.
pub(crate) fn routes(socket: &mut Socket, family: Family) -> Result<HashSet<IpAddr>, ApplyError> {
    let family = match family {
        Family::V4 => AddressFamily::V4,
        Family::V6 => AddressFamily::V6,
    };
    let filter = Filter { family, table: Some(route::table::LOCAL), protocol: Some(ROUTE_PROTOCOL) };
    let mut found = HashSet::new();
    for _ in 0..TRIES {
        found.clear();
        let dump = route::list(socket, filter, |route| {
            found.insert(route.destination);
        });
        if dump.map_err(lost)? == Dump::Complete {
            break;
        }
    }
    Ok(found)
}

fn addresses(socket: &mut Socket, family: Family, device: u32) -> Result<HashSet<IpAddr>, ApplyError> {
    let all = address::list(socket).map_err(lost)?;
    let ours = |addr: &IpAddr| {
        Family::of(*addr) == family
            // The kernel's own link-local address is no virtual IP.
            && !matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
    };
    let on_device = all.into_iter().filter(|found| found.interface == device);
    Ok(on_device.map(|found| found.address).filter(ours).collect())
}
