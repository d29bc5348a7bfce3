//! Reading from the kernel what a full plan must know.

use std::{collections::HashSet, net::IpAddr};

use ipvs_netlink::{ServiceEntry, ServiceKey};
use netlink::{
    Dump, address, link,
    route::{self, AddressFamily, Filter},
};
use proxy_core::{backend::ApplyError, model::Family};

use crate::{
    found::{Found, FoundServer, is_excluded, is_ours},
    kernel::{IpvsExecutor, ipvs_family, lost},
    nftables,
    scaffold::VIPS,
    settings::{DEVICE, ROUTE_PROTOCOL},
};

/// Times that a dump is repeated because something changed meanwhile.
const TRIES: usize = 5;

pub(crate) fn survey(executor: &mut IpvsExecutor) -> Result<Found, ApplyError> {
    let device = link::find(&mut executor.route, DEVICE).map_err(lost)?.map(|device| device.index);
    let routes = routes(executor)?;
    let addresses = match device {
        Some(device) => addresses(executor, device)?,
        None => HashSet::new(),
    };
    let family = ipvs_family(executor.family);
    let excluded = executor.settings.exclude_cidrs.clone();
    let foreign = |entry: &ServiceEntry| match entry.service.key {
        ServiceKey::Address { address, .. } => is_excluded(address, &excluded) && !is_ours(&entry.service),
        ServiceKey::Mark { .. } => false,
    };
    let mut servers = Vec::new();
    for entry in executor.ipvs.services().map_err(lost)? {
        if entry.service.key.family() != family {
            continue;
        }
        // What is never touched need not be known in detail.
        let destinations = if foreign(&entry) {
            Vec::new()
        } else {
            let all = executor.ipvs.destinations(&entry.service.key).map_err(lost)?;
            all.into_iter().map(|entry| entry.destination).collect()
        };
        servers.push(FoundServer { service: entry.service, destinations });
    }
    let translated = is_translated(executor).map_err(lost)?;
    Ok(Found { servers, routes, addresses, translated })
}

/// Whether the table holds rules that translate, and not ours.
fn is_translated(executor: &mut IpvsExecutor) -> Result<bool, netlink::Error> {
    let chain = nftables::chain(&mut executor.nft, executor.family, "nat-prerouting")?;
    if chain.is_none_or(|chain| chain.uses == 0) {
        return Ok(false);
    }
    let sets = nftables::sets(&mut executor.nft, executor.family)?;
    Ok(!sets.iter().any(|name| name == VIPS))
}

/// The addresses that local routes of ours bind.
pub(crate) fn routes(executor: &mut IpvsExecutor) -> Result<HashSet<IpAddr>, ApplyError> {
    let family = match executor.family {
        Family::V4 => AddressFamily::V4,
        Family::V6 => AddressFamily::V6,
    };
    let filter = Filter { family, table: Some(route::table::LOCAL), protocol: Some(ROUTE_PROTOCOL) };
    let mut found = HashSet::new();
    for _ in 0..TRIES {
        found.clear();
        let dump = route::list(&mut executor.route, filter, |route| {
            found.insert(route.destination);
        });
        if dump.map_err(lost)? == Dump::Complete {
            break;
        }
    }
    Ok(found)
}

fn addresses(executor: &mut IpvsExecutor, device: u32) -> Result<HashSet<IpAddr>, ApplyError> {
    let all = address::list(&mut executor.route).map_err(lost)?;
    let ours = |addr: &IpAddr| {
        Family::of(*addr) == executor.family
            // The kernel's own link-local address is no virtual IP.
            && !matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
    };
    let on_device = all.into_iter().filter(|found| found.interface == device);
    Ok(on_device.map(|found| found.address).filter(ours).collect())
}
