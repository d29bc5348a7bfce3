//! Short forms, so that a rule reads like its text in nft's language.

use std::{net::IpAddr, time::Duration};

use super::{
    ADDRESS_TYPE_LOCAL, Comparison, ConntrackKey, Expression, FibResult, LimitKind, MetaKey, NatKind,
    NumberKind, PayloadBase, Register, Reject, SetName, SetUpdate, Shift, Verdict, fib_flags, nat_flags,
};
use crate::Family;

pub const fn accept() -> Expression {
    Expression::Verdict(Verdict::Accept)
}

/// The verdict `drop`.
pub const fn drop_packet() -> Expression {
    Expression::Verdict(Verdict::Drop)
}

/// The verdict `return`.
pub const fn return_to_caller() -> Expression {
    Expression::Verdict(Verdict::Return)
}

pub fn jump(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Jump(chain.into()))
}

pub fn goto(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.into()))
}

/// A constant, as the bytes that are to stand in the register.
pub fn immediate(to: Register, value: impl AsRef<[u8]>) -> Expression {
    Expression::Immediate { to, value: value.as_ref().into() }
}

/// A constant in the host's byte order: marks, priorities.
pub fn immediate_u32(to: Register, value: u32) -> Expression {
    immediate(to, value.to_ne_bytes())
}

pub const fn meta(key: MetaKey, to: Register) -> Expression {
    Expression::Meta { key, to }
}

pub const fn meta_set(key: MetaKey, from: Register) -> Expression {
    Expression::MetaSet { key, from }
}

/// `meta nftrace set 1`. Two steps, on this register.
pub fn trace(register: Register) -> [Expression; 2] {
    [immediate(register, [1]), meta_set(MetaKey::Trace, register)]
}

/// `limit rate` so many packets a second, with as many more at once.
pub const fn limit_per_second(packets: u32) -> Expression {
    Expression::Limit {
        kind: LimitKind::Packets,
        rate: packets as u64,
        per: Duration::from_secs(1),
        burst: packets,
        over: false,
    }
}

/// `meta l4proto`, one byte.
pub const fn l4proto(to: Register) -> Expression {
    meta(MetaKey::L4Protocol, to)
}

/// `meta mark`, in the host's byte order.
pub const fn mark(to: Register) -> Expression {
    meta(MetaKey::Mark, to)
}

/// `meta priority`, in the host's byte order.
pub const fn priority(to: Register) -> Expression {
    meta(MetaKey::Priority, to)
}

/// `meta iifname`, 16 bytes.
pub const fn input_name(to: Register) -> Expression {
    meta(MetaKey::InputName, to)
}

/// `meta oifname`, 16 bytes.
pub const fn output_name(to: Register) -> Expression {
    meta(MetaKey::OutputName, to)
}

pub const fn network(offset: u32, length: u32, to: Register) -> Expression {
    Expression::Payload { base: PayloadBase::Network, offset, length, to }
}

pub const fn transport(offset: u32, length: u32, to: Register) -> Expression {
    Expression::Payload { base: PayloadBase::Transport, offset, length, to }
}

/// `ip saddr`.
pub const fn ip_source(to: Register) -> Expression {
    network(12, 4, to)
}

/// `ip daddr`.
pub const fn ip_destination(to: Register) -> Expression {
    network(16, 4, to)
}

/// `ip6 saddr`.
pub const fn ip6_source(to: Register) -> Expression {
    network(8, 16, to)
}

/// `ip6 daddr`.
pub const fn ip6_destination(to: Register) -> Expression {
    network(24, 16, to)
}

/// `ip saddr` or `ip6 saddr`: in a table of that family.
pub const fn source(family: Family, to: Register) -> Expression {
    match family {
        Family::Ip6 => ip6_source(to),
        _ => ip_source(to),
    }
}

/// `ip daddr` or `ip6 daddr`: in a table of that family.
pub const fn destination(family: Family, to: Register) -> Expression {
    match family {
        Family::Ip6 => ip6_destination(to),
        _ => ip_destination(to),
    }
}

/// Compares `ip saddr` (or `ip6 saddr`, by the kind of address) with a prefix. Two or three steps, on this register.
pub fn source_prefix(
    prefix: IpAddr,
    length: u8,
    comparison: Comparison,
    register: Register,
) -> Vec<Expression> {
    let offset = if prefix.is_ipv4() { 12 } else { 8 };
    address_prefix(offset, prefix, length, comparison, register)
}

