//! Our rules as the kernel's expressions.

use std::time::Duration;

use ipnet::IpNet;
use nft_netlink::{
    Expression, Family, Register, Rule as Encoded,
    expression::{
        self as step, Comparison, ConntrackKey, MetaKey, accept, and, bitwise, compare, conntrack,
        conntrack_has, conntrack_status, drop_packet, equal, goto, immediate_u32, in_set, jump, map, mark,
        meta_set, not_equal, not_in_set, or, priority, random, return_to_caller, transport, verdict_map, xor,
    },
};

use crate::schema::statement::{Part, Priority, Rule, Statement};

const FIRST: Register = Register::R0;
/// Where an address is hashed; no key reaches so far.
const SOURCE: Register = Register::R12;
const TCP: u8 = 6;
/// Where the flags stand in a TCP header.
const TCP_FLAGS: u32 = 13;

pub(crate) fn encode_rule(rule: &Rule, family: Family) -> Encoded {
    let mut encoded = Encoded::new();
    for statement in &rule.0 {
        encode(statement, family, &mut encoded.expressions);
    }
    encoded
}

/// Words of an address.
const fn words(family: Family) -> u32 {
    match family {
        Family::Ip6 => 4,
        _ => 1,
    }
}

/// Loads a key into the registers from the first on, and says which is the next free one.
fn load(key: &[Part], family: Family, out: &mut Vec<Expression>) -> Register {
    let mut used = 0;
    for part in key {
        let to = FIRST.after(used);
        used += 1;
        match part {
            Part::Source => {
                out.push(step::source(family, to));
                used += words(family) - 1;
            }
            Part::SourceNet(bits) => {
                out.push(step::source(family, to));
                let length = 4 * words(family) as usize;
                if usize::from(*bits) < 8 * length {
                    out.push(bitwise(to, to, mask(*bits, length), vec![0; length]));
                }
                used += words(family) - 1;
            }
            Part::Destination => {
                out.push(step::destination(family, to));
                used += words(family) - 1;
            }
            Part::Protocol => out.push(step::l4proto(to)),
            Part::SourcePort => out.push(step::source_port(to)),
            Part::DestinationPort => out.push(step::destination_port(to)),
            Part::Priority => out.push(priority(to)),
            Part::PriorityAnd(mask) => out.extend([priority(to), and(to, *mask)]),
            Part::Random(below) => out.push(random(*below, to)),
            Part::SourceHash { below, seed } => {
                // The source may be longer than what becomes of it: it is loaded into registers that are free.
                out.push(step::source(family, SOURCE));
                out.push(step::jhash(SOURCE, 4 * words(family), *below, *seed, to));
            }
        }
    }
    FIRST.after(used)
}

