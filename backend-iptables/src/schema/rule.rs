//! One rule as text, its parts in the order in which `iptables-save` prints them.

use std::{borrow::Cow, fmt::Write as _, net::IpAddr, sync::LazyLock};

use ipnet::IpNet;
use proxy_core::model::Protocol;

use crate::schema::chains::ServiceChain;

/// A rule in the making, written as it is made: addresses, interface and protocol come first, in this order, then
/// matches.
pub(crate) struct Rule<'a> {
    text: &'a mut String,
    protocol: Option<Protocol>,
}

impl<'a> Rule<'a> {
    pub(crate) fn new(text: &'a mut String, chain: ServiceChain) -> Self {
        text.push_str("-A ");
        chain.write(text);
        Self { text, protocol: None }
    }

    pub(crate) fn in_fixed(text: &'a mut String, chain: &str) -> Self {
        Self { text, protocol: None }.put(&["-A ", chain])
    }

    fn put(self, parts: &[&str]) -> Self {
        for part in parts {
            self.text.push_str(part);
        }
        self
    }

    pub(crate) fn source(self, network: &str) -> Self {
        self.put(&[" -s ", network])
    }

    pub(crate) fn not_source(self, network: &str) -> Self {
        self.put(&[" ! -s ", network])
    }

    pub(crate) fn destination(self, network: &str) -> Self {
        self.put(&[" -d ", network])
    }

    pub(crate) fn source_host(self, addr: IpAddr) -> Self {
        self.host(" -s ", addr)
    }

    pub(crate) fn destination_host(self, addr: IpAddr) -> Self {
        self.host(" -d ", addr)
    }

    fn host(self, option: &str, addr: IpAddr) -> Self {
        self.text.push_str(option);
        write_host(self.text, addr);
        self
    }

    pub(crate) fn interface(self, name: &str) -> Self {
        self.put(&[" -i ", name])
    }

    pub(crate) fn not_interface(self, name: &str) -> Self {
        self.put(&[" ! -i ", name])
    }

    pub(crate) fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self.put(&[" -p ", protocol.as_str()])
    }

    /// The parts together must hold a blank or a slash: `iptables-save` leaves out the quotes of simpler ones.
    pub(crate) fn comment(self, parts: &[&str]) -> Self {
        self.put(&[" -m comment --comment \""]).put(parts).put(&["\""])
    }

    pub(crate) fn more(self, matched: &str) -> Self {
        self.put(&[" ", matched])
    }

    /// The protocol's own match without a condition: kube-proxy writes it, so it is there.
    pub(crate) fn protocol_match(self) -> Self {
        match self.protocol {
            Some(protocol) => self.put(&[" -m ", protocol.as_str()]),
            None => self,
        }
    }

    /// The destination port, of the protocol given before.
    pub(crate) fn port(self, port: u16) -> Self {
        let rule = self.protocol_match().put(&[" --dport "]);
        write_number(rule.text, port);
        rule
    }

    pub(crate) fn goto(self, chain: ServiceChain) {
        self.text.push_str(" -j ");
        chain.write(self.text);
        self.text.push('\n');
    }

    pub(crate) fn jump(self, target: &[&str]) {
        self.put(&[" -j "]).put(target).end();
    }

    /// Without a target: it only counts.
    pub(crate) fn end(self) {
        self.text.push('\n');
    }
}

/// `address/32` or `/128`.
pub(crate) fn host(addr: IpAddr) -> String {
    let mut text = String::with_capacity(44);
    write_host(&mut text, addr);
    text
}

fn write_host(text: &mut String, addr: IpAddr) {
    write_address(text, addr);
    text.push_str(if addr.is_ipv4() { "/32" } else { "/128" });
}

/// Addresses and ports are a third of the work of writing all rules, and most of that was `fmt`.
fn write_address(text: &mut String, addr: IpAddr) {
    match addr {
        IpAddr::V4(addr) => {
            for (at, octet) in addr.octets().into_iter().enumerate() {
                if at > 0 {
                    text.push('.');
                }
                write_number(text, octet.into());
            }
        }
        IpAddr::V6(addr) => write!(text, "{addr}").expect("a String takes everything"),
    }
}

fn write_number(text: &mut String, number: u16) {
    let mut unit = 1;
    while number / unit >= 10 {
        unit *= 10;
    }
    while unit > 0 {
        let digit = u8::try_from(number / unit % 10).expect("less than 10");
        text.push(char::from(b'0' + digit));
        unit /= 10;
    }
}

pub(crate) fn network(net: &IpNet) -> String {
    net.trunc().to_string()
}

/// `address:port`, an IPv6 address in brackets.
pub(crate) fn socket(addr: IpAddr, port: u16) -> String {
    let mut text = String::with_capacity(if addr.is_ipv4() { 21 } else { 47 });
    let brackets = if addr.is_ipv4() { ["", ":"] } else { ["[", "]:"] };
    text.push_str(brackets[0]);
    write_address(&mut text, addr);
    text.push_str(brackets[1]);
    write_number(&mut text, port);
    text
}

/// The mask under which a `recent` list remembers whole addresses.
pub(crate) fn full_mask(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "255.255.255.255" } else { "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" }
}

/// Matches one packet in `left`. kube-proxy gives ten digits; the kernel keeps a fraction of 2^31, and that fraction is
/// printed with eleven (xt_statistic, libxt_statistic.c).
pub(crate) fn one_in(left: usize) -> Cow<'static, str> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_written_as_usual() {
        for at in ["0.0.0.0:0", "10.244.9.100:7", "255.1.20.3:65535", "[2001:db8::1]:10", "[::]:1000"] {
            let addr: std::net::SocketAddr = at.parse().expect("an address and port");
            assert_eq!(socket(addr.ip(), addr.port()), at);
        }
        assert_eq!(host(IpAddr::from([10, 0, 0, 255])), "10.0.0.255/32");
    }
}