/// Compares `ip daddr` (or `ip6 daddr`, by the kind of address) with a prefix. Two or three steps, on this register.
pub fn destination_prefix(
    prefix: IpAddr,
    length: u8,
    comparison: Comparison,
    register: Register,
) -> Vec<Expression> {
    let offset = if prefix.is_ipv4() { 16 } else { 24 };
    address_prefix(offset, prefix, length, comparison, register)
}

fn address_prefix(
    offset: u32,
    prefix: IpAddr,
    length: u8,
    comparison: Comparison,
    register: Register,
) -> Vec<Expression> {
    let mut bytes = match prefix {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mask: Vec<u8> = (0..bytes.len())
        .map(|index| {
            let bits = usize::from(length).saturating_sub(8 * index).min(8);
            !(0xff_u16 >> bits) as u8
        })
        .collect();
    for (byte, mask) in bytes.iter_mut().zip(&mask) {
        *byte &= mask;
    }
    let mut steps = vec![network(offset, bytes.len() as u32, register)];
    if usize::from(length) < 8 * bytes.len() {
        steps.push(bitwise(register, register, &mask, vec![0; mask.len()]));
    }
    steps.push(compare(register, comparison, bytes));
    steps
}

/// `th sport`.
pub const fn source_port(to: Register) -> Expression {
    transport(0, 2, to)
}

/// `th dport`.
pub const fn destination_port(to: Register) -> Expression {
    transport(2, 2, to)
}

pub fn compare(from: Register, comparison: Comparison, value: impl AsRef<[u8]>) -> Expression {
    Expression::Compare { from, comparison, value: value.as_ref().into() }
}

pub fn equal(from: Register, value: impl AsRef<[u8]>) -> Expression {
    compare(from, Comparison::Equal, value)
}

pub fn not_equal(from: Register, value: impl AsRef<[u8]>) -> Expression {
    compare(from, Comparison::NotEqual, value)
}

/// Compares with a whole interface name, or with what it begins with when it ends in `*`.
pub fn interface(from: Register, comparison: Comparison, name: &str) -> Expression {
    match name.strip_suffix('*') {
        Some(prefix) => compare(from, comparison, prefix),
        None => {
            let mut padded = [0; 16];
            let length = name.len().min(15);
            padded[..length].copy_from_slice(&name.as_bytes()[..length]);
            compare(from, comparison, padded)
        }
    }
}

/// `to = (from & mask) ^ xor`, bytes of one length.
pub fn bitwise(from: Register, to: Register, mask: impl AsRef<[u8]>, xor: impl AsRef<[u8]>) -> Expression {
    Expression::Bitwise { from, to, mask: mask.as_ref().into(), xor: xor.as_ref().into() }
}

/// `register & mask`, in the host's byte order.
pub fn and(register: Register, mask: u32) -> Expression {
    bitwise(register, register, mask.to_ne_bytes(), [0; 4])
}

/// `register | bits`, in the host's byte order.
pub fn or(register: Register, bits: u32) -> Expression {
    bitwise(register, register, (!bits).to_ne_bytes(), bits.to_ne_bytes())
}

/// `register ^ bits`, in the host's byte order.
pub fn xor(register: Register, bits: u32) -> Expression {
    bitwise(register, register, u32::MAX.to_ne_bytes(), bits.to_ne_bytes())
}

/// `register << bits`, on 32 bits.
pub const fn shift_left(register: Register, bits: u32) -> Expression {
    Expression::Shift { from: register, to: register, length: 4, shift: Shift::Left, bits }
}

/// `register >> bits`, on 32 bits.
pub const fn shift_right(register: Register, bits: u32) -> Expression {
    Expression::Shift { from: register, to: register, length: 4, shift: Shift::Right, bits }
}

/// Matches when the key that starts in this register is in the set.
pub fn in_set(key: Register, set: impl Into<SetName>) -> Expression {
    Expression::Lookup { set: set.into(), key, inverted: false }
}

/// Matches when the key that starts in this register is not in the set.
pub fn not_in_set(key: Register, set: impl Into<SetName>) -> Expression {
    Expression::Lookup { set: set.into(), key, inverted: true }
}

/// Reads a map into registers.
pub fn map(key: Register, set: impl Into<SetName>, to: Register) -> Expression {
    Expression::LookupMap { set: set.into(), key, to }
}

/// Follows the verdict that a map holds.
pub fn verdict_map(key: Register, set: impl Into<SetName>) -> Expression {
    map(key, set, Register::VERDICT)
}

/// `update @set { key timeout t : data }`.
pub fn update(set: &str, key: Register, data: Option<Register>, timeout: Option<Duration>) -> Expression {
    Expression::DynamicSet { update: SetUpdate::Update, set: set.into(), key, data, timeout, attached: None }
}

/// `delete @set { key : data }`. A map wants its data register named even here.
pub fn delete(set: &str, key: Register, data: Option<Register>) -> Expression {
    Expression::DynamicSet {
        update: SetUpdate::Delete,
        set: set.into(),
        key,
        data,
        timeout: None,
        attached: None,
    }
}

/// `numgen random mod modulus`.
pub const fn random(modulus: u32, to: Register) -> Expression {
    Expression::Numgen { kind: NumberKind::Random, modulus, offset: 0, to }
}

/// `jhash`: a number below `modulus`, the same for the same `length` bytes from `from` on and the same seed.
pub const fn jhash(from: Register, length: u32, modulus: u32, seed: u32, to: Register) -> Expression {
    Expression::Hash { from, length, modulus, seed, to }
}

/// `fib daddr type`.
pub const fn destination_type(to: Register) -> Expression {
    Expression::Fib { result: FibResult::AddressType, flags: fib_flags::DESTINATION, to }
}

/// `fib saddr type`.
pub const fn source_type(to: Register) -> Expression {
    Expression::Fib { result: FibResult::AddressType, flags: fib_flags::SOURCE, to }
}

/// The type just read is `local`.
pub fn is_local(from: Register) -> Expression {
    equal(from, ADDRESS_TYPE_LOCAL.to_ne_bytes())
}

pub const fn conntrack(key: ConntrackKey, to: Register) -> Expression {
    Expression::Conntrack { key, direction: None, to }
}

/// `ct state bits` or `ct status bits`: some of the bits are set. Three steps, all on this register.
pub fn conntrack_has(key: ConntrackKey, bits: u32, register: Register) -> [Expression; 3] {
    [conntrack(key, register), and(register, bits), not_equal(register, [0; 4])]
}

/// `ct state ! bits`: none of the bits is set. Three steps, all on this register.
pub fn conntrack_has_not(key: ConntrackKey, bits: u32, register: Register) -> [Expression; 3] {
    [conntrack(key, register), and(register, bits), equal(register, [0; 4])]
}

/// `dnat to`: the address and the port in these registers.
pub const fn dnat(family: Family, address: Register, port: Register) -> Expression {
    Expression::Nat {
        kind: NatKind::Destination,
        family,
        address: Some(address),
        address_end: None,
        port: Some(port),
        port_end: None,
        flags: 0,
    }
}

/// `snat to`: the address in this register.
pub const fn snat(family: Family, address: Register) -> Expression {
    Expression::Nat {
        kind: NatKind::Source,
        family,
        address: Some(address),
        address_end: None,
        port: None,
        port_end: None,
        flags: 0,
    }
}

pub const fn masquerade() -> Expression {
    Expression::Masquerade { flags: 0 }
}

/// `masquerade fully-random`.
pub const fn masquerade_fully_random() -> Expression {
    Expression::Masquerade { flags: nat_flags::FULLY_RANDOM }
}

/// Ends TCP by a reset: unlike an ICMP message it is not held back by `net.ipv4.icmp_msgs_per_sec`. Only after a comparison
/// that says that it is TCP.
pub const fn reject_with_reset() -> Expression {
    Expression::Reject(Reject::TcpReset)
}

/// The `reject` that nft writes by itself in a table of this family: port unreachable.
pub const fn reject(family: Family) -> Expression {
    Expression::Reject(match family {
        Family::Ip => Reject::ICMP_PORT_UNREACHABLE,
        Family::Ip6 => Reject::ICMPV6_PORT_UNREACHABLE,
        _ => Reject::ICMPX_PORT_UNREACHABLE,
    })
}
