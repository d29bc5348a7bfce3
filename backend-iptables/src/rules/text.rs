//! One rule as text, its parts in the order in which `iptables-save` prints them.

use std::{borrow::Cow, fmt::Write as _, net::IpAddr, sync::LazyLock};

use ipnet::IpNet;
use proxy_core::model::Protocol;

use crate::chains::ServiceChain;

/// A rule in the making, written as it is made: addresses, interface and protocol come first, in this order, then
/// matches.
pub(super) struct Rule<'a> {
    text: &'a mut String,
    protocol: Option<Protocol>,
}

impl<'a> Rule<'a> {
    pub(super) fn new(text: &'a mut String, chain: ServiceChain) -> Self {
        text.push_str("-A ");
        chain.write(text);
        Self { text, protocol: None }
    }

    pub(super) fn in_fixed(text: &'a mut String, chain: &str) -> Self {
        Self { text, protocol: None }.put(&["-A ", chain])
    }

    fn put(self, parts: &[&str]) -> Self {
        for part in parts {
            self.text.push_str(part);
        }
        self
    }

    pub(super) fn source(self, network: &str) -> Self {
        self.put(&[" -s ", network])
    }

    pub(super) fn not_source(self, network: &str) -> Self {
        self.put(&[" ! -s ", network])
    }

    pub(super) fn destination(self, network: &str) -> Self {
        self.put(&[" -d ", network])
    }

    pub(super) fn source_host(self, addr: IpAddr) -> Self {
        self.host(" -s ", addr)
    }

    pub(super) fn destination_host(self, addr: IpAddr) -> Self {
        self.host(" -d ", addr)
    }

    fn host(self, option: &str, addr: IpAddr) -> Self {
        write!(self.text, "{option}{addr}/{}", bits(addr)).expect("a String takes everything");
        self
    }

    pub(super) fn interface(self, name: &str) -> Self {
        self.put(&[" -i ", name])
    }

    pub(super) fn not_interface(self, name: &str) -> Self {
        self.put(&[" ! -i ", name])
    }

    pub(super) fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self.put(&[" -p ", protocol.as_str()])
    }

    /// The parts together must hold a blank or a slash: `iptables-save` leaves out the quotes of simpler ones.
    pub(super) fn comment(self, parts: &[&str]) -> Self {
        self.put(&[" -m comment --comment \""]).put(parts).put(&["\""])
    }

    pub(super) fn more(self, matched: &str) -> Self {
        self.put(&[" ", matched])
    }

    /// The protocol's own match without a condition: kube-proxy writes it, so it is there.
    pub(super) fn protocol_match(self) -> Self {
        match self.protocol {
            Some(protocol) => self.put(&[" -m ", protocol.as_str()]),
            None => self,
        }
    }

    /// The destination port, of the protocol given before.
    pub(super) fn port(self, port: u16) -> Self {
        let rule = self.protocol_match();
        write!(rule.text, " --dport {port}").expect("a String takes everything");
        rule
    }

    pub(super) fn goto(self, chain: ServiceChain) {
        self.text.push_str(" -j ");
        chain.write(self.text);
        self.text.push('\n');
    }

    pub(super) fn jump(self, target: &[&str]) {
        self.put(&[" -j "]).put(target).end();
    }

    /// Without a target: it only counts.
    pub(super) fn end(self) {
        self.text.push('\n');
    }
}

/// `address/32` or `/128`.
pub(super) fn host(addr: IpAddr) -> String {
    format!("{addr}/{}", bits(addr))
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

pub(super) fn network(net: &IpNet) -> String {
    net.trunc().to_string()
}

/// `address:port`, an IPv6 address in brackets.
pub(super) fn socket(addr: IpAddr, port: u16) -> String {
    let mut text = String::with_capacity(if addr.is_ipv4() { 21 } else { 47 });
    match addr {
        IpAddr::V4(addr) => write!(text, "{addr}:{port}"),
        IpAddr::V6(addr) => write!(text, "[{addr}]:{port}"),
    }
    .expect("a String takes everything");
    text
}

/// The mask under which a `recent` list remembers whole addresses.
pub(super) fn full_mask(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "255.255.255.255" } else { "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" }
}

/// Matches one packet in `left`. kube-proxy gives ten digits; the kernel keeps a fraction of 2^31, and that fraction is
/// printed with eleven (xt_statistic, libxt_statistic.c).
pub(super) fn one_in(left: usize) -> Cow<'static, str> {
    /// Most Services have few endpoints, and digits take time.
    static FEW: LazyLock<[String; 64]> =
        LazyLock::new(|| std::array::from_fn(|left| write_one_in(left.max(1))));
    FEW.get(left).map_or_else(|| write_one_in(left).into(), |text| text.as_str().into())
}

fn write_one_in(left: usize) -> String {
    const WHOLE: f64 = 2_147_483_648.0;
    let given = (1e10 / left as f64).round() / 1e10;
    let kept = (given * WHOLE).round() / WHOLE;
    format!("-m statistic --mode random --probability {kept:.11}")
}
