//! A table without a kernel: operations are applied to it as strictly as the kernel would, and packets walk its rules.
//!
//! For tests, here and in other crates (feature `model`). It follows every choice of a random number, so that it answers
//! with all endpoints that a packet may reach.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use proxy_core::{
    backend::Plan,
    model::{Family, Protocol},
};

use crate::schema::{
    element::{Data, Key},
    found::{Found, FoundChain, FoundHook, FoundSticky, generation_of},
    name::{Base, ChainName, Place, Set, SetName},
    operation::{Op, Operation},
    statement::{Rule, Statement},
};

/// The table of one family.
#[derive(Debug, Clone)]
pub struct Model {
    pub(crate) family: Family,
    pub(crate) chains: BTreeMap<Box<str>, ModelChain>,
    pub(crate) sets: BTreeMap<Box<str>, BTreeMap<Key, Data>>,
    /// What the packet path wrote: (source, base) to endpoint id.
    pub(crate) clients: HashMap<(IpAddr, u32), u32>,
    /// No more clients are remembered.
    pub(crate) clients_full: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ModelChain {
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<Arc<Rule>>,
}

/// A packet that begins a connection.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Who sends it.
    pub source: IpAddr,
    /// The interface it came in through; `None` for one that the node itself sends.
    pub interface: Option<Box<str>>,
    /// Of its port.
    pub protocol: Protocol,
    /// Where it is sent to.
    pub to: SocketAddr,
    /// What somebody else set; it must survive where no Service is meant.
    pub priority: u32,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It goes to this endpoint; `masqueraded`: with the node's address as its source.
    Translated {
        /// The endpoint.
        to: SocketAddr,
        /// Whether the endpoint sees the node's address.
        masqueraded: bool,
    },
    /// Its sender is told that nobody is there.
    Rejected,
    /// Nobody is told.
    Dropped,
    /// It goes its way.
    Passed,
}

/// How one walk ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// What became of the packet.
    pub fate: Fate,
    /// The priority with which it left (or was thrown away).
    pub priority: u32,
}

impl Model {
    /// An empty table.
    pub fn new(family: Family) -> Self {
        Self {
            family,
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
            clients: HashMap::new(),
            clients_full: false,
        }
    }

    /// Applies a plan, or says which operation the kernel would refuse.
    pub fn apply(&mut self, plan: &Plan<Op>) -> Result<(), String> {
        for step in &plan.steps {
            for owned in &step.ops {
                self.operation(&owned.op.0).map_err(|reason| format!("{}: {reason}", owned.op))?;
            }
        }
        Ok(())
    }

    /// What a survey would find.
    pub fn found(&self) -> Found {
        let chains = self
            .chains
            .iter()
            .map(|(name, chain)| FoundChain {
                name: name.clone(),
                hook: chain.base.map(|base| FoundHook::Like(base.hook())),
            })
            .collect();
        let sets = self.sets.keys().cloned().collect();
        Found { chains, sets, sticky: self.sticky().unwrap_or_default() }
    }

    fn sticky(&self) -> Option<FoundSticky> {
        let entrance = self.chains.get(Base::NatPrerouting.as_str())?.rules.first()?;
        let generation = entrance.0.iter().find_map(|statement| match statement {
            Statement::Goto(chain) => generation_of(&chain.to_string()),
            _ => None,
        })?;
        let elements = |set| {
            let name = SetName::new(set, generation).to_string();
            self.sets.get(&*name).into_iter().flatten()
        };
        let ports = elements(Set::StickySizes).chain(elements(Set::StickyLocalSizes));
        let ports: BTreeSet<(Box<str>, u32)> = ports
            .filter_map(|(key, data)| match (key, data) {
                (Key::Id(base), Data::Named(_, comment)) => Some((comment.clone(), *base)),
                _ => None,
            })
            .collect();
        let endpoints = elements(Set::StickyEndpoints).chain(elements(Set::StickyLocal));
        let endpoints = endpoints
            .filter_map(|(key, data)| match (key, data) {
                (Key::IdProtocol(id, _), Data::Target(addr, port)) => Some((*id, *addr, *port)),
                _ => None,
            })
            .collect();
        Some(FoundSticky { ports: ports.into_iter().collect(), endpoints })
    }

