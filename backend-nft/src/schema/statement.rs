//! Rules as data: each statement can be printed as nft text, encoded for the kernel, and evaluated by the model.

use std::fmt;

use ipnet::IpNet;
use proxy_core::model::Protocol;

use crate::schema::{
    name::{ChainName, SetName},
    text::ClassId,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule(pub(crate) Vec<Statement>);

/// What a key is made of, in the order in which the parts stand in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Source,
    /// The first bits of the source, as many as this.
    SourceNet(u8),
    Destination,
    Protocol,
    SourcePort,
    DestinationPort,
    Priority,
    /// The priority's bits under a mask.
    PriorityAnd(u32),
    /// A random number below this.
    Random(u32),
    /// The same number below `below` for the same source.
    SourceHash {
        below: u32,
        seed: u32,
    },
}

pub(crate) type Key = Vec<Part>;

/// `ct state` bits (`NF_CT_STATE_*` of linux/netfilter/nf_conntrack_common.h).
pub(crate) mod state {
    pub(crate) const INVALID: u32 = 1;
    pub(crate) const ESTABLISHED: u32 = 2;
    pub(crate) const NEW: u32 = 8;
    pub(crate) const UNTRACKED: u32 = 64;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    /// Any of these states.
    State(u32),
    NotState(u32),
    /// The packet belongs to a connection whose destination was translated.
    Translated,
    Source {
        net: IpNet,
        not: bool,
    },
    Destination {
        net: IpNet,
        not: bool,
    },
    /// The interface it came in through; `prefix`: whose name begins so.
    Interface {
        name: Box<str>,
        prefix: bool,
        not: bool,
    },
    ProtocolIs(Protocol),
    /// TCP without any of these flags.
    TcpFlagsClear(u8),
    SourceIsOurs,
    DestinationIsOurs,
    In {
        key: Key,
        set: SetName,
        not: bool,
    },
    MarkHas(u32),
    PriorityIs {
        mask: u32,
        value: u32,
        not: bool,
    },
    SetPriority(Priority),
    SetMarkBit(u32),
    FlipMarkBit(u32),
    /// Refreshes or adds the client: `(source . priority & mask) -> priority`.
    UpdateClient {
        set: SetName,
        mask: u32,
        timeout: u32,
    },
    DeleteClient {
        set: SetName,
    },
    /// Counts the packet.
    Count,
    Dispatch {
        key: Key,
        map: SetName,
    },
    TranslateTo {
        key: Key,
        map: SetName,
    },
    Masquerade,
    /// Answers that there is nobody: TCP by a reset, all else by an ICMP message.
    Reject {
        reset: bool,
    },
    Accept,
    Drop,
    Return,
    Jump(ChainName),
    Goto(ChainName),
}

/// What the priority becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Priority {
    Zero,
    Or(u32),
    And(u32),
    AndOr { and: u32, or: u32 },
    Found { key: Key, map: SetName },
}

pub(crate) const TCP_SYN_RST: u8 = 0x02 | 0x04;

struct KeyText<'a> {
    key: &'a [Part],
    v6: bool,
}

impl fmt::Display for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = if self.v6 { "ip6" } else { "ip" };
        for (at, part) in self.key.iter().enumerate() {
            if at > 0 {
                f.write_str(" . ")?;
            }
            match part {
                Part::Source => write!(f, "{ip} saddr")?,
                Part::SourceNet(bits) => write!(f, "{ip} saddr & /{bits}")?,
                Part::Destination => write!(f, "{ip} daddr")?,
                Part::Protocol => f.write_str("meta l4proto")?,
                Part::SourcePort => f.write_str("th sport")?,
                Part::DestinationPort => f.write_str("th dport")?,
                Part::Priority => f.write_str("meta priority")?,
                Part::PriorityAnd(mask) => write!(f, "meta priority & {}", ClassId(*mask))?,
                Part::Random(below) => write!(f, "numgen random mod {below}")?,
                Part::SourceHash { below, seed } => {
                    write!(f, "jhash {ip} saddr mod {below} seed {seed:#x}")?;
                }
            }
        }
        Ok(())
    }
}

