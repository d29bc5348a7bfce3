//! What a backend needs to know beside routes: the node and the configuration, resolved for one family.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Family, Protocol};

/// Compared by value: a backend that finds it changed rewrites what depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// The family that all of it is about.
    pub family: Family,
    /// The one bit of the packet mark that asks for masquerading (1 << masqueradeBit).
    pub masquerade_mark: u32,
    /// All traffic to cluster IPs is masqueraded (`masqueradeAll`).
    pub masquerade_all: bool,
    /// How this node's pods are told from others.
    pub local_pods: LocalPods,
    /// Where NodePorts answer.
    pub node_ports: NodePortAddresses,
    /// NodePorts answer on 127.0.0.0/8 too (IPv4 only: the kernel has no `route_localnet` for ::1).
    pub localhost_node_ports: bool,
    /// The loopback addresses of interfaces at which they do (sorted): where networks inside 127.0.0.0/8 were given, those
    /// inside them.
    pub loopback_node_ports: Box<[IpAddr]>,
    /// Packets to NodePorts of these protocols on loopback addresses are refused and counted, whoever listens there (nftables
    /// mode only).
    pub refused_on_localhost: Box<[Protocol]>,
    /// ServiceCIDRs of this family.
    pub service_cidrs: Box<[IpNet]>,
    /// The node's own addresses of this family as the Node object states them (sorted).
    pub node_ips: Box<[IpAddr]>,
    /// Addresses of all interfaces of this family (sorted), loopback included.
    pub interface_addresses: Box<[IpAddr]>,
}

/// How traffic of this node's pods is told from other traffic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LocalPods {
    /// No detector: nothing counts as local.
    #[default]
    Unknown,
    /// The source address lies in one of these (ClusterCIDR and NodeCIDR modes).
    Cidrs(Box<[IpNet]>),
    /// The packet came in through this bridge.
    Bridge(Box<str>),
    /// The packet came in through an interface whose name begins so.
    InterfacePrefix(Box<str>),
}

/// Where NodePorts answer, loopback aside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NodePortAddresses {
    /// Every local address.
    #[default]
    Any,
    /// These (sorted), possibly none.
    Only(Box<[IpAddr]>),
}

/// The configuration behind an [`Environment`], before it is resolved against the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentSettings {
    /// The one bit of the packet mark that asks for masquerading (1 << masqueradeBit).
    pub masquerade_mark: u32,
    /// `masqueradeAll` of the mode.
    pub masquerade_all: bool,
    /// Both families' networks together in the CIDR modes.
    pub local_pods: LocalPods,
    /// Where NodePorts are to answer.
    pub node_ports: NodePortSettings,
    /// NodePorts are wanted on IPv4 loopback addresses.
    pub localhost_node_ports: bool,
    /// Whose NodePorts are to be refused on loopback addresses.
    pub refused_on_localhost: Box<[(Family, Protocol)]>,
}

/// `nodePortAddresses`, after the mode's default was applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NodePortSettings {
    /// Every local address.
    #[default]
    Any,
    /// The node's primary address of each family; while it is not known, none.
    Primary,
    /// Local addresses inside these networks. A family without a network of its own is not restricted, as in
    /// kube-proxy.
    Within(Box<[IpNet]>),
    /// Those of `Primary`, and local addresses inside these networks.
    PrimaryAndWithin(Box<[IpNet]>),
}

/// What the node is found to be, both families.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// ServiceCIDRs of the cluster.
    pub service_cidrs: Box<[IpNet]>,
    /// The node's own addresses as the Node object states them.
    pub node_ips: Box<[IpAddr]>,
    /// Addresses of all interfaces, loopback included.
    pub interface_addresses: Box<[IpAddr]>,
}

impl NodePortSettings {
    /// The loopback addresses among these at which NodePorts answer, if they answer on localhost at all.
    fn among_loopback(&self, addresses: &[IpAddr]) -> Box<[IpAddr]> {
        let given: &[IpNet] = match self {
            Self::Within(given) | Self::PrimaryAndWithin(given) => given,
            Self::Any | Self::Primary => &[],
        };
        let loopback = |addr: &IpAddr| addr.is_ipv4() && addr.is_loopback();
        let inside = |addr: &IpAddr| given.iter().any(|net| net.contains(addr));
        let restricts = given.iter().any(|net| loopback(&net.addr()));
        addresses.iter().copied().filter(|addr| loopback(addr) && (!restricts || inside(addr))).collect()
    }
}

