//! Expressions as text, in the style of `nft --debug=netlink`: for golden plans and logs.

use std::fmt;

use super::{Comparison, Expression, Register, SetName, Shift, Verdict};

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.checked_sub(8) {
            Some(index) => write!(f, "r{index}"),
            None => f.write_str("verdict"),
        }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "@{name}"),
            Self::Anonymous(number) => write!(f, "@(anonymous {number})"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => f.write_str("continue"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        })
    }
}

/// Bytes in the order they stand in the register.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Immediate { to, value } => write!(f, "{to} = {}", Hex(value)),
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::Meta { key, to } => write!(f, "{to} = meta {key:?}"),
            Self::MetaSet { key, from } => write!(f, "meta {key:?} = {from}"),
            Self::Payload { base, offset, length, to } => write!(f, "{to} = {base:?} {offset}+{length}"),
            Self::Compare { from, comparison, value } => write!(f, "{from} {comparison} {}", Hex(value)),
            Self::Range { from, inside, first, last } => {
                write!(f, "{from} {} {}-{}", if *inside { "in" } else { "not in" }, Hex(first), Hex(last))
            }
            Self::Bitwise { from, to, mask, xor } => {
                write!(f, "{to} = {from} & {} ^ {}", Hex(mask), Hex(xor))
            }
            Self::Shift { from, to, shift, bits, .. } => {
                write!(f, "{to} = {from} {} {bits}", if *shift == Shift::Left { "<<" } else { ">>" })
            }
            Self::ByteOrder { from, to, order, length, size } => {
                write!(f, "{to} = {order:?}({from}, {length}/{size})")
            }
            Self::Lookup { set, key, inverted } => {
                write!(f, "{key} {} {set}", if *inverted { "not in" } else { "in" })
            }
            Self::LookupMap { set, key, to } => write!(f, "{to} = {set}[{key}]"),
            Self::DynamicSet { update, set, key, data, timeout, attached } => {
                write!(f, "{update:?} {set}[{key}]")?;
                if let Some(data) = data {
                    write!(f, " = {data}")?;
                }
                if let Some(timeout) = timeout {
                    write!(f, " for {timeout:?}")?;
                }
                if let Some(attached) = attached {
                    write!(f, " with {attached}")?;
                }
                Ok(())
            }
            Self::Numgen { kind, modulus, offset, to } => {
                write!(f, "{to} = {kind:?} mod {modulus}")?;
                if *offset == 0 { Ok(()) } else { write!(f, " + {offset}") }
            }
            Self::Hash { from, length, modulus, seed, to } => {
                write!(f, "{to} = jhash {from} ({length} bytes) mod {modulus} seed {seed:#x}")
            }
            Self::Fib { result, flags, to } => write!(f, "{to} = fib {result:?} ({flags:#x})"),
            Self::Conntrack { key, direction, to } => match direction {
                Some(direction) => write!(f, "{to} = ct {direction:?} {key:?}"),
                None => write!(f, "{to} = ct {key:?}"),
            },
            Self::ConntrackSet { key, from } => write!(f, "ct {key:?} = {from}"),
            Self::Nat { kind, address, address_end, port, port_end, flags, .. } => {
                write!(f, "{kind:?} nat")?;
                for (name, value) in
                    [("address", address), ("..", address_end), ("port", port), ("..", port_end)]
                {
                    if let Some(value) = value {
                        write!(f, " {name} {value}")?;
                    }
                }
                if *flags == 0 { Ok(()) } else { write!(f, " ({flags:#x})") }
            }
            Self::Masquerade { flags: 0 } => f.write_str("masquerade"),
            Self::Masquerade { flags } => write!(f, "masquerade ({flags:#x})"),
            Self::Reject(reject) => write!(f, "reject {reject:?}"),
            Self::Counter => f.write_str("counter"),
            Self::Limit { kind, rate, per, burst, over } => {
                write!(
                    f,
                    "limit {}{rate} {kind:?} per {per:?} burst {burst}",
                    if *over { "over " } else { "" }
                )
            }
            Self::Log { prefix, group } => {
                f.write_str("log")?;
                if let Some(prefix) = prefix {
                    write!(f, " {prefix:?}")?;
                }
                group.map_or(Ok(()), |group| write!(f, " group {group}"))
            }
            Self::Notrack => f.write_str("notrack"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Family, Register, Rule, expression::*};

    #[test]
    fn a_rule_reads_as_its_steps() {
        let (key, next) = (Register::R0, Register::R1);
        let dispatch = Rule::new()
            .with(ip_destination(key))
            .with(l4proto(next))
            .with(map(key, "vips", key))
            .with(and(key, u32::from_ne_bytes([0xff, 0xf0, 0, 0])))
            .with(verdict_map(key, "dispatch"))
            .comment("first lookup");
        assert_eq!(
            dispatch.to_string(),
            "r0 = Network 16+4; r1 = meta L4Protocol; r0 = @vips[r0]; r0 = r0 & 0xfff00000 ^ 0x00000000; \
             verdict = @dispatch[r0] # first lookup"
        );
        let remember = Rule::new()
            .with(update("clients", key, Some(next), Some(Duration::from_secs(60))))
            .with(random(3, next))
            .with(dnat(Family::Ip, key, next))
            .with(goto("lb"));
        assert_eq!(
            remember.to_string(),
            "Update @clients[r0] = r1 for 60s; r1 = Random mod 3; Destination nat address r0 port r1; goto lb"
        );
    }
}
