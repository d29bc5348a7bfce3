//! The planner: what to write into the table for a change, or for everything.

use std::{mem, net::IpAddr, sync::Arc, time::Instant};

use ipnet::IpNet;
use proxy_core::{
    backend::{Change, Effect, Plan, Planned, Planner as Seam, Step},
    environment::{Environment, NodePortAddresses},
    model::{Family, ServicePortName},
    route::Route,
};

use crate::{
    plan::{
        draft::Draft,
        slots::difference,
        state::{State, Undo},
    },
    schema::{
        class_chain::Class,
        element::{Element, Key},
        found::Found,
        name::{Base, ChainName, Place, Set, SetName},
        operation::{Op, Operation},
        scaffold::{Parts, Scaffold},
        statement::Rule,
        value::GROUPS,
    },
};

/// Plans for one IP family.
#[derive(Debug)]
pub struct Planner {
    pub(crate) family: Family,
    pub(crate) installed: Installed,
    /// What to go back to if the plan that was handed out last had no effect.
    pub(crate) pending: Pending,
    /// Most clients that each map of clients remembers.
    pub(crate) clients: u32,
    /// Most lists of endpoints.
    pub(crate) lists: u32,
    /// Whether the kernel has `jhash`.
    pub(crate) hash: bool,
}

/// Unless told otherwise. Each takes about 100 bytes of the kernel's memory once it is there.
const CLIENTS: u32 = 1 << 17;

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
    /// For a table that nothing is known of yet; the first plan is a full one.
    pub fn new(family: Family) -> Self {
        let installed = Installed::new(family, GROUPS);
        Self { family, installed, pending: Pending::Nothing, clients: CLIENTS, lists: GROUPS, hash: true }
    }

    /// Has each of the 64 maps, among which Service ports with session affinity are spread, remember at most so many clients.
    /// Further ones are led by their address, to the same endpoint for as long as the same endpoints serve: see `affinity_lost`
    /// among the executor's figures.
    #[must_use]
    pub fn remember_clients(mut self, most: u32) -> Self {
        self.clients = most;
        self
    }
}

impl Planner {
    /// For kernels without `jhash`: clients that session affinity cannot remember are spread at random.
    #[must_use]
    pub fn without_hash(mut self) -> Self {
        self.hash = false;
        self
    }
}

impl Planner {
    /// The optional rules, the classes and the prefix lengths of source ranges of the present plan.
    pub(crate) fn planned(&self) -> (Parts, Vec<Class>, Vec<u8>) {
        let state = &self.installed.state;
        let mut classes: Vec<Class> = state.classes.keys().copied().collect();
        classes.sort_unstable();
        (state.parts, classes, state.prefixes())
    }
}

