//! Changes of routes -> operations on the kernel. Pure: what the kernel holds is told, not read.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    time::Instant,
};

use ipvs_netlink::{Scheduler, Service, ServiceKey};
use proxy_core::{
    backend::{Change, Effect, Plan, Planned, Planner},
    environment::{Environment, NodePortAddresses},
    model::{Family, ServicePortName},
    route::Route,
};

use crate::{
    plan::{
        draft::{Draft, Net, Pair},
        drain::Due,
        marks::Marks,
        order::Order,
        state::State,
    },
    schema::{
        found::Found,
        op::{Op, Reaped, Spot},
        options::Options,
        ownership::{OURS, is_excluded},
        render::{Rendered, Schedulers, Server, claims, drains, needs_mark, render},
    },
    settings::{Binding, Settings},
};

/// Decides for one family.
pub struct IpvsPlanner {
    settings: Settings,
    schedulers: Schedulers,
    state: State,
    /// The state before a full plan that is not settled yet.
    previous: Option<State>,
    reports: Receiver<Reaped>,
}

impl IpvsPlanner {
    /// `reports` carries what the executor reaped.
    pub fn new(settings: Settings, reports: Receiver<Reaped>) -> Self {
        let schedulers = Schedulers { default: settings.scheduler, by_client: Scheduler::MH };
        Self { settings, schedulers, state: State::default(), previous: None, reports }
    }

    /// Where the kernel has no Maglev hashing.
    #[must_use]
    pub(crate) fn without_maglev(mut self) -> Self {
        self.schedulers.by_client = Scheduler::SH;
        self
    }

    /// Has destinations added in an order of this node's own. Without it they are added in one that is the same
    /// everywhere.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.state.order = Order(seed);
        self
    }

    /// A planner that hears nothing from an executor, for tests and models.
    pub fn alone(settings: Settings) -> Self {
        Self::new(settings, mpsc::channel().1)
    }

    fn absorb_reports(&mut self) {
        while let Ok(reaped) = self.reports.try_recv() {
            if let Some(key) = self.state.drains.reaped(&reaped)
                && let Some(addr) = self.state.held.get(&key).copied()
            {
                self.state.held.set(key, None);
                self.state.released.push(addr);
            }
        }
        self.state.drains.commit();
        self.state.held.commit();
    }

    /// An environment without what no Service has to do with: every pod's link brings a link-local address along, which is
    /// no reason to look at all Services again. Addresses of our device are not among the node's own to begin with.
    fn normalise(environment: &Environment) -> Environment {
        let of_link = |addr: &IpAddr| matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
        let without = |all: &[IpAddr]| all.iter().copied().filter(|addr| !of_link(addr)).collect();
        Environment {
            interface_addresses: without(&environment.interface_addresses),
            node_ports: match &environment.node_ports {
                NodePortAddresses::Any => NodePortAddresses::Any,
                NodePortAddresses::Only(only) => NodePortAddresses::Only(without(only)),
            },
            ..environment.clone()
        }
    }
}

impl Planner for IpvsPlanner {
    type Op = Op;
    type Found = Found;

    fn plan(&mut self, changes: &[Change], environment: &Environment, now: Instant) -> Planned<Op> {
        self.absorb_reports();
        let environment = Arc::new(Self::normalise(environment));
        let Some(known) = self.state.environment.clone() else {
            return Planned::StartOver("nothing was planned yet");
        };
        let moved = !same_addresses(&known, &environment);
        if moved && differing(&known, &environment).any(|addr| self.state.concerns_others(addr)) {
            // Which routes are concerned is not kept: all are looked at again.
            return Planned::StartOver("an address that Services use became the node's own, or no longer is");
        }
        let mut draft = Draft::default();
        if *known != *environment && !same_rules(&known, &environment) {
            draft.prepare.push(Op::Rules(environment.clone(), self.settings.marks), None);
        }
        self.state.environment_before = Some(self.state.environment.replace(environment.clone()));

        let mut net = Net::default();
        let claims = changed_claims(changes, &known, &environment);
        let again = self.node_ports_again(changes, moved, &claims);
        for (owner, change) in (0..).zip(changes) {
            if let Some(route) = &change.before {
                net.minus(self.render(&change.name, route, &known), Some(owner));
            }
        }
        for (name, route) in &again {
            net.minus(self.render(name, route, &known), None);
        }
        for (spot, by) in claims {
            self.state.claims.count(spot, by);
        }
        for (name, route) in &again {
            net.plus(self.render(name, route, &environment), None);
        }
        for (owner, change) in (0..).zip(changes) {
            if change.after.as_deref().is_some_and(needs_mark) {
                marked(&change.name, self.state.marks.assign(&change.name));
            } else {
                self.state.marks.release(&change.name);
            }
            self.state.note_node_ports(&change.name, change.after.as_ref());
            if let Some(route) = &change.after {
                report_problems(&change.name, route);
                net.plus(self.render(&change.name, route, &environment), Some(owner));
            }
        }
        for (key, pair) in mem::take(&mut net.servers) {
            self.state.server(key, pair, now, &mut draft);
        }
        self.state.count(net, &mut draft);
        self.state.release(&mut draft);
        Planned::Plan(draft.into_plan())
    }

