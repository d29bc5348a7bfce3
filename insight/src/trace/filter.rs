//! Which packets to trace, and the rules that mark them.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use netlink::{Socket, conntrack::protocol};
use nft_netlink::{
    Batch, Chain, ChainKind, Expression, Hook, Register, Rule, Table,
    expression::{
        Comparison, MetaKey, and, compare, destination_port, destination_prefix, equal, goto, l4proto,
        limit_per_second, meta, source_port, source_prefix, trace, transport,
    },
    list,
};

use crate::traffic::Spot;

/// Before and after everything else; nf_tables takes any number.
const FIRST: i32 = -2_000_000_000;
const LAST: i32 = 2_000_000_000;
/// The chain that marks what is to be traced.
pub const MARK: &str = "mark";
/// The last chain at the hook `input`.
pub const END_INPUT: &str = "end-input";
/// The last chain at the hook `postrouting`.
pub const END_POSTROUTING: &str = "end-postrouting";
/// The first chain at each hook, so that it is told when a packet gets there; the first two mark packets.
const FIRST_CHAINS: [(&str, Hook); 5] = [
    ("prerouting", Hook::Prerouting),
    ("output", Hook::Output),
    ("input", Hook::Input),
    ("forward", Hook::Forward),
    ("postrouting", Hook::Postrouting),
];
const LAST_CHAINS: [(&str, Hook); 2] = [(END_INPUT, Hook::Input), (END_POSTROUTING, Hook::Postrouting)];
/// A Service with more frontends than that is asked for by one of them: each is a rule that every packet passes.
pub const MOST_FRONTENDS: usize = 256;

/// Which packets are traced: those that fit everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Who sends.
    pub source: Option<IpNet>,
    /// To whom, as the packet has it when it comes in.
    pub destination: Option<IpNet>,
    /// To one of these: the frontends of a Service.
    pub frontends: Vec<Spot>,
    /// IP's number.
    pub protocol: Option<u8>,
    /// The destination port.
    pub port: Option<u16>,
    /// The source port.
    pub source_port: Option<u16>,
    /// Not only the packets that begin a connection (TCP's SYN, SCTP's INIT).
    pub every_packet: bool,
}

/// Why a filter is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// It would trace everything.
    TooWide,
    /// Addresses of both families: nothing fits.
    Families,
    /// A Service with so many frontends.
    ManyFrontends(usize),
    /// A port with a protocol that has none.
    NoPorts(u8),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooWide => f.write_str(
                "this would trace every packet of the node; name a Service, an address or network (--from, --to), or a \
                 port",
            ),
            Self::Families => f.write_str("an IPv4 address and an IPv6 address: no packet has both"),
            Self::ManyFrontends(count) => write!(
                f,
                "the Service answers at {count} addresses and ports, more than {MOST_FRONTENDS}; name one of them \
                 (--to, --port)"
            ),
            Self::NoPorts(number) => write!(f, "protocol {number} has no ports"),
        }
    }
}

impl std::error::Error for Unfit {}

/// The chain [`MARK`], which counts what comes there and marks no more than `rate` packets a second, and the chains that tell
/// where a packet is.
pub(super) fn frame(batch: &mut Batch, table: Table<'_>, rate: u32) {
    batch.add_chain(table, &Chain::regular(MARK));
    batch.append_rule(table, MARK, &Rule::new().with(Expression::Counter).comment("what fits"));
    let mark = Rule::new().with(limit_per_second(rate)).with_all(trace(Register::R0));
    batch.append_rule(table, MARK, &mark.comment("what is traced"));
    for (priority, chains) in [(FIRST, &FIRST_CHAINS[..]), (LAST, &LAST_CHAINS)] {
        for (name, hook) in chains {
            batch.add_chain(table, &Chain::base(name, ChainKind::Filter, *hook, priority));
        }
    }
}