    fn operation(&mut self, operation: &Operation) -> Result<(), &'static str> {
        match operation {
            Operation::Table { .. } | Operation::Loopback { .. } | Operation::LeaveOut => {}
            Operation::AddSet { name, .. } => {
                self.sets.entry(name.to_string().into()).or_default();
            }
            Operation::AddBase { base } => {
                let chain = ModelChain { base: Some(*base), rules: Vec::new() };
                if self.chains.insert(base.as_str().into(), chain).is_some() {
                    return Err("the chain is there");
                }
            }
            Operation::AddChain { name } => {
                self.chains.entry(name.to_string().into()).or_default();
            }
            Operation::AddRule { chain, rule, .. } => {
                self.refers(rule)?;
                let chain = self.chains.get_mut(&*chain.to_string()).ok_or("no such chain")?;
                chain.rules.push(Arc::clone(rule));
            }
            Operation::FlushChain { name } => {
                self.chains.get_mut(name).ok_or("no such chain")?.rules.clear();
            }
            Operation::DeleteChain { name } => {
                if self.uses(name) {
                    return Err("the chain is in use");
                }
                self.chains.remove(name).ok_or("no such chain")?;
            }
            Operation::DeleteSet { name } => {
                let used = self
                    .chains
                    .values()
                    .flat_map(|chain| &chain.rules)
                    .any(|rule| sets_of(rule).any(|set| *set.to_string() == **name));
                if used {
                    return Err("the set is in use");
                }
                self.sets.remove(name).ok_or("no such set")?;
            }
            Operation::Add { generation, .. }
            | Operation::AddGroup { generation, .. }
            | Operation::AddEndpoints { generation, .. } => {
                let mut outcome = Ok(());
                operation.elements(|element| {
                    let name = element.set_name(*generation).to_string();
                    let added = self.add(&name, element.key, element.data);
                    outcome = outcome.and(added);
                });
                outcome?;
            }
            Operation::Delete { generation, .. } | Operation::DeleteGroup { generation, .. } => {
                let mut outcome = Ok(());
                operation.elements(|element| {
                    let name = element.set_name(*generation).to_string();
                    let deleted = self.sets.get_mut(&*name).and_then(|set| set.remove(&element.key));
                    match deleted {
                        None => outcome = Err("no such element"),
                        Some(data) if data != element.data => outcome = Err("its data is other"),
                        Some(_) => {}
                    }
                });
                outcome?;
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, key: Key, data: Data) -> Result<(), &'static str> {
        if let Data::Goto(chain) | Data::Jump(chain) = &data
            && !self.chains.contains_key(&*chain.to_string())
        {
            return Err("no such chain");
        }
        let set = self.sets.get_mut(name).ok_or("no such set")?;
        // The way to a chain may be written twice.
        if matches!(data, Data::Goto(_) | Data::Jump(_)) && set.get(&key) == Some(&data) {
            return Ok(());
        }
        // The kernel would take any one with the same data; but the executor counts elements.
        match set.insert(key, data) {
            Some(_) => Err("the element is there"),
            None => Ok(()),
        }
    }

    fn refers(&self, rule: &Rule) -> Result<(), &'static str> {
        for set in sets_of(rule) {
            self.sets.get(&*set.to_string()).ok_or("no such set")?;
        }
        for statement in &rule.0 {
            if let Statement::Jump(chain) | Statement::Goto(chain) = statement {
                self.chains.get(&*chain.to_string()).ok_or("no such chain")?;
            }
        }
        Ok(())
    }

    fn uses(&self, name: &str) -> bool {
        let is = |chain: &ChainName| *chain.to_string() == *name;
        let by_rule = self.chains.values().flat_map(|chain| &chain.rules).any(|rule| {
            rule.0.iter().any(|statement| match statement {
                Statement::Jump(chain) | Statement::Goto(chain) => is(chain),
                _ => false,
            })
        });
        let by_verdict = self.sets.values().flat_map(BTreeMap::values).any(|data| match data {
            Data::Goto(chain) | Data::Jump(chain) => is(chain),
            _ => false,
        });
        by_rule || by_verdict
    }

    /// Whose packets are led.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Elements of all sets, for counting.
    pub fn elements(&self) -> usize {
        self.sets.values().map(BTreeMap::len).sum()
    }

    /// Names of all chains.
    pub fn chain_names(&self) -> impl Iterator<Item = &str> {
        self.chains.keys().map(|name| &**name)
    }

    pub(crate) fn base(&self, base: Base) -> Option<&ModelChain> {
        let place = ChainName { place: Place::Base(base), generation: 0 };
        self.chains.get(&*place.to_string())
    }
}

fn sets_of(rule: &Rule) -> impl Iterator<Item = &SetName> {
    use crate::schema::statement::Priority;
    rule.0.iter().filter_map(|statement| match statement {
        Statement::In { set, .. } | Statement::UpdateClient { set, .. } | Statement::DeleteClient { set } => {
            Some(set)
        }
        Statement::Dispatch { map, .. }
        | Statement::TranslateTo { map, .. }
        | Statement::SetPriority(Priority::Found { map, .. }) => Some(map),
        _ => None,
    })
}
