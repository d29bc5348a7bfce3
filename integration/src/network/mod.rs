//! A small cluster's network in namespaces: the node under test with its pods, a second node with pods, an outside client.
//!
//! ```text
//!  pod-a pod-b pod-c         pod-d pod-e
//!      \   |   /                \   /
//!       [ node ]----eth0----[ node2 ]
//!          |ext0
//!       [ client ]
//! ```
//! Everything between the client, node2 and the pods passes the node, so its connection tracking sees both directions.
//! The node's default route leads to the client, which forwards nothing: what the node does not translate vanishes there.

mod namespace;
mod ping;
mod probe;
mod sctp;
mod server;
mod steady;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use ipnet::IpNet;

pub use namespace::Namespace;
pub use ping::Ping;
pub use probe::{ALWAYS, BRIEF, Outcome, PATIENT, Probe, UdpFlow};
use server::Servers;
pub use steady::{Seen, Steady, SteadyClients};
pub use wire::{Answer, Protocol};

/// Below those that the kernel chooses from.
const OWN_PORTS: Range<u16> = 12_000..30_000;

/// Ports on which every endpoint answers.
pub const PORTS: [u16; 4] = [8080, 8081, 9090, 53];
/// How the interfaces of routed pods begin on the node, for interface detection.
pub const POD_INTERFACE_PREFIX: &str = "veth";
/// The bridge of bridged pods.
pub const POD_BRIDGE: &str = "cni0";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// Where something runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The node under test; an endpoint here is on the host network.
    Node,
    Node2,
    Client,
    PodA,
    PodB,
    PodC,
    PodD,
    PodE,
}

/// How the node's pods are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// One routed veth per pod, as Calico does.
    Routed,
    /// A bridge, as kindnet and flannel do.
    Bridged,
}

/// The whole network. It vanishes when dropped.
#[derive(Debug)]
pub struct Network {
    namespaces: Vec<(Place, Namespace)>,
    /// How many probes were sent alone.
    alone: AtomicU16,
    _servers: Servers,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn choose(self, v4: &str, v6: &str) -> String {
        match self {
            Self::V4 => v4.to_owned(),
            Self::V6 => v6.to_owned(),
        }
    }

    /// All pods of the cluster.
    pub fn cluster_cidr(self) -> IpNet {
        self.choose("10.0.0.0/16", "fd00:10::/32").parse().expect("a constant")
    }

    /// The pods of the node under test.
    pub fn node_pod_cidr(self) -> IpNet {
        self.choose("10.0.1.0/24", "fd00:10:1::/64").parse().expect("a constant")
    }

    pub fn service_cidr(self) -> IpNet {
        self.choose("172.30.0.0/16", "fd00:30::/112").parse().expect("a constant")
    }

    /// A cluster IP.
    pub fn service(self, number: u8) -> IpAddr {
        self.choose(&format!("172.30.0.{number}"), &format!("fd00:30::{number:x}"))
            .parse()
            .expect("formed above")
    }

    /// A load balancer's address.
    pub fn load_balancer(self, number: u8) -> IpAddr {
        self.choose(&format!("198.51.100.{number}"), &format!("2001:db8:51::{number:x}"))
            .parse()
            .expect("formed above")
    }

    /// An external address of a Service.
    pub fn external(self, number: u8) -> IpAddr {
        self.choose(&format!("192.0.2.{number}"), &format!("2001:db8:2::{number:x}"))
            .parse()
            .expect("formed above")
    }

    /// The addresses of the node under test: first the one Kubernetes knows, then the one towards the client,
    /// then a second one towards the client.
    pub fn node_addresses(self) -> [IpAddr; 3] {
        [
            self.choose("192.168.50.1", "fd00:50::1"),
            self.choose("192.168.70.1", "fd00:70::1"),
            self.choose("192.168.71.1", "fd00:71::1"),
        ]
        .map(|address| address.parse().expect("a constant"))
    }

    /// A second source address of the client, far from the node's subnets.
    pub fn far_client(self) -> IpAddr {
        self.choose("203.0.113.100", "2001:db8:113::100").parse().expect("a constant")
    }
}

impl Place {
    pub const ALL: [Self; 8] =
        [Self::Node, Self::Node2, Self::Client, Self::PodA, Self::PodB, Self::PodC, Self::PodD, Self::PodE];
    pub const LOCAL_PODS: [Self; 3] = [Self::PodA, Self::PodB, Self::PodC];
    pub const REMOTE_PODS: [Self; 2] = [Self::PodD, Self::PodE];

