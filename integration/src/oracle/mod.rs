//! Where may a packet go? Answered from the API objects and the configuration alone, one packet at a time.
//!
//! Written from Kubernetes' documentation of Services, not from the engine: it shares no code with it, keeps no state and
//! takes no short cuts, so that a mistake is unlikely to be made twice.

mod objects;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::Value;

use crate::network::{Family, Protocol};
use objects::{Endpoint, Port, Service};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    Nftables,
    Iptables,
    Ipvs,
}

/// What the node under test is configured to do.
#[derive(Debug, Clone)]
pub struct Settings {
    pub mode: Mode,
    pub node_name: String,
    pub detect_local: DetectLocal,
    pub masquerade_all: bool,
    pub node_ports: NodePorts,
    /// Whether NodePorts answer on 127.0.0.0/8 as well.
    pub localhost_node_ports: bool,
    /// Whether NodePorts of TCP answer on ::1, where a program listens for them.
    pub localhost_v6_node_ports: bool,
    /// All addresses of the node's interfaces, loopback aside.
    pub local_addresses: Vec<IpAddr>,
}

/// How traffic of this node's pods is told from the rest.
#[derive(Debug, Clone)]
pub enum DetectLocal {
    /// Not at all.
    Never,
    /// By source address.
    Networks(Vec<IpNet>),
    /// By the interface it arrives on.
    Interface,
}

/// On which of the node's addresses NodePorts answer.
#[derive(Debug, Clone)]
pub enum NodePorts {
    Everywhere,
    /// On the addresses by which Kubernetes knows the node.
    Primary,
    Within(Vec<IpNet>),
    /// On both.
    PrimaryAndWithin(Vec<IpNet>),
}

/// Where a packet comes from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    pub kind: SourceKind,
    pub address: IpAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A process on the node itself.
    Node,
    /// A pod of the node, not on the host network.
    LocalPod,
    /// Anything that comes in from another machine.
    Elsewhere,
}

/// What becomes of a packet that begins a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Goes to one of these endpoints; the flag says whether its source is replaced by the node's.
    Dnat(BTreeMap<SocketAddr, bool>),
    /// Answered with RST or ICMP port unreachable.
    Reject,
    Drop,
    /// Not a Service's: it goes its way.
    Pass,
}

