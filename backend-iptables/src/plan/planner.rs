//! Changes of routes become chains to write and to delete: those that differ, and a dispatch chain only when a line of
//! it differs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
    thread,
    time::Instant,
};

use proxy_core::{
    backend::{self, Change, Effect, Owned, Plan, Planned, Step},
    environment::Environment,
    model::{Family, ServicePortName},
    route::Route,
};

use crate::{
    plan::{
        dispatch::{Port, Turn, commit_after, lines, touches_nat, write_dispatcher},
        removal::{drop_named, drop_service_chains, remove_jumps},
        scaffold,
        service::{
            rules::{Context, Dispatch, EndpointComments, Rules, Share},
            write,
        },
    },
    schema::{
        chains::{
            CANARY, Dispatcher, FIXED_CHAINS, IPVS_CHAINS, IPVS_JUMPS, JUMPS, KUBELET_FIREWALL,
            KUBELET_JUMPS, NODE_PORTS, SERVICES, ServiceChain, Table, is_service_chain,
        },
        found::{Found, Host},
        op::{Op, Sums},
        restore,
        stamp::{has_known_uses, is_ours},
    },
};

/// With more endpoints than this, rules carry no comments that name them.
pub(crate) const LARGE_CLUSTER_ENDPOINTS: usize = 1000;

/// Decides which chains to write. One per family.
#[derive(Debug)]
pub struct Planner {
    family: Family,
    /// What the last plan that took effect installed; `None` before the first.
    installed: Option<Installed>,
    /// How to undo the plan that was handed out and is not settled yet.
    pending: Option<Undo>,
    doubt: Doubt,
}

#[derive(Debug)]
struct Installed {
    environment: Environment,
    host: Host,
    ports: BTreeMap<ServicePortName, Port>,
    totals: Totals,
}

/// Sums over all Services.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    endpoints: usize,
    /// What belongs to Services.
    services: Share,
}

#[derive(Debug)]
enum Undo {
    Full(Option<Installed>),
    Change {
        environment: Option<Environment>,
        ports: Vec<(ServicePortName, Option<Port>)>,
        totals: Totals,
        doubt: Doubt,
    },
}

/// What a plan that failed may have left behind: a restore commits one table after the other, `nat` last and at once,
/// unless it is so long that it is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    None,
    /// The dispatch chains and the fixed chains of table `filter`.
    Filter,
    All,
}

impl Planner {
    /// Of one family, with nothing installed.
    pub fn new(family: Family) -> Self {
        Self { family, installed: None, pending: None, doubt: Doubt::None }
    }
}

impl backend::Planner for Planner {
    type Op = Op;
    type Found = Found;

