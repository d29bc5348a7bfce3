//! The planner: what to write into the table for a change, or for everything.

use std::{mem, sync::Arc, time::Instant};

use ipnet::IpNet;
use proxy_core::{
    backend::{Change, Effect, Plan, Planned, Planner as Seam, Step},
    environment::{Environment, NodePortAddresses},
    model::{Family, ServicePortName},
    route::Route,
};

use crate::{
    class_chain::Class,
    draft::{Draft, difference},
    element::{Element, Key},
    found::Found,
    name::{Place, Set, SetName},
    operation::{Op, Operation},
    placement::disjoint,
    scaffold::Scaffold,
    state::{State, Undo},
};

/// Plans for one IP family.
#[derive(Debug)]
pub struct Planner {
    pub(crate) family: Family,
    pub(crate) installed: Installed,
    /// What to go back to if the plan that was handed out last had no effect.
    pub(crate) pending: Pending,
    /// Most clients that session affinity remembers.
    pub(crate) clients: u32,
}

/// Unless told otherwise.
const CLIENTS: u32 = 1 << 20;

/// One generation.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) generation: u32,
    /// `None`: nothing was installed yet.
    pub(crate) environment: Option<Environment>,
    pub(crate) state: State,
}

#[derive(Debug)]
pub(crate) enum Pending {
    Nothing,
    Change { undo: Box<Undo>, environment: Option<Environment> },
    Full(Box<Installed>),
}

impl Planner {
    pub fn new(family: Family) -> Self {
        Self { family, installed: Installed::new(family), pending: Pending::Nothing, clients: CLIENTS }
    }

    /// Has session affinity remember at most so many clients of this family. More cost new clients their stickiness,
    /// nothing else: see `affinity_lost` among the executor's figures.
    #[must_use]
    pub fn remember_clients(mut self, most: u32) -> Self {
        self.clients = most;
        self
    }
}

impl Installed {
    pub(crate) fn new(family: Family) -> Self {
        Self { generation: 0, environment: None, state: State::new(family == Family::V4) }
    }
}

impl Seam for Planner {
    type Op = Op;
    type Found = Found;

    fn plan(&mut self, changes: &[Change], environment: &Environment, now: Instant) -> Planned<Op> {
        let installed = &mut self.installed;
        let Some(known) = &installed.environment else {
            return Planned::StartOver("nothing is installed yet");
        };
        if !same_rules(known, environment) {
            return Planned::StartOver("the configuration that the rules depend on has changed");
        }
        let mut undo = installed.state.begin();
        let mut draft = Draft {
            state: &mut installed.state,
            undo: &mut undo,
            generation: installed.generation,
            now,
            fresh: false,
            owner: None,
            classes: Vec::new(),
            deletes: Vec::new(),
            adds: Vec::new(),
            misfit: None,
        };
        draft.networks(known, environment);
        for (at, change) in (0..).zip(changes) {
            draft.owner = Some(at);
            draft.change(&change.name, change.before.as_ref(), change.after.as_ref());
        }
        let misfit = draft.misfit;
        let classes = mem::take(&mut draft.classes);
        let data = draft.into_step();
        if let Some(reason) =
            misfit.or_else(|| installed.state.nearly_full().then_some("a map is nearly full"))
        {
            installed.state.undo(undo);
            return Planned::StartOver(reason);
        }
        let scaffold = Scaffold { generation: installed.generation, environment: known };
        let mut steps = vec![class_step(&scaffold, &classes), data];
        steps.retain(|step| !step.ops.is_empty());
        let before = installed.environment.replace(environment.clone());
        self.pending = Pending::Change { undo: Box::new(undo), environment: before };
        Planned::Plan(Plan { steps })
    }

    fn plan_full(
        &mut self,
        routes: &[(ServicePortName, Arc<Route>)],
        environment: &Environment,
        found: Found,
        now: Instant,
    ) -> Plan<Op> {
        self.full(routes, environment, found, now)
    }

