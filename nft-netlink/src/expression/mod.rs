//! What a rule is made of. Values, so that a rule can be printed, compared and interpreted as well as written.

mod build;
mod display;
mod encode;

pub use build::*;
pub(crate) use encode::{ANONYMOUS_SET, milliseconds, write_name};

use std::time::Duration;

/// A register of 32 bits (or, as 0, the verdict). A longer value occupies the ones that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(u32);

impl Register {
    /// Where a verdict map puts its result.
    pub const VERDICT: Self = Self(0);
    pub const R0: Self = Self::number(0);
    pub const R1: Self = Self::number(1);
    pub const R2: Self = Self::number(2);
    pub const R3: Self = Self::number(3);
    pub const R4: Self = Self::number(4);
    pub const R5: Self = Self::number(5);
    pub const R6: Self = Self::number(6);
    pub const R7: Self = Self::number(7);
    pub const R8: Self = Self::number(8);
    pub const R9: Self = Self::number(9);
    pub const R10: Self = Self::number(10);
    pub const R11: Self = Self::number(11);
    pub const R12: Self = Self::number(12);
    pub const R13: Self = Self::number(13);
    pub const R14: Self = Self::number(14);
    pub const R15: Self = Self::number(15);

    /// `NFT_REG32_00` and up; there are 16 of them.
    pub const fn number(index: u32) -> Self {
        assert!(index < 16, "nf_tables has 16 registers");
        Self(8 + index)
    }

    /// The register `words` further on, where the next part of a concatenation goes.
    pub const fn after(self, words: u32) -> Self {
        Self::number(self.0 - 8 + words)
    }

    /// The kernel's number.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// Which set a rule or an element list means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SetName {
    Named(Box<str>),
    /// A set without a name, made earlier in the same batch ([`crate::Batch::add_anonymous_set`]).
    Anonymous(u32),
}

impl From<&str> for SetName {
    fn from(name: &str) -> Self {
        Self::Named(name.into())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Continue,
    Return,
    Jump(Box<str>),
    Goto(Box<str>),
}

/// `NFT_META_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MetaKey {
    Length = 0,
    Protocol = 1,
    Priority = 2,
    Mark = 3,
    InputIndex = 4,
    OutputIndex = 5,
    InputName = 6,
    OutputName = 7,
    /// One byte that is not 0: what becomes of the packet is told to whoever listens ([`crate::trace`]).
    Trace = 12,
    NfProtocol = 15,
    L4Protocol = 16,
}

/// `NFT_PAYLOAD_*_HEADER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum PayloadBase {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// `NFT_CMP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Comparison {
    Equal = 0,
    NotEqual = 1,
    Less = 2,
    LessOrEqual = 3,
    Greater = 4,
    GreaterOrEqual = 5,
}

/// `NFT_DYNSET_OP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SetUpdate {
    Add = 0,
    /// Adds, or refreshes the timeout of what is there; never changes its data.
    Update = 1,
    Delete = 2,
}

/// `NFT_NG_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NumberKind {
    Incremental = 0,
    Random = 1,
}

/// `NFT_FIB_RESULT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FibResult {
    OutputIndex = 1,
    OutputName = 2,
    AddressType = 3,
}

/// `NFTA_FIB_F_*`, to be joined with `|`.
pub mod fib_flags {
    pub const SOURCE: u32 = 1;
    pub const DESTINATION: u32 = 2;
    pub const MARK: u32 = 4;
    pub const INPUT: u32 = 8;
    pub const OUTPUT: u32 = 16;
    pub const PRESENT: u32 = 32;
}

/// `RTN_LOCAL`: the address type `local`, as a fib lookup answers it.
pub const ADDRESS_TYPE_LOCAL: u32 = 2;

/// `NFT_CT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ConntrackKey {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
    L3Protocol = 7,
    L4Protocol = 10,
    SourcePort = 11,
    DestinationPort = 12,
    Zone = 17,
    SourceIp = 19,
    DestinationIp = 20,
    SourceIp6 = 21,
    DestinationIp6 = 22,
}

/// Bits of `ct state` (`NF_CT_STATE_BIT`).
pub mod conntrack_state {
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
    pub const UNTRACKED: u32 = 64;
}

/// Bits of `ct status` (`IPS_*`).
pub mod conntrack_status {
    pub const SNAT: u32 = 0x10;
    pub const DNAT: u32 = 0x20;
}

