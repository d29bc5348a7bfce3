//! The network of one run: a client, the node under test, and all pods behind one link, each in a namespace of its own.
//!
//! Every address of the endpoints' range is local to the pods' namespace, so every endpoint of any workload answers.
//! What the node does not translate is dropped by its routing, so a lost translation is seen as silence and leaves no
//! connection tracking entry behind that a later packet could follow.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::network::Namespace;

use super::answering::Answering;
use super::connecting::{BRIEF, open};
use super::workload::ENDPOINT_PORT;

/// Pods of the whole cluster, the client among them.
pub(crate) const CLUSTER_CIDR: &str = "10.64.0.0/10";
/// Translated by a rule of its own, for comparison.
pub(crate) const FLOOR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 80);
/// An endpoint that is reached without any translation.
pub(crate) const DIRECT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 64, 0, 1)), ENDPOINT_PORT);

const LINKS_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) node: Namespace,
    pub(crate) client: Namespace,
    _pods: Namespace,
    _answering: Answering,
}

impl Site {
    pub(crate) fn build() -> io::Result<Self> {
        let (node, client, pods) =
            (Namespace::create("node")?, Namespace::create("client")?, Namespace::create("pods")?);
        node.ip(
            &format!(
                "link add eth0 type veth peer name eth0 netns {}\nlink add ext0 type veth peer name eth0 netns {}\n\
                 link set eth0 up\nlink set ext0 up\n\
                 addr add 192.168.50.1/24 dev eth0\naddr add 10.96.0.1/24 dev ext0\n\
                 route add 10.64.0.0/11 via 192.168.50.2\nroute add default via 192.168.50.2\n\
                 route add blackhole 172.16.0.0/12\nroute add blackhole 198.51.100.0/24\n",
                pods.path(),
                client.path()
            ),
            &[
                ("net/ipv4/ip_forward", "1"),
                // Connections that were reset shall not fill the machine's connection tracking table.
                ("net/netfilter/nf_conntrack_tcp_timeout_close", "2"),
                ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "2"),
            ],
        )?;
        client.ip(
            "link set eth0 up\naddr add 10.96.0.2/24 dev eth0\nroute add default via 10.96.0.1\n",
            &[("net/ipv4/ip_local_port_range", "10000 65000")],
        )?;
        pods.ip(
            "link set eth0 up\naddr add 192.168.50.2/24 dev eth0\nroute add default via 192.168.50.1\n\
             route add local 10.64.0.0/11 dev lo\n",
            &[("net/core/somaxconn", "65535"), ("net/ipv4/tcp_max_syn_backlog", "65535")],
        )?;
        let answering = pods.run(|| Answering::start(ENDPOINT_PORT))??;
        let site = Self { node, client, _pods: pods, _answering: answering };
        site.client.run(wait_for_links)??;
        Ok(site)
    }

    /// Adds one plain translation rule, independent of all contenders.
    pub(crate) fn add_floor(&self) -> io::Result<()> {
        self.node.nft(&format!(
            "table ip scale-floor {{\nchain nat {{\ntype nat hook prerouting priority -150\n\
             ip daddr {} tcp dport {} dnat to {DIRECT}\n}}\n}}\n",
            FLOOR.ip(),
            FLOOR.port(),
        ))
    }

    pub(crate) fn remove_floor(&self) -> io::Result<()> {
        self.node.nft("delete table ip scale-floor\n")
    }
}

/// A veth that was just set up drops packets until the kernel's link watch has seen it, up to a second later.
fn wait_for_links() -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match open(DIRECT, BRIEF) {
            Ok(_) => return Ok(()),
            Err(error) if begun.elapsed() > LINKS_LIMIT => return Err(error),
            Err(_) => {}
        }
    }
}
