//! Kubernetes' policy: the whole decision for one Service port in one family, with nothing left to interpret.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    model::{Endpoint, Family, NodeHint, Protocol, Service, ServicePort, TrafficPolicy},
    store::Entry,
};

/// What one Service port does in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub protocol: Protocol,
    /// Addresses that this Service port owns (claims that another Service won are left out), cluster IP first.
    pub frontends: Box<[Frontend]>,
    pub internal_policy: TrafficPolicy,
    /// `Local` only where the Service is externally accessible.
    pub external_policy: TrafficPolicy,
    /// Endpoints for traffic under policy Cluster: ready ones that the topology hints allow, or else every serving and
    /// terminating one. Sorted, without duplicates. Empty where no traffic of the Service uses policy Cluster.
    pub cluster: Box<[Target]>,
    /// Endpoints on this node for traffic under policy Local, likewise. Empty where none uses policy Local.
    pub local: Box<[Target]>,
    /// Whether the Service has any usable endpoint anywhere, on this node or not: refuse or drop is decided by it.
    pub any_endpoint: bool,
    /// Session affinity by client address: idle timeout in seconds.
    pub affinity: Option<u32>,
    pub health_check_node_port: Option<u16>,
    pub named: Named,
    /// The Service's annotations of our own prefix.
    pub options: Box<[(Box<str>, Box<str>)]>,
}

/// What the objects name, be it of use or not. No packet's way depends on it, but the text of kube-proxy's rules does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Named {
    /// An external address or a node port at which it does not answer: ignored, or another Service's.
    pub unanswered: bool,
    /// Endpoints of this port in this family, usable or not.
    pub endpoints: usize,
    /// Frontends whose address and port are another frontend's of the same Service: an address given twice.
    pub repeated: Box<[Frontend]>,
}

/// An address and port at which a Service port answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    pub kind: FrontendKind,
    /// `None` for a node port.
    pub at: Option<IpAddr>,
    pub port: u16,
    /// Who may use it (load balancer IPs only); `None`: everybody.
    pub sources: Option<Arc<AllowedSources>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    ClusterIp,
    ExternalIp,
    LoadBalancerIp,
    NodePort,
}

/// `loadBalancerSourceRanges` of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedSources {
    /// As the Service gives them, of this family.
    pub ranges: Box<[IpNet]>,
    /// Sources allowed beside them: the Service's load balancer IPs, where a range holds one of the node's addresses
    /// (a node that connects to a VIP bound to itself has that VIP as source).
    pub own_vips: Box<[IpAddr]>,
}

/// An endpoint as a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    pub addr: IpAddr,
    pub port: u16,
    /// On this node.
    pub local: bool,
}

/// What happens to a new connection to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Goes to one of these (not empty).
    To(&'a [Target]),
    /// External traffic under policy Local: this node's pods (unmasqueraded) and the node itself (masqueraded) go to
    /// one of `anywhere`; everybody else to one of `here`, source preserved, and is dropped when that is empty.
    /// At least one of the two is not empty; an empty `anywhere` refuses.
    Local { here: &'a [Target], anywhere: &'a [Target] },
    /// Refused: the Service has no usable endpoint anywhere.
    Reject,
    /// Dropped: policy Local, and endpoints only elsewhere.
    Drop,
}

impl Route {
    /// The one place that says which targets a frontend uses.
    pub fn answer(&self, frontend: &Frontend) -> Answer<'_> {
        if !self.any_endpoint {
            return Answer::Reject;
        }
        match (frontend.kind, self.internal_policy, self.external_policy) {
            (FrontendKind::ClusterIp, TrafficPolicy::Local, _) if self.local.is_empty() => Answer::Drop,
            (FrontendKind::ClusterIp, TrafficPolicy::Local, _) => Answer::To(&self.local),
            (FrontendKind::ClusterIp, TrafficPolicy::Cluster, _) | (_, _, TrafficPolicy::Cluster) => {
                if self.cluster.is_empty() { Answer::Reject } else { Answer::To(&self.cluster) }
            }
            (_, _, TrafficPolicy::Local) => Answer::Local { here: &self.local, anywhere: &self.cluster },
        }
    }

    /// Whether new connections to this frontend are masqueraded whatever their source (external traffic under policy
    /// Cluster). Cluster IPs follow the environment instead: masqueradeAll, or a source that is not a local pod.
    pub fn masquerades_always(&self, frontend: &Frontend) -> bool {
        frontend.kind != FrontendKind::ClusterIp && self.external_policy == TrafficPolicy::Cluster
    }
}