/// `IP_CT_DIR_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    Original = 0,
    Reply = 1,
}

/// `NFT_NAT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NatKind {
    Source = 0,
    Destination = 1,
}

/// `NF_NAT_RANGE_*`, to be joined with `|`.
pub mod nat_flags {
    pub const RANDOM: u32 = 4;
    pub const PERSISTENT: u32 = 8;
    pub const FULLY_RANDOM: u32 = 16;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// An ICMP (or, in `ip6`, ICMPv6) destination unreachable with this code.
    Icmp(u8),
    TcpReset,
    /// `NFT_REJECT_ICMPX_*`, for `inet` and `bridge`.
    Icmpx(u8),
}

impl Reject {
    /// `ICMP_PORT_UNREACH`.
    pub const ICMP_PORT_UNREACHABLE: Self = Self::Icmp(3);
    /// `ICMPV6_PORT_UNREACH`.
    pub const ICMPV6_PORT_UNREACHABLE: Self = Self::Icmp(4);
    pub const ICMPX_PORT_UNREACHABLE: Self = Self::Icmpx(1);
}

/// `NFT_BYTEORDER_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ByteOrder {
    NetworkToHost = 0,
    HostToNetwork = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shift {
    Left,
    Right,
}

/// `NFT_LIMIT_PKTS`, `NFT_LIMIT_PKT_BYTES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum LimitKind {
    Packets = 0,
    Bytes = 1,
}

/// One step of a rule. A rule ends at the first step that does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    Immediate {
        to: Register,
        value: Box<[u8]>,
    },
    Verdict(Verdict),
    Meta {
        key: MetaKey,
        to: Register,
    },
    MetaSet {
        key: MetaKey,
        from: Register,
    },
    Payload {
        base: PayloadBase,
        offset: u32,
        length: u32,
        to: Register,
    },
    Compare {
        from: Register,
        comparison: Comparison,
        value: Box<[u8]>,
    },
    Range {
        from: Register,
        inside: bool,
        first: Box<[u8]>,
        last: Box<[u8]>,
    },
    /// `(from & mask) ^ xor`; all of one length.
    Bitwise {
        from: Register,
        to: Register,
        mask: Box<[u8]>,
        xor: Box<[u8]>,
    },
    Shift {
        from: Register,
        to: Register,
        length: u32,
        shift: Shift,
        bits: u32,
    },
    ByteOrder {
        from: Register,
        to: Register,
        order: ByteOrder,
        length: u32,
        size: u32,
    },
    /// Matches when the key is (or, inverted, is not) in the set.
    Lookup {
        set: SetName,
        key: Register,
        inverted: bool,
    },
    /// Puts the data found into `to`; matches only when the key is there.
    LookupMap {
        set: SetName,
        key: Register,
        to: Register,
    },
    /// Changes a set from the packet path.
    DynamicSet {
        update: SetUpdate,
        set: SetName,
        key: Register,
        data: Option<Register>,
        timeout: Option<Duration>,
        /// Attached to the element when it is added (a counter or a limit).
        attached: Option<Box<Self>>,
    },
    Numgen {
        kind: NumberKind,
        modulus: u32,
        offset: u32,
        to: Register,
    },
    /// `NFT_HASH_JENKINS`
    Hash {
        from: Register,
        length: u32,
        modulus: u32,
        seed: u32,
        to: Register,
    },
    Fib {
        result: FibResult,
        flags: u32,
        to: Register,
    },
    Conntrack {
        key: ConntrackKey,
        direction: Option<Direction>,
        to: Register,
    },
    ConntrackSet {
        key: ConntrackKey,
        from: Register,
    },
    Nat {
        kind: NatKind,
        family: crate::Family,
        address: Option<Register>,
        address_end: Option<Register>,
        port: Option<Register>,
        port_end: Option<Register>,
        flags: u32,
    },
    Masquerade {
        flags: u32,
    },
    Reject(Reject),
    Counter,
    Limit {
        kind: LimitKind,
        rate: u64,
        per: Duration,
        burst: u32,
        over: bool,
    },
    Log {
        prefix: Option<Box<str>>,
        /// To this nflog group instead of the kernel log.
        group: Option<u16>,
    },
    Notrack,
}
