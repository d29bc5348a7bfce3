//! Kubernetes' policy: the whole decision for one Service port in one family, with nothing left to interpret.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::model::{Protocol, TrafficPolicy};

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
    /// The Service's annotations of our own prefix.
    pub options: Box<[(Box<str>, Box<str>)]>,
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
