//! Tables and chains: what they are called and how they are told to the kernel.

use netlink::Writer;

use crate::{datatype::put_comment, uapi::chain};

/// `NFPROTO_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    Inet = 1,
    Ip = 2,
    Arp = 3,
    Netdev = 5,
    Bridge = 7,
    Ip6 = 10,
}

impl Family {
    pub(crate) const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::Inet,
            2 => Self::Ip,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            _ => return None,
        })
    }

    /// The word nft uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        }
    }
}

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Table<'a> {
    pub family: Family,
    pub name: &'a str,
}

impl<'a> Table<'a> {
    pub const fn new(family: Family, name: &'a str) -> Self {
        Self { family, name }
    }
}

/// `NF_INET_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainKind {
    Filter,
    Nat,
    Route,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    Accept,
    Drop,
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BaseChain {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
    pub policy: Policy,
}

/// A chain to be made. Making one that exists already is no error; it keeps its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chain<'a> {
    pub name: &'a str,
    pub base: Option<BaseChain>,
    pub comment: Option<&'a str>,
}

impl<'a> Chain<'a> {
    /// A chain that packets reach only by a jump.
    pub const fn regular(name: &'a str) -> Self {
        Self { name, base: None, comment: None }
    }

    /// A chain that packets enter at a hook, with policy accept.
    pub const fn base(name: &'a str, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { name, base: Some(BaseChain { kind, hook, priority, policy: Policy::Accept }), comment: None }
    }

    #[must_use]
    pub const fn comment(mut self, comment: &'a str) -> Self {
        self.comment = Some(comment);
        self
    }

    pub(crate) fn write(&self, table: Table<'_>, writer: &mut Writer) {
        writer.str(chain::TABLE, table.name);
        writer.str(chain::NAME, self.name);
        if let Some(base) = self.base {
            writer.nest(chain::HOOK, |hook| {
                hook.be32(chain::HOOK_NUMBER, base.hook as u32);
                hook.be32(chain::HOOK_PRIORITY, base.priority as u32);
            });
            writer.be32(
                chain::POLICY,
                match base.policy {
                    Policy::Drop => 0,
                    Policy::Accept => 1,
                },
            );
            writer.str(
                chain::TYPE,
                match base.kind {
                    ChainKind::Filter => "filter",
                    ChainKind::Nat => "nat",
                    ChainKind::Route => "route",
                },
            );
        }
        if let Some(comment) = self.comment {
            put_comment(writer, chain::USERDATA, comment);
        }
    }
}
