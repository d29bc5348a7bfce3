//! Work owed to the past: elements that nothing points to any more, and chains that no Service uses.

use std::time::{Duration, Instant};

use proxy_core::backend::{Owned, Plan, Step};

use crate::{
    plan::{
        full::chunks,
        planner::{Pending, Planner, base_step},
        state::{Owed, Remains},
    },
    schema::{
        class_chain::Class,
        name::Set,
        operation::{Op, Operation},
        scaffold::{Optional, Scaffold},
    },
};

/// Chains stay this long for Services of the same size to come.
const IDLE: Duration = Duration::from_secs(60);
/// Elements deleted in one transaction.
const CHUNK: usize = 4096;

impl Planner {
    pub(crate) fn upkeep_due(&self) -> Option<Instant> {
        let state = &self.installed.state;
        let owed = state.owed.front().map(|owed| owed.due);
        let idle =
            state.classes.values().filter_map(|usage| usage.idle_since).min().map(|since| since + IDLE);
        let rules = state.parts_idle.iter().flatten().min().map(|since| *since + IDLE);
        [owed, idle, rules].into_iter().flatten().min()
    }

    pub(crate) fn upkeep(&mut self, now: Instant) -> Option<Plan<Op>> {
        if self.upkeep_due().is_none_or(|due| due > now) {
            return None;
        }
        let installed = &mut self.installed;
        let environment = installed.environment.as_ref()?;
        let (generation, state) = (installed.generation, &mut installed.state);
        let mut undo = state.begin();
        let mut ops = Vec::new();
        while state.owed.front().is_some_and(|owed| owed.due <= now)
            && let Some(owed) = state.owed.pop_front()
        {
            remove(&owed, generation, &mut ops);
            match &owed.what {
                Remains::Group { id, slots, .. } => {
                    state.counts[Set::Endpoints as usize] -= slots.len() as u32;
                    state.groups.give_back(*id);
                }
                Remains::Sticky { elements, ports } => {
                    for element in elements {
                        state.deleted(element, now, &mut undo);
                    }
                    for (port, wide) in ports {
                        state.ports.give_back(*port, *wide);
                    }
                }
            }
            undo.owed_taken.push(owed);
        }
        let mut idle: Vec<Class> = state
            .classes
            .iter()
            .filter(|(_, usage)| usage.idle_since.is_some_and(|since| since + IDLE <= now))
            .map(|(class, _)| *class)
            .collect();
        idle.sort_unstable();
        let mut fewer_rules = false;
        for part in Optional::ALL {
            let idle = &mut state.parts_idle[part as usize];
            if idle.is_some_and(|since| since + IDLE <= now) {
                *idle = None;
                state.parts = state.parts.without(part);
                fewer_rules = true;
            }
        }
        let scaffold = Scaffold { generation, environment, parts: state.parts, hash: self.hash };
        let chains = take_down(&scaffold, idle.iter().copied());
        for class in idle {
            state.forget(class, &mut undo);
        }
        let mut steps = chunks(ops, CHUNK);
        steps.push(chains);
        if fewer_rules {
            steps.push(base_step(&scaffold));
        }
        steps.retain(|step| !step.ops.is_empty());
        let environment = installed.environment.clone();
        self.pending = Pending::Change { undo: Box::new(undo), environment };
        Some(Plan { steps })
    }
}

fn remove(owed: &Owed, generation: u32, ops: &mut Vec<Owned<Op>>) {
    let mut push = |operation| ops.push(Owned { op: Op(operation), owner: None });
    match &owed.what {
        Remains::Group { slots, .. } if slots.is_empty() => {}
        Remains::Group { id, protocol, slots } => {
            let slots = slots.clone();
            push(Operation::DeleteGroup { generation, group: *id, protocol: *protocol, slots });
        }
        Remains::Sticky { elements, .. } => {
            for element in elements {
                push(Operation::Delete { generation, element: element.clone() });
            }
        }
    }
}

/// Removes the chains of classes: what leads to them, their rules, then the chains.
fn take_down(scaffold: &Scaffold<'_>, classes: impl Iterator<Item = Class>) -> Step<Op> {
    let (mut lead, mut flush, mut delete) = (Vec::new(), Vec::new(), Vec::new());
    for class in classes {
        for element in scaffold.class_elements(class) {
            lead.push(Operation::Delete { generation: scaffold.generation, element });
        }
        for (chain, _) in scaffold.class_chains(class) {
            let name: Box<str> = chain.to_string().into();
            flush.push(Operation::FlushChain { name: name.clone() });
            delete.push(Operation::DeleteChain { name });
        }
    }
    let mut step = Step::default();
    for operation in lead.into_iter().chain(flush).chain(delete) {
        step.push(Op(operation), None);
    }
    step
}
