//! Every endpoint that slices name for a Service, and why it gets new connections or none.

use std::net::IpAddr;

use proxy_core::{
    look::Look,
    model::{Endpoint, Family, ServiceName, ServicePortName, SliceName, SlicePort},
    route::{ClusterChoice, Hints, LocalChoice, Use},
};

/// The endpoints of one Service port in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Which port.
    pub port: ServicePortName,
    /// Of the addresses.
    pub family: Family,
    /// Which topology hints traffic under policy Cluster follows; `None`: there is no such traffic.
    pub hints: Option<Hints>,
    /// All that any slice of the Service names.
    pub endpoints: Vec<Listed>,
}

/// One endpoint as one slice names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its address.
    pub address: IpAddr,
    /// Where it listens; `None`: the slice has no port of that name and protocol.
    pub port: Option<u16>,
    /// Who names it.
    pub slice: SliceName,
    /// What the slice says of it.
    pub endpoint: Endpoint,
    /// For traffic under policy Cluster; `None`: there is none.
    pub cluster: Option<Why>,
    /// For traffic under policy Local; `None`: there is none.
    pub local: Option<Why>,
}

/// Why an endpoint gets new connections, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The policy decides.
    Policy(Use),
    /// The Service has no cluster IP of this family.
    Family,
    /// The slice has no port of this name and protocol.
    NoPort,
    /// Another slice names the same address and port, and is believed.
    Superseded,
    /// The Service is set aside, or has no port at all in this family.
    NoRoute,
}

impl Why {
    /// It gets new connections.
    pub const fn is_used(self) -> bool {
        matches!(self, Self::Policy(used) if used.is_used())
    }

    /// In a few words, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Policy(Use::Ready) => "used",
            Self::Policy(Use::LastResort) => "used: terminating, but none is ready",
            Self::Policy(Use::NotReady) => "not ready",
            Self::Policy(Use::Terminating) => "terminating, others are ready",
            Self::Policy(Use::NotServing) => "terminating, does not serve",
            Self::Policy(Use::ForOtherNodes) => "hinted for other nodes",
            Self::Policy(Use::ForOtherZones) => "hinted for other zones",
            Self::Policy(Use::Elsewhere) => "on another node",
            Self::Family => "the Service has no address of this family",
            Self::NoPort => "its slice has no port of that name and protocol",
            Self::Superseded => "another slice names the same address",
            Self::NoRoute => "the Service is set aside",
        }
    }
}

/// The endpoints of a Service, port by port, in the families that the node serves.
pub fn of_service(look: &dyn Look, service: &ServiceName) -> Vec<Account> {
    let Some(entry) = look.store().entry(service) else { return Vec::new() };
    let mut accounts = Vec::new();
    for family in look.families() {
        let slices = || entry.slices.iter().filter(move |slice| slice.family == family);
        let Some(known) = &entry.service else { continue };
        let is_of = known.cluster_ips.iter().any(|ip| Family::of(*ip) == family);
        if !is_of && slices().next().is_none() {
            continue;
        }
        let endpoints = entry.endpoints(family);
        for port in &known.ports {
            let name = ServicePortName {
                service: service.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
            };
            let route = look.installed(family, service).iter().find(|(known, _)| *known == name);
            let (uses_cluster, uses_local) = route.map_or((true, false), |(_, route)| route.uses());
            let chosen = endpoints.of(&port.name, port.protocol);
            let cluster = ClusterChoice::of(&chosen, look.node().zone.as_deref());
            let local = LocalChoice::of(&chosen);
            let mut listed = Vec::new();
            for slice in slices() {
                let ports: Vec<&SlicePort> = slice
                    .ports
                    .iter()
                    .filter(|of| of.name == port.name && of.protocol == port.protocol)
                    .collect();
                for endpoint in &slice.endpoints {
                    let mut list = |at: Option<u16>, blocked: Option<Why>| {
                        let why =
                            |used: bool, judged: Use| used.then(|| blocked.unwrap_or(Why::Policy(judged)));
                        listed.push(Listed {
                            address: endpoint.addr,
                            port: at,
                            slice: slice.name.clone(),
                            endpoint: endpoint.clone(),
                            cluster: why(uses_cluster, cluster.judge(endpoint)),
                            local: why(uses_local, local.judge(endpoint)),
                        });
                    };
                    let blocked = match (is_of, route) {
                        (false, _) => Some(Why::Family),
                        (true, None) => Some(Why::NoRoute),
                        (true, Some(_)) => None,
                    };
                    if ports.is_empty() {
                        list(None, Some(blocked.unwrap_or(Why::NoPort)));
                    }
                    for of in &ports {
                        // Of several that are the same, the engine has taken this very one, or another.
                        let is_chosen = chosen
                            .iter()
                            .any(|(taken, number)| *number == of.port && std::ptr::eq(*taken, endpoint));
                        list(Some(of.port), blocked.or_else(|| (!is_chosen).then_some(Why::Superseded)));
                    }
                }
            }
            listed.sort_by(|a, b| (a.address, a.port, &a.slice).cmp(&(b.address, b.port, &b.slice)));
            let hints = (uses_cluster && route.is_some()).then(|| cluster.hints());
            accounts.push(Account { port: name, family, hints, endpoints: listed });
        }
    }
    accounts
}