/// What a route depends on beside the Service and its slices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeView {
    /// `topology.kubernetes.io/zone` of this node.
    pub zone: Option<Box<str>>,
    /// The node's addresses, both families.
    pub ips: Box<[IpAddr]>,
}

/// Every frontend that one port of a Service asks for in one family, each address and port once, before claims are
/// settled; cluster IP first. `None`: the Service has no cluster IP of this family, so it does not exist there.
pub fn wanted_frontends(
    service: &Service,
    port: &ServicePort,
    family: Family,
    node: &NodeView,
) -> Option<Vec<Frontend>> {
    Some(frontends(service, port, family, node)?.0)
}

/// What a Service gives as its frontends: those that count, and those that repeat an address and port.
fn frontends(
    service: &Service,
    port: &ServicePort,
    family: Family,
    node: &NodeView,
) -> Option<(Vec<Frontend>, Vec<Frontend>)> {
    let of_family = |addrs: &[IpAddr]| {
        addrs.iter().copied().filter(|addr| Family::of(*addr) == family).collect::<Vec<_>>()
    };
    let cluster_ip = *of_family(&service.cluster_ips).first()?;
    let vips = of_family(&service.load_balancer_ips);
    let sources = allowed_sources(service, family, &vips, node);
    let frontend = |kind, at, port| Frontend { kind, at, port, sources: None };

    let mut given = vec![frontend(FrontendKind::ClusterIp, Some(cluster_ip), port.port)];
    for addr in of_family(&service.external_ips) {
        given.push(frontend(FrontendKind::ExternalIp, Some(addr), port.port));
    }
    for addr in &vips {
        given.push(Frontend {
            sources: sources.clone(),
            ..frontend(FrontendKind::LoadBalancerIp, Some(*addr), port.port)
        });
    }
    if let Some(node_port) = port.node_port {
        given.push(frontend(FrontendKind::NodePort, None, node_port));
    }
    let mut seen = HashSet::new();
    Some(given.into_iter().partition(|frontend| {
        // The same address may be given as external IP and as load balancer IP: restricted it stays.
        let is_vip =
            frontend.kind == FrontendKind::ExternalIp && frontend.at.is_some_and(|addr| vips.contains(&addr));
        !is_vip && seen.insert((frontend.at, frontend.port))
    }))
}

fn allowed_sources(
    service: &Service,
    family: Family,
    vips: &[IpAddr],
    node: &NodeView,
) -> Option<Arc<AllowedSources>> {
    let given = service.source_ranges.as_deref()?;
    let ranges: Vec<IpNet> = given.iter().filter(|range| Family::of_net(range) == family).copied().collect();
    // As in kube-proxy a list restricts the families that it mentions; see `open_by_omission`.
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let holds_node = node.ips.iter().any(|ip| ranges.iter().any(|range| range.contains(ip)));
    let own_vips = if holds_node { vips.into() } else { Box::default() };
    Some(Arc::new(AllowedSources { ranges: ranges.into(), own_vips }))
}

/// Whether everybody of a family may use the load balancer IPs of a Service though it has `loadBalancerSourceRanges`: none
/// of them is of this family, and none says "everybody" (a prefix of length 0), so that its owner may not mean it.
pub fn open_by_omission(service: &Service, family: Family) -> bool {
    let silent = service.source_ranges.as_deref().is_some_and(|given| {
        !given.iter().any(|range| Family::of_net(range) == family || range.prefix_len() == 0)
    });
    let exists = |addrs: &[IpAddr]| addrs.iter().any(|addr| Family::of(*addr) == family);
    silent && exists(&service.cluster_ips) && exists(&service.load_balancer_ips)
}

/// The targets of one Service port: which endpoints may be used for what (KEP-1669, KEP-2086, KEP-2433, KEP-3015).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Targets {
    pub cluster: Box<[Target]>,
    pub local: Box<[Target]>,
    pub any_endpoint: bool,
}

/// Sorts endpoints (without duplicates, see [`Entry::endpoints`](crate::store::Entry::endpoints)) into what traffic of
/// each policy may use.
pub fn targets(
    endpoints: &[(&Endpoint, u16)],
    uses_cluster: bool,
    uses_local: bool,
    zone: Option<&str>,
) -> Targets {
    let select = |wanted: &dyn Fn(&Endpoint) -> bool| -> Box<[Target]> {
        let chosen = endpoints.iter().filter(|(endpoint, _)| wanted(endpoint));
        chosen
            .map(|(endpoint, port)| Target { addr: endpoint.addr, port: *port, local: endpoint.local })
            .collect()
    };
    let draining = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let mut targets = Targets::default();
    if uses_cluster {
        let hints = Hints::of(endpoints, zone);
        targets.cluster = select(&|endpoint| endpoint.ready && hints.allow(endpoint, zone));
        if targets.cluster.is_empty() {
            // No ready endpoint anywhere: those that terminate but still serve, wherever they are.
            targets.cluster = select(&draining);
        }
        targets.any_endpoint = !targets.cluster.is_empty();
    }
    if uses_local {
        targets.any_endpoint |= endpoints.iter().any(|(endpoint, _)| endpoint.ready || draining(endpoint));
        targets.local = select(&|endpoint| endpoint.local && endpoint.ready);
        if targets.local.is_empty() {
            targets.local = select(&|endpoint| endpoint.local && draining(endpoint));
        }
    }
    targets
}

