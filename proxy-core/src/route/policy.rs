//! What all ports of a Service share.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::NodeView;
use crate::model::{Family, Service, TrafficPolicy};

/// What a Service says of all of its ports, in one family. Its routes share one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Where traffic to the cluster IP may go.
    pub internal: TrafficPolicy,
    /// Session affinity by client address: idle timeout in seconds.
    pub affinity: Option<u32>,
    /// The TCP port at which load balancers ask for the Service's endpoints on this node.
    pub health_check_node_port: Option<u16>,
    /// Who may use the load balancer IPs; `None`: everybody.
    pub sources: Option<Arc<AllowedSources>>,
    /// The Service's annotations of our own prefix that a backend knows.
    pub options: Box<[(Box<str>, Box<str>)]>,
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

impl Policy {
    /// What a Service says in one family.
    pub fn of(service: &Service, family: Family, node: &NodeView) -> Self {
        Self {
            internal: service.internal_policy,
            affinity: service.affinity,
            health_check_node_port: service.health_check_node_port,
            sources: allowed_sources(service, family, node).map(Arc::new),
            options: service.options.clone(),
        }
    }
}

fn allowed_sources(service: &Service, family: Family, node: &NodeView) -> Option<AllowedSources> {
    let given = service.source_ranges.as_deref()?;
    let ranges: Vec<IpNet> = given.iter().filter(|range| Family::of_net(range) == family).copied().collect();
    // As in kube-proxy a list restricts the families that it mentions; see `open_by_omission`.
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let vips = service.load_balancer_ips.iter().copied().filter(|addr| Family::of(*addr) == family);
    let holds_node = node.ips.iter().any(|ip| ranges.iter().any(|range| range.contains(ip)));
    let own_vips = if holds_node { vips.collect() } else { Box::default() };
    Some(AllowedSources { ranges: ranges.into(), own_vips })
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
