//! Whether what was written still stands.
//!
//! While nobody else makes a transaction, the rule set's generation says so. When somebody did, the fixed part of the
//! table is looked at, at a cost that does not depend on how many Services there are: chains with their hooks, policies
//! and uses, rules, and how many elements each set has. What that cannot tell (an element exchanged for another; on
//! kernels that do not count elements, any) is found by reading the sets, now and then.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use netlink::Socket;
use nft_netlink::{
    generation::{OwnCommits, Watch},
    list,
};
use proxy_core::model::Family;

use crate::{
    kernel::{
        census::Census,
        encode::{hook_of, table},
        encode_set::key_bytes,
        reading::{Reading, clock},
    },
    schema::{name::Place, operation::Operation},
};

/// Of the time, one part in so many at most goes into reading sets: where the kernel does not count elements, where it does.
const SHARE_UNCOUNTED: u32 = 100;
const SHARE_COUNTED: u32 = 1000;
/// The least time from the end of one reading to the beginning of the next.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// Where rules of more chains than this have changed, all rules are read.
const FEW_CHAINS: usize = 16;

#[derive(Debug)]
pub(crate) struct Drift {
    family: Family,
    watch: Watch,
    census: Census,
    /// Fingerprints of the rules of each of our chains, as the kernel had them right after they were written.
    rules: HashMap<Box<str>, Vec<u64>>,
    /// Chains whose rules were written since.
    rewritten: HashSet<Box<str>>,
    /// Whether the guard of 127.0.0.0/8 is this table's business.
    loopback: bool,
    /// Somebody else made a transaction since the sets were last read.
    suspicious: bool,
    /// Whether the kernel counts the elements of sets.
    counted: bool,
    ignores_counts: bool,
    /// Sets that are being read, and how often we had written when that began.
    reading: Option<(Reading, u64)>,
    writes: u64,
    read_after: Option<Instant>,
}

impl Drift {
    pub(crate) fn new(family: Family, own: OwnCommits) -> Self {
        Self {
            family,
            watch: Watch::new(own),
            census: Census::default(),
            rules: HashMap::new(),
            rewritten: HashSet::new(),
            loopback: false,
            suspicious: false,
            counted: true,
            ignores_counts: false,
            reading: None,
            writes: 0,
            read_after: None,
        }
    }

    /// Forgets what was written: all of it is about to be written again.
    pub(crate) fn forget(&mut self) {
        let new = Self::new(self.family, self.watch.own());
        // A reading that is under way goes on, so that there is never more than one; what it finds is out of date.
        let (reading, writes) = (self.reading.take(), self.writes + 1);
        let (read_after, ignores_counts) = (self.read_after, self.ignores_counts);
        *self = Self { reading, writes, read_after, ignores_counts, ..new };
    }

    /// Has it do as on kernels that do not count the elements of sets (before 6.17).
    pub(crate) fn ignore_counts(&mut self) {
        self.ignores_counts = true;
    }

    /// Names of our chains that begin so.
    pub(crate) fn chains_named(&self, prefix: &str) -> Vec<Box<str>> {
        self.census.chains_named(prefix)
    }

