//! Our nftables table of one family: its transactions, and whether it still is as they left it.

use std::{collections::BTreeMap, time::Duration};

use netlink::{Socket, Traffic};
use nft_netlink::{
    Batch, CommitError, Position, Refusal,
    generation::{OwnCommits, Watch},
    list::{self, FoundChain},
};
use proxy_core::{
    backend::{ApplyError, Owned},
    environment::Environment,
    model::Family,
};

use crate::{
    kernel::refusal::{is_an_objects_fault, lost},
    schema::{
        element,
        op::Op,
        scaffold::{self, BASE_CHAINS, CHAINS, PREFIX, VIPS},
    },
    settings::MarkSpace,
};

pub(crate) struct Tables {
    family: Family,
    socket: Socket,
    batch: Batch,
    watch: Watch,
    rules: Rules,
    /// How many elements each of our sets has.
    elements: BTreeMap<&'static str, u32>,
}

/// Our chains and what stands in them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    chains: Vec<FoundChain>,
    /// Of each rule.
    fingerprints: Vec<u64>,
}

/// A chain as it stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Where it is hooked in, as what, and whether its policy is to drop.
    pub(crate) hook: (Option<(u32, i32)>, Option<Box<str>>, bool),
    /// Fingerprints of its rules, comparable within one process.
    pub(crate) rules: Vec<u64>,
}

/// Our chains that stand.
pub(crate) fn written(
    socket: &mut Socket,
    family: Family,
) -> Result<BTreeMap<&'static str, Written>, netlink::Error> {
    let table = scaffold::table(family);
    let mut all = BTreeMap::new();
    for name in BASE_CHAINS.iter().map(|chain| chain.name).chain(CHAINS) {
        if let Some(chain) = list::chain(socket, table, name)? {
            let rules = list::rules(socket, table, Some(name))?;
            let rules = rules.into_iter().map(|rule| rule.fingerprint).collect();
            all.insert(name, Written { hook: (chain.hook, chain.kind, chain.drops), rules });
        }
    }
    Ok(all)
}

/// Writes the rules for an environment into the calling thread's network namespace and reads them back.
pub(crate) fn tried(
    environment: &Environment,
    marks: MarkSpace,
) -> Result<BTreeMap<&'static str, Written>, ApplyError> {
    let mut socket = Socket::open(netlink::Protocol::Netfilter).map_err(lost)?;
    let mut batch = Batch::new();
    scaffold::write(&mut batch, environment, marks, true);
    batch.commit(&mut socket).map_err(lost)?;
    written(&mut socket, environment.family).map_err(lost)
}

/// What the operations of one step are as a transaction.
#[derive(Debug, Default)]
pub struct Encoded {
    /// Where each operation begins, and which it is.
    positions: Vec<(Position, usize)>,
    /// The rules are written anew.
    rules: bool,
    /// And all sets emptied.
    rebuilt: bool,
}

/// Adds the operations of one step to a batch.
pub fn encode(batch: &mut Batch, family: Family, ops: &[Owned<Op>]) -> Encoded {
    let table = scaffold::table(family);
    let mut encoded = Encoded { positions: Vec::with_capacity(ops.len()), ..Encoded::default() };
    for (at, owned) in ops.iter().enumerate() {
        match &owned.op {
            Op::Rebuild(environment, marks) => {
                (encoded.rules, encoded.rebuilt) = (true, true);
                scaffold::write(batch, environment, *marks, true);
            }
            Op::Rules(environment, marks) => {
                encoded.rules = true;
                scaffold::write(batch, environment, *marks, false);
            }
            Op::DropOtherTable => {
                let other = scaffold::other_table(family);
                // It may have gone since it was seen.
                batch.add_table(other, None);
                batch.delete_table(other);
            }
            Op::AddElement(element) => encoded.positions.push((element::add(batch, table, element), at)),
            Op::DeleteElement(element) => {
                encoded.positions.push((element::delete(batch, table, element), at));
            }
            _ => {}
        }
    }
    encoded
}

impl Tables {
    pub(crate) fn new(family: Family, socket: Socket, own: OwnCommits) -> Self {
        Self {
            family,
            socket,
            batch: Batch::new(),
            watch: Watch::new(own),
            rules: Rules::default(),
            elements: BTreeMap::new(),
        }
    }

    /// Has several count their transactions together.
    pub(crate) fn count_with(&mut self, own: OwnCommits) {
        self.watch = Watch::new(own);
    }

    pub(crate) fn waited(&self) -> Duration {
        self.socket.waited()
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.socket.traffic()
    }

