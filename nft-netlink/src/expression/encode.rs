//! Expressions as the attributes the kernel reads.

use std::time::Duration;

use netlink::Writer;

use super::{Expression, Register, Reject, SetName, Shift, Verdict};
use crate::uapi::data;

/// The kernel makes the name of a set without one from this.
pub(crate) const ANONYMOUS_SET: &str = "__set%d";

const NAME: u16 = 1;
const DATA: u16 = 2;

impl Expression {
    /// Writes the expression as an attribute of this type, holding its name and its attributes.
    pub(crate) fn write(&self, writer: &mut Writer, kind: u16) {
        let outer = writer.begin(kind);
        writer.str(NAME, self.name());
        let inner = writer.begin(DATA);
        self.write_attributes(writer);
        writer.end(inner);
        writer.end(outer);
    }

    /// The kernel's name of the expression.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::Compare { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Bitwise { .. } | Self::Shift { .. } => "bitwise",
            Self::ByteOrder { .. } => "byteorder",
            Self::Lookup { .. } | Self::LookupMap { .. } => "lookup",
            Self::DynamicSet { .. } => "dynset",
            Self::Numgen { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Fib { .. } => "fib",
            Self::Conntrack { .. } | Self::ConntrackSet { .. } => "ct",
            Self::Nat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Reject(_) => "reject",
            Self::Counter => "counter",
            Self::Limit { .. } => "limit",
            Self::Log { .. } => "log",
            Self::Notrack => "notrack",
        }
    }

    fn write_attributes(&self, w: &mut Writer) {
        match self {
            // NFTA_IMMEDIATE_*
            Self::Immediate { to, value } => {
                register(w, 1, *to);
                bytes(w, 2, value);
            }
            Self::Verdict(verdict) => {
                register(w, 1, Register::VERDICT);
                verdict.write(w, 2);
            }
            // NFTA_META_*
            Self::Meta { key, to } => {
                register(w, 1, *to);
                w.be32(2, *key as u32);
            }
            Self::MetaSet { key, from } => {
                w.be32(2, *key as u32);
                register(w, 3, *from);
            }
            // NFTA_PAYLOAD_*
            Self::Payload { base, offset, length, to } => {
                register(w, 1, *to);
                w.be32(2, *base as u32);
                w.be32(3, *offset);
                w.be32(4, *length);
            }
            // NFTA_CMP_*
            Self::Compare { from, comparison, value } => {
                register(w, 1, *from);
                w.be32(2, *comparison as u32);
                bytes(w, 3, value);
            }
            // NFTA_RANGE_*
            Self::Range { from, inside, first, last } => {
                register(w, 1, *from);
                w.be32(2, u32::from(!inside));
                bytes(w, 3, first);
                bytes(w, 4, last);
            }
            // NFTA_BITWISE_*
            Self::Bitwise { from, to, mask, xor } => {
                register(w, 1, *from);
                register(w, 2, *to);
                w.be32(3, mask.len() as u32);
                bytes(w, 4, mask);
                bytes(w, 5, xor);
                w.be32(6, 0);
            }
            Self::Shift { from, to, length, shift, bits } => {
                register(w, 1, *from);
                register(w, 2, *to);
                w.be32(3, *length);
                w.be32(6, if *shift == Shift::Left { 1 } else { 2 });
                bytes(w, 7, &bits.to_ne_bytes());
            }
            // NFTA_BYTEORDER_*
            Self::ByteOrder { from, to, order, length, size } => {
                register(w, 1, *from);
                register(w, 2, *to);
                w.be32(3, *order as u32);
                w.be32(4, *length);
                w.be32(5, *size);
            }
            // NFTA_LOOKUP_*
            Self::Lookup { set, key, inverted } => {
                write_name(set, 1, 4, w);
                register(w, 2, *key);
                if *inverted {
                    w.be32(5, 1);
                }
            }
            Self::LookupMap { set, key, to } => {
                write_name(set, 1, 4, w);
                register(w, 2, *key);
                register(w, 3, *to);
            }
            // NFTA_DYNSET_*
            Self::DynamicSet { update, set, key, data, timeout, attached } => {
                write_name(set, 1, 2, w);
                w.be32(3, *update as u32);
                register(w, 4, *key);
                if let Some(data) = data {
                    register(w, 5, *data);
                }
                if let Some(timeout) = timeout {
                    w.be64(6, milliseconds(*timeout));
                }
                if let Some(attached) = attached {
                    attached.write(w, 7);
                }
            }
            // NFTA_NG_*
            Self::Numgen { kind, modulus, offset, to } => {
                register(w, 1, *to);
                w.be32(2, *modulus);
                w.be32(3, *kind as u32);
                w.be32(4, *offset);
            }
            // NFTA_HASH_*
            Self::Hash { from, length, modulus, seed, to } => {
                register(w, 1, *from);
                register(w, 2, *to);
                w.be32(3, *length);
                w.be32(4, *modulus);
                w.be32(5, *seed);
            }
            // NFTA_FIB_*
            Self::Fib { result, flags, to } => {
                register(w, 1, *to);
                w.be32(2, *result as u32);
                w.be32(3, *flags);
            }
            // NFTA_CT_*
            Self::Conntrack { key, direction, to } => {
                register(w, 1, *to);
                w.be32(2, *key as u32);
                if let Some(direction) = direction {
                    w.u8(3, *direction as u8);
                }
            }
            Self::ConntrackSet { key, from } => {
                w.be32(2, *key as u32);
                register(w, 4, *from);
            }
            // NFTA_NAT_*
            Self::Nat { kind, family, address, address_end, port, port_end, flags } => {
                w.be32(1, *kind as u32);
                w.be32(2, *family as u32);
                for (attribute, value) in [(3, address), (4, address_end), (5, port), (6, port_end)] {
                    if let Some(value) = value {
                        register(w, attribute, *value);
                    }
                }
                if *flags != 0 {
                    w.be32(7, *flags);
                }
            }
            // NFTA_MASQ_*
            Self::Masquerade { flags } => {
                if *flags != 0 {
                    w.be32(1, *flags);
                }
            }
            // NFTA_REJECT_*
            Self::Reject(reject) => {
                let (kind, code) = match *reject {
                    Reject::Icmp(code) => (0, Some(code)),
                    Reject::TcpReset => (1, None),
                    Reject::Icmpx(code) => (2, Some(code)),
                };
                w.be32(1, kind);
                if let Some(code) = code {
                    w.u8(2, code);
                }
            }
            // NFTA_COUNTER_*
            Self::Counter => {
                w.be64(1, 0);
                w.be64(2, 0);
            }
            // NFTA_LIMIT_*
            Self::Limit { kind, rate, per, burst, over } => {
                w.be64(1, *rate);
                w.be64(2, per.as_secs());
                w.be32(3, *burst);
                w.be32(4, *kind as u32);
                w.be32(5, u32::from(*over));
            }
            // NFTA_LOG_*
            Self::Log { prefix, group } => {
                if let Some(group) = group {
                    w.be16(1, *group);
                }
                if let Some(prefix) = prefix {
                    w.str(2, prefix);
                }
            }
            Self::Notrack => {}
        }
    }
}

impl Verdict {
    /// Writes the verdict as data (`NFTA_DATA_VERDICT`) in an attribute of this type.
    pub(crate) fn write(&self, writer: &mut Writer, kind: u16) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Continue => (-1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        let outer = writer.begin(kind);
        let inner = writer.begin(data::VERDICT);
        writer.be32(data::VERDICT_CODE, code as u32);
        if let Some(chain) = chain {
            writer.str(data::VERDICT_CHAIN, chain);
        }
        writer.end(inner);
        writer.end(outer);
    }
}

/// Writes which set an element list is for.
pub(crate) fn write_name(set: &SetName, name: u16, id: u16, writer: &mut Writer) {
    match set {
        SetName::Named(set) => writer.str(name, set),
        SetName::Anonymous(number) => {
            writer.str(name, ANONYMOUS_SET);
            writer.be32(id, *number);
        }
    }
}

/// The kernel's unit of time in sets.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn register(writer: &mut Writer, kind: u16, register: Register) {
    writer.be32(kind, register.raw());
}

fn bytes(writer: &mut Writer, kind: u16, value: &[u8]) {
    let outer = writer.begin(kind);
    writer.bytes(data::VALUE, value);
    writer.end(outer);
}