    fn settle(&mut self, effect: Effect) {
        match (mem::replace(&mut self.pending, Pending::Nothing), effect) {
            (Pending::Nothing, _) => {}
            (Pending::Change { .. } | Pending::Full(_), Effect::Applied) => self.installed.state.keep(),
            (Pending::Change { undo, environment }, Effect::Nothing) => {
                self.installed.state.undo(*undo);
                self.installed.environment = environment;
            }
            (Pending::Full(before), Effect::Nothing) => self.installed = *before,
        }
    }

    fn plan_upkeep(&mut self, now: Instant) -> Option<Plan<Op>> {
        self.upkeep(now)
    }

    fn next_upkeep(&self) -> Option<Instant> {
        self.upkeep_due()
    }
}

/// Whether two environments have the same rules, so that elements make up for the difference.
fn same_rules(a: &Environment, b: &Environment) -> bool {
    let either_form = |ports: &NodePortAddresses| mem::discriminant(ports);
    a.family == b.family
        && a.masquerade_mark == b.masquerade_mark
        && a.masquerade_all == b.masquerade_all
        && a.local_pods == b.local_pods
        && a.localhost_node_ports == b.localhost_node_ports
        && either_form(&a.node_ports) == either_form(&b.node_ports)
}

/// Chains must be there before a key leads to them: a packet reads its rules as they were when it entered, but
/// elements as they are now.
pub(crate) fn class_step(scaffold: &Scaffold<'_>, classes: &[(Class, Option<u32>)]) -> Step<Op> {
    let mut step = Step::default();
    let family = scaffold.environment.family;
    for (class, owner) in classes {
        if let Class::Allowed(prefix) = class {
            let name = SetName::allowed(*prefix, scaffold.generation);
            step.push(Op(Operation::AddSet { family, name, capacity: None }), *owner);
            let chain = scaffold.chain(Place::AllowedCheck);
            let rule = scaffold.allowed_rule(*prefix);
            step.push(Op(Operation::AddRule { family, chain, rule }), *owner);
        }
        for (chain, rules) in scaffold.class_chains(*class) {
            step.push(Op(Operation::AddChain { name: chain }), *owner);
            for rule in rules {
                step.push(Op(Operation::AddRule { family, chain, rule }), *owner);
            }
        }
        for element in scaffold.class_elements(*class) {
            step.push(Op(Operation::Add { generation: scaffold.generation, element }), *owner);
        }
    }
    step
}

impl Draft<'_> {
    /// ServiceCIDRs and the addresses at which NodePorts answer.
    pub(crate) fn networks(&mut self, before: &Environment, after: &Environment) {
        let networks = |environment: &Environment| -> Vec<Element> {
            let own = |net: &&IpNet| Family::of_net(net) == environment.family;
            let cidrs = environment.service_cidrs.iter().filter(own).copied().collect();
            let mut elements: Vec<_> = disjoint(cidrs)
                .into_iter()
                .map(|net| Element::member(Set::ServiceCidrs, Key::Network(net)))
                .collect();
            if let NodePortAddresses::Only(addresses) = &environment.node_ports {
                let own = addresses.iter().filter(|addr| Family::of(**addr) == environment.family);
                // Loopback answers only as `localhost_node_ports` says.
                let own = own.filter(|addr| !addr.is_loopback());
                elements.extend(own.map(|addr| Element::member(Set::NodeAddrs, Key::Address(*addr))));
            }
            elements.sort_unstable();
            elements.dedup();
            elements
        };
        if self.fresh {
            for element in networks(after) {
                self.add(element);
            }
            return;
        }
        if before.service_cidrs == after.service_cidrs && before.node_ports == after.node_ports {
            return;
        }
        let (had, wanted) = (networks(before), networks(after));
        for gone in difference(&had, &wanted) {
            self.delete(gone.clone());
        }
        for new in difference(&wanted, &had) {
            self.add(new.clone());
        }
    }
}
