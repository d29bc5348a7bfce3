//! What the kernel must have of ours: each chain with its rules and with what leads to it, each set with its elements.
//!
//! The kernel counts for every chain its rules and the jumps to it (`NFTA_CHAIN_USE`) and, since 6.17, for every set its
//! elements (`NFTA_SET_COUNT`), so short lists tell whether anything is gone or has come.

use std::collections::HashMap;

use crate::{
    kernel::tally::Tally,
    schema::{
        element::{Data, Element, Key},
        name::{Base, ChainName, Place, Set, SetName},
        operation::Operation,
        statement::Statement,
    },
};

#[derive(Debug, Default)]
pub(crate) struct Census {
    /// For each rule of a chain, the chain it leads to.
    chains: HashMap<Box<str>, Vec<Option<Box<str>>>>,
    verdicts: HashMap<Box<str>, HashMap<Key, Box<str>>>,
    /// Those that the packet path fills are left out.
    sets: HashMap<SetName, Held>,
}

/// What a set must hold.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    tally: Tally,
    /// One of its keys: where the kernel does not count elements, a set that was emptied is told by it.
    sample: Option<Key>,
}

impl Census {
    /// Notes what an operation did.
    pub(crate) fn note(&mut self, operation: &Operation) {
        let text = |chain: &ChainName| -> Box<str> { chain.to_string().into() };
        if !self.knows_verdict(operation) {
            self.note_elements(operation);
        }
        match operation {
            Operation::AddSet { name, .. } if name.set != Set::Clients => {
                self.sets.entry(*name).or_default();
            }
            Operation::AddBase { base } => {
                let name = ChainName { place: Place::Base(*base), generation: 0 };
                self.chains.entry(text(&name)).or_default();
            }
            Operation::AddChain { name } => {
                self.chains.entry(text(name)).or_default();
            }
            Operation::AddRule { chain, rule, .. } => {
                let leads_to = rule.0.iter().find_map(|statement| match statement {
                    Statement::Jump(to) | Statement::Goto(to) => Some(text(to)),
                    _ => None,
                });
                self.chains.entry(text(chain)).or_default().push(leads_to);
            }
            Operation::FlushChain { name } => {
                if let Some(rules) = self.chains.get_mut(name) {
                    rules.clear();
                }
            }
            Operation::DeleteChain { name } => {
                self.chains.remove(name);
            }
            Operation::DeleteSet { name } => {
                self.verdicts.remove(name);
                self.sets.retain(|own, _| *own.to_string() != **name);
            }
            Operation::Add {
                generation,
                element: Element { set, key, data: Data::Goto(to) | Data::Jump(to) },
            } => {
                let name = SetName::new(*set, *generation).to_string();
                self.verdicts.entry(name.into()).or_default().insert(*key, text(to));
            }
            Operation::Delete { generation, element } if !self.verdicts.is_empty() => {
                if let Data::Goto(_) | Data::Jump(_) = element.data {
                    let name = SetName::new(element.set, *generation).to_string();
                    if let Some(map) = self.verdicts.get_mut(&*name) {
                        map.remove(&element.key);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether it adds a verdict that is there already: the way to a chain may be written twice.
    fn knows_verdict(&self, operation: &Operation) -> bool {
        let Operation::Add { generation, element } = operation else { return false };
        let verdict = matches!(element.data, Data::Goto(_) | Data::Jump(_));
        let name = || SetName::new(element.set, *generation).to_string();
        verdict && self.verdicts.get(&*name()).is_some_and(|map| map.contains_key(&element.key))
    }

    fn note_elements(&mut self, operation: &Operation) {
        let (generation, gone) = match operation {
            Operation::Delete { generation, .. } | Operation::DeleteGroup { generation, .. } => {
                (*generation, true)
            }
            Operation::Add { generation, .. }
            | Operation::AddGroup { generation, .. }
            | Operation::AddEndpoints { generation, .. } => (*generation, false),
            _ => return,
        };
        // All elements of an operation belong to one set.
        let mut written = Tally::default();
        let mut name = None;
        let mut sample = None;
        operation.elements(|element| {
            written.add(&element);
            let set = name.get_or_insert_with(|| element.set_name(generation));
            let sample = sample.get_or_insert_with(|| self.sets.get(set).and_then(|held| held.sample));
            match sample {
                Some(key) if gone && *key == element.key => *sample = None,
                None if !gone => *sample = Some(element.key),
                _ => {}
            }
        });
        if let Some(held) = name.and_then(|name| self.sets.get_mut(&name)) {
            held.sample = sample.flatten();
            if gone { held.tally.remove(written) } else { held.tally.include(written) }
        }
    }

    /// What each of our sets must hold.
    pub(crate) fn tallies(&self) -> impl Iterator<Item = (Box<str>, Tally)> {
        self.sets.iter().map(|(name, held)| (name.to_string().into(), held.tally))
    }

    /// A key that each of our sets must hold, of those with single keys.
    pub(crate) fn samples(&self) -> impl Iterator<Item = (Box<str>, Key)> {
        let single = |key: &Key| !matches!(key, Key::Network(_));
        let named = move |(name, held): (&SetName, &Held)| {
            Some((name.to_string().into(), held.sample.filter(single)?))
        };
        self.sets.iter().filter_map(named)
    }

    /// How often each of our chains must be in use.
    pub(crate) fn uses(&self) -> HashMap<&str, u32> {
        let mut uses: HashMap<&str, u32> =
            self.chains.iter().map(|(name, rules)| (&**name, rules.len() as u32)).collect();
        let by_rules = self.chains.values().flatten().flatten();
        for to in by_rules.chain(self.verdicts.values().flat_map(HashMap::values)) {
            *uses.entry(to).or_default() += 1;
        }
        uses
    }

    /// Names of our chains that begin so.
    pub(crate) fn chains_named(&self, prefix: &str) -> Vec<Box<str>> {
        self.chains.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// Whether our base chains are among what was noted: something was installed.
    pub(crate) fn is_empty(&self) -> bool {
        Base::ALL.iter().all(|base| !self.chains.contains_key(base.as_str()))
    }
}
