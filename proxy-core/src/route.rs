//! Kubernetes' policy: the whole decision for one Service port in one family, with nothing left to interpret.

mod asked;
mod policy;
mod targets;

use std::{net::IpAddr, sync::Arc};

pub use asked::{Asked, asked};
pub use policy::{AllowedSources, Policy, open_by_omission};
pub use targets::{ClusterChoice, Hints, HintsIgnored, LocalChoice, Targets, Use, hints_ignored, targets};

use crate::{
    model::{Protocol, Service, ServicePort, TrafficPolicy},
    store::Endpoints,
};

/// What one Service port does in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What it shares with the Service's other ports.
    pub policy: Arc<Policy>,
    /// Addresses at which it answers, cluster IP first.
    pub frontends: Box<[Frontend]>,
    /// Addresses that the Service asks for in vain: another Service's, given twice, or external IPs that do not count. No
    /// packet's way depends on them, but the text of kube-proxy's rules does.
    pub lost: Box<[Frontend]>,
    /// Endpoints for traffic under policy Cluster: ready ones that the topology hints allow, or else every serving and
    /// terminating one. Sorted, without duplicates. Empty where no traffic of the Service uses policy Cluster.
    pub cluster: Box<[Target]>,
    /// Endpoints on this node for traffic under policy Local, likewise. Empty where none uses policy Local.
    pub local: Box<[Target]>,
    /// Endpoints that serve and get no new traffic: terminating ones while others are ready, and those that hints or a
    /// policy leave out. The flows that they have go on. Sorted; of UDP only, since connections of other protocols
    /// are seen to end.
    pub kept: Box<[Target]>,
    /// How many endpoints the slices name for this port, usable or not.
    pub endpoints: u32,
    /// The protocol of the port.
    pub protocol: Protocol,
    /// Where external traffic may go; `Local` only where the Service is externally accessible.
    pub external_policy: TrafficPolicy,
    /// Whether the Service has any usable endpoint anywhere, on this node or not: refuse or drop is decided by it.
    pub any_endpoint: bool,
}

/// An address and port at which a Service port answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// What kind of address it is.
    pub kind: FrontendKind,
    /// `None` for a node port.
    pub at: Option<IpAddr>,
    /// The port of the Service, or the node port.
    pub port: u16,
}

/// Where a frontend's address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`, allocated by the API server.
    ClusterIp,
    /// `spec.externalIPs`, named by the Service's owner.
    ExternalIp,
    /// `status.loadBalancer.ingress`, assigned by a controller.
    LoadBalancerIp,
    /// `spec.ports[].nodePort`, allocated by the API server, at the node's own addresses.
    NodePort,
}

/// An endpoint as a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The endpoint's address.
    pub addr: IpAddr,
    /// The port on which it listens.
    pub port: u16,
    /// On this node.
    pub local: bool,
}

// There are as many of these as the cluster has endpoints and Services.
const _: () = assert!(size_of::<Target>() == 20);
const _: () = assert!(size_of::<Frontend>() == 20);
const _: () = assert!(size_of::<Asked>() == 24);
const _: () = assert!(size_of::<Route>() == 96);

/// What happens to a new connection to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Goes to one of these (not empty).
    To(&'a [Target]),
    /// External traffic under policy Local: this node's pods (unmasqueraded) and the node itself (masqueraded) go to
    /// one of `anywhere`; everybody else to one of `here`, source preserved, and is dropped when that is empty.
    /// At least one of the two is not empty; an empty `anywhere` refuses.
    Local {
        /// Endpoints on this node.
        here: &'a [Target],
        /// All endpoints.
        anywhere: &'a [Target],
    },
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
        match (frontend.kind, self.policy.internal, self.external_policy) {
            (FrontendKind::ClusterIp, TrafficPolicy::Local, _) if self.local.is_empty() => Answer::Drop,
            (FrontendKind::ClusterIp, TrafficPolicy::Local, _) => Answer::To(&self.local),
            (FrontendKind::ClusterIp, TrafficPolicy::Cluster, _) | (_, _, TrafficPolicy::Cluster) => {
                if self.cluster.is_empty() { Answer::Reject } else { Answer::To(&self.cluster) }
            }
            (_, _, TrafficPolicy::Local) => Answer::Local { here: &self.local, anywhere: &self.cluster },
        }
    }

    /// Whether some of its traffic follows policy Cluster, and some policy Local.
    pub fn uses(&self) -> (bool, bool) {
        let mut frontends = self.frontends.iter().chain(&self.lost);
        let external = frontends.any(|frontend| frontend.kind != FrontendKind::ClusterIp);
        uses(self.policy.internal, external, self.external_policy)
    }

    /// Whether new connections to this frontend are masqueraded whatever their source (external traffic under policy
    /// Cluster). Cluster IPs follow the environment instead: masqueradeAll, or a source that is not a local pod.
    pub fn masquerades_always(&self, frontend: &Frontend) -> bool {
        frontend.kind != FrontendKind::ClusterIp && self.external_policy == TrafficPolicy::Cluster
    }

    /// Who may use this frontend; `None`: everybody.
    pub fn sources(&self, frontend: &Frontend) -> Option<&AllowedSources> {
        self.policy.sources.as_deref().filter(|_| frontend.kind == FrontendKind::LoadBalancerIp)
    }

    /// What it shares with the Service's other ports, for this route alone.
    pub fn policy_mut(&mut self) -> &mut Policy {
        Arc::make_mut(&mut self.policy)
    }

    /// The same route under a policy that differs.
    #[must_use]
    pub fn under(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(self.policy_mut());
        self
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

/// The route of one Service port, `granted` and `lost` being what it [`asked`] for, divided.
pub fn route(
    service: &Service,
    port: &ServicePort,
    policy: &Arc<Policy>,
    (granted, lost): (Vec<Frontend>, Vec<Frontend>),
    endpoints: &Endpoints<'_>,
    node: &NodeView,
) -> Route {
    let external = granted.iter().chain(&lost).any(|frontend| frontend.kind != FrontendKind::ClusterIp);
    let external_policy = if external { service.external_policy } else { TrafficPolicy::Cluster };
    let (uses_cluster, uses_local) = uses(policy.internal, external, external_policy);
    let endpoints = endpoints.of(&port.name, port.protocol);
    let targets = targets(&endpoints, uses_cluster, uses_local, node.zone.as_deref());
    let kept = match port.protocol {
        Protocol::Udp => targets.kept(&endpoints),
        Protocol::Tcp | Protocol::Sctp => Box::default(),
    };
    Route {
        policy: policy.clone(),
        frontends: granted.into(),
        lost: lost.into(),
        cluster: targets.cluster,
        local: targets.local,
        kept,
        endpoints: u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
        protocol: port.protocol,
        external_policy,
        any_endpoint: targets.any_endpoint,
    }
}

/// Whether some traffic follows policy Cluster, and some policy Local. `external`: there is any way in from outside.
fn uses(internal: TrafficPolicy, external: bool, external_policy: TrafficPolicy) -> (bool, bool) {
    let any_is = |policy| internal == policy || external_policy == policy;
    (internal == TrafficPolicy::Cluster || external, any_is(TrafficPolicy::Local))
}

#[cfg(test)]
mod tests;