    /// The name by which its servers call themselves.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Node2 => "node2",
            Self::Client => "client",
            Self::PodA => "pod-a",
            Self::PodB => "pod-b",
            Self::PodC => "pod-c",
            Self::PodD => "pod-d",
            Self::PodE => "pod-e",
        }
    }

    /// Its address; the one an EndpointSlice would give.
    pub fn address(self, family: Family) -> IpAddr {
        let text = match self {
            Self::Node => return family.node_addresses()[0],
            Self::Node2 => family.choose("192.168.50.2", "fd00:50::2"),
            Self::Client => family.choose("192.168.70.100", "fd00:70::100"),
            Self::PodA => family.choose("10.0.1.11", "fd00:10:1::11"),
            Self::PodB => family.choose("10.0.1.12", "fd00:10:1::12"),
            Self::PodC => family.choose("10.0.1.13", "fd00:10:1::13"),
            Self::PodD => family.choose("10.0.2.11", "fd00:10:2::11"),
            Self::PodE => family.choose("10.0.2.12", "fd00:10:2::12"),
        };
        text.parse().expect("a constant")
    }

    /// The Kubernetes node it is on.
    pub fn node_name(self) -> &'static str {
        match self {
            Self::Node | Self::PodA | Self::PodB | Self::PodC => "node",
            _ => "node2",
        }
    }

    /// The source that the node's masquerading gives to a connection to this place, if it leaves the node at all.
    pub fn masqueraded_source(self, family: Family) -> Option<IpAddr> {
        let text = match self {
            Self::Node | Self::Client => return None,
            Self::PodA | Self::PodB | Self::PodC => family.choose("10.0.1.1", "fd00:10:1::1"),
            Self::Node2 | Self::PodD | Self::PodE => return Some(family.node_addresses()[0]),
        };
        Some(text.parse().expect("a constant"))
    }
}

impl Network {
    /// Builds the namespaces and starts a server at every place but the client.
    pub fn build(wiring: Wiring) -> io::Result<Self> {
        let mut namespaces = Vec::new();
        for place in Place::ALL {
            namespaces.push((place, Namespace::create(place.name())?));
        }
        let find =
            |place: Place| &namespaces.iter().find(|(at, _)| *at == place).expect("all places have one").1;
        let forwarding = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];
        let mut node = format!(
            "link add eth0 type veth peer name eth0 netns {}\nlink add ext0 type veth peer name eth0 netns {}\n\
             link set eth0 up\nlink set ext0 up\n\
             addr add 192.168.50.1/24 dev eth0\naddr add fd00:50::1/64 dev eth0 nodad\n\
             addr add 192.168.70.1/24 dev ext0\naddr add fd00:70::1/64 dev ext0 nodad\n\
             addr add 192.168.71.1/24 dev ext0\naddr add fd00:71::1/64 dev ext0 nodad\n\
             route add default via 192.168.70.100\nroute add default via fd00:70::100\n\
             route add 10.0.2.0/24 via 192.168.50.2\nroute add fd00:10:2::/64 via fd00:50::2\n",
            find(Place::Node2).path(),
            find(Place::Client).path(),
        );
        if wiring == Wiring::Bridged {
            node += &format!(
                "link add {POD_BRIDGE} type bridge\nlink set {POD_BRIDGE} up\n\
                 addr add 10.0.1.1/32 dev {POD_BRIDGE}\naddr add fd00:10:1::1/128 dev {POD_BRIDGE} nodad\n\
                 route add 10.0.1.0/24 dev {POD_BRIDGE}\nroute add fd00:10:1::/64 dev {POD_BRIDGE}\n"
            );
        }
        attach_pods(&mut node, &Place::LOCAL_PODS, wiring, find);
        find(Place::Node).ip(&node, &forwarding)?;

        let mut node2 =
            "link set eth0 up\naddr add 192.168.50.2/24 dev eth0\naddr add fd00:50::2/64 dev eth0 nodad\n\
                         route add default via 192.168.50.1\nroute add default via fd00:50::1\n"
                .to_owned();
        attach_pods(&mut node2, &Place::REMOTE_PODS, Wiring::Routed, find);
        find(Place::Node2).ip(&node2, &forwarding)?;