    fn plan(&mut self, changes: &[Change], environment: &Environment, _now: Instant) -> Planned<Op> {
        debug_assert_eq!(environment.family, self.family, "one planner per family");
        let Some(installed) = &mut self.installed else {
            return Planned::StartOver("nothing is installed yet");
        };
        if self.doubt == Doubt::All {
            return Planned::StartOver("it is not known what the last write left behind");
        }
        if shapes_every_service(&installed.environment) != shapes_every_service(environment) {
            return Planned::StartOver("the configuration that all Services' rules depend on has changed");
        }

        let totals = installed.totals;
        for change in changes {
            installed.totals.endpoints -=
                change.before.as_deref().map_or(0, |route| route.endpoints as usize);
            installed.totals.endpoints += change.after.as_deref().map_or(0, |route| route.endpoints as usize);
        }
        let comments = endpoint_comments(installed.totals.endpoints);
        let context = Context { environment, host: installed.host, comments };

        let mut step = Step::default();
        let mut moved = BTreeSet::new();
        let mut undo = Vec::new();
        for (owner, change) in changes.iter().enumerate() {
            let owner = u32::try_from(owner).ok();
            let written = |route: &Option<Arc<Route>>, context| {
                route.as_deref().map(|route| write(&change.name, route, context))
            };
            let known = installed.ports.get(&change.name).map_or(comments, |port| port.comments);
            let before = written(&change.before, Context { comments: known, ..context });
            let after = written(&change.after, context);
            before.iter().for_each(|rules| installed.totals.services -= rules.share());
            after.iter().for_each(|rules| installed.totals.services += rules.share());
            plan_chains(&mut step, before.as_ref(), after.as_ref(), owner);
            let port = after.map(|rules| Port { dispatch: rules.dispatch, comments });
            replace_port(installed, &change.name, port, &mut moved, &mut undo);
        }

        if self.doubt == Doubt::Filter {
            moved
                .extend(Dispatcher::ALL.into_iter().filter(|dispatcher| dispatcher.table() == Table::Filter));
        }
        let tail = scaffold::to_node_ports(environment);
        if tail != scaffold::to_node_ports(&installed.environment) {
            moved.insert(Dispatcher::NatServices);
        }
        let owners: HashMap<&ServicePortName, u32> =
            changes.iter().zip(0..).map(|(change, owner)| (&change.name, owner)).collect();
        let owner_of = |_: usize, name: &ServicePortName| owners.get(name).copied();
        if moved.contains(&Dispatcher::NatServices) {
            write_dispatcher(&mut step, Dispatcher::NatServices, &installed.ports, &tail, owner_of);
        }
        if moved.contains(&Dispatcher::NatNodePorts) {
            write_dispatcher(&mut step, Dispatcher::NatNodePorts, &installed.ports, "", owner_of);
        }
        let old = scaffold::fixed_chains(&installed.environment, installed.host);
        let fixed_chains = scaffold::fixed_chains(environment, installed.host);
        let sums = sums(&installed.totals.services, &fixed_chains, &tail);
        for fixed in fixed_chains {
            if !old.contains(&fixed) || (self.doubt == Doubt::Filter && fixed.table == Table::Filter) {
                write_fixed(&mut step, fixed);
            }
        }

        let mut late = Step::default();
        let waits = touches_nat(&step);
        for &dispatcher in moved.iter().filter(|dispatcher| dispatcher.table() == Table::Filter) {
            let mut turn = Turn::default();
            if waits {
                for (name, before) in &undo {
                    turn.add(
                        lines(before.as_ref(), dispatcher),
                        lines(installed.ports.get(name), dispatcher),
                    );
                }
            }
            if self.doubt == Doubt::Filter {
                turn = turn.renewed();
            }
            turn.write((&mut step, &mut late), dispatcher, &installed.ports, owner_of);
        }
        commit_after(&mut step, late);

        let doubt = if restore::may_be_split(&step) || step.ops.iter().any(|owned| owned.op == Op::Then) {
            Doubt::All
        } else if step.ops.iter().any(|owned| owned.op.table() == Some(Table::Filter)) {
            Doubt::Filter
        } else {
            self.doubt
        };
        let environment_before = (installed.environment != *environment)
            .then(|| mem::replace(&mut installed.environment, environment.clone()));
        self.pending = Some(Undo::Change { environment: environment_before, ports: undo, totals, doubt });
        if !step.ops.is_empty() {
            step.push(Op::Sums(sums), None);
        }
        Planned::Plan(Plan { steps: if step.ops.is_empty() { Vec::new() } else { vec![step] } })
    }