/// How many packets came to the chain [`MARK`]: those marked, and those beyond the rate.
pub fn fitting(socket: &mut Socket, table: Table<'_>) -> Result<u64, netlink::Error> {
    let rules = list::rules(socket, table, Some(MARK))?;
    Ok(rules.first().map_or(0, |rule| rule.counted))
}

impl Filter {
    /// Whether it may be used.
    pub fn check(&self) -> Result<(), Unfit> {
        let narrow = |net: &Option<IpNet>| net.is_some_and(|net| net.prefix_len() > 0);
        let named = narrow(&self.source) || narrow(&self.destination) || !self.frontends.is_empty();
        if !named && self.port.is_none() && self.source_port.is_none() {
            return Err(Unfit::TooWide);
        }
        if self.port.or(self.source_port).is_some()
            && let Some(number) = self.protocol.filter(|number| !has_ports(*number))
        {
            return Err(Unfit::NoPorts(number));
        }
        if self.frontends.len() > MOST_FRONTENDS {
            return Err(Unfit::ManyFrontends(self.frontends.len()));
        }
        if self.families().is_empty() { Err(Unfit::Families) } else { Ok(()) }
    }

    /// The families of the packets that can fit: true for IPv4.
    fn families(&self) -> Vec<bool> {
        let of = |net: &Option<IpNet>| net.map(|net| net.addr().is_ipv4());
        let fits = |v4: &bool| {
            of(&self.source).is_none_or(|is| is == *v4)
                && of(&self.destination).is_none_or(|is| is == *v4)
                && (self.frontends.is_empty()
                    || self.frontends.iter().any(|spot| spot.at.is_none_or(|at| at.is_ipv4() == *v4)))
        };
        [true, false].into_iter().filter(fits).collect()
    }

    /// Puts everything into a table of family `inet`: at most `rate` packets a second are marked, before any other chain.
    pub fn write(&self, batch: &mut Batch, table: Table<'_>, rate: u32) {
        frame(batch, table, rate);
        for (name, _) in
            FIRST_CHAINS.iter().filter(|(_, hook)| matches!(hook, Hook::Prerouting | Hook::Output))
        {
            for rule in self.rules() {
                batch.append_rule(table, name, &rule);
            }
        }
    }