/// A rule as nft text; the family decides between `ip` and `ip6`.
pub(crate) struct RuleText<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) v6: bool,
}

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, statement) in self.rule.0.iter().enumerate() {
            if at > 0 {
                f.write_str(" ")?;
            }
            write_statement(f, statement, self.v6)?;
        }
        Ok(())
    }
}

fn write_statement(f: &mut fmt::Formatter<'_>, statement: &Statement, v6: bool) -> fmt::Result {
    let ip = if v6 { "ip6" } else { "ip" };
    let unless = |not: &bool| if *not { "!= " } else { "" };
    let text = |key| KeyText { key, v6 };
    match statement {
        Statement::State(states) => write!(f, "ct state {}", StatesText(*states)),
        Statement::NotState(states) => write!(f, "ct state != {}", StatesText(*states)),
        Statement::Translated => f.write_str("ct status dnat"),
        Statement::Source { net, not } => write!(f, "{ip} saddr {}{net}", unless(not)),
        Statement::Destination { net, not } => write!(f, "{ip} daddr {}{net}", unless(not)),
        Statement::Interface { name, prefix, not } => {
            write!(f, "iifname {}\"{name}{}\"", unless(not), if *prefix { "*" } else { "" })
        }
        Statement::ProtocolIs(protocol) => write!(f, "meta l4proto {}", protocol.as_str()),
        Statement::TcpFlagsClear(flags) => write!(f, "tcp flags & {flags:#04x} == 0"),
        Statement::SourceIsOurs => f.write_str("fib saddr type local"),
        Statement::DestinationIsOurs => f.write_str("fib daddr type local"),
        Statement::In { key, set, not } => write!(f, "{} {}@{set}", text(key), unless(not)),
        Statement::MarkHas(bit) => write!(f, "meta mark & {bit:#010x} != 0"),
        Statement::PriorityIs { mask, value, not } => {
            let is = if *not { "!=" } else { "==" };
            write!(f, "meta priority & {} {is} {}", ClassId(*mask), ClassId(*value))
        }
        Statement::SetPriority(to) => {
            f.write_str("meta priority set ")?;
            match to {
                Priority::Zero => f.write_str("0"),
                Priority::Or(bits) => write!(f, "meta priority | {}", ClassId(*bits)),
                Priority::And(bits) => write!(f, "meta priority & {}", ClassId(*bits)),
                Priority::AndOr { and, or } => {
                    write!(f, "meta priority & {} | {}", ClassId(*and), ClassId(*or))
                }
                Priority::Found { key, map } => write!(f, "{} map @{map}", text(key)),
            }
        }
        Statement::SetMarkBit(bit) => write!(f, "meta mark set meta mark | {bit:#010x}"),
        Statement::FlipMarkBit(bit) => write!(f, "meta mark set meta mark ^ {bit:#010x}"),
        Statement::UpdateClient { set, mask, timeout } => write!(
            f,
            "update @{set} {{ {ip} saddr . meta priority & {} timeout {timeout}s : meta priority }}",
            ClassId(*mask)
        ),
        Statement::DeleteClient { set } => {
            write!(f, "delete @{set} {{ {ip} saddr . meta priority : meta priority }}")
        }
        Statement::Count => f.write_str("counter"),
        Statement::Dispatch { key, map } => write!(f, "{} vmap @{map}", text(key)),
        Statement::TranslateTo { key, map } => write!(f, "dnat {ip} to {} map @{map}", text(key)),
        Statement::Masquerade => f.write_str("masquerade fully-random"),
        Statement::Reject { reset: false } => f.write_str("reject"),
        Statement::Reject { reset: true } => f.write_str("meta l4proto tcp reject with tcp reset"),
        Statement::Accept => f.write_str("accept"),
        Statement::Drop => f.write_str("drop"),
        Statement::Return => f.write_str("return"),
        Statement::Jump(chain) => write!(f, "jump {chain}"),
        Statement::Goto(chain) => write!(f, "goto {chain}"),
    }
}

struct StatesText(u32);

impl fmt::Display for StatesText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (state::INVALID, "invalid"),
            (state::ESTABLISHED, "established"),
            (state::NEW, "new"),
            (state::UNTRACKED, "untracked"),
        ];
        let mut first = true;
        for (bit, name) in names {
            if self.0 & bit != 0 {
                write!(f, "{}{name}", if first { "" } else { "," })?;
                first = false;
            }
        }
        Ok(())
    }
}