    /// One transaction.
    pub(crate) fn commit(&mut self, ops: &[Owned<Op>]) -> Result<(), ApplyError> {
        self.batch.clear();
        let encoded = encode(&mut self.batch, self.family, ops);
        match self.batch.commit(&mut self.socket) {
            Ok(()) => {}
            Err(CommitError::Refused(refusals)) => {
                return Err(culprit(&refusals[0], &encoded.positions, ops));
            }
            Err(error) => return Err(lost(error)),
        }
        self.watch.committed();
        if encoded.rebuilt {
            self.elements.clear();
        }
        for owned in ops {
            match &owned.op {
                Op::AddElement(element) => *self.elements.entry(element::set(element)).or_default() += 1,
                Op::DeleteElement(element) => {
                    let count = self.elements.entry(element::set(element)).or_default();
                    *count = count.saturating_sub(1);
                }
                _ => {}
            }
        }
        if encoded.rebuilt {
            self.remove_others();
        }
        if encoded.rules {
            let sight = self.watch.look(&mut self.socket).map_err(lost)?;
            self.rules = self.look_at_rules().map_err(lost)?;
            self.watch.accept(sight);
        }
        Ok(())
    }

    /// One number is asked for, and more only if somebody else made a transaction.
    pub(crate) fn intact(&mut self) -> Result<bool, netlink::Error> {
        let sight = self.watch.look(&mut self.socket)?;
        if self.watch.undisturbed(sight) {
            return Ok(true);
        }
        let intact = self.look_at_rules()? == self.rules && self.sets_are_full()?;
        if intact {
            self.watch.accept(sight);
        }
        Ok(intact)
    }

    /// Whether our sets have as many elements as we put there. Before Linux 6.17 nobody can tell without reading them.
    fn sets_are_full(&mut self) -> Result<bool, netlink::Error> {
        let found = list::sets(&mut self.socket, scaffold::table(self.family))?;
        Ok(scaffold::sets(self.family).iter().all(|set| {
            let wanted = self.elements.get(set.name).copied().unwrap_or_default();
            let found = found.iter().find(|found| *found.name == *set.name);
            found.is_some_and(|found| found.elements.is_none_or(|elements| elements == wanted))
        }))
    }

    fn look_at_rules(&mut self) -> Result<Rules, netlink::Error> {
        let table = scaffold::table(self.family);
        let mut rules = Rules::default();
        for name in BASE_CHAINS.iter().map(|chain| chain.name).chain(CHAINS) {
            rules.chains.extend(list::chain(&mut self.socket, table, name)?);
            let inside = list::rules(&mut self.socket, table, Some(name))?;
            rules.fingerprints.extend(inside.iter().map(|rule| rule.fingerprint));
        }
        Ok(rules)
    }

    /// Whether there is a table of another mode, and whether its rules translate.
    pub(crate) fn other(&mut self) -> Result<(bool, bool), netlink::Error> {
        let table = scaffold::other_table(self.family);
        let chains = list::chains(&mut self.socket, table)?;
        let sets = list::sets(&mut self.socket, table)?;
        // Ours had these sets when it had that table.
        let ours = sets.iter().any(|set| *set.name == *VIPS);
        let translates = chains.iter().any(|chain| *chain.name == *"nat-prerouting" && chain.uses > 0);
        Ok((!chains.is_empty() || !sets.is_empty(), translates && !ours))
    }

    /// What another release of ours had in the table serves nothing any more.
    fn remove_others(&mut self) {
        if let Err(error) = self.try_remove_others() {
            tracing::warn!(%error, "chains or sets of another release stay in the table {}", scaffold::TABLE);
        }
    }

    fn try_remove_others(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let table = scaffold::table(self.family);
        let ours =
            |name: &str| name.starts_with(PREFIX) || BASE_CHAINS.iter().any(|chain| chain.name == name);
        let chains = list::chains(&mut self.socket, table)?;
        let sets = list::sets(&mut self.socket, table)?;
        let chains: Vec<&str> = chains.iter().map(|chain| &*chain.name).filter(|name| !ours(name)).collect();
        let sets: Vec<&str> = sets.iter().map(|set| &*set.name).filter(|name| !ours(name)).collect();
        let mut batch = Batch::new();
        // Rules refer to sets and chains, elements to chains: emptied first, everything can go.
        chains.iter().for_each(|name| {
            batch.flush_chain(table, name);
        });
        sets.iter().for_each(|name| {
            batch.flush_set(table, name);
        });
        sets.iter().for_each(|name| {
            batch.delete_set(table, name);
        });
        chains.iter().for_each(|name| {
            batch.delete_chain(table, name);
        });
        if !batch.is_empty() {
            batch.commit(&mut self.socket)?;
            self.watch.committed();
        }
        Ok(())
    }
}

fn culprit(refusal: &Refusal, positions: &[(Position, usize)], ops: &[Owned<Op>]) -> ApplyError {
    let at = refusal.position.and_then(|position| {
        let behind = positions.partition_point(|(begin, _)| *begin <= position);
        positions.get(behind.checked_sub(1)?).map(|(_, at)| &ops[*at])
    });
    let culprit = at.and_then(|owned| owned.owner).filter(|_| is_an_objects_fault(refusal.errno));
    let reason = match at {
        Some(owned) => format!("{}: {refusal}", owned.op),
        None => refusal.to_string(),
    };
    ApplyError::Refused { reason, culprit }
}
