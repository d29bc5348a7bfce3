//! Marks the first packet of every new connection to a Service, so that those are seen which never become a connection:
//! conntrack tells only of packets that passed all rules.

use std::net::IpAddr;

use ipnet::IpNet;
use nft_netlink::{
    Batch, Chain, ChainKind, Element, Expression, Family, Field, Hook, Register, Rule, Set, Table, concat,
    expression::{
        Comparison, ConntrackKey, MetaKey, conntrack_has, conntrack_state, destination, destination_port,
        destination_prefix, destination_type, equal, goto, in_set, is_local, l4proto, meta,
    },
};

use super::filter::{MARK, frame};
use crate::traffic::Spot;

/// Right after conntrack (`NF_IP_PRI_CONNTRACK` is -200), which says what is new, and before destinations are translated. So
/// what a rule before conntrack drops is not seen.
const PRIORITY: i32 = -199;
const CHAINS: [(&str, Hook); 2] = [("mark-prerouting", Hook::Prerouting), ("mark-output", Hook::Output)];
const NODE_PORTS: &str = "node-ports";
/// A set for each family: its name, the table's family that its addresses have, `NFPROTO_*`.
const SETS: [(&str, Family, u8); 2] = [("frontends-4", Family::Ip, 2), ("frontends-6", Family::Ip6, 10)];

/// What is marked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watched {
    /// Where Services answer.
    pub frontends: Vec<Spot>,
    /// Networks of cluster IPs, also of those that nobody has.
    pub service_cidrs: Vec<IpNet>,
}

impl Watched {
    /// Puts everything into a table of family `inet`; at most `rate` packets a second are marked.
    pub fn write(&self, batch: &mut Batch, table: Table<'_>, rate: u32) {
        frame(batch, table, rate);
        for (name, family, _) in SETS {
            let address = if family == Family::Ip { Field::IP_DESTINATION } else { Field::IP6_DESTINATION };
            batch.add_set(table, &Set::new(name, &[address, Field::L4_PROTOCOL, Field::DESTINATION_PORT]));
        }
        batch.add_set(table, &Set::new(NODE_PORTS, &[Field::L4_PROTOCOL, Field::DESTINATION_PORT]));
        self.fill(batch, table);
        for (name, hook) in CHAINS {
            batch.add_chain(table, &Chain::base(name, ChainKind::Filter, hook, PRIORITY));
            for rule in self.rules() {
                batch.append_rule(table, name, &rule);
            }
        }
    }

    /// Exchanges what is in the sets.
    pub fn refill(&self, batch: &mut Batch, table: Table<'_>) {
        for set in SETS.map(|(name, ..)| name).into_iter().chain([NODE_PORTS]) {
            batch.flush_set(table, set);
        }
        self.fill(batch, table);
    }

    fn fill(&self, batch: &mut Batch, table: Table<'_>) {
        for spot in &self.frontends {
            let (protocol, port) = ([spot.protocol.number()], spot.port.to_be_bytes());
            let (set, key) = match spot.at {
                Some(IpAddr::V4(at)) => (SETS[0].0, concat(&[&at.octets(), &protocol, &port])),
                Some(IpAddr::V6(at)) => (SETS[1].0, concat(&[&at.octets(), &protocol, &port])),
                None => (NODE_PORTS, concat(&[&protocol, &port])),
            };
            batch.add_elements(table, set).push(&Element::key(&key));
        }
    }

    fn rules(&self) -> Vec<Rule> {
        const R: Register = Register::R0;
        let new = || conntrack_has(ConntrackKey::State, conntrack_state::NEW, R);
        let of_family = |number: u8| [meta(MetaKey::NfProtocol, R), equal(R, [number])];
        let mut rules = Vec::new();
        for (set, family, number) in SETS {
            let words = if family == Family::Ip { 1 } else { 4 };
            let rule = Rule::new().with_all(new()).with_all(of_family(number));
            let rule = rule.with(destination(family, R)).with(l4proto(R.after(words)));
            rules.push(rule.with(destination_port(R.after(words + 1))).with(in_set(R, set)).with(goto(MARK)));
        }
        for net in &self.service_cidrs {
            let number = if net.addr().is_ipv4() { SETS[0].2 } else { SETS[1].2 };
            let prefix: Vec<Expression> =
                destination_prefix(net.addr(), net.prefix_len(), Comparison::Equal, R);
            rules.push(
                Rule::new().with_all(new()).with_all(of_family(number)).with_all(prefix).with(goto(MARK)),
            );
        }
        let local = Rule::new().with_all(new()).with(destination_type(R)).with(is_local(R)).with(l4proto(R));
        rules.push(local.with(destination_port(R.after(1))).with(in_set(R, NODE_PORTS)).with(goto(MARK)));
        rules
    }
}
