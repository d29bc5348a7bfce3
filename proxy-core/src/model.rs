//! What the cluster says, parsed: Services, EndpointSlices and the inputs that carry them.
//!
//! After this module there are no strings for addresses, ports or protocols.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

/// One of the two IP families; everything below the store exists once per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which they are synced.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a network.
    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }
}

/// `IPv4` or `IPv6`, as in metric labels.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The transport protocols a Service port may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number (the value of `IPPROTO_*` in linux/in.h).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Lower case, as nft and iptables write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `namespace/name` of a namespaced object; cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// Both without a slash, as Kubernetes' names are.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// What stands before the slash.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// What stands behind the slash.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a Service.
pub type ServiceName = ObjectName;
/// The name of an EndpointSlice.
pub type SliceName = ObjectName;

/// One port of one Service: the unit of routing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// Whose port it is.
    pub service: ServiceName,
    /// The port's name; empty for an unnamed port.
    pub port: Arc<str>,
    /// Two ports of one name differ in it.
    pub protocol: Protocol,
}

/// `namespace/name:port`, or `namespace/name` for an unnamed port (the protocol is not shown).
impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() {
            write!(f, "{}", self.service)
        } else {
            write!(f, "{}:{}", self.service, self.port)
        }
    }
}

/// Where traffic of a kind may go: any endpoint of the cluster, or those on this node only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints on this node only.
    Local,
}

/// What the names of our own annotations begin with.
pub const OPTION_PREFIX: &str = "switchyard.dev/";

/// Names (without our prefix) of the annotations that a backend knows; all others cost nothing.
pub const OPTIONS: [&str; 3] = ["ipvs-local-weight", "ipvs-scheduler", "ipvs-weight"];

/// No value that means anything is longer; of one that is, only so many bytes are kept, to be named.
pub const LONGEST_OPTION: usize = 64;

/// What to keep of an annotation of ours, its prefix taken off; `None`: no backend knows it.
pub fn option(name: &str, value: &str) -> Option<(Box<str>, Box<str>)> {
    let end = value.floor_char_boundary(LONGEST_OPTION);
    OPTIONS.contains(&name).then(|| (name.into(), value[..end].into()))
}

/// A Service that has a cluster IP (headless and ExternalName ones never get this far).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub name: ServiceName,
    /// Creation time in seconds since the Unix epoch: the oldest of two claimants of an address wins.
    pub created: i64,
    /// At most one per family.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.externalIPs`, where they count.
    pub external_ips: Box<[IpAddr]>,
    /// `spec.externalIPs` where they do not count (gate AllowServiceExternalIPs): nothing answers there.
    pub ignored_external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is not `Proxy`.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `None`: no list was given. A family of which there is no range is not restricted.
    pub source_ranges: Option<Box<[IpNet]>>,
    /// `internalTrafficPolicy`: traffic to cluster IPs.
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`: traffic to NodePorts, external IPs and load balancer addresses.
    pub external_policy: TrafficPolicy,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub affinity: Option<u32>,
    /// Only for type LoadBalancer with `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<u16>,
    /// In the order of the object.
    pub ports: Box<[ServicePort]>,
    /// Annotations of our own prefix, without it: what a backend may offer beyond Kubernetes.
    pub options: Box<[(Box<str>, Box<str>)]>,
}

/// One port that a Service offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for an unnamed port.
    pub name: Arc<str>,
    /// The protocol of its packets.
    pub protocol: Protocol,
    /// The port at the Service's addresses.
    pub port: u16,
    /// The port at the node's addresses, for types NodePort and LoadBalancer.
    pub node_port: Option<u16>,
}

/// One EndpointSlice of one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Its namespace and name.
    pub name: SliceName,
    /// Whose endpoints it has (label `kubernetes.io/service-name`).
    pub service: ServiceName,
    /// Its `addressType`.
    pub family: Family,
    /// The ports that its endpoints have in common.
    pub ports: Box<[SlicePort]>,
    /// In the order of the object.
    pub endpoints: Box<[Endpoint]>,
    /// `endpoints.kubernetes.io/last-change-trigger-time`, in nanoseconds since the Unix epoch.
    pub trigger_time: Option<i64>,
}

/// One port of all endpoints of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service port that it belongs to; empty for an unnamed one.
    pub name: Arc<str>,
    /// The protocol of its packets.
    pub protocol: Protocol,
    /// The port at the endpoints' addresses.
    pub port: u16,
}

/// One endpoint; the conditions' absent values are already replaced by their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub addr: IpAddr,
    /// New connections may go there.
    pub ready: bool,
    /// It answers, though it may be terminating.
    pub serving: bool,
    /// It is about to go.
    pub terminating: bool,
    /// On this node.
    pub local: bool,
    /// Which nodes' traffic it is meant for.
    pub for_nodes: NodeHint,
    /// `hints.forZones`; shared between the endpoints of a slice.
    pub for_zones: Option<Arc<[Box<str>]>>,
}

/// `hints.forNodes`, seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NodeHint {
    /// The endpoint carries no node hint.
    #[default]
    Absent,
    /// It is hinted for other nodes.
    Elsewhere,
    /// It is hinted for this node.
    Here,
}

/// A kind of object that is watched to completion before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Services.
    Service,
    /// EndpointSlices.
    Slice,
}

/// Everything that can change the desired state.
#[derive(Debug, Clone)]
pub enum Input {
    /// A Service as it is now.
    Service(Arc<Service>),
    /// A Service that is not there any more.
    ServiceGone(ServiceName),
    /// A slice as it is now.
    Slice(Arc<Slice>),
    /// A slice that is not there any more.
    SliceGone(SliceName),
    /// A (re-)list begins: what is not named before the matching [`Input::Listed`] no longer exists.
    Listing(Kind),
    /// The list is complete.
    Listed(Kind),
    /// All ServiceCIDRs of the cluster.
    ServiceCidrs(Box<[IpNet]>),
    /// This node's `topology.kubernetes.io/zone`.
    Zone(Option<Box<str>>),
    /// The addresses of the Node object: its primary address of each family.
    NodeIps(Box<[IpAddr]>),
    /// All addresses of this machine's interfaces, loopback included.
    InterfaceAddresses(Box<[IpAddr]>),
}