    fn plan_full(
        &mut self,
        routes: &[(ServicePortName, Arc<Route>)],
        environment: &Environment,
        found: Found,
        _now: Instant,
    ) -> Plan<Op> {
        let endpoints = routes.iter().map(|(_, route)| route.endpoints as usize).sum();
        let mut totals = Totals { endpoints, services: Share::default() };
        let context = Context { environment, host: found.host, comments: endpoint_comments(endpoints) };
        let mut installed =
            Installed { environment: environment.clone(), host: found.host, ports: BTreeMap::new(), totals };

        let mut step = Step::default();
        for table in Table::ALL.into_iter().filter(|table| !found.has_chain(*table, CANARY)) {
            step.push(Op::Declare { table, chain: CANARY }, None);
        }
        if !environment.localhost_node_ports && !found.has_chain(Table::Filter, KUBELET_FIREWALL) {
            step.push(Op::Declare { table: Table::Filter, chain: KUBELET_FIREWALL }, None);
        }
        let fixed_chains = scaffold::fixed_chains(environment, found.host);
        for fixed in
            fixed_chains.iter().filter(|fixed| !found.holds(fixed.table, fixed.chain, [&*fixed.rules]))
        {
            write_fixed(&mut step, fixed.clone());
        }

        let written = of_each(routes, |name, route| Written::new(write(name, route, context), &found));
        let mut wanted = HashSet::new();
        let mut ports = Vec::with_capacity(routes.len());
        for (owner, ((name, _), written)) in (0..).zip(routes.iter().zip(written)) {
            totals.services += written.share;
            wanted.extend(written.found);
            step.ops.extend(written.fill.map(|op| Owned { op, owner: Some(owner) }));
            let port = Port { dispatch: written.dispatch, comments: context.comments };
            ports.push((name.clone(), port));
        }
        installed.ports = BTreeMap::from_iter(ports);
        let tail: Arc<str> = scaffold::to_node_ports(environment).into();
        // The routes have the order of the ports that were made of them.
        let owner_of = |at: usize, _: &ServicePortName| u32::try_from(at).ok();
        let mut differing = Vec::new();
        for dispatcher in Dispatcher::ALL {
            let (table, chain) = (dispatcher.table(), dispatcher.chain());
            let ends = (dispatcher == Dispatcher::NatServices).then_some(&tail);
            let lines =
                installed.ports.values().filter_map(|port| port.dispatch.lines(dispatcher)).chain(ends);
            if found.holds(table, chain, lines.map(|lines| &**lines)) {
                continue;
            }
            if table == Table::Nat {
                let tail = if ends.is_some() { &*tail } else { "" };
                write_dispatcher(&mut step, dispatcher, &installed.ports, tail, owner_of);
            } else {
                differing.push(dispatcher);
            }
        }
        installed.totals = totals;
        step.push(Op::Sums(sums(&totals.services, &fixed_chains, &tail)), None);
        write_jumps(&mut step, &found);
        drop_stale(&mut step, &found, &wanted);
        let mut late = Step::default();
        let waits = touches_nat(&step);
        for dispatcher in differing {
            let mut turn = Turn::default();
            if waits {
                let wanted: HashSet<&str> =
                    installed.ports.values().flat_map(|port| lines(Some(port), dispatcher)).collect();
                let found: HashSet<&str> = found.refusals(dispatcher).collect();
                turn.add_sets(&found, &wanted);
            }
            turn.write((&mut step, &mut late), dispatcher, &installed.ports, owner_of);
        }
        commit_after(&mut step, late);
        let opened = |installed: &Installed| installed.environment.localhost_node_ports;
        if environment.localhost_node_ports {
            step.push(Op::RouteLocalnet, None);
        } else if self.installed.as_ref().is_some_and(opened) {
            // Switched off while this process runs. What an earlier one left is looked at after the first sync.
            step.push(Op::LeaveLocalnet, None);
        }

        let before = self.installed.replace(installed);
        self.pending = Some(Undo::Full(before));
        Plan { steps: vec![step] }
    }

    fn settle(&mut self, effect: Effect) {
        match (self.pending.take(), effect) {
            (None, _) => {}
            (Some(_), Effect::Applied) => self.doubt = Doubt::None,
            (Some(Undo::Full(before)), Effect::Nothing) => {
                self.installed = before;
                self.doubt = Doubt::All;
            }
            (Some(Undo::Change { environment, ports, totals, doubt }), Effect::Nothing) => {
                let Some(installed) = &mut self.installed else { return };
                if let Some(environment) = environment {
                    installed.environment = environment;
                }
                for (name, port) in ports {
                    match port {
                        Some(port) => installed.ports.insert(name, port),
                        None => installed.ports.remove(&name),
                    };
                }
                installed.totals = totals;
                self.doubt = doubt;
            }
        }
    }