/// One state of the cluster, as one node is to see it.
#[derive(Debug, Clone)]
pub struct Oracle {
    settings: Settings,
    services: Vec<Service>,
    slices: Vec<Value>,
    service_cidrs: Vec<IpNet>,
    node_ips: Vec<IpAddr>,
    zone: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

impl Oracle {
    /// Reads Services, EndpointSlices, ServiceCIDRs and the node among `objects`; other kinds are ignored.
    pub fn new(settings: Settings, objects: &[Value]) -> Self {
        let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        let mut services: Vec<Service> = of_kind("Service").filter_map(objects::service).collect();
        // Where two claim one address, the oldest has it; the name decides between twins.
        services
            .sort_by(|a, b| (&a.created, &a.namespace, &a.name).cmp(&(&b.created, &b.namespace, &b.name)));
        let node = of_kind("Node").find(|node| node["metadata"]["name"] == settings.node_name.as_str());
        let mut slices: Vec<Value> = of_kind("EndpointSlice").cloned().collect();
        slices.sort_by_key(|slice| objects::text(&slice["metadata"]["name"]));
        Self {
            services,
            slices,
            service_cidrs: of_kind("ServiceCIDR")
                .flat_map(|cidr| objects::networks(&cidr["spec"]["cidrs"]))
                .collect(),
            node_ips: node.map(objects::node_addresses).unwrap_or_default(),
            zone: node
                .map(|node| objects::text(&node["metadata"]["labels"]["topology.kubernetes.io/zone"]))
                .unwrap_or_default(),
            settings,
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What becomes of a new connection from `source` to `to`.
    pub fn verdict(&self, source: Source, protocol: Protocol, to: SocketAddr) -> Verdict {
        let family = Family::of(to.ip());
        let of_family = self
            .services
            .iter()
            .filter(|service| service.cluster_ips.iter().any(|address| Family::of(*address) == family));
        let ways = of_family.flat_map(|service| {
            let ports = service.ports.iter().filter(|port| port.protocol == protocol);
            ports.filter_map(move |port| Some((service, port, self.way_in(service, port, source, to)?)))
        });
        // An address that is claimed by name goes before a NodePort with the same number, whoever is older.
        match ways.min_by_key(|(.., way)| *way == Way::NodePort) {
            Some((service, port, way)) => self.through(service, port, way, source, to),
            None => self.unclaimed(to.ip()),
        }
    }

    /// Every address and port at which some Service may be found in a family, allowed or not.
    pub fn frontends(&self, family: Family) -> Vec<(Protocol, SocketAddr)> {
        let mut found = Vec::new();
        for service in &self.services {
            for port in &service.ports {
                let vips = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips];
                let vips = vips.into_iter().flatten().map(|address| SocketAddr::new(*address, port.port));
                let node = self.settings.local_addresses.iter();
                let node = node.filter_map(|address| Some(SocketAddr::new(*address, port.node_port?)));
                found.extend(
                    vips.chain(node).filter(|at| Family::of(at.ip()) == family).map(|at| (port.protocol, at)),
                );
            }
        }
        found.sort_unstable_by_key(|(protocol, at)| (*at, *protocol));
        found.dedup();
        found
    }

    fn way_in(&self, service: &Service, port: &Port, source: Source, to: SocketAddr) -> Option<Way> {
        let address = to.ip();
        if to.port() == port.port {
            if first_of_family(&service.cluster_ips, address) {
                return Some(Way::ClusterIp);
            }
            // Restricted stays restricted: an address that is both is a load balancer's.
            if service.load_balancer_ips.contains(&address) {
                return Some(Way::LoadBalancer);
            }
            if service.external_ips.contains(&address) {
                return Some(Way::ExternalIp);
            }
        }
        let node_port =
            port.node_port == Some(to.port()) && self.node_port_answers_on(address, port.protocol, source);
        node_port.then_some(Way::NodePort)
    }

    fn node_port_answers_on(&self, address: IpAddr, protocol: Protocol, source: Source) -> bool {
        if address.is_loopback() {
            // IPv6 has no route_localnet: what is translated from ::1 gets no answer.
            let wanted = if address.is_ipv4() {
                self.settings.localhost_node_ports
            } else {
                self.settings.localhost_v6_node_ports && protocol == Protocol::Tcp
            };
            return wanted && source.kind == SourceKind::Node;
        }
        self.settings.local_addresses.contains(&address)
            && match &self.settings.node_ports {
                NodePorts::Everywhere => true,
                NodePorts::Primary => self.node_ips.contains(&address),
                NodePorts::PrimaryAndWithin(networks) => {
                    self.node_ips.contains(&address)
                        || networks.iter().any(|network| network.contains(&address))
                }
                // A family that the list does not mention is not restricted.
                NodePorts::Within(networks) => {
                    let mut of_family = networks
                        .iter()
                        .filter(|network| network.addr().is_ipv4() == address.is_ipv4())
                        .peekable();
                    of_family.peek().is_none() || of_family.any(|network| network.contains(&address))
                }
            }
    }

    fn through(&self, service: &Service, port: &Port, way: Way, source: Source, to: SocketAddr) -> Verdict {
        let family = Family::of(to.ip());
        let endpoints = self.endpoints(service, port, family);
        let usable = |endpoint: &&Endpoint| endpoint.ready || (endpoint.serving && endpoint.terminating);
        let nobody_anywhere = !endpoints.iter().any(|endpoint| usable(&endpoint));
        let vip = matches!(way, Way::LoadBalancer | Way::ExternalIp);
        if nobody_anywhere && vip && source.kind == SourceKind::Node && self.settings.mode == Mode::Iptables {
            // The chain that refuses external addresses without endpoints is not reached from filter OUTPUT.
            return Verdict::Pass;
        }
        if way == Way::LoadBalancer && !self.may_use(service, source, family) {
            // With iptables the firewall chain of a Service exists only while it has endpoints.
            return if nobody_anywhere && self.settings.mode == Mode::Iptables {
                Verdict::Reject
            } else {
                Verdict::Drop
            };
        }
        if nobody_anywhere {
            return Verdict::Reject;
        }
        let local_pod = self.is_local_pod(source);
        let (chosen, masquerade) = match way {
            Way::ClusterIp => {
                let chosen =
                    if service.internal_local { self.local(&endpoints) } else { self.anywhere(&endpoints) };
                let detects = !matches!(self.settings.detect_local, DetectLocal::Never);
                // IPVS makes the address one of the node's own, whose connections may come from that very address.
                let from_itself = self.settings.mode == Mode::Ipvs && source.kind == SourceKind::Node;
                (chosen, self.settings.masquerade_all || (detects && !local_pod) || from_itself)
            }
            _ if !service.external_local => (self.anywhere(&endpoints), true),
            // The others look at the address first, and some of the node's are within the pods' network.
            _ if source.kind == SourceKind::Node && (self.settings.mode == Mode::Ipvs || !local_pod) => {
                (self.anywhere(&endpoints), true)
            }
            _ if local_pod => (self.anywhere(&endpoints), false),
            _ => (self.local(&endpoints), false),
        };
        if chosen.is_empty() {
            return Verdict::Drop;
        }
        // Whatever its slice says of the node that it is on: the answer would not come back this way.
        let to_itself = |endpoint: &Endpoint| endpoint.at.ip() == source.address;
        Verdict::Dnat(
            chosen.into_iter().map(|endpoint| (endpoint.at, masquerade || to_itself(endpoint))).collect(),
        )
    }

    /// All endpoints of a Service port, each address and port once. An address may be used again before the old pod has
    /// gone, so what terminates gives way to what does not; among equals the last slice by name is believed.
    fn endpoints(&self, service: &Service, port: &Port, family: Family) -> Vec<Endpoint> {
        let mut by_address: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
        for endpoint in self.slices.iter().flat_map(|slice| objects::endpoints(slice, service, port, family))
        {
            if !endpoint.terminating || !by_address.contains_key(&endpoint.at) {
                by_address.insert(endpoint.at, endpoint);
            }
        }
        by_address.into_values().collect()
    }

    fn anywhere<'a>(&self, endpoints: &'a [Endpoint]) -> Vec<&'a Endpoint> {
        let ready: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
        if ready.is_empty() {
            return endpoints.iter().filter(|endpoint| endpoint.serving && endpoint.terminating).collect();
        }
        let hinted = |hints: fn(&Endpoint) -> &Vec<String>, wanted: &str| -> Option<Vec<&'a Endpoint>> {
            let all_hinted = ready.iter().all(|endpoint| !hints(endpoint).is_empty());
            let meant_for_us = |endpoint: &&&Endpoint| hints(endpoint).iter().any(|hint| hint == wanted);
            let chosen: Vec<&Endpoint> = ready.iter().filter(meant_for_us).copied().collect();
            (all_hinted && !wanted.is_empty() && !chosen.is_empty()).then_some(chosen)
        };
        hinted(|endpoint| &endpoint.hinted_nodes, &self.settings.node_name)
            .or_else(|| hinted(|endpoint| &endpoint.hinted_zones, &self.zone))
            .unwrap_or(ready)
    }

    fn local<'a>(&self, endpoints: &'a [Endpoint]) -> Vec<&'a Endpoint> {
        let here = || endpoints.iter().filter(|endpoint| endpoint.node == self.settings.node_name);
        let ready: Vec<&Endpoint> = here().filter(|endpoint| endpoint.ready).collect();
        if ready.is_empty() {
            here().filter(|endpoint| endpoint.serving && endpoint.terminating).collect()
        } else {
            ready
        }
    }

    fn is_local_pod(&self, source: Source) -> bool {
        match &self.settings.detect_local {
            DetectLocal::Never => false,
            DetectLocal::Networks(networks) => {
                networks.iter().any(|network| network.contains(&source.address))
            }
            DetectLocal::Interface => source.kind == SourceKind::LocalPod,
        }
    }

    /// loadBalancerSourceRanges. A list says who may come in, in the families that it mentions.
    fn may_use(&self, service: &Service, source: Source, family: Family) -> bool {
        let Some(given) = &service.source_ranges else { return true };
        let ranges: Vec<&IpNet> = given.iter().filter(|range| Family::of(range.addr()) == family).collect();
        if ranges.is_empty() {
            return true;
        }
        let holds = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
        if ranges.iter().any(|range| range.prefix_len() == 0) || holds(&source.address) {
            return true;
        }
        // A node that has the address bound talks to it from that very address.
        self.node_ips.iter().any(holds) && service.load_balancer_ips.contains(&source.address)
    }

    /// An address and port that no Service has.
    fn unclaimed(&self, address: IpAddr) -> Verdict {
        let here =
            |service: &&Service| service.cluster_ips.iter().any(|known| known.is_ipv4() == address.is_ipv4());
        let mut services = self.services.iter().filter(here);
        let a_cluster_ip = services.clone().any(|service| first_of_family(&service.cluster_ips, address));
        let another_vip = services.any(|service| {
            service.external_ips.contains(&address) || service.load_balancer_ips.contains(&address)
        });
        match self.settings.mode {
            Mode::Nftables if a_cluster_ip => Verdict::Reject,
            Mode::Nftables if self.service_cidrs.iter().any(|cidr| cidr.contains(&address)) => Verdict::Drop,
            // The kernel has these as addresses of its own and no process may listen there.
            Mode::Ipvs if a_cluster_ip || another_vip => Verdict::Reject,
            _ => Verdict::Pass,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dnat(endpoints) => {
                f.write_str("to one of")?;
                for (endpoint, masquerade) in endpoints {
                    write!(f, " {endpoint}{}", if *masquerade { " (masqueraded)" } else { "" })?;
                }
                Ok(())
            }
            Self::Reject => f.write_str("refused"),
            Self::Drop => f.write_str("dropped"),
            Self::Pass => f.write_str("not translated"),
        }
    }
}

/// Whether the address is the one of its family: a Service has at most one cluster IP in each.
fn first_of_family(cluster_ips: &[IpAddr], address: IpAddr) -> bool {
    cluster_ips.iter().find(|known| known.is_ipv4() == address.is_ipv4()) == Some(&address)
}

#[cfg(test)]
mod tests;
