//! What a backend needs to know beside routes: the node and the configuration, resolved for one family.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Family;

/// Compared by value: a backend that finds it changed rewrites what depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    pub family: Family,
    /// The one bit of the packet mark that asks for masquerading (1 << masqueradeBit).
    pub masquerade_mark: u32,
    pub masquerade_all: bool,
    pub local_pods: LocalPods,
    pub node_ports: NodePortAddresses,
    /// NodePorts answer on 127.0.0.0/8 too (IPv4 only: the kernel has no `route_localnet` for ::1).
    pub localhost_node_ports: bool,
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