    /// One rule for each family, frontend and kind of first packet.
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for v4 in self.families() {
            let spots: Vec<Option<Spot>> = if self.frontends.is_empty() {
                vec![None]
            } else {
                let fits = |spot: &&Spot| {
                    spot.at.is_none_or(|at| at.is_ipv4() == v4)
                        && self.protocol.is_none_or(|protocol| protocol == spot.protocol.number())
                        && self.port.is_none_or(|port| port == spot.port)
                };
                self.frontends.iter().filter(fits).copied().map(Some).collect()
            };
            for spot in spots {
                self.push_rules(v4, spot, &mut rules);
            }
        }
        rules
    }

    fn push_rules(&self, v4: bool, spot: Option<Spot>, rules: &mut Vec<Rule>) {
        const R: Register = Register::R0;
        /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
        const FAMILIES: [u8; 2] = [2, 10];
        let mut common = vec![meta(MetaKey::NfProtocol, R), equal(R, [FAMILIES[usize::from(!v4)]])];
        for (net, is_source) in [(self.source, true), (self.destination, false)] {
            let Some(net) = net.filter(|net| net.prefix_len() > 0) else { continue };
            let prefix = if is_source { source_prefix } else { destination_prefix };
            common.extend(prefix(net.addr(), net.prefix_len(), Comparison::Equal, R));
        }
        let mut to_port = self.port;
        let mut protocol = self.protocol;
        if let Some(spot) = spot {
            protocol = Some(spot.protocol.number());
            to_port = Some(spot.port);
            if let Some(at) = spot.at {
                let bits = if at.is_ipv4() { 32 } else { 128 };
                common.extend(destination_prefix(at, bits, Comparison::Equal, R));
            } else {
                common.push(nft_netlink::expression::destination_type(R));
                common.push(nft_netlink::expression::is_local(R));
            }
        }
        let ports = || {
            let mut steps = Vec::new();
            if let Some(port) = self.source_port {
                steps.extend([source_port(R), equal(R, port.to_be_bytes())]);
            }
            if let Some(port) = to_port {
                steps.extend([destination_port(R), equal(R, port.to_be_bytes())]);
            }
            steps
        };
        let protocols: Vec<u8> = match protocol {
            Some(one) => vec![one],
            None if to_port.or(self.source_port).is_some() => {
                vec![protocol::TCP, protocol::UDP, protocol::SCTP]
            }
            None => Vec::new(),
        };
        for one in protocols {
            let mut steps = common.clone();
            steps.extend([l4proto(R), equal(R, [one])]);
            steps.extend(ports());
            steps.extend(self.begins_connection(one));
            steps.push(goto(MARK));
            rules.push(steps.into_iter().collect());
        }
        if protocol.is_none() && to_port.or(self.source_port).is_none() {
            // Of TCP and SCTP the first packets, of everything else all.
            if self.every_packet {
                common.push(goto(MARK));
                rules.push(common.into_iter().collect());
                return;
            }
            for one in [protocol::TCP, protocol::SCTP] {
                let mut steps = common.clone();
                steps.extend([l4proto(R), equal(R, [one])]);
                steps.extend(self.begins_connection(one));
                steps.push(goto(MARK));
                rules.push(steps.into_iter().collect());
            }
            common.push(l4proto(R));
            for one in [protocol::TCP, protocol::SCTP] {
                common.push(compare(R, Comparison::NotEqual, [one]));
            }
            common.push(goto(MARK));
            rules.push(common.into_iter().collect());
        }
    }

    fn begins_connection(&self, of: u8) -> Vec<Expression> {
        const R: Register = Register::R0;
        match of {
            _ if self.every_packet => Vec::new(),
            // SYN without ACK. The flags are loaded into the lowest byte of a register that is 0 otherwise.
            protocol::TCP => vec![
                transport(13, 1, R),
                and(R, u32::from_ne_bytes([0x12, 0, 0, 0])),
                equal(R, 0x02_u32.to_le_bytes()),
            ],
            // The first chunk is INIT.
            protocol::SCTP => vec![transport(12, 1, R), equal(R, [1])],
            _ => Vec::new(),
        }
    }
}