impl EnvironmentSettings {
    /// The environment of one family.
    pub fn resolve(&self, family: Family, facts: &NodeFacts) -> Environment {
        let addresses = |all: &[IpAddr]| -> Box<[IpAddr]> {
            let mut own: Vec<IpAddr> =
                all.iter().copied().filter(|addr| Family::of(*addr) == family).collect();
            own.sort_unstable();
            own.dedup();
            own.into()
        };
        let networks = |all: &[IpNet]| -> Box<[IpNet]> {
            let mut own: Vec<IpNet> =
                all.iter().copied().filter(|net| Family::of_net(net) == family).collect();
            own.sort_unstable();
            own.dedup();
            own.into()
        };
        let node_ips = addresses(&facts.node_ips);
        let interface_addresses = addresses(&facts.interface_addresses);
        let (primary, given): (bool, &[IpNet]) = match &self.node_ports {
            NodePortSettings::Any => (false, &[]),
            NodePortSettings::Primary => (true, &[]),
            NodePortSettings::Within(given) => (false, given),
            NodePortSettings::PrimaryAndWithin(given) => (true, given),
        };
        let given = networks(given);
        let everywhere = given.is_empty() && !primary || given.iter().any(|net| net.prefix_len() == 0);
        let node_ports = if everywhere {
            NodePortAddresses::Any
        } else {
            let within = |addr: &IpAddr| given.iter().any(|net| net.contains(addr));
            let own = node_ips.iter().filter(|_| primary);
            let chosen = own.chain(interface_addresses.iter().filter(|addr| within(addr)));
            let mut chosen: Vec<IpAddr> = chosen.copied().filter(|addr| !addr.is_loopback()).collect();
            chosen.sort_unstable();
            chosen.dedup();
            NodePortAddresses::Only(chosen.into())
        };
        let localhost_node_ports = self.localhost_node_ports && family == Family::V4;
        Environment {
            family,
            masquerade_mark: self.masquerade_mark,
            masquerade_all: self.masquerade_all,
            local_pods: match &self.local_pods {
                LocalPods::Cidrs(all) => {
                    let own = networks(all);
                    if own.is_empty() { LocalPods::Unknown } else { LocalPods::Cidrs(own) }
                }
                other => other.clone(),
            },
            node_ports,
            localhost_node_ports,
            loopback_node_ports: if localhost_node_ports {
                self.node_ports.among_loopback(&interface_addresses)
            } else {
                Box::default()
            },
            refused_on_localhost: {
                let own = self.refused_on_localhost.iter().filter(|(of, _)| *of == family);
                own.map(|(_, protocol)| *protocol).collect()
            },
            service_cidrs: networks(&facts.service_cidrs),
            node_ips,
            interface_addresses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(node_ports: NodePortSettings) -> EnvironmentSettings {
        EnvironmentSettings {
            masquerade_mark: 0x4000,
            masquerade_all: false,
            local_pods: LocalPods::Unknown,
            node_ports,
            localhost_node_ports: true,
            refused_on_localhost: Box::default(),
        }
    }

    fn ips(texts: &[&str]) -> Box<[IpAddr]> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    fn nets(texts: &[&str]) -> Box<[IpNet]> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    fn facts() -> NodeFacts {
        NodeFacts {
            service_cidrs: nets(&["172.30.0.0/16", "fd00::/112", "172.31.0.0/16", "172.30.0.0/16"]),
            node_ips: ips(&["192.168.0.10", "2001:db8::10"]),
            interface_addresses: ips(&["192.168.0.10", "10.0.0.1", "127.0.0.1", "::1", "2001:db8::10"]),
        }
    }

    #[test]
    fn facts_are_those_of_the_family_sorted_and_once() {
        let environment = settings(NodePortSettings::Any).resolve(Family::V4, &facts());
        assert_eq!(environment.service_cidrs, nets(&["172.30.0.0/16", "172.31.0.0/16"]));
        assert_eq!(environment.node_ips, ips(&["192.168.0.10"]));
        assert_eq!(environment.interface_addresses, ips(&["10.0.0.1", "127.0.0.1", "192.168.0.10"]));
        assert!(environment.localhost_node_ports);
        assert_eq!(environment.loopback_node_ports, ips(&["127.0.0.1"]));
        let environment = settings(NodePortSettings::Any).resolve(Family::V6, &facts());
        assert_eq!(environment.service_cidrs, nets(&["fd00::/112"]));
        assert!(!environment.localhost_node_ports, "the kernel routes ::1 nowhere else");
        assert_eq!(environment.loopback_node_ports, ips(&[]));
    }

    #[test]
    fn the_order_of_facts_makes_no_other_environment() {
        let mut turned = facts();
        turned.interface_addresses.reverse();
        turned.service_cidrs.reverse();
        let settings = settings(NodePortSettings::Any);
        assert_eq!(settings.resolve(Family::V4, &turned), settings.resolve(Family::V4, &facts()));
    }

    #[test]
    fn primary_is_the_nodes_address_and_nothing_while_that_is_unknown() {
        let resolve =
            |family, facts: &NodeFacts| settings(NodePortSettings::Primary).resolve(family, facts).node_ports;
        assert_eq!(resolve(Family::V4, &facts()), NodePortAddresses::Only(ips(&["192.168.0.10"])));
        assert_eq!(resolve(Family::V6, &facts()), NodePortAddresses::Only(ips(&["2001:db8::10"])));
        let one_family = NodeFacts { node_ips: ips(&["192.168.0.10"]), ..facts() };
        assert_eq!(resolve(Family::V6, &one_family), NodePortAddresses::Only(ips(&[])));
        let loopback = NodeFacts { node_ips: ips(&["127.0.0.1"]), ..facts() };
        assert_eq!(resolve(Family::V4, &loopback), NodePortAddresses::Only(ips(&[])));
    }

    #[test]
    fn networks_choose_among_the_interfaces_addresses() {
        let resolve = |family, networks: &[&str]| {
            settings(NodePortSettings::Within(nets(networks))).resolve(family, &facts()).node_ports
        };
        let only = |addresses: &[&str]| NodePortAddresses::Only(ips(addresses));
        assert_eq!(resolve(Family::V4, &["10.0.0.0/8", "127.0.0.0/8"]), only(&["10.0.0.1"]));
        assert_eq!(
            resolve(Family::V4, &["10.0.0.0/8", "192.168.0.0/16"]),
            only(&["10.0.0.1", "192.168.0.10"])
        );
        assert_eq!(resolve(Family::V4, &["198.51.100.0/24"]), only(&[]));
        assert_eq!(resolve(Family::V4, &["0.0.0.0/0"]), NodePortAddresses::Any);
        assert_eq!(resolve(Family::V6, &["10.0.0.0/8"]), NodePortAddresses::Any, "not restricted");
    }

    #[test]
    fn the_primary_address_and_networks_count_together() {
        let resolve = |family, networks: &[&str]| {
            settings(NodePortSettings::PrimaryAndWithin(nets(networks))).resolve(family, &facts()).node_ports
        };
        let only = |addresses: &[&str]| NodePortAddresses::Only(ips(addresses));
        assert_eq!(resolve(Family::V4, &["10.0.0.0/8"]), only(&["10.0.0.1", "192.168.0.10"]));
        assert_eq!(resolve(Family::V4, &["192.168.0.0/16"]), only(&["192.168.0.10"]), "once");
        assert_eq!(resolve(Family::V6, &["10.0.0.0/8"]), only(&["2001:db8::10"]), "restricted all the same");
        assert_eq!(resolve(Family::V4, &["0.0.0.0/0"]), NodePortAddresses::Any);
        assert_eq!(resolve(Family::V6, &["0.0.0.0/0"]), only(&["2001:db8::10"]));
        assert_eq!(resolve(Family::V6, &["::1/128"]), only(&["2001:db8::10"]));
    }

    #[test]
    fn networks_choose_among_loopback_addresses_too() {
        let mut facts = facts();
        facts.interface_addresses = ips(&["127.0.0.2", "127.0.0.1", "192.168.0.10", "::1"]);
        let resolve = |networks: &[&str]| {
            let settings = settings(NodePortSettings::Within(nets(networks)));
            settings.resolve(Family::V4, &facts).loopback_node_ports
        };
        assert_eq!(resolve(&["127.0.0.1/32", "192.168.0.0/16"]), ips(&["127.0.0.1"]));
        assert_eq!(resolve(&["127.0.0.0/8"]), ips(&["127.0.0.1", "127.0.0.2"]));
        assert_eq!(resolve(&["192.168.0.0/16"]), ips(&["127.0.0.1", "127.0.0.2"]), "the keyword `localhost`");
        assert_eq!(resolve(&["126.0.0.0/7", "127.0.0.1/32"]), ips(&["127.0.0.1", "127.0.0.2"]));
    }

    #[test]
    fn local_pods_are_told_by_the_networks_of_the_family() {
        let resolve = |family, local_pods: LocalPods| {
            EnvironmentSettings { local_pods, ..settings(NodePortSettings::Any) }
                .resolve(family, &facts())
                .local_pods
        };
        let both = || LocalPods::Cidrs(nets(&["10.0.0.0/16", "fd01::/48"]));
        assert_eq!(resolve(Family::V4, both()), LocalPods::Cidrs(nets(&["10.0.0.0/16"])));
        assert_eq!(resolve(Family::V6, both()), LocalPods::Cidrs(nets(&["fd01::/48"])));
        let v4_only = LocalPods::Cidrs(nets(&["10.0.0.0/16"]));
        assert_eq!(resolve(Family::V6, v4_only), LocalPods::Unknown);
        let bridge = || LocalPods::Bridge("cni0".into());
        assert_eq!(resolve(Family::V6, bridge()), bridge());
    }
}