    /// Notes operations that are done, whether it took a transaction or not: what was to go may have been gone.
    pub(crate) fn done<'o>(&mut self, operations: impl Iterator<Item = &'o Operation>, committed: bool) {
        for operation in operations {
            self.census.note(operation);
            match operation {
                Operation::AddRule { chain, .. } => {
                    self.rewritten.insert(chain.to_string().into());
                }
                Operation::FlushChain { name } => {
                    self.rewritten.insert(name.clone());
                }
                Operation::Loopback { .. } => self.loopback = true,
                Operation::DeleteChain { name } => {
                    self.rewritten.remove(name);
                    self.rules.remove(name);
                }
                _ => {}
            }
        }
        self.writes += 1;
        if committed {
            self.watch.committed();
        }
    }

    /// To be called before the first transaction of a series whose result is to be known.
    pub(crate) fn begin(&mut self, socket: &mut Socket) -> Result<(), netlink::Error> {
        if self.census.is_empty() {
            let sight = self.watch.look(socket)?;
            self.watch.accept(sight);
        }
        Ok(())
    }

    /// Reads back the rules that were written.
    pub(crate) fn remember_rules(&mut self, socket: &mut Socket) -> Result<(), netlink::Error> {
        if self.rewritten.len() > FEW_CHAINS {
            let mut rules = rules_by_chain(socket, self.family, None)?;
            for chain in self.rewritten.drain() {
                let own = rules.remove(&chain).unwrap_or_default();
                self.rules.insert(chain, own);
            }
        }
        for chain in self.rewritten.drain() {
            let own = rules_by_chain(socket, self.family, Some(&chain))?.remove(&chain).unwrap_or_default();
            self.rules.insert(chain, own);
        }
        Ok(())
    }

    /// Whether everything is as it was written, as far as can be told now.
    pub(crate) fn intact(&mut self, socket: &mut Socket) -> Result<bool, netlink::Error> {
        let now = self.watch.look(socket)?;
        if self.census.is_empty() {
            return Ok(true);
        }
        if !self.watch.undisturbed(now) {
            let stands = self.chains_stand(socket)?
                && self.rules_stand(socket)?
                && self.sets_stand(socket)?
                && (!self.loopback || localnet::is_safe(socket)?);
            if !stands {
                return Ok(false);
            }
            self.watch.accept(now);
            self.suspicious = true;
        }
        Ok(self.elements_stand())
    }

    /// Chains are asked for by name: a list would be of all tables, and there are nodes with tens of thousands.
    fn chains_stand(&self, socket: &mut Socket) -> Result<bool, netlink::Error> {
        let table = table(self.family);
        let tables = list::tables(socket, table.family)?;
        if !tables.iter().any(|found| *found.name == *table.name && !found.dormant) {
            return Ok(false);
        }
        let (names, uses): (Vec<&str>, Vec<u32>) = self.census.uses().into_iter().unzip();
        let found = list::chains_named(socket, table, &names)?;
        Ok(names.iter().zip(uses).zip(&found).all(|((name, uses), chain)| {
            chain.as_ref().is_some_and(|chain| {
                let hooked = Place::base(name).is_none_or(|base| hook_of(chain) == Some(base.hook()));
                chain.uses == uses && hooked
            })
        }))
    }

    // Where others commit all the time, a list may lack some of what is there. So what a list says is wrong is asked for
    // by its name before it counts as damage.

    fn rules_stand(&self, socket: &mut Socket) -> Result<bool, netlink::Error> {
        let none = Vec::new();
        let found = rules_by_chain(socket, self.family, None)?;
        for (chain, own) in &self.rules {
            if found.get(chain).unwrap_or(&none) != own
                && rules_by_chain(socket, self.family, Some(chain))?.get(chain).unwrap_or(&none) != own
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn sets_stand(&mut self, socket: &mut Socket) -> Result<bool, netlink::Error> {
        let table = table(self.family);
        let sets = list::sets(socket, table)?;
        let found: HashMap<&str, &list::FoundSet> = sets.iter().map(|set| (&*set.name, set)).collect();
        self.counted = !self.ignores_counts && sets.iter().all(|set| set.elements.is_some());
        for (name, tally) in self.census.tallies() {
            let counts = |set: &list::FoundSet| set.elements.filter(|_| self.counted);
            let stands = |set: &list::FoundSet| counts(set).is_none_or(|count| count == tally.counted());
            if !found.get(&*name).is_some_and(|set| stands(set))
                && !list::set(socket, table, &name)?.as_ref().is_some_and(stands)
            {
                return Ok(false);
            }
        }
        Ok(self.counted || self.samples_stand(socket)?)
    }

    /// Without counts, what one element of each set tells: that nobody emptied it.
    fn samples_stand(&self, socket: &mut Socket) -> Result<bool, netlink::Error> {
        let samples: Vec<_> = self.census.samples().map(|(name, key)| (name, key_bytes(&key).0)).collect();
        let asked: Vec<(&str, &[u8])> = samples.iter().map(|(name, key)| (&**name, key.as_slice())).collect();
        Ok(list::elements_present(socket, table(self.family), &asked)?.into_iter().all(|present| present))
    }

    /// Compares what a reading has found, and begins another where that is due.
    fn elements_stand(&mut self) -> bool {
        match self.reading.take() {
            Some((reading, writes)) if reading.is_over() => {
                let Ok(seen) = reading.end() else {
                    self.suspicious = true;
                    self.read_after = Some(clock() + LEAST_PAUSE);
                    return true;
                };
                let share = if self.counted { SHARE_COUNTED } else { SHARE_UNCOUNTED };
                self.read_after = Some(seen.ended + (seen.took * share).max(LEAST_PAUSE));
                if seen.differ.is_empty() {
                    return true;
                }
                if writes == self.writes {
                    tracing::warn!(sets = ?seen.differ, "somebody else changed elements of these sets");
                    return false;
                }
                // We wrote meanwhile: it has to be read again.
                self.suspicious = true;
            }
            reading => self.reading = reading,
        }
        let due = || self.read_after.is_none_or(|after| after <= clock());
        if self.suspicious && self.reading.is_none() && due() {
            self.suspicious = false;
            let sets = self.census.tallies().collect();
            // Without a thread, the next check tries again.
            match Reading::begin(self.family, sets) {
                Ok(reading) => self.reading = Some((reading, self.writes)),
                Err(_) => self.suspicious = true,
            }
        }
        true
    }
}

fn rules_by_chain(
    socket: &mut Socket,
    family: Family,
    chain: Option<&str>,
) -> Result<HashMap<Box<str>, Vec<u64>>, netlink::Error> {
    let mut by_chain: HashMap<Box<str>, Vec<u64>> = HashMap::new();
    for rule in list::rules(socket, table(family), chain)? {
        by_chain.entry(rule.chain).or_default().push(rule.fingerprint);
    }
    Ok(by_chain)
}
