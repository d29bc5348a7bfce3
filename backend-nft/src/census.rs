//! What the kernel must have of our chains: each with its rules, and with what leads to it.
//!
//! The kernel counts for every chain its rules and the jumps to it (`NFTA_CHAIN_USE`), so one short list tells whether
//! any of our chains, base chains or rules is gone.

use std::collections::HashMap;

use crate::{
    element::{Data, Element, Key},
    name::{Base, ChainName, Place, SetName},
    operation::{Op, Operation},
    statement::Statement,
};

#[derive(Debug, Default)]
pub(crate) struct Census {
    /// For each rule of a chain, the chain it leads to.
    chains: HashMap<Box<str>, Vec<Option<Box<str>>>>,
    verdicts: HashMap<Box<str>, HashMap<Key, Box<str>>>,
}

impl Census {
    /// Notes what an operation did.
    pub(crate) fn note(&mut self, op: &Op) {
        let text = |chain: &ChainName| -> Box<str> { chain.to_string().into() };
        match &op.0 {
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