    fn plan_full(
        &mut self,
        routes: &[(ServicePortName, Arc<Route>)],
        environment: &Environment,
        found: Found,
        now: Instant,
    ) -> Plan<Op> {
        self.absorb_reports();
        let order = self.state.order;
        let marks = Marks::of(self.settings.marks);
        let mut fresh = State { order, marks, ..State::default() };
        let known = mem::take(&mut self.state);
        let environment = Arc::new(Self::normalise(environment));
        fresh.environment = Some(environment.clone());

        let mut net = Net::default();
        // Marks already given are kept, so that connections in progress meet the same virtual server.
        for (name, _) in routes.iter().filter(|(_, route)| needs_mark(route)) {
            if known.marks.get(name).is_some() {
                fresh.marks.assign(name);
            }
        }
        for spot in routes.iter().flat_map(|(_, route)| claims(route, &environment)) {
            fresh.claims.count(spot, 1);
        }
        for (owner, (name, route)) in (0..).zip(routes) {
            report_problems(name, route);
            fresh.note_node_ports(name, Some(route));
            let mark = needs_mark(route).then(|| marked(name, fresh.marks.assign(name))).flatten();
            let is_claimed = |spot: &Spot| fresh.claims.get(spot).is_some();
            let rendered = render(route, &environment, self.schedulers, mark, is_claimed);
            net.plus(rendered, Some(owner));
        }
        let mut draft = Draft::default();
        draft.device.push(Op::Device, None);
        draft.prepare.push(Op::Rebuild(environment.clone(), self.settings.marks), None);
        if found.other_table {
            draft.prepare.push(Op::DropOtherTable, None);
        }
        draft.translated = found.translated;
        let wanted = mem::take(&mut net.servers);
        self.full_servers(wanted, &found, environment.family, &mut fresh, now, &mut draft);
        fresh.count(net, &mut draft);
        // What is in one transaction with the rules is in force before everything that follows.
        let circuits = mem::take(&mut draft.circuits);
        draft.prepare.ops.extend(circuits.ops);
        self.bindings(&found, &fresh, &mut draft);
        self.previous = Some(known);
        self.state = fresh;
        draft.into_plan()
    }

    fn settle(&mut self, effect: Effect) {
        let previous = self.previous.take();
        match (effect, previous) {
            (Effect::Applied, _) => self.state.commit(),
            (Effect::Nothing, Some(previous)) => self.state = previous,
            (Effect::Nothing, None) => self.state.roll_back(),
        }
    }

    fn plan_upkeep(&mut self, now: Instant) -> Option<Plan<Op>> {
        self.absorb_reports();
        let mut draft = Draft::default();
        for Due { key, destinations, force, server } in self.state.drains.due(now, self.settings.drain_limit)
        {
            draft.delete.push(Op::Reap { key, destinations, force, server }, None);
        }
        self.state.release(&mut draft);
        let plan = draft.into_plan();
        if plan.is_empty() {
            // Nothing will be settled.
            self.state.commit();
            return None;
        }
        Some(plan)
    }

    fn next_upkeep(&self) -> Option<Instant> {
        self.state.drains.next()
    }

    fn draining(&self) -> Option<usize> {
        Some(self.state.drains.destinations())
    }
}

impl IpvsPlanner {
    /// What a route is while the claims are as they are now.
    fn render(&self, name: &ServicePortName, route: &Route, environment: &Environment) -> Rendered {
        let is_claimed = |spot: &Spot| self.state.claims.get(spot).is_some();
        render(route, environment, self.schedulers, self.state.marks.get(name), is_claimed)
    }

    /// Routes with NodePorts that are not among the changes, but whose node addresses or claims changed.
    fn node_ports_again(
        &self,
        changes: &[Change],
        moved: bool,
        claims: &BTreeMap<Spot, i32>,
    ) -> Vec<(ServicePortName, Arc<Route>)> {
        if !moved && claims.is_empty() {
            return Vec::new();
        }
        let concerned = |route: &Route| {
            let claimed =
                |port| claims.keys().any(|spot| (spot.protocol, spot.port) == (route.protocol, port));
            moved || route.frontends.iter().any(|frontend| frontend.at.is_none() && claimed(frontend.port))
        };
        let changed: HashSet<&ServicePortName> = changes.iter().map(|change| &change.name).collect();
        self.state
            .node_ports
            .iter()
            .filter(|(name, route)| !changed.contains(*name) && concerned(route))
            .map(|(name, route)| (name.clone(), route.clone()))
            .collect()
    }

