//! What the kernel was found to hold, of one family.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;
use ipvs_netlink::{Destination, Protocol, Service, ServiceKey};

use crate::schema::ownership::{is_excluded, is_ours};

/// The answer of a survey.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// All of the family, whoever made them.
    pub servers: Vec<FoundServer>,
    /// Local routes of ours.
    pub routes: HashSet<IpAddr>,
    /// Addresses of our device.
    pub addresses: HashSet<IpAddr>,
    /// Ports that a kube-proxy noted as NodePorts of its ipvs mode.
    pub node_ports: HashSet<NodePort>,
    /// There is a table `kube-proxy`: of an nftables mode, kube-proxy's or ours, or of our ipvs mode before it had a name
    /// of its own.
    pub other_table: bool,
    /// That table's rules translate connections at present.
    pub translated: bool,
}

/// A port that answers on each of the node's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodePort {
    /// Of a port number there is one for each protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// A virtual server with its destinations, in the kernel's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundServer {
    /// The virtual server.
    pub service: Service,
    /// Where it sends connections.
    pub destinations: Vec<Destination>,
}

impl Found {
    /// Virtual servers that we or a kube-proxy made, less those in excluded networks, and less the one without destinations by
    /// which it is seen that nobody cleared the table.
    pub fn owned(&self, excluded: &[IpNet]) -> Vec<&FoundServer> {
        let is_sentinel = |server: &FoundServer| {
            matches!(server.service.key, ServiceKey::Mark { .. }) && server.destinations.is_empty()
        };
        let owned = |server: &&FoundServer| self.owns(&server.service, excluded) && !is_sentinel(server);
        self.servers.iter().filter(owned).collect()
    }

    /// Whether a virtual server is ours to delete: made by us or by a kube-proxy.
    pub(crate) fn owns(&self, service: &Service, excluded: &[IpNet]) -> bool {
        is_owned(service, |addr| self.addresses.contains(addr), &self.node_ports, excluded)
    }
}

/// Whether we or a kube-proxy made a virtual server: it has our flag; its address was bound for it (`is_bound`); or its port is one that kube-proxy noted as a NodePort.
pub(crate) fn is_owned(
    service: &Service,
    is_bound: impl Fn(&IpAddr) -> bool,
    node_ports: &HashSet<NodePort>,
    excluded: &[IpNet],
) -> bool {
    match service.key {
        // By the flag, not by the mark: which marks are ours is a setting, and may have been another before.
        ServiceKey::Mark { .. } => is_ours(service),
        ServiceKey::Address { address, protocol, port, .. } => {
            !is_excluded(address, excluded)
                && (is_ours(service)
                    || is_bound(&address)
                    || node_ports.contains(&NodePort { protocol, port }))
        }
    }
}

#[cfg(test)]
mod tests {
    use ipvs_netlink::Scheduler;

    use super::*;
    use crate::{schema::ownership::OURS, settings::MarkSpace};

    fn server(addr: &str, port: u16) -> Service {
        let key = ServiceKey::new(addr.parse().expect("an address"), port, Protocol::Tcp);
        Service::new(key, Scheduler::RR)
    }

    #[test]
    fn only_what_a_proxy_made_is_owned() {
        let bound: IpAddr = "172.30.0.1".parse().expect("an address");
        let node_ports = HashSet::from([NodePort { protocol: Protocol::Tcp, port: 30080 }]);
        let excluded = ["172.31.0.0/16".parse().expect("a network")];
        let owned = |service: &Service| is_owned(service, |addr| *addr == bound, &node_ports, &excluded);
        assert!(owned(&server("172.30.0.1", 80)));
        assert!(owned(&server("192.168.0.10", 30080)));
        assert!(!owned(&server("192.168.0.10", 80)), "somebody else's");
        let udp = ServiceKey::new("192.168.0.10".parse().expect("an address"), 30080, Protocol::Udp);
        assert!(!owned(&Service::new(udp, Scheduler::RR)), "the NodePort is one of TCP");
        let ours = Service { flags: OURS, ..server("192.168.0.10", 80) };
        assert!(owned(&ours));
        let excluded = Service { flags: OURS, ..server("172.31.0.1", 80) };
        assert!(!owned(&excluded));
        let by_mark =
            |mark| Service::new(ServiceKey::Mark { family: ipvs_netlink::Family::V4, mark }, Scheduler::RR);
        assert!(owned(&Service { flags: OURS, ..by_mark(7) }));
        assert!(!owned(&by_mark(MarkSpace::default().nth(7))), "somebody else's");
    }
}