impl Installed {
    pub(crate) fn new(family: Family, lists: u32) -> Self {
        Self { generation: 0, environment: None, state: State::new(family == Family::V4, lists) }
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
        let networks = service_networks(environment);
        let mut draft = Draft::new(&mut installed.state, &mut undo, installed.generation, now, &networks);
        draft.addresses(known, environment);
        for (at, change) in (0..).zip(changes) {
            draft.owner = Some(at);
            draft.change(&change.name, change.before.as_ref(), change.after.as_ref());
        }
        let classes = mem::take(&mut draft.classes);
        let [data, last] = draft.into_steps();
        if installed.state.nearly_full() {
            installed.state.undo(undo);
            return Planned::StartOver("a map is nearly full");
        }
        let more_rules = installed.state.settle_parts(now);
        let parts = installed.state.parts;
        let scaffold =
            Scaffold { generation: installed.generation, environment: known, parts, hash: self.hash };
        let rules = if more_rules { base_step(&scaffold) } else { Step::default() };
        let prepare = class_step(&scaffold, &classes, &installed.state.prefixes(), self.clients);
        let mut steps = vec![prepare, rules, data, last];
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
        && a.refused_on_localhost == b.refused_on_localhost
        // The networks stand in the rules, and decide which addresses are named beside them.
        && a.service_cidrs == b.service_cidrs
        && either_form(&a.node_ports) == either_form(&b.node_ports)
}

/// The Service networks of an environment.
pub(crate) fn service_networks(environment: &Environment) -> Vec<IpNet> {
    Scaffold { generation: 0, environment, parts: Parts::default(), hash: true }.service_networks()
}

/// Writes the rules of all base chains anew, in one transaction.
pub(crate) fn base_step(scaffold: &Scaffold<'_>) -> Step<Op> {
    let mut step = Step::default();
    for base in Base::ALL {
        step.push(Op(Operation::FlushChain { name: base.as_str().into() }), None);
        let chain = scaffold.chain(Place::Base(base));
        add_rules(&mut step, scaffold, chain, scaffold.base_rules(base), None);
    }
    step
}

pub(crate) fn add_rules(
    step: &mut Step<Op>,
    scaffold: &Scaffold<'_>,
    chain: ChainName,
    rules: Vec<Arc<Rule>>,
    owner: Option<u32>,
) {
    let family = scaffold.environment.family;
    for rule in rules {
        step.push(Op(Operation::AddRule { family, chain, rule }), owner);
    }
}

/// Chains must be there before a key leads to them: a packet reads its rules as they were when it entered, but
/// elements as they are now. May be done twice: if what follows is refused, it stands, and is written again.
pub(crate) fn class_step(
    scaffold: &Scaffold<'_>,
    classes: &[(Class, Option<u32>)],
    prefixes: &[u8],
    clients: u32,
) -> Step<Op> {
    let mut step = Step::default();
    let family = scaffold.environment.family;
    let fill = |step: &mut Step<Op>, chain: ChainName, rules: Vec<Arc<Rule>>, owner| {
        step.push(Op(Operation::AddChain { name: chain }), owner);
        step.push(Op(Operation::FlushChain { name: chain.to_string().into() }), owner);
        add_rules(step, scaffold, chain, rules, owner);
    };
    let mut restricting = None;
    for (class, owner) in classes {
        match class {
            Class::Allowed(prefix) => {
                let name = SetName::allowed(*prefix, scaffold.generation);
                step.push(Op(Operation::AddSet { family, name, capacity: None }), *owner);
                restricting = Some(*owner);
            }
            Class::Sticky { affinity, .. } => {
                let name = SetName::clients(affinity.share);
                step.push(Op(Operation::AddSet { family, name, capacity: Some(clients) }), *owner);
            }
            _ => {}
        }
        for (chain, rules) in scaffold.class_chains(*class) {
            fill(&mut step, chain, rules, *owner);
        }
        for element in scaffold.class_elements(*class) {
            step.push(Op(Operation::Add { generation: scaffold.generation, element }), *owner);
        }
    }
    if let Some(owner) = restricting {
        fill(&mut step, scaffold.chain(Place::SourceCheck), scaffold.source_check(prefixes), owner);
    }
    step
}

impl Draft<'_> {
    /// ServiceCIDRs (which do not change while the rules stand) and the addresses at which NodePorts answer.
    pub(crate) fn addresses(&mut self, before: &Environment, after: &Environment) {
        let node_addresses = |environment: &Environment| -> Vec<Element> {
            let NodePortAddresses::Only(addresses) = &environment.node_ports else { return Vec::new() };
            let own = addresses.iter().filter(|addr| Family::of(**addr) == environment.family);
            // Loopback answers only as `localhost_node_ports` says.
            let own = own.filter(|addr| !addr.is_loopback());
            let member = |addr: &IpAddr| Element::member(Set::NodeAddrs, Key::Address(*addr));
            let mut elements: Vec<Element> = own.map(member).collect();
            elements.sort_unstable();
            elements.dedup();
            elements
        };
        if self.fresh {
            let networks = self.networks;
            for net in networks {
                self.add(Element::member(Set::ServiceCidrs, Key::Network(*net)));
            }
            for element in node_addresses(after) {
                self.add(element);
            }
            return;
        }
        if before.node_ports == after.node_ports {
            return;
        }
        let (had, wanted) = (node_addresses(before), node_addresses(after));
        for gone in difference(&had, &wanted) {
            self.delete(gone.clone());
        }
        for new in difference(&wanted, &had) {
            self.add(new.clone());
        }
    }
}
