//! What a full plan needs to know of the table that it finds.

use std::net::IpAddr;

use crate::schema::name::Hook;

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

/// The number that a name of ours ends in.
pub(crate) fn generation_of(name: &str) -> Option<u32> {
    let (_, number) = name.rsplit_once('-')?;
    // Larger ones are no generation: somebody's hash, say.
    number.parse().ok().filter(|number| *number < u32::MAX / 2)
}