fn encode(statement: &Statement, family: Family, out: &mut Vec<Expression>) {
    match statement {
        Statement::State(states) => out.extend(conntrack_has(ConntrackKey::State, *states, FIRST)),
        Statement::NotState(states) => {
            out.extend([conntrack(ConntrackKey::State, FIRST), not_equal(FIRST, states.to_ne_bytes())]);
        }
        Statement::Translated => {
            out.extend(conntrack_has(ConntrackKey::Status, conntrack_status::DNAT, FIRST));
        }
        Statement::Source { net, not } => {
            out.push(step::source(family, FIRST));
            within(net, *not, out);
        }
        Statement::Destination { net, not } => {
            out.push(step::destination(family, FIRST));
            within(net, *not, out);
        }
        Statement::Interface { name, prefix, not } => {
            let comparison = if *not { Comparison::NotEqual } else { Comparison::Equal };
            out.push(step::input_name(FIRST));
            let name = if *prefix { format!("{name}*") } else { name.to_string() };
            out.push(step::interface(FIRST, comparison, &name));
        }
        Statement::ProtocolIs(protocol) => {
            out.extend([step::l4proto(FIRST), equal(FIRST, [protocol.number()])])
        }
        Statement::TcpFlagsClear(flags) => out.extend([
            step::l4proto(FIRST),
            equal(FIRST, [TCP]),
            transport(TCP_FLAGS, 1, FIRST),
            bitwise(FIRST, FIRST, [*flags], [0]),
            equal(FIRST, [0]),
        ]),
        Statement::SourceIsOurs => out.extend([step::source_type(FIRST), step::is_local(FIRST)]),
        Statement::DestinationIsOurs => out.extend([step::destination_type(FIRST), step::is_local(FIRST)]),
        Statement::In { key, set, not } => {
            load(key, family, out);
            let set = &*set.to_string();
            out.push(if *not { not_in_set(FIRST, set) } else { in_set(FIRST, set) });
        }
        Statement::MarkHas(bit) => out.extend([mark(FIRST), and(FIRST, *bit), not_equal(FIRST, [0; 4])]),
        Statement::PriorityIs { mask, value, not } => {
            let comparison = if *not { Comparison::NotEqual } else { Comparison::Equal };
            out.extend([priority(FIRST), and(FIRST, *mask), compare(FIRST, comparison, value.to_ne_bytes())]);
        }
        Statement::SetPriority(to) => {
            set_priority(to, family, out);
            out.push(meta_set(MetaKey::Priority, FIRST));
        }
        Statement::SetMarkBit(bit) => {
            out.extend([mark(FIRST), or(FIRST, *bit), meta_set(MetaKey::Mark, FIRST)]);
        }
        Statement::FlipMarkBit(bit) => {
            out.extend([mark(FIRST), xor(FIRST, *bit), meta_set(MetaKey::Mark, FIRST)]);
        }
        Statement::UpdateClient { set, mask, timeout } => {
            let data = load(&[Part::Source, Part::PriorityAnd(*mask)], family, out);
            let timeout = Duration::from_secs(u64::from(*timeout));
            out.push(priority(data));
            out.push(step::update(&set.to_string(), FIRST, Some(data), Some(timeout)));
        }
        Statement::DeleteClient { set } => {
            let data = load(&[Part::Source, Part::Priority], family, out);
            out.push(priority(data));
            out.push(step::delete(&set.to_string(), FIRST, Some(data)));
        }
        Statement::Count => out.push(Expression::Counter),
        Statement::Dispatch { key, map } => {
            load(key, family, out);
            out.push(verdict_map(FIRST, &*map.to_string()));
        }
        Statement::TranslateTo { key, map: name } => {
            load(key, family, out);
            out.push(map(FIRST, &*name.to_string(), FIRST));
            out.push(step::dnat(family, FIRST, FIRST.after(words(family))));
        }
        Statement::Masquerade => out.push(step::masquerade_fully_random()),
        Statement::Reject { reset: false } => out.push(step::reject(family)),
        Statement::Reject { reset: true } => {
            out.extend([step::l4proto(FIRST), equal(FIRST, [TCP]), step::reject_with_reset()]);
        }
        Statement::Accept => out.push(accept()),
        Statement::Drop => out.push(drop_packet()),
        Statement::Return => out.push(return_to_caller()),
        Statement::Jump(chain) => out.push(jump(&chain.to_string())),
        Statement::Goto(chain) => out.push(goto(&chain.to_string())),
    }
}

fn set_priority(to: &Priority, family: Family, out: &mut Vec<Expression>) {
    match to {
        Priority::Zero => out.push(immediate_u32(FIRST, 0)),
        Priority::Or(bits) => out.extend([priority(FIRST), or(FIRST, *bits)]),
        Priority::And(bits) => out.extend([priority(FIRST), and(FIRST, *bits)]),
        Priority::AndOr { and: mask, or: bits } => out.extend([
            priority(FIRST),
            bitwise(FIRST, FIRST, (mask & !bits).to_ne_bytes(), bits.to_ne_bytes()),
        ]),
        Priority::Found { key, map: name } => {
            load(key, family, out);
            out.push(map(FIRST, &*name.to_string(), FIRST));
        }
    }
}

/// As many leading ones, in as many bytes.
fn mask(bits: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| !(0xff_u16 >> usize::from(bits).saturating_sub(8 * at).min(8)) as u8).collect()
}

/// The address in the first register lies in this network.
fn within(net: &IpNet, not: bool, out: &mut Vec<Expression>) {
    let comparison = if not { Comparison::NotEqual } else { Comparison::Equal };
    if net.prefix_len() < net.max_prefix_len() {
        let (mask, none) = match net {
            IpNet::V4(net) => (net.netmask().octets().to_vec(), vec![0; 4]),
            IpNet::V6(net) => (net.netmask().octets().to_vec(), vec![0; 16]),
        };
        out.push(bitwise(FIRST, FIRST, mask, none));
    }
    let network = match net.network() {
        std::net::IpAddr::V4(addr) => addr.octets().to_vec(),
        std::net::IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    out.push(compare(FIRST, comparison, network));
}
