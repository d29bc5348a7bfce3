//! Rules that do not depend on any Service: marking and masquerading, forwarding, the guard of 127.0.0.0/8, and the
//! end of `KUBE-SERVICES`, which leads to the node ports.

use proxy_core::{
    environment::{Environment, NodePortAddresses},
    model::Family,
};

use crate::schema::{
    chains::{FORWARD, KUBELET_FIREWALL, MARK_MASQUERADE, NODE_PORTS, POSTROUTING, SERVICES, Table},
    counters::INVALID_DROPPED,
    found::Host,
    stamp::LOOPBACK_GUARD,
};

/// A chain and its rules as restore lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) table: Table,
    pub(crate) chain: &'static str,
    pub(crate) rules: String,
}

/// The chains that hold nothing but such rules.
pub(crate) fn fixed_chains(environment: &Environment, host: Host) -> Vec<Fixed> {
    let mark = environment.masquerade_mark;
    let random = if host.random_fully { " --random-fully" } else { "" };
    let mut chains = Vec::new();
    let mut add = |table, chain, rules: String| chains.push(Fixed { table, chain, rules });

    // nf_conntrack_tcp_be_liberal != 0 means that the operator wants out-of-window packets to pass.
    let counted = if host.counters.invalid_dropped {
        format!(" -m nfacct --nfacct-name  {INVALID_DROPPED}")
    } else {
        String::new()
    };
    let invalid = if host.tcp_be_liberal {
        String::new()
    } else {
        format!("-A {FORWARD} -m conntrack --ctstate INVALID{counted} -j DROP\n")
    };
    add(
        Table::Filter,
        FORWARD,
        format!(
            "{invalid}\
             -A {FORWARD} -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {mark:#x}/{mark:#x} -j ACCEPT\n\
             -A {FORWARD} -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        ),
    );
    if environment.localhost_node_ports {
        // route_localnet would let neighbours reach what listens on 127.0.0.1 only (CVE-2020-8558).
        add(Table::Filter, KUBELET_FIREWALL, format!("{LOOPBACK_GUARD}\n"));
    }
    // The mark is cleared, so that a packet that passes the stack again (in a tunnel) is not masqueraded again.
    add(
        Table::Nat,
        POSTROUTING,
        format!(
            "-A {POSTROUTING} -m mark ! --mark {mark:#x}/{mark:#x} -j RETURN\n\
             -A {POSTROUTING} -j MARK --set-xmark {mark:#x}/0x0\n\
             -A {POSTROUTING} -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE{random}\n"
        ),
    );
    add(
        Table::Nat,
        MARK_MASQUERADE,
        format!("-A {MARK_MASQUERADE} -j MARK --set-xmark {mark:#x}/{mark:#x}\n"),
    );
    chains
}

/// The last rules of `KUBE-SERVICES` in table `nat`.
pub(crate) fn to_node_ports(environment: &Environment) -> String {
    let rule = |destination: &str, matched: &str| {
        format!(
            "-A {SERVICES}{destination} -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\"{matched} -j {NODE_PORTS}\n"
        )
    };
    let local = " -m addrtype --dst-type LOCAL";
    match &environment.node_ports {
        NodePortAddresses::Any => match environment.family {
            Family::V6 => rule(" ! -d ::1/128", local),
            Family::V4 if environment.localhost_node_ports => rule("", local),
            Family::V4 => rule(" ! -d 127.0.0.0/8", local),
        },
        NodePortAddresses::Only(addresses) => addresses
            .iter()
            .copied()
            .chain(environment.loopback_node_ports.iter().copied())
            .map(|addr| rule(&format!(" -d {addr}/{}", if addr.is_ipv4() { 32 } else { 128 }), ""))
            .collect(),
    }
}
