//! How much one Service may ask for. Ports times addresses, times endpoints or source ranges: a small object can ask for
//! more than a node can hold, on every node at once. Beyond these limits a Service is set aside, and named.
//!
//! Everything here is counted before anything is expanded, in time that is linear in the objects.

use std::{collections::HashMap, fmt};

use crate::{
    model::{Family, Protocol, Service},
    store::Entry,
};

/// Ports times addresses of one Service, in one family.
pub const MOST_FRONTENDS: usize = 10_000;
/// Load balancer addresses with their ports, times `loadBalancerSourceRanges`.
pub const MOST_SOURCES: usize = 100_000;
/// Addresses with their ports, times endpoints: as many destinations as an IPVS table would have.
pub const MOST_DESTINATIONS: usize = 500_000;

/// What there is too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// See [`MOST_FRONTENDS`].
    Frontends,
    /// See [`MOST_SOURCES`].
    Sources,
    /// See [`MOST_DESTINATIONS`].
    Destinations,
}

/// More than a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// What there is too much of.
    pub measure: Measure,
    /// How much it asks for.
    pub number: usize,
    /// How much it may.
    pub limit: usize,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { measure, number, limit } = self;
        let what = match measure {
            Measure::Frontends => "addresses, each with each of its ports",
            Measure::Sources => "source ranges, each for each address and port of its load balancer",
            Measure::Destinations => "endpoints, each for each address and port of the Service",
        };
        write!(f, "it asks for {number} {what}; the limit for one Service is {limit}")
    }
}

/// What a Service and its slices ask for beyond the limits, in one family.
pub fn excess(entry: &Entry, service: &Service, family: Family) -> Option<Excess> {
    let of_family =
        |addrs: &[std::net::IpAddr]| addrs.iter().filter(|addr| Family::of(**addr) == family).count();
    if of_family(&service.cluster_ips) == 0 {
        return None;
    }
    let ports = service.ports.len();
    let vips = of_family(&service.load_balancer_ips);
    let addresses = 1 + of_family(&service.external_ips) + of_family(&service.ignored_external_ips) + vips;
    let node_ports = service.ports.iter().filter(|port| port.node_port.is_some()).count();
    let over = |measure, number, limit| (number > limit).then_some(Excess { measure, number, limit });
    if let excess @ Some(_) = over(Measure::Frontends, ports * addresses + node_ports, MOST_FRONTENDS) {
        return excess;
    }
    let ranges = service.source_ranges.iter().flatten().filter(|range| Family::of_net(range) == family);
    if let excess @ Some(_) = over(Measure::Sources, ports * vips * ranges.count(), MOST_SOURCES) {
        return excess;
    }
    // The number of endpoints of each port takes longer to find; mostly it cannot matter.
    let slices = || entry.slices.iter().filter(move |slice| slice.family == family);
    let most = |slice: &crate::model::Slice| slice.endpoints.len() * slice.ports.len().min(1);
    let endpoints: usize = slices().map(most).sum();
    if (ports * addresses + node_ports).saturating_mul(endpoints) <= MOST_DESTINATIONS {
        return None;
    }
    let mut of_port: HashMap<(&str, Protocol), usize> = HashMap::new();
    for slice in slices() {
        for port in &slice.ports {
            *of_port.entry((&port.name, port.protocol)).or_default() += slice.endpoints.len();
        }
    }
    let destinations = service.ports.iter().map(|port| {
        let endpoints = of_port.get(&(&*port.name, port.protocol)).copied().unwrap_or_default();
        (addresses + usize::from(port.node_port.is_some())) * endpoints
    });
    over(Measure::Destinations, destinations.sum(), MOST_DESTINATIONS)
}
