//! Reading from the kernel what a full plan must know.

use proxy_core::{backend::ApplyError, model::Family};

use crate::{
    kernel::{bindings::Bindings, refusal::lost, servers::Servers, tables::Tables},
    leaving::ipset,
    schema::{
        found::{Found, FoundServer},
        ownership::ipvs_family,
    },
};

pub(crate) fn survey(
    family: Family,
    servers: &mut Servers,
    bindings: &mut Bindings,
    tables: &mut Tables,
) -> Result<Found, ApplyError> {
    let (routes, addresses) = bindings.standing()?;
    let mut found = Vec::new();
    for entry in servers.socket.services().map_err(lost)? {
        if entry.service.key.family() == ipvs_family(family) {
            // Also of those in excluded networks: a Service may want one.
            let all = servers.socket.destinations(&entry.service.key).map_err(lost)?;
            let destinations = all.into_iter().map(|entry| entry.destination).collect();
            found.push(FoundServer { service: entry.service, destinations });
        }
    }
    let (other_table, translated) = tables.other().map_err(lost)?;
    // Without them the NodePorts of Services that went away between kube-proxy's end and our start are not known.
    let node_ports = ipset::node_ports().unwrap_or_else(|error| {
        tracing::warn!(%error, "kube-proxy's ipsets cannot be read");
        Default::default()
    });
    Ok(Found { servers: found, routes, addresses, node_ports, other_table, translated })
}