        let client = "link set eth0 up\naddr add 192.168.70.100/24 dev eth0\naddr add fd00:70::100/64 dev eth0 nodad\n\
                      addr add 192.168.71.100/24 dev eth0\naddr add fd00:71::100/64 dev eth0 nodad\n\
                      addr add 203.0.113.100/32 dev lo\naddr add 2001:db8:113::100/128 dev lo nodad\n\
                      route add default via 192.168.70.1\nroute add default via fd00:70::1\n";
        find(Place::Client).ip(client, &[])?;
        for pod in Place::LOCAL_PODS.into_iter().chain(Place::REMOTE_PODS) {
            let (v4, v6) = (pod.address(Family::V4), pod.address(Family::V6));
            let gateway = gateway_of(pod);
            let batch = format!(
                "link set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
                 route add {0} dev eth0\nroute add {1} dev eth0\n\
                 route add default via {0}\nroute add default via {1}\n",
                gateway.0, gateway.1
            );
            find(pod).ip(&batch, &[])?;
        }
        let mut servers = Servers::start()?;
        for place in Place::ALL.into_iter().filter(|place| *place != Place::Client) {
            for family in Family::BOTH {
                servers.add(find(place), place.name(), place.address(family), &PORTS, true)?;
            }
        }
        Ok(Self { namespaces, alone: AtomicU16::new(0), _servers: servers })
    }

    pub fn namespace(&self, place: Place) -> &Namespace {
        &self.namespaces.iter().find(|(at, _)| *at == place).expect("all places have one").1
    }

    /// Tries all probes at once.
    pub fn probe(&self, from: Place, probes: &[Probe]) -> io::Result<Vec<Outcome>> {
        probe::send(self.namespace(from), probes)
    }

    /// Tries one, from a port of its own: a port that is used again within minutes is no new connection to IPVS, which
    /// leaves it with its endpoint if the Service has affinity (`is_new_conn_expected` in ip_vs_core.c).
    pub fn probe_one(&self, from: Place, mut probe: Probe) -> io::Result<Outcome> {
        if probe.from.port() == 0 {
            let turn = self.alone.fetch_add(1, Ordering::Relaxed);
            probe.from.set_port(OWN_PORTS.start + turn % (OWN_PORTS.end - OWN_PORTS.start));
        }
        Ok(self.probe(from, &[probe])?.remove(0))
    }

    /// Sends one echo request.
    pub fn ping(&self, from: Place, to: IpAddr) -> io::Result<Ping> {
        ping::send(self.namespace(from), to)
    }

    /// Starts clients that send without pause, with the source ports from `first_port` on.
    pub fn steady(
        &self,
        from: Place,
        targets: &[(Protocol, SocketAddr)],
        first_port: u16,
    ) -> io::Result<SteadyClients> {
        SteadyClients::start(self.namespace(from), targets, first_port)
    }

    /// Opens a UDP socket that keeps its source port.
    pub fn udp_flow(&self, from: Place, to: SocketAddr) -> io::Result<UdpFlow> {
        UdpFlow::open(self.namespace(from), to)
    }
}

/// The addresses on a node's side of its pods' links.
fn gateway_of(pod: Place) -> (&'static str, &'static str) {
    if pod.node_name() == "node" { ("10.0.1.1", "fd00:10:1::1") } else { ("10.0.2.1", "fd00:10:2::1") }
}

/// Adds a node's side of the pods' links to its batch.
fn attach_pods<'a>(
    batch: &mut String,
    pods: &[Place],
    wiring: Wiring,
    find: impl Fn(Place) -> &'a Namespace,
) {
    for pod in pods {
        let link = format!("{POD_INTERFACE_PREFIX}-{}", pod.name());
        let (v4, v6) = (pod.address(Family::V4), pod.address(Family::V6));
        let gateway = gateway_of(*pod);
        *batch += &format!(
            "link add {link} type veth peer name eth0 netns {}\nlink set {link} up\n",
            find(*pod).path()
        );
        match wiring {
            Wiring::Routed => {
                *batch += &format!(
                    "addr add {}/32 dev {link}\naddr add {}/128 dev {link} nodad\nroute add {v4} dev {link}\nroute add {v6} dev {link}\n",
                    gateway.0, gateway.1
                );
            }
            // With br_netfilter a translated packet is bridged, not routed, so one to the pod that sent it goes back out of
            // the port it came in by.
            Wiring::Bridged => {
                *batch += &format!(
                    "link set {link} master {POD_BRIDGE}\nlink set {link} type bridge_slave hairpin on\n"
                );
            }
        }
    }
}
