//! What a full plan needs to know of the table that it finds.

use std::net::IpAddr;

use nft_netlink::list;

use crate::name::Hook;

/// The table as the executor found it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub(crate) chains: Vec<FoundChain>,
    /// Names of sets and maps; anonymous ones go with their rules.
    pub(crate) sets: Vec<Box<str>>,
    pub(crate) sticky: FoundSticky,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundChain {
    pub(crate) name: Box<str>,
    /// `None` for a chain that is no base chain; [`FoundHook::Other`] for one that is none of ours.
    pub(crate) hook: Option<FoundHook>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoundHook {
    Like(Hook),
    Other,
}

/// Endpoint ids that clients may still hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FoundSticky {
    /// Comment and base of each sticky Service port.
    pub(crate) ports: Vec<(Box<str>, u32)>,
    /// Endpoint ids.
    pub(crate) endpoints: Vec<(u32, IpAddr, u16)>,
}

impl Found {
    /// The number for a new generation: larger than that of anything in the table.
    pub(crate) fn next_generation(&self) -> u32 {
        let names = self.chains.iter().map(|chain| &chain.name).chain(&self.sets);
        names.filter_map(|name| generation_of(name)).max().unwrap_or(0).wrapping_add(1).max(1)
    }
}

/// Where a base chain is hooked in, if its like could be one of ours: filter or nat, policy accept.
pub(crate) fn hook_of(chain: &list::FoundChain) -> Option<Hook> {
    let (number, priority) = chain.hook?;
    let nat = match chain.kind.as_deref()? {
        "nat" => true,
        "filter" => false,
        _ => return None,
    };
    (!chain.drops).then_some(Hook { nat, number, priority })
}

/// The number that a name of ours ends in.
pub(crate) fn generation_of(name: &str) -> Option<u32> {
    let (_, number) = name.rsplit_once('-')?;
    // Larger ones are no generation: somebody's hash, say.
    number.parse().ok().filter(|number| *number < u32::MAX / 2)
}