const fn has_ports(of: u8) -> bool {
    matches!(of, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// An address, a network, or either with a port: `10.0.0.1`, `10.0.0.0/8`, `10.0.0.1:80`, `fd00::1`, `[fd00::1]:80`.
pub fn parse_address(text: &str) -> Result<(IpNet, Option<u16>), String> {
    let bad = || {
        format!("{text:?} is no address such as 10.0.0.1, 10.0.0.1:80, 10.0.0.0/8, fd00::1 or [fd00::1]:80")
    };
    let single = |text: &str| -> Option<IpNet> {
        text.parse::<IpAddr>().ok().map(IpNet::from).or_else(|| text.parse().ok())
    };
    if let Some(net) = single(text) {
        return Ok((net.trunc(), None));
    }
    let (address, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let address = match address.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or_else(bad)?,
        None => address,
    };
    let net = single(address).ok_or_else(bad)?;
    Ok((net.trunc(), Some(port.parse().map_err(|_| bad())?)))
}

#[cfg(test)]
mod tests {
    use proxy_core::model::Protocol;

    use super::*;

    fn net(text: &str) -> Option<IpNet> {
        Some(parse_address(text).expect(text).0)
    }

    fn texts(filter: &Filter) -> Vec<String> {
        filter.rules().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_would_trace_everything_is_refused() {
        let all = Filter { every_packet: true, ..Filter::default() };
        assert_eq!(all.check(), Err(Unfit::TooWide));
        let everybody = Filter { source: net("0.0.0.0/0"), destination: net("::/0"), ..Filter::default() };
        assert_eq!(everybody.check(), Err(Unfit::TooWide));
        let tcp = Filter { protocol: Some(protocol::TCP), ..Filter::default() };
        assert_eq!(tcp.check(), Err(Unfit::TooWide));
        assert_eq!(Filter { port: Some(80), ..Filter::default() }.check(), Ok(()));
        let mixed = Filter { source: net("10.0.0.1"), destination: net("fd00::1"), ..Filter::default() };
        assert_eq!(mixed.check(), Err(Unfit::Families));
        let ping = Filter { port: Some(80), protocol: Some(protocol::ICMP), ..Filter::default() };
        assert_eq!(ping.check(), Err(Unfit::NoPorts(1)));
        let spot = Spot { protocol: Protocol::Tcp, at: Some([10, 0, 0, 1].into()), port: 80 };
        let many = Filter { frontends: vec![spot; 257], ..Filter::default() };
        assert_eq!(many.check(), Err(Unfit::ManyFrontends(257)));
    }

    #[test]
    fn a_filter_becomes_rules_of_the_families_and_protocols_that_can_fit() {
        let one = Filter {
            source: net("10.1.0.0/16"),
            destination: net("172.30.0.1"),
            protocol: Some(protocol::TCP),
            port: Some(80),
            ..Filter::default()
        };
        assert_eq!(
            texts(&one),
            ["r0 = meta NfProtocol; r0 == 0x02; r0 = Network 12+4; r0 = r0 & 0xffff0000 ^ 0x00000000; \
              r0 == 0x0a010000; r0 = Network 16+4; r0 == 0xac1e0001; r0 = meta L4Protocol; r0 == 0x06; \
              r0 = Transport 2+2; r0 == 0x0050; r0 = Transport 13+1; r0 = r0 & 0x12000000 ^ 0x00000000; \
              r0 == 0x02000000; goto mark"]
        );
        let port = Filter { port: Some(53), ..Filter::default() };
        assert_eq!(texts(&port).len(), 6, "two families, three protocols");
        let v6 = Filter { destination: net("fd00::1"), ..Filter::default() };
        assert_eq!(texts(&v6).len(), 3, "first packets of TCP and SCTP, and all others");
        assert!(texts(&v6).iter().all(|rule| rule.contains("r0 == 0x0a;")));
        let every = Filter { every_packet: true, ..v6 };
        assert_eq!(texts(&every).len(), 1);
    }

    #[test]
    fn a_service_is_its_frontends() {
        let filter = Filter {
            frontends: vec![
                Spot { protocol: Protocol::Tcp, at: Some([172, 30, 0, 1].into()), port: 80 },
                Spot { protocol: Protocol::Tcp, at: None, port: 30_080 },
            ],
            ..Filter::default()
        };
        assert_eq!(filter.check(), Ok(()));
        let texts = texts(&filter);
        assert_eq!(texts.len(), 3, "the node port in both families");
        assert!(texts[1].contains("fib AddressType"), "{}", texts[1]);
    }

    #[test]
    fn addresses_are_read_with_and_without_port_and_length() {
        for (text, net, port) in [
            ("10.0.0.1", "10.0.0.1/32", None),
            ("10.0.0.1:80", "10.0.0.1/32", Some(80)),
            ("10.0.0.1/8", "10.0.0.0/8", None),
            ("fd00::1", "fd00::1/128", None),
            ("[fd00::1]:80", "fd00::1/128", Some(80)),
        ] {
            let (found, of) = parse_address(text).expect(text);
            assert_eq!((found.to_string().as_str(), of), (net, port), "{text}");
        }
        for text in ["web", "10.0.0.1:", "10.0.0.1:99999", "[fd00::1:80", ""] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }
}
