//! Everything anew: a generation of its own beside whatever is there, then one small transaction that switches over.

use std::{mem, sync::Arc, time::Instant};

use proxy_core::{
    backend::{Owned, Plan, Step},
    environment::Environment,
    model::{Family, ServicePortName},
    route::Route,
};

use crate::{
    plan::{
        draft::Draft,
        planner::{Installed, Pending, Planner, add_rules, class_step, service_networks},
        state::Remembered,
    },
    schema::{
        found::{Found, FoundChain, FoundHook},
        name::{Base, Place, Set, SetName},
        operation::{Op, Operation},
        scaffold::Scaffold,
        value::{INDEX_BITS, STICKY_BASE, WIDE_INDEX_BITS},
    },
};

/// Objects of a transaction of a load: few enough to be worked off within some milliseconds.
const CHUNK: usize = 4096;
/// Chains or sets removed in one transaction.
const REMOVAL_CHUNK: usize = 1024;
/// Room that every set is given at least. The hash table gets the next power of two above 4/3 of it.
const LEAST: u32 = 768;

impl Planner {
    pub(crate) fn full(
        &mut self,
        routes: &[(ServicePortName, Arc<Route>)],
        environment: &Environment,
        found: Found,
        now: Instant,
    ) -> Plan<Op> {
        let generation = found.next_generation().max(self.installed.generation.wrapping_add(1));
        let mut installed = Installed::new(self.family, self.lists);
        installed.generation = generation;
        installed.environment = Some(environment.clone());
        let state = &mut installed.state;
        state.remembered = remembered(&found);
        let networks = service_networks(environment);
        let mut undo = state.begin();
        let mut draft = Draft::new(&mut *state, &mut undo, generation, now, &networks);
        draft.fresh = true;
        draft.addresses(environment, environment);
        for (at, (name, route)) in (0..).zip(routes) {
            draft.owner = Some(at);
            draft.change(name, None, Some(route));
        }
        let classes = mem::take(&mut draft.classes);
        let elements = mem::take(&mut draft.adds);
        state.remembered = Default::default();
        state.settle_parts(now);
        state.keep();
        let scaffold = Scaffold { generation, environment, parts: state.parts, hash: self.hash };

        let prefixes = installed.state.prefixes();
        let mut steps = vec![sets(&scaffold, &mut installed)];
        steps.push(chains(&scaffold));
        steps.extend(chunks(class_step(&scaffold, &classes, &prefixes, self.clients).ops, CHUNK));
        steps.extend(chunks(elements, CHUNK));
        steps.push(switch(&scaffold, &found));
        if environment.family == Family::V4 {
            let mut step = Step::default();
            step.push(Op(Operation::Loopback { open: environment.localhost_node_ports }), None);
            steps.push(step);
        }
        steps.extend(removals(&found));
        steps.retain(|step| !step.ops.is_empty());
        self.pending = Pending::Full(Box::new(mem::replace(&mut self.installed, installed)));
        Plan { steps }
    }
}

/// Sticky Service ports of the former generation.
fn remembered(found: &Found) -> std::collections::HashMap<Box<str>, Remembered> {
    let mut endpoints: Vec<_> = found.sticky.endpoints.clone();
    endpoints.sort_unstable();
    endpoints.dedup();
    let first_from = |id: u32| endpoints.partition_point(|(endpoint, ..)| *endpoint < id);
    found
        .sticky
        .ports
        .iter()
        .map(|(name, base)| {
            // A wide port's range is taken whole only if no other port begins within it.
            let narrow_end = base + (1 << INDEX_BITS);
            let wide_end = base.saturating_add(1 << WIDE_INDEX_BITS);
            let next = found.sticky.ports.iter().map(|(_, other)| *other).filter(|other| other > base).min();
            let end = next.unwrap_or(wide_end).clamp(narrow_end, wide_end);
            // The last index of a narrow or wide port is no endpoint's own.
            let nobodys = [narrow_end - 1, wide_end - 1];
            let members = endpoints[first_from(*base)..first_from(end)]
                .iter()
                .filter(|(id, ..)| !nobodys.contains(id))
                .map(|(id, addr, port)| (id - base, (*addr, *port)))
                .collect();
            let port = ((base & STICKY_BASE) >> INDEX_BITS) as u16;
            (name.clone(), Remembered { port, members })
        })
        .collect()
}