    fn plan_upkeep(&mut self, _now: Instant) -> Option<Plan<Op>> {
        None
    }

    fn next_upkeep(&self) -> Option<Instant> {
        None
    }
}

/// The part of the environment that is written into the chains of Services.
fn shapes_every_service(environment: &Environment) -> impl PartialEq {
    (
        environment.masquerade_all,
        environment.local_pods.clone(),
        environment.localhost_node_ports,
        // Only then do chains of Services clear the mark themselves.
        matches!(&environment.local_pods, proxy_core::environment::LocalPods::Cidrs(cidrs) if cidrs.len() > 1)
            .then_some(environment.masquerade_mark),
    )
}

/// A Service port in a full plan.
struct Written {
    dispatch: Dispatch,
    share: Share,
    /// What writes those of its chains that do not hold what they should.
    fill: Option<Op>,
    /// Those of its chains that are there, whatever they hold.
    found: Vec<ServiceChain>,
}

impl Written {
    fn new(rules: Rules, found: &Found) -> Self {
        let share = rules.share();
        let known =
            rules.chains().map(|(chain, _)| chain).filter(|chain| found.has_service_chain(*chain)).collect();
        let differs = |(chain, rules): &(ServiceChain, &str)| !found.holds_service_chain(*chain, rules);
        let chains: Box<[ServiceChain]> = rules.chains().filter(differs).map(|(chain, _)| chain).collect();
        let fill = if chains.is_empty() {
            None
        } else if chains.len() == rules.chains().len() {
            Some(Op::Fill { chains, rules: rules.text })
        } else {
            let rules: String = rules.chains().filter(differs).map(|(_, rules)| rules).collect();
            Some(Op::Fill { chains, rules })
        };
        Self { dispatch: rules.dispatch, share, fill, found: known }
    }
}

