//! Reading from the kernel what a full plan must know.

use ipnet::IpNet;
use ipvs_netlink::{ServiceEntry, ServiceKey};
use proxy_core::{backend::ApplyError, model::Family};

use crate::{
    bindings::Bindings,
    found::{Found, FoundServer, ipvs_family, is_excluded, is_ours},
    refusal::lost,
    servers::Servers,
    tables::Tables,
};

pub(crate) fn survey(
    family: Family,
    excluded: &[IpNet],
    servers: &mut Servers,
    bindings: &mut Bindings,
    tables: &mut Tables,
) -> Result<Found, ApplyError> {
    let (routes, addresses) = bindings.standing()?;
    let foreign = |entry: &ServiceEntry| match entry.service.key {
        ServiceKey::Address { address, .. } => is_excluded(address, excluded) && !is_ours(&entry.service),
        ServiceKey::Mark { .. } => false,
    };
    let mut found = Vec::new();
    for entry in servers.socket.services().map_err(lost)? {
        if entry.service.key.family() != ipvs_family(family) {
            continue;
        }
        // What is never touched need not be known in detail.
        let destinations = if foreign(&entry) {
            Vec::new()
        } else {
            let all = servers.socket.destinations(&entry.service.key).map_err(lost)?;
            all.into_iter().map(|entry| entry.destination).collect()
        };
        found.push(FoundServer { service: entry.service, destinations });
    }
    let translated = tables.is_translated().map_err(lost)?;
    Ok(Found { servers: found, routes, addresses, translated })
}