fn sets(scaffold: &Scaffold<'_>, installed: &mut Installed) -> Step<Op> {
    let family = scaffold.environment.family;
    let mut step = Step::default();
    step.push(Op(Operation::Table { family }), None);
    // Those of which there are several come with what needs them.
    let several = |set: &Set| matches!(set, Set::AllowedSources | Set::Clients);
    for set in Set::ALL.into_iter().filter(|set| !several(set)) {
        let capacity = set.grows().then(|| room_for(installed.state.counts[set as usize]));
        installed.state.capacities[set as usize] = capacity;
        let name = SetName::new(set, scaffold.generation);
        step.push(Op(Operation::AddSet { family, name, capacity }), None);
    }
    step
}

/// A fifth more than what is needed, as 3/4 of a power of two: the most that the kernel's hash of that size is made for. The
/// hash costs 16 bytes for each bucket (8, and the allocator rounds up to a power of two what is a little more than one).
fn room_for(elements: u32) -> u32 {
    let wanted = elements.saturating_add(elements / 5).clamp(LEAST, 3 << 28);
    3 * (wanted.div_ceil(3)).next_power_of_two()
}

fn chains(scaffold: &Scaffold<'_>) -> Step<Op> {
    let mut step = Step::default();
    for (chain, rules) in scaffold.shared_chains() {
        step.push(Op(Operation::AddChain { name: chain }), None);
        add_rules(&mut step, scaffold, chain, rules, None);
    }
    step
}

/// Exchanges the rules of all base chains at once. One that is there and hooked in as it should be stays.
fn switch(scaffold: &Scaffold<'_>, found: &Found) -> Step<Op> {
    let mut step = Step::default();
    for base in Base::ALL {
        let there = found.chains.iter().find(|chain| &*chain.name == base.as_str());
        let name: Box<str> = base.as_str().into();
        match there {
            Some(FoundChain { hook: Some(FoundHook::Like(hook)), .. }) if *hook == base.hook() => {
                step.push(Op(Operation::FlushChain { name }), None);
            }
            Some(_) => {
                step.push(Op(Operation::FlushChain { name: name.clone() }), None);
                step.push(Op(Operation::DeleteChain { name }), None);
                step.push(Op(Operation::AddBase { base }), None);
            }
            None => step.push(Op(Operation::AddBase { base }), None),
        }
        let chain = scaffold.chain(Place::Base(base));
        add_rules(&mut step, scaffold, chain, scaffold.base_rules(base), None);
    }
    step
}

/// All that was there before and is no base chain of ours. Rules first, for they hold chains and sets; then sets, for
/// maps hold chains.
fn removals(found: &Found) -> Vec<Step<Op>> {
    let ours = |name: &str| Base::ALL.iter().any(|base| base.as_str() == name);
    let clients =
        |name: &str| name.strip_prefix(Set::Clients.as_str()).is_some_and(|rest| rest.starts_with('.'));
    let chains: Vec<&FoundChain> = found.chains.iter().filter(|chain| !ours(&chain.name)).collect();
    let sets = found.sets.iter().filter(|name| !clients(name));
    let owned = |operation| Owned { op: Op(operation), owner: None };
    let flush = chains.iter().map(|chain| owned(Operation::FlushChain { name: chain.name.clone() }));
    let delete_sets = sets.map(|name| owned(Operation::DeleteSet { name: name.clone() }));
    let delete = chains.iter().map(|chain| owned(Operation::DeleteChain { name: chain.name.clone() }));
    [flush.collect(), delete_sets.collect(), delete.collect()]
        .into_iter()
        .flat_map(|ops: Vec<_>| chunks(ops, REMOVAL_CHUNK))
        .collect()
}

/// Cuts operations into transactions.
pub(crate) fn chunks(ops: Vec<Owned<Op>>, limit: usize) -> Vec<Step<Op>> {
    let mut steps = Vec::new();
    let mut step = Step::default();
    let mut weight = 0;
    for owned in ops {
        let more = owned.op.0.weight();
        if weight + more > limit && !step.ops.is_empty() {
            steps.push(mem::take(&mut step));
            weight = 0;
        }
        weight += more;
        step.ops.push(owned);
    }
    if !step.ops.is_empty() {
        steps.push(step);
    }
    steps
}