/// Does something with each of many Service ports, with the help of other processors where it takes long.
fn of_each<T: Send>(
    routes: &[(ServicePortName, Arc<Route>)],
    work: impl Fn(&ServicePortName, &Route) -> T + Sync,
) -> Vec<T> {
    const WORTH_A_THREAD: usize = 200;
    let each = |routes: &[(ServicePortName, Arc<Route>)]| -> Vec<T> {
        routes.iter().map(|(name, route)| work(name, route)).collect()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(4);
    let share = routes.len().div_ceil(threads).max(WORTH_A_THREAD);
    let mut shares = routes.chunks(share);
    let first = shares.next().unwrap_or_default();
    thread::scope(|scope| {
        let others: Vec<_> = shares.map(|routes| scope.spawn(|| each(routes))).collect();
        let mut done = each(first);
        for other in others {
            done.extend(other.join().expect("writing rules does not panic"));
        }
        done
    })
}

/// What the tables hold with these fixed chains and everything that belongs to Services.
fn sums(services: &Share, fixed_chains: &[scaffold::Fixed], to_node_ports: &str) -> Sums {
    let Share { mut rules, mut stamp, lines } = *services;
    let mut numbers: HashMap<(Table, &str), usize> = HashMap::new();
    for dispatcher in Dispatcher::ALL {
        *numbers.entry((dispatcher.table(), dispatcher.chain())).or_default() += lines[dispatcher as usize];
    }
    for rule in to_node_ports.lines() {
        rules.nat += 1;
        stamp.add_rule(Table::Nat, None, rule);
        *numbers.entry((Table::Nat, SERVICES)).or_default() += 1;
        *numbers.entry((Table::Nat, NODE_PORTS)).or_default() += 1;
    }
    for fixed in fixed_chains {
        rules.add(fixed.table, &fixed.rules);
        // Kubelet may have rules of its own there.
        if is_ours(fixed.table, fixed.chain) {
            for (at, rule) in fixed.rules.lines().enumerate() {
                stamp.add_rule(fixed.table, Some(at), rule);
                *numbers.entry((fixed.table, fixed.chain)).or_default() += 1;
            }
        }
    }
    for jump in &JUMPS {
        *numbers.entry((jump.table, jump.to)).or_default() += 1;
    }
    for (table, chain) in FIXED_CHAINS {
        stamp.add_chain(table, chain);
        if has_known_uses(table, chain) {
            stamp.add_uses(table, chain, numbers.get(&(table, chain)).copied().unwrap_or_default());
        }
    }
    Sums { rules, stamp, guard: fixed_chains.iter().any(|fixed| fixed.chain == KUBELET_FIREWALL) }
}

fn endpoint_comments(endpoints: usize) -> EndpointComments {
    if endpoints > LARGE_CLUSTER_ENDPOINTS { EndpointComments::LeftOut } else { EndpointComments::Written }
}

/// Writes the chains that differ and drops those that are no longer wanted.
fn plan_chains(step: &mut Step<Op>, before: Option<&Rules>, after: Option<&Rules>, owner: Option<u32>) {
    let mut gone: HashMap<ServiceChain, &str> = before.into_iter().flat_map(Rules::chains).collect();
    let mut chains = Vec::new();
    let mut text = String::new();
    for (chain, rules) in after.into_iter().flat_map(Rules::chains) {
        if gone.remove(&chain) != Some(rules) {
            chains.push(chain);
            text.push_str(rules);
        }
    }
    if !chains.is_empty() {
        step.push(Op::Fill { chains: chains.into(), rules: text }, owner);
    }
    if !gone.is_empty() {
        let mut chains: Box<[ServiceChain]> = gone.into_keys().collect();
        chains.sort_unstable();
        step.push(Op::Drop { chains }, owner);
    }
}

/// Remembers what is known of a port from now on, and which dispatch chains it moves.
fn replace_port(
    installed: &mut Installed,
    name: &ServicePortName,
    after: Option<Port>,
    moved: &mut BTreeSet<Dispatcher>,
    undo: &mut Vec<(ServicePortName, Option<Port>)>,
) {
    let before = installed.ports.get(name);
    if before == after.as_ref() {
        return;
    }
    let lines = |of: Option<&Port>, dispatcher| of.and_then(|of| of.dispatch.lines(dispatcher)).cloned();
    moved.extend(
        Dispatcher::ALL
            .into_iter()
            .filter(|&dispatcher| lines(before, dispatcher) != lines(after.as_ref(), dispatcher)),
    );
    let before = match after {
        Some(after) => installed.ports.insert(name.clone(), after),
        None => installed.ports.remove(name),
    };
    undo.push((name.clone(), before));
}

fn write_fixed(step: &mut Step<Op>, fixed: scaffold::Fixed) {
    let scaffold::Fixed { table, chain, rules } = fixed;
    step.push(Op::Declare { table, chain }, None);
    step.push(Op::Append { table, chain, rules: rules.into() }, None);
}

/// Inserts the jumps that are missing, and removes what kube-proxy's ipvs mode left.
fn write_jumps(step: &mut Step<Op>, found: &Found) {
    remove_jumps(step, found, IPVS_JUMPS.iter());
    for jump in JUMPS.iter().chain(&KUBELET_JUMPS).filter(|jump| !found.has_jump(jump)) {
        step.push(Op::Insert(*jump), None);
    }
}

/// Deletes chains of Services that are not wanted, and chains that only kube-proxy's ipvs mode has.
fn drop_stale(step: &mut Step<Op>, found: &Found, wanted: &HashSet<ServiceChain>) {
    drop_service_chains(step, found, found.service_chains().filter(|chain| !wanted.contains(chain)));
    let misnamed = found.other_chains(Table::Nat).filter(|chain| is_service_chain(chain));
    let mut others: Vec<(Table, &str)> = misnamed.map(|chain| (Table::Nat, chain)).collect();
    others.sort_unstable();
    others.extend(IPVS_CHAINS.into_iter().filter(|(table, chain)| found.has_chain(*table, chain)));
    for (table, chain) in others {
        drop_named(step, found, table, chain);
    }
}
