//! At which addresses and ports a Service asks to answer, before it is decided who gets them.

use std::{collections::HashSet, net::IpAddr};

use super::{Frontend, FrontendKind};
use crate::{
    claims::{ClaimKey, Rank},
    model::{Family, Protocol, Service},
};

/// One address and port that a Service asks for, by one of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// What is asked for.
    pub frontend: Frontend,
    /// The protocol of the port.
    pub protocol: Protocol,
    /// False where it cannot be granted: it is given twice, or external IPs do not count.
    pub counts: bool,
    /// The index of the port in [`Service::ports`].
    pub port: u16,
}

impl Asked {
    /// What is claimed by it.
    pub fn key(&self) -> ClaimKey {
        (self.protocol, self.frontend.at, self.frontend.port)
    }

    /// How much it counts against the claims of others.
    pub fn rank(&self) -> Rank {
        match self.frontend.kind {
            FrontendKind::ClusterIp | FrontendKind::NodePort => Rank::Allocated,
            FrontendKind::LoadBalancerIp => Rank::LoadBalancer,
            FrontendKind::ExternalIp => Rank::External,
        }
    }
}

/// Everything that a Service asks for in one family, port by port, cluster IP first. Of what is asked for twice only the
/// first counts; an address that is given as external IP and as load balancer IP counts as the latter, so that
/// it stays restricted. Empty: the Service has no cluster IP of this family, so it does not exist there.
///
/// Its length is ports times addresses: look at [`limits`](crate::limits) before.
pub fn asked(service: &Service, family: Family) -> Box<[Asked]> {
    let of_family = |addrs: &[IpAddr]| -> Vec<IpAddr> {
        addrs.iter().copied().filter(|addr| Family::of(*addr) == family).collect()
    };
    let Some(cluster_ip) = service.cluster_ips.iter().copied().find(|addr| Family::of(*addr) == family)
    else {
        return Box::default();
    };
    let external = of_family(&service.external_ips);
    let vips = of_family(&service.load_balancer_ips);
    let ignored = of_family(&service.ignored_external_ips);
    let restricted: HashSet<IpAddr> = vips.iter().copied().collect();
    // Most Services give nothing twice: one port, and its cluster IP.
    let simple = service.ports.len() == 1 && external.is_empty() && vips.is_empty();
    let mut taken: HashSet<ClaimKey> = HashSet::new();
    let mut ports = HashSet::new();
    let mut all = Vec::with_capacity(service.ports.len());
    for (at, port) in service.ports.iter().enumerate() {
        // The API server lets no two ports share a name or an address; the kernel does not rely on it.
        let Ok(at) = u16::try_from(at) else { break };
        if !simple && !ports.insert((&port.name, port.protocol)) {
            continue;
        }
        let mut ask = |kind, addr, number, may_count: bool| {
            let frontend = Frontend { kind, at: addr, port: number };
            let counts = may_count && (simple || taken.insert((port.protocol, addr, number)));
            all.push(Asked { frontend, protocol: port.protocol, counts, port: at });
        };
        ask(FrontendKind::ClusterIp, Some(cluster_ip), port.port, true);
        for addr in &external {
            ask(FrontendKind::ExternalIp, Some(*addr), port.port, !restricted.contains(addr));
        }
        for addr in &vips {
            ask(FrontendKind::LoadBalancerIp, Some(*addr), port.port, true);
        }
        if let Some(number) = port.node_port {
            ask(FrontendKind::NodePort, None, number, true);
        }
        for addr in &ignored {
            ask(FrontendKind::ExternalIp, Some(*addr), port.port, false);
        }
    }
    all.into()
}