    /// Servers wanted against servers found.
    fn full_servers(
        &self,
        wanted: BTreeMap<ServiceKey, Pair>,
        found: &Found,
        family: Family,
        fresh: &mut State,
        now: Instant,
        draft: &mut Draft,
    ) {
        let mut standing: HashMap<ServiceKey, Server> = HashMap::with_capacity(found.servers.len());
        for server in &found.servers {
            let mut destinations = server.destinations.clone();
            destinations.sort_unstable_by_key(|to| (to.address, to.port));
            let drains = drains(&server.service);
            standing.insert(
                server.service.key,
                Server { service: server.service, destinations, drains, stays: Vec::new() },
            );
        }
        let family = match family {
            Family::V4 => ipvs_netlink::Family::V4,
            Family::V6 => ipvs_netlink::Family::V6,
        };
        let sentinel = ServiceKey::Mark { family, mark: self.settings.marks.sentinel() };
        if standing.remove(&sentinel).is_none() {
            let service = Service { flags: OURS, ..Service::new(sentinel, Scheduler::RR) };
            draft.servers.push(Op::NewServer(service, Box::default()), None);
        }
        for (key, pair) in wanted {
            let before = standing.remove(&key);
            // Also in excluded networks: they keep others' virtual servers, and one that a Service wants is ours.
            fresh.server(key, Pair { before, ..pair }, now, draft);
        }
        let mut leftovers: Vec<Server> = standing
            .into_values()
            .filter(|server| found.owns(&server.service, &self.settings.exclude_cidrs))
            .collect();
        leftovers.sort_unstable_by_key(|server| server.service.key);
        for server in leftovers {
            let key = server.service.key;
            let bound = match key {
                ServiceKey::Address { address, .. } => {
                    found.routes.contains(&address) || found.addresses.contains(&address)
                }
                ServiceKey::Mark { .. } => false,
            };
            fresh.server(key, Pair { before: Some(server), bound, ..Pair::default() }, now, draft);
        }
    }

    /// Addresses wanted against addresses found.
    fn bindings(&self, found: &Found, fresh: &State, draft: &mut Draft) {
        let (same, other) = match self.settings.binding {
            Binding::Routes => (&found.routes, &found.addresses),
            Binding::Addresses => (&found.addresses, &found.routes),
        };
        // Everything wanted was counted up from nothing and stands in the draft.
        draft.bind.ops.retain(|owned| !matches!(&owned.op, Op::Bind(addr) if same.contains(addr)));
        let mut gone: Vec<IpAddr> =
            same.iter().copied().filter(|addr| fresh.vips.get(addr).is_none()).collect();
        gone.sort_unstable();
        gone.into_iter().for_each(|addr| draft.unbind.push(Op::Unbind(addr), None));
        let excluded = |addr: &IpAddr| is_excluded(*addr, &self.settings.exclude_cidrs);
        let mut left: Vec<IpAddr> = other.iter().copied().filter(|addr| !excluded(addr)).collect();
        left.sort_unstable();
        for addr in left {
            let op = match self.settings.binding {
                Binding::Routes => Op::DropAddress(addr),
                Binding::Addresses => Op::DropRoute(addr),
            };
            draft.unbind.push(op, None);
        }
    }
}

fn same_addresses(one: &Environment, other: &Environment) -> bool {
    one.interface_addresses == other.interface_addresses && one.node_ports == other.node_ports
}

/// The node's addresses stand in no rule.
fn same_rules(one: &Environment, other: &Environment) -> bool {
    let Environment { interface_addresses, node_ports, .. } = one.clone();
    *one == Environment { interface_addresses, node_ports, ..other.clone() }
}

/// Addresses that only one of two environments has.
fn differing<'a>(one: &'a Environment, other: &'a Environment) -> impl Iterator<Item = &'a IpAddr> {
    let only = |of: &'a Environment, not: &'a Environment| {
        of.interface_addresses.iter().filter(|addr| not.interface_addresses.binary_search(addr).is_err())
    };
    only(one, other).chain(only(other, one))
}

/// Claims that come (1) and go (-1).
fn changed_claims(changes: &[Change], known: &Environment, environment: &Environment) -> BTreeMap<Spot, i32> {
    let mut claimed: BTreeMap<Spot, i32> = BTreeMap::new();
    for change in changes {
        for spot in change.before.iter().flat_map(|route| claims(route, known)) {
            *claimed.entry(spot).or_default() -= 1;
        }
        for spot in change.after.iter().flat_map(|route| claims(route, environment)) {
            *claimed.entry(spot).or_default() += 1;
        }
    }
    claimed.retain(|_, by| *by != 0);
    claimed
}

/// Who has no mark treats its own pods and the node as everybody else.
fn marked(name: &ServicePortName, mark: Option<u32>) -> Option<u32> {
    if mark.is_none() {
        tracing::warn!(
            service = %name,
            "no packet mark is left for it (SWITCHYARD_IPVS_MARKS): the node and its pods reach endpoints of this node only"
        );
    }
    mark
}

fn report_problems(name: &ServicePortName, route: &Route) {
    for problem in Options::problems(&route.policy.options) {
        tracing::warn!(service = %name, "annotation {problem}");
    }
}

#[cfg(test)]
mod tests;
