//! Chains and rules against those that the same planner writes into a network namespace of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use netlink::{Socket, scratch};
use nft_netlink::list;
use proxy_core::{
    backend::Step,
    difference::{Comparison, DifferenceKind},
    environment::Environment,
    model::Family,
};

use crate::{
    compare::content::stem,
    kernel::{Executor, hook_of, table},
    plan::class_step,
    schema::{
        class_chain::Class,
        name::{Affinity, Base, Place, Set, SetName, TABLE},
        operation::{Op, Operation},
        scaffold::{Optional, Parts, Scaffold},
        size_class::SizeClass,
        value::Plain,
    },
};

/// Clients that a map remembers there; nothing depends on it.
const CLIENTS: u32 = 1024;

/// Chains by name, with the fingerprints of their rules (comparable within this process).
type Chains = BTreeMap<Box<str>, Vec<u64>>;

/// What is to be compared.
pub(super) struct Expected<'a> {
    pub(super) environment: &'a Environment,
    pub(super) generation: u32,
    /// The optional rules that must be there; more may be, until upkeep removes them.
    pub(super) parts: Parts,
    /// Prefix lengths that have a set.
    pub(super) prefixes: Vec<u8>,
    /// Classes that Services need.
    pub(super) classes: Vec<Class>,
    /// Chains that sticky Service ports are led to.
    pub(super) stems: BTreeSet<String>,
}

/// What the scratch namespace holds: with all optional rules, and the base chains with only those that must be.
struct Tried {
    all: Chains,
    least: Chains,
}

pub(super) fn compare(
    socket: &mut Socket,
    found: &[list::FoundChain],
    expected: &Expected<'_>,
    comparison: &mut Comparison,
) -> Result<(), netlink::Error> {
    let family = expected.environment.family;
    let suffix = format!("-{}", expected.generation);
    let of_generation = |name: &str| name.strip_suffix(&suffix).map(str::to_owned);
    let mut classes = expected.classes.clone();
    classes.extend(found.iter().filter_map(|chain| class_of(&of_generation(&chain.name)?)));
    let native = |name: &str| Some(format!("nft list chain {} {TABLE} {name}", table(family).family.name()));

    for base in Base::ALL {
        let name = base.as_str();
        match found.iter().find(|chain| &*chain.name == name) {
            None => {
                comparison.differs(None, DifferenceKind::Missing, format!("base chain {name}"), native(name))
            }
            Some(chain) if hook_of(chain) != Some(base.hook()) => {
                let what = format!("base chain {name} is hooked in elsewhere, or drops by its policy");
                comparison.differs(None, DifferenceKind::Different, what, native(name));
            }
            Some(_) => {}
        }
    }
    let is = rules_by_chain(socket, family)?;
    let tried = scratch::in_own_namespace(|| expected.tried(&classes));
    let tried = match tried.and_then(|tried| tried.map_err(io::Error::other)) {
        Ok(tried) => tried,
        Err(error) => {
            let text = format!(
                "what the rules of table {TABLE} say: they cannot be written into a network namespace of their own to be compared ({error})"
            );
            comparison.unseen.push(text);
            return Ok(());
        }
    };
    for chain in found {
        let name = &*chain.name;
        let base = Place::base(name).is_some();
        let none = Vec::new();
        let own = is.get(name).unwrap_or(&none);
        let Some(all) = tried.all.get(name) else {
            let what = match of_generation(name) {
                Some(_) => format!("chain {name}, which is none of ours"),
                None if stem(name) != name => format!("chain {name}, of another generation"),
                None => format!("chain {name}, which is none of ours"),
            };
            comparison.differs(
                None,
                DifferenceKind::Extra,
                what,
                Some(format!("nft delete chain {} {TABLE} {name}", table(family).family.name())),
            );
            continue;
        };
        comparison.compared += 1 + own.len();
        let least = if base { tried.least.get(name).unwrap_or(&none) } else { all };
        if !lies_between(own, least, all) {
            let what = if own.len() < least.len() {
                format!("chain {name} has {} rules instead of {}", own.len(), least.len())
            } else if own.len() > all.len() {
                format!("chain {name} has {} rules instead of {}", own.len(), all.len())
            } else {
                let at = own.iter().zip(all).position(|(own, all)| own != all).map_or(own.len(), |at| at + 1);
                format!("chain {name}: its rules are other ones, from rule {at} on")
            };
            comparison.differs(None, DifferenceKind::Different, what, native(name));
        }
    }
    // Chains that are needed are in use, so that nobody can delete them alone; the shared ones are among them.
    for name in tried.least.keys() {
        if !found.iter().any(|chain| chain.name == *name) && Place::base(name).is_none() {
            comparison.differs(None, DifferenceKind::Missing, format!("chain {name}"), native(name));
        }
    }
    Ok(())
}

