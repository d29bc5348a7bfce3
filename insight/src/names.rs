//! Who is this address? An index of what the engine knows: frontends, NodePorts, endpoints, and the node itself.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use proxy_core::{
    environment::{LocalPods, NodePortAddresses},
    look::Look,
    model::{Family, Protocol, ServiceName, ServicePortName, SliceName},
    route::{Frontend, FrontendKind, asked},
};

/// Who has which address, in both families.
#[derive(Debug, Default)]
pub struct Names {
    frontends: HashMap<(Protocol, IpAddr, u16), Named>,
    node_ports: HashMap<(Family, Protocol, u16), Named>,
    /// Addresses of Services, whatever the port: the first Service by name that asks for it.
    addresses: HashMap<IpAddr, (ServiceName, FrontendKind)>,
    endpoints: HashMap<IpAddr, Vec<EndpointOf>>,
    node: BTreeSet<IpAddr>,
    service_cidrs: Vec<IpNet>,
    pod_cidrs: Vec<IpNet>,
    answering: Vec<(Family, NodePortAddresses)>,
}

/// A frontend by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Whose it is.
    pub port: ServicePortName,
    /// What kind of address it is.
    pub kind: FrontendKind,
}

/// An endpoint by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointOf {
    /// The Service whose endpoint it is.
    pub service: ServiceName,
    /// The slice that names it.
    pub slice: SliceName,
    /// On this node.
    pub local: bool,
}

/// What an address is, whatever the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who<'a> {
    /// An address of a Service.
    Service(&'a ServiceName, FrontendKind),
    /// One of the node's own; loopback too.
    Node,
    /// An endpoint of these Services.
    Endpoint(&'a [EndpointOf]),
    /// No endpoint, but in the network of this node's pods (or of the cluster's, where that is what is configured).
    Pod,
    /// In a network that Services' cluster IPs are taken from, and nobody's now.
    FreeClusterIp,
    /// Nothing is known of it.
    Unknown,
}

impl Names {
    /// The names that an engine knows. This walks through everything: for an engine of one's own, as [`engine`] makes one.
    ///
    /// [`engine`]: crate::engine::engine
    pub fn of(look: &dyn Look) -> Self {
        let mut names = Self {
            node: look.facts().interface_addresses.iter().chain(&look.facts().node_ips).copied().collect(),
            service_cidrs: look.facts().service_cidrs.to_vec(),
            pod_cidrs: match &look.settings().local_pods {
                LocalPods::Cidrs(cidrs) => cidrs.to_vec(),
                LocalPods::Unknown | LocalPods::Bridge(_) | LocalPods::InterfacePrefix(_) => Vec::new(),
            },
            ..Self::default()
        };
        let mut services: Vec<&ServiceName> = look.store().all_names().collect();
        services.sort_unstable();
        for family in look.families() {
            if let Some(environment) = look.environment(family) {
                names.answering.push((family, environment.node_ports.clone()));
            }
            for service in &services {
                names.note(look, family, service);
            }
        }
        names
    }

    fn note(&mut self, look: &dyn Look, family: Family, name: &ServiceName) {
        for (port, route) in look.installed(family, name) {
            for Frontend { kind, at, port: number } in &route.frontends {
                let named = Named { port: port.clone(), kind: *kind };
                match at {
                    Some(at) => {
                        self.addresses.entry(*at).or_insert_with(|| (name.clone(), *kind));
                        self.frontends.insert((route.protocol, *at, *number), named);
                    }
                    None => {
                        self.node_ports.insert((family, route.protocol, *number), named);
                    }
                }
            }
        }
        let Some(entry) = look.store().entry(name) else { return };
        if let Some(service) = &entry.service {
            // One without ports, or without a single address of its own.
            for asked in &asked(service, family) {
                if let Some(at) = asked.frontend.at {
                    self.addresses.entry(at).or_insert_with(|| (name.clone(), asked.frontend.kind));
                }
            }
        }
        for slice in entry.slices.iter().filter(|slice| slice.family == family) {
            for endpoint in &slice.endpoints {
                let of = self.endpoints.entry(endpoint.addr).or_default();
                of.push(EndpointOf {
                    service: name.clone(),
                    slice: slice.name.clone(),
                    local: endpoint.local,
                });
            }
        }
    }

    /// Whose frontend is this? NodePorts count on the node's addresses where they answer.
    pub fn frontend(&self, protocol: Protocol, address: IpAddr, port: u16) -> Option<&Named> {
        self.frontends.get(&(protocol, address, port)).or_else(|| {
            let named = self.node_ports.get(&(Family::of(address), protocol, port))?;
            self.answers_node_ports(address).then_some(named)
        })
    }

    /// Whose NodePort is this, wherever it answers?
    pub fn node_port(&self, family: Family, protocol: Protocol, port: u16) -> Option<&Named> {
        self.node_ports.get(&(family, protocol, port))
    }

    /// Whether NodePorts answer at this address of the node. Loopback aside.
    pub fn answers_node_ports(&self, address: IpAddr) -> bool {
        let family = Family::of(address);
        self.node.contains(&address)
            && self.answering.iter().filter(|(of, _)| *of == family).any(|(_, at)| match at {
                NodePortAddresses::Any => !address.is_loopback(),
                NodePortAddresses::Only(some) => some.contains(&address),
            })
    }

    /// Whose endpoint is this? Empty: nobody's.
    pub fn endpoint(&self, address: IpAddr) -> &[EndpointOf] {
        self.endpoints.get(&address).map_or(&[], Vec::as_slice)
    }

    /// What is this address?
    pub fn who(&self, address: IpAddr) -> Who<'_> {
        if let Some((service, kind)) = self.addresses.get(&address) {
            return Who::Service(service, *kind);
        }
        if self.node.contains(&address) || address.is_loopback() {
            return Who::Node;
        }
        match self.endpoint(address) {
            [] if self.service_cidrs.iter().any(|net| net.contains(&address)) => Who::FreeClusterIp,
            [] if self.pod_cidrs.iter().any(|net| net.contains(&address)) => Who::Pod,
            [] => Who::Unknown,
            some => Who::Endpoint(some),
        }
    }

    /// A short name for an address: `endpoint of default/web`, `node`, `cluster IP of default/web`; the address itself where
    /// nothing is known.
    pub fn describe(&self, address: IpAddr) -> String {
        match self.who(address) {
            Who::Service(service, kind) => format!("{} of {service}", crate::digest::kind(kind)),
            Who::Node => "node".to_owned(),
            Who::Endpoint(of) => match of {
                [one, rest @ ..] if rest.iter().any(|other| other.service != one.service) => {
                    format!("endpoint of {} and others", one.service)
                }
                [one, ..] => format!("endpoint of {}", one.service),
                [] => address.to_string(),
            },
            Who::Pod => "pod".to_owned(),
            Who::FreeClusterIp => "free cluster IP".to_owned(),
            Who::Unknown => address.to_string(),
        }
    }
}
