//! The two sets of tables that a kernel may have.

use std::fmt;

/// The two sets of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// `ip_tables`, written whole for every change.
    Legacy,
    /// `nf_tables`, through iptables' translation.
    Nft,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        })
    }
}