/// The rules of a chain are those that must be there, in their order, and of the others only such as may be.
fn lies_between(own: &[u64], least: &[u64], all: &[u64]) -> bool {
    let within = |part: &[u64], whole: &[u64]| {
        let mut rest = whole.iter();
        part.iter().all(|one| rest.any(|other| other == one))
    };
    within(own, all) && within(least, own)
}

fn rules_by_chain(socket: &mut Socket, family: Family) -> Result<Chains, netlink::Error> {
    let mut chains = Chains::new();
    for rule in list::rules(socket, table(family), None)? {
        chains.entry(rule.chain).or_default().push(rule.fingerprint);
    }
    Ok(chains)
}

impl Expected<'_> {
    /// Writes sets, chains and rules (no elements but those that lead to chains) into this thread's namespace.
    fn tried(&self, classes: &[Class]) -> Result<Tried, String> {
        // A kernel without the hash spreads clients that affinity does not remember at random.
        self.try_with(classes, true).or_else(|_| self.try_with(classes, false))
    }

    fn try_with(&self, classes: &[Class], hash: bool) -> Result<Tried, String> {
        let family = self.environment.family;
        let mut parts = Parts::default();
        for part in Optional::ALL {
            parts = parts.with(part);
        }
        let scaffold =
            |parts| Scaffold { generation: self.generation, environment: self.environment, parts, hash };
        let all = scaffold(parts);
        let mut executor = Executor::open(family).map_err(|error| error.to_string())?;
        let mut run = |step: Step<Op>| executor.commit(&step, true).map_err(|error| error.to_string());

        let mut step = Step::default();
        let push = |step: &mut Step<Op>, operation| step.push(Op(operation), None);
        push(&mut step, Operation::Table { family });
        for set in Set::ALL.into_iter().filter(|set| !matches!(set, Set::AllowedSources | Set::Clients)) {
            let name = SetName::new(set, self.generation);
            push(&mut step, Operation::AddSet { family, name, capacity: None });
        }
        for prefix in &self.prefixes {
            let name = SetName::allowed(*prefix, self.generation);
            push(&mut step, Operation::AddSet { family, name, capacity: None });
        }
        run(step)?;
        let mut step = Step::default();
        for (chain, rules) in all.shared_chains() {
            let source_check = chain.place == Place::SourceCheck;
            let name: Box<str> = chain.to_string().into();
            push(&mut step, Operation::AddChain { name: chain });
            push(&mut step, Operation::FlushChain { name });
            let restricted = source_check && !self.prefixes.is_empty();
            let rules = if restricted { all.source_check(&self.prefixes) } else { rules };
            for rule in rules {
                push(&mut step, Operation::AddRule { family, chain, rule });
            }
        }
        for base in Base::ALL {
            push(&mut step, Operation::AddBase { base });
        }
        run(step)?;
        let needed = in_order(classes);
        run(class_step(&all, &needed, &self.prefixes, CLIENTS))?;
        let bases = |scaffold: &Scaffold<'_>| {
            let mut step = Step::default();
            for base in Base::ALL {
                step.push(Op(Operation::FlushChain { name: base.as_str().into() }), None);
                let chain = scaffold.chain(Place::Base(base));
                for rule in scaffold.base_rules(base) {
                    step.push(Op(Operation::AddRule { family, chain, rule }), None);
                }
            }
            step
        };
        run(bases(&all))?;
        let mut socket = Socket::open(netlink::Protocol::Netfilter).map_err(|error| error.to_string())?;
        let mut read = || -> Result<Chains, String> {
            let mut chains = rules_by_chain(&mut socket, family).map_err(|error| error.to_string())?;
            let found = list::chains(&mut socket, table(family)).map_err(|error| error.to_string())?;
            for chain in found {
                chains.entry(chain.name).or_default();
            }
            Ok(chains)
        };
        let with_all = read()?;
        run(bases(&scaffold(self.parts)))?;
        let mut least = read()?;
        // Of the chains of sticky Service ports, those that they are led to.
        let needed: BTreeSet<String> = self
            .classes
            .iter()
            .filter(|class| !matches!(class, Class::Sticky { .. }))
            .flat_map(|class| all.class_chains(*class))
            .map(|(chain, _)| chain.to_string())
            .chain(self.stems.iter().map(|stem| format!("{stem}-{}", self.generation)))
            .chain(all.shared_chains().into_iter().map(|(chain, _)| chain.to_string()))
            .chain(Base::ALL.map(|base| base.as_str().to_owned()))
            .collect();
        least.retain(|name, _| needed.contains(&**name));
        Ok(Tried { all: with_all, least })
    }
}

