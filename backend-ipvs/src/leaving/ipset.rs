//! The ipsets of kube-proxy's ipvs mode: which NodePorts they name, and their end. Through netlink: the program `ipset`
//! need not be installed.

use std::{collections::HashSet, io, path::Path};

use ipvs_netlink::Protocol;
use netlink::{Error, Socket, Writer};

use crate::schema::found::NodePort;

/// `NFNL_SUBSYS_IPSET` and `enum ipset_cmd` of linux/netfilter/ipset/ip_set.h.
const DESTROY: u16 = 6 << 8 | 3;
const LIST: u16 = 6 << 8 | 7;
/// `IPSET_PROTOCOL_MIN`: every kernel since 2.6.39 takes it.
const PROTOCOL_VERSION: u8 = 6;
/// Attributes of a command, and of an entry's data.
const PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const DATA: u16 = 7;
const ENTRIES: u16 = 8;
const ENTRY_PORT: u16 = 4;
/// `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;

const ENOENT: i32 = 2;

/// Without the prefix that those of IPv6 have.
const NAMES: [&str; 18] = [
    "KUBE-LOOP-BACK",
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-LOCAL",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
    "KUBE-NODE-PORT-TCP",
    "KUBE-NODE-PORT-LOCAL-TCP",
    "KUBE-NODE-PORT-UDP",
    "KUBE-NODE-PORT-LOCAL-UDP",
    "KUBE-NODE-PORT-SCTP-HASH",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    "KUBE-HEALTH-CHECK-NODE-PORT",
    "KUBE-IPVS-IPS",
    // Of older versions.
    "KUBE-NODE-PORT-SCTP",
];

/// The longest name without its NUL (`IPSET_MAXNAMELEN`): kube-proxy cuts two of IPv6's at it.
const LONGEST_NAME: usize = 31;

fn names() -> impl Iterator<Item = String> {
    let cut = |mut name: String| {
        name.truncate(LONGEST_NAME);
        name
    };
    NAMES.iter().flat_map(move |name| [(*name).to_owned(), cut(name.replacen("KUBE-", "KUBE-6-", 1))])
}

/// `None`: the kernel has no ipsets loaded. Asking would load them.
fn open() -> Result<Option<Socket>, Error> {
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(None);
    }
    Socket::open(netlink::Protocol::Netfilter).map(Some)
}

fn command(writer: &mut Writer, name: &str) {
    writer.raw(&[0; FAMILY_HEADER]);
    writer.u8(PROTOCOL, PROTOCOL_VERSION);
    writer.str(SET_NAME, name);
}

/// Destroys every set with one of kube-proxy's names. All are tried.
pub fn destroy_all() -> io::Result<()> {
    let Some(mut socket) = open().map_err(io::Error::other)? else { return Ok(()) };
    let mut failed = Vec::new();
    for name in names() {
        match socket.request(DESTROY, 0, |writer| command(writer, &name)) {
            Err(error) if error.refused() != Some(ENOENT) => failed.push(format!("{name}: {error}")),
            _ => {}
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(io::Error::other(failed.join(", "))) }
}

/// The ports for which kube-proxy had a virtual server on each of the node's addresses, of both families.
pub fn node_ports() -> Result<HashSet<NodePort>, Error> {
    let mut ports = HashSet::new();
    let Some(mut socket) = open()? else { return Ok(ports) };
    for name in names() {
        let Some(protocol) = of_node_ports(&name) else { continue };
        let outcome = socket.dump(
            LIST,
            |writer| command(writer, &name),
            |message| {
                let entries = message.attributes(FAMILY_HEADER).get(ENTRIES);
                let entries = entries.into_iter().flat_map(|entries| entries.nested());
                let port = |entry: netlink::Attribute<'_>| entry.nested().get(ENTRY_PORT)?.be16();
                let named = entries.filter(|entry| entry.kind == DATA).filter_map(port);
                ports.extend(named.map(|port| NodePort { protocol, port }));
            },
        );
        match outcome {
            Err(error) if error.refused() != Some(ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(ports)
}

/// The protocol whose NodePorts a set names.
fn of_node_ports(name: &str) -> Option<Protocol> {
    if !name.contains("NODE-PORT") || name.contains("HEALTH") {
        return None;
    }
    let of = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
    of.into_iter().find_map(|(text, protocol)| name.split('-').any(|word| word == text).then_some(protocol))
}