/// Which topology hints are followed.
enum Hints {
    Node,
    Zone,
    Ignored,
}

impl Hints {
    /// Hints count only where every ready endpoint carries one and at least one names us.
    fn of(endpoints: &[(&Endpoint, u16)], zone: Option<&str>) -> Self {
        let ready = || endpoints.iter().map(|(endpoint, _)| endpoint).filter(|endpoint| endpoint.ready);
        if ready().next().is_none() {
            return Self::Ignored;
        }
        let here = |endpoint: &&&Endpoint| endpoint.for_nodes == NodeHint::Here;
        if ready().all(|endpoint| endpoint.for_nodes != NodeHint::Absent)
            && ready().any(|endpoint| here(&endpoint))
        {
            return Self::Node;
        }
        let hinted =
            |endpoint: &&Endpoint| endpoint.for_zones.as_ref().is_some_and(|zones| !zones.is_empty());
        if ready().all(hinted) && ready().any(|endpoint| names_zone(endpoint, zone)) {
            return Self::Zone;
        }
        Self::Ignored
    }

    fn allow(&self, endpoint: &Endpoint, zone: Option<&str>) -> bool {
        match self {
            Self::Node => endpoint.for_nodes == NodeHint::Here,
            Self::Zone => names_zone(endpoint, zone),
            Self::Ignored => true,
        }
    }
}

fn names_zone(endpoint: &Endpoint, zone: Option<&str>) -> bool {
    let Some(zone) = zone else { return false };
    endpoint.for_zones.as_ref().is_some_and(|zones| zones.iter().any(|name| **name == *zone))
}

/// The route of one Service port, `frontends` being those of [`wanted_frontends`] that it was granted.
pub fn route(
    entry: &Entry,
    service: &Service,
    port: &ServicePort,
    family: Family,
    wanted: &[Frontend],
    granted: Vec<Frontend>,
    node: &NodeView,
) -> Route {
    let count = |frontends: &[Frontend]| {
        frontends.iter().filter(|frontend| frontend.kind != FrontendKind::ClusterIp).count()
    };
    let ignored = service.ignored_external_ips.iter().any(|addr| Family::of(*addr) == family);
    let unanswered = ignored || count(wanted) > count(&granted);
    let repeated = repeated_frontends(service, port, family, &granted, node);
    let external = unanswered || count(&granted) + count(&repeated) > 0;
    let external_policy = if external { service.external_policy } else { TrafficPolicy::Cluster };
    let uses_cluster = service.internal_policy == TrafficPolicy::Cluster || external;
    let uses_local =
        service.internal_policy == TrafficPolicy::Local || external_policy == TrafficPolicy::Local;
    let endpoints = entry.endpoints(family, &port.name, port.protocol);
    let targets = targets(&endpoints, uses_cluster, uses_local, node.zone.as_deref());
    Route {
        protocol: port.protocol,
        frontends: granted.into(),
        internal_policy: service.internal_policy,
        external_policy,
        cluster: targets.cluster,
        local: targets.local,
        any_endpoint: targets.any_endpoint,
        affinity: service.affinity,
        health_check_node_port: service.health_check_node_port,
        named: Named { unanswered, endpoints: endpoints.len(), repeated },
        options: service.options.clone(),
    }
}

/// Frontends that repeat one of `granted`.
fn repeated_frontends(
    service: &Service,
    port: &ServicePort,
    family: Family,
    granted: &[Frontend],
    node: &NodeView,
) -> Box<[Frontend]> {
    if service.external_ips.is_empty() && service.load_balancer_ips.is_empty() {
        return Box::default();
    }
    let Some((_, mut repeated)) = frontends(service, port, family, node) else { return Box::default() };
    repeated.retain(|frontend| granted.iter().any(|of| (of.at, of.port) == (frontend.at, frontend.port)));
    repeated.into()
}

#[cfg(test)]
mod tests;