/// Each class once, after those that it needs; each way to remember clients under a number of its own.
fn in_order(classes: &[Class]) -> Vec<(Class, Option<u32>)> {
    let mut sticky = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut ordered = Vec::new();
    for class in classes {
        if let Class::Sticky { affinity, .. } = class {
            sticky.insert(*affinity);
            continue;
        }
        let mut chain = vec![*class];
        while let Some(needed) = chain.last().and_then(|class| class.needs()) {
            chain.push(needed);
        }
        ordered
            .extend(chain.into_iter().rev().filter(|class| seen.insert(*class)).map(|class| (class, None)));
    }
    let sticky = (0..).zip(sticky).map(|(memory, affinity)| (Class::Sticky { memory, affinity }, None));
    // Sticky chains pick by maps, not by chains: they need nothing first.
    ordered.into_iter().chain(sticky).collect()
}

/// The class that a chain (its name without the generation) belongs to.
fn class_of(name: &str) -> Option<Class> {
    if name == "restricted-only" {
        return Some(Class::Plain(Plain::RestrictedOnly, SizeClass::of(0)));
    }
    let (kind, rest) = name.rsplit_once('-')?;
    if let Some((timeout, share)) = rest.split_once("s.") {
        let wide = kind.ends_with("-wide");
        let known = ["alb", "allb", "acip", "acipl", "aext", "aextl", "raext", "raextl"];
        if !known.contains(&kind.trim_end_matches("-wide")) {
            return None;
        }
        let affinity = Affinity { timeout: timeout.parse().ok()?, share: share.parse().ok()?, wide };
        return Some(Class::Sticky { memory: 0, affinity });
    }
    let upper: u32 = rest.parse().ok()?;
    let size = SizeClass::of(upper as usize);
    Some(match kind {
        "lb" => Class::Balance(size),
        "cip" => Class::Plain(Plain::ClusterIp, size),
        "ext" => Class::Plain(Plain::External, size),
        "extl" => Class::Plain(Plain::ExternalLocal, size),
        "llb" => Class::Plain(Plain::Local, size),
        "rext" => Class::Plain(Plain::RestrictedExternal, size),
        "rextl" => Class::Plain(Plain::RestrictedExternalLocal, size),
        "pick" | "pick-by-source" => Class::Pick(size),
        _ => return None,
    })
}
