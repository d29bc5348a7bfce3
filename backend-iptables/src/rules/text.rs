//! One rule as text, its parts in the order in which `iptables-save` prints them.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxy_core::model::Protocol;

use crate::chains::ServiceChain;

/// A rule in the making. Addresses, interface and protocol come first, in this order, then matches as they are added.
pub(super) struct Match {
    head: String,
    source: String,
    destination: String,
    interface: String,
    matches: String,
    protocol: Option<Protocol>,
}

impl Match {
    pub(super) fn new(chain: ServiceChain) -> Self {
        let mut head = String::with_capacity(320);
        head.push_str("-A ");
        chain.write(&mut head);
        Self::with_head(head)
    }

    pub(super) fn in_fixed(chain: &str) -> Self {
        let mut head = String::with_capacity(320);
        push(&mut head, &["-A ", chain]);
        Self::with_head(head)
    }

    fn with_head(head: String) -> Self {
        Self {
            head,
            source: String::new(),
            destination: String::new(),
            interface: String::new(),
            matches: String::new(),
            protocol: None,
        }
    }

    pub(super) fn source(mut self, network: &str) -> Self {
        push(&mut self.source, &[" -s ", network]);
        self
    }

    pub(super) fn not_source(mut self, network: &str) -> Self {
        push(&mut self.source, &[" ! -s ", network]);
        self
    }

    pub(super) fn destination(self, addr: Option<IpAddr>) -> Self {
        match addr {
            Some(addr) => self.destination_network(&host(addr)),
            None => self,
        }
    }

    pub(super) fn destination_network(mut self, network: &str) -> Self {
        push(&mut self.destination, &[" -d ", network]);
        self
    }

    pub(super) fn interface(mut self, name: &str) -> Self {
        push(&mut self.interface, &[" -i ", name]);
        self
    }

    pub(super) fn not_interface(mut self, name: &str) -> Self {
        push(&mut self.interface, &[" ! -i ", name]);
        self
    }

    pub(super) fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Must hold a blank or a slash: `iptables-save` leaves out the quotes of simpler ones.
    pub(super) fn comment(mut self, comment: &str) -> Self {
        push(&mut self.matches, &[" -m comment --comment \"", comment, "\""]);
        self
    }

    pub(super) fn more(mut self, matched: &str) -> Self {
        push(&mut self.matches, &[" ", matched]);
        self
    }

    /// The protocol's own match without a condition: kube-proxy writes it, so it is there.
    pub(super) fn protocol_match(mut self) -> Self {
        if let Some(protocol) = self.protocol {
            push(&mut self.matches, &[" -m ", protocol.as_str()]);
        }
        self
    }

    /// The destination port, of the protocol given before.
    pub(super) fn port(self, port: u16) -> Self {
        self.protocol_match().more("--dport").more(&port.to_string())
    }

    pub(super) fn goto(self, text: &mut String, chain: ServiceChain) {
        self.write(text);
        text.push_str(" -j ");
        chain.write(text);
        text.push('\n');
    }

    pub(super) fn jump(self, text: &mut String, target: &str) {
        self.write(text);
        push(text, &[" -j ", target, "\n"]);
    }

    /// Without a target: it only counts.
    pub(super) fn end(self, text: &mut String) {
        self.write(text);
        text.push('\n');
    }

    fn write(&self, text: &mut String) {
        push(text, &[&self.head, &self.source, &self.destination, &self.interface]);
        if let Some(protocol) = self.protocol {
            push(text, &[" -p ", protocol.as_str()]);
        }
        text.push_str(&self.matches);
    }
}

fn push(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}

/// `address/32` or `/128`.
pub(super) fn host(addr: IpAddr) -> String {
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    format!("{addr}/{bits}")
}

pub(super) fn network(net: &IpNet) -> String {
    net.trunc().to_string()
}

/// `address:port`, an IPv6 address in brackets.
pub(super) fn socket(addr: IpAddr, port: u16) -> String {
    SocketAddr::new(addr, port).to_string()
}

/// The mask under which a `recent` list remembers whole addresses.
pub(super) fn full_mask(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "255.255.255.255" } else { "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" }
}

/// Matches one packet in `left`. kube-proxy gives ten digits; the kernel keeps a fraction of 2^31, and that fraction is
/// printed with eleven (xt_statistic, libxt_statistic.c).
pub(super) fn one_in(left: usize) -> String {
    const WHOLE: f64 = 2_147_483_648.0;
    let given = (1e10 / left as f64).round() / 1e10;
    let kept = (given * WHOLE).round() / WHOLE;
    format!("-m statistic --mode random --probability {kept:.11}")
}
