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

use ipvs_netlink::{Destination, Scheduler, Service, ServiceKey};
use proxy_core::{
    backend::{Change, Effect, Plan, Planned, Planner, Step},
    environment::{Environment, NodePortAddresses},
    model::{Family, ServicePortName},
    route::Route,
};

use crate::{
    drain::{Draining, Drains, Due, Reaped},
    found::{Found, is_excluded, is_ours},
    journal::{Counts, Journal},
    marks::{Marks, SENTINEL},
    op::{Element, Op},
    options::Options,
    order::Order,
    render::{OURS, Rendered, Server, needs_mark, render},
    settings::{Binding, Settings},
};

/// Decides for one family.
pub struct IpvsPlanner {
    settings: Settings,
    state: State,
    /// The state before a full plan that is not settled yet.
    previous: Option<State>,
    reports: Receiver<Reaped>,
}

/// What the planner believes the kernel to hold, beside the routes that the engine remembers.
#[derive(Default)]
struct State {
    environment: Option<Arc<Environment>>,
    /// The one before a plan that is not settled yet.
    environment_before: Option<Option<Arc<Environment>>>,
    vips: Counts<IpAddr>,
    cluster_ips: Counts<IpAddr>,
    hairpins: Counts<IpAddr>,
    mark_uses: Counts<u32>,
    marks: Marks,
    drains: Drains,
    /// Addresses that stay bound for virtual servers that drain.
    held: Journal<ServiceKey, IpAddr>,
    /// Addresses whose draining virtual server has gone: to be let go of.
    released: Vec<IpAddr>,
    /// Those in a plan that is not settled yet.
    releasing: Vec<IpAddr>,
    /// Addresses of our device, which an environment may name among the node's own.
    device_addresses: HashSet<IpAddr>,
    order: Order,
}

impl IpvsPlanner {
    /// `reports` carries what the executor reaped.
    pub fn new(settings: Settings, reports: Receiver<Reaped>) -> Self {
        Self { settings, state: State::default(), previous: None, reports }
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

    /// An environment without what we bound ourselves, and without what no Service has to do with: every pod's link
    /// brings a link-local address along, which is no reason to look at all Services again.
    fn normalise(&self, environment: &Environment) -> Environment {
        let ours = |addr: &IpAddr| {
            self.state.device_addresses.contains(addr)
                || (self.settings.binding == Binding::Addresses && self.state.vips.get(addr).is_some())
        };
        let of_link = |addr: &IpAddr| matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
        let without =
            |all: &[IpAddr]| all.iter().copied().filter(|addr| !ours(addr) && !of_link(addr)).collect();
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
        let environment = Arc::new(self.normalise(environment));
        let mut draft = Draft::default();
        match &self.state.environment {
            Some(known) if *known == environment => {}
            Some(known) if same_addresses(known, &environment) => {
                draft.prepare.push(Op::Rules(environment.clone()), None);
            }
            // Which routes are concerned is not kept: all are looked at again.
            _ => return Planned::StartOver("the node's addresses changed"),
        }
        self.state.environment_before = Some(self.state.environment.replace(environment.clone()));

        let mut net = Net::default();
        for (owner, change) in (0..).zip(changes) {
            let mark_before = self.state.marks.get(&change.name);
            if let Some(route) = &change.before {
                net.minus(render(route, &environment, self.settings.scheduler, mark_before), owner);
            }
            if let Some(route) = &change.after {
                report_problems(&change.name, route);
                let mark = needs_mark(route).then(|| self.state.marks.assign(&change.name));
                net.plus(render(route, &environment, self.settings.scheduler, mark), owner);
            }
            if !change.after.as_deref().is_some_and(needs_mark) {
                self.state.marks.release(&change.name);
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
        let mut fresh = State { device_addresses: found.addresses.clone(), order, ..State::default() };
        let known = mem::take(&mut self.state);
        self.state.device_addresses.clone_from(&found.addresses);
        let environment = Arc::new(self.normalise(environment));
        fresh.environment = Some(environment.clone());
        if self.settings.binding == Binding::Addresses {
            fresh.device_addresses.clear();
        }

        let mut net = Net::default();
        // Marks already given are kept, so that connections in progress meet the same virtual server.
        for (name, _) in routes.iter().filter(|(_, route)| needs_mark(route)) {
            if known.marks.get(name).is_some() {
                fresh.marks.assign(name);
            }
        }
        for (owner, (name, route)) in (0..).zip(routes) {
            report_problems(name, route);
            let mark = needs_mark(route).then(|| fresh.marks.assign(name));
            net.plus(render(route, &environment, self.settings.scheduler, mark), owner);
        }
        let mut draft = Draft::default();
        draft.device.push(Op::Device, None);
        draft.prepare.push(Op::Rebuild(environment.clone()), None);
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
}

impl IpvsPlanner {
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
            let udp = matches!(
                server.service.key,
                ServiceKey::Address { protocol: ipvs_netlink::Protocol::Udp, .. }
            );
            let mut destinations = server.destinations.clone();
            destinations.sort_unstable_by_key(|to| (to.address, to.port));
            standing
                .insert(server.service.key, Server { service: server.service, destinations, drains: !udp });
        }
        let family = match family {
            Family::V4 => ipvs_netlink::Family::V4,
            Family::V6 => ipvs_netlink::Family::V6,
        };
        let sentinel = ServiceKey::Mark { family, mark: SENTINEL };
        if standing.remove(&sentinel).is_none() {
            let service = Service { flags: OURS, ..Service::new(sentinel, Scheduler::RR) };
            draft.servers.push(Op::NewServer(service), None);
        }
        for (key, pair) in wanted {
            let before = standing.remove(&key);
            let foreign = before.as_ref().is_some_and(|before| !is_ours(&before.service));
            if let (true, ServiceKey::Address { address, .. }) = (foreign, key)
                && is_excluded(address, &self.settings.exclude_cidrs)
            {
                tracing::warn!(server = %key, "left as it is: excludeCIDRs protects a virtual server that a Service wants");
                continue;
            }
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

impl State {
    fn commit(&mut self) {
        self.environment_before = None;
        self.releasing.clear();
        for counts in [&mut self.vips, &mut self.cluster_ips, &mut self.hairpins] {
            counts.commit();
        }
        self.mark_uses.commit();
        self.marks.commit();
        self.drains.commit();
        self.held.commit();
    }

    fn roll_back(&mut self) {
        if let Some(before) = self.environment_before.take() {
            self.environment = before;
        }
        self.released.append(&mut self.releasing);
        for counts in [&mut self.vips, &mut self.cluster_ips, &mut self.hairpins] {
            counts.roll_back();
        }
        self.mark_uses.roll_back();
        self.marks.roll_back();
        self.drains.roll_back();
        self.held.roll_back();
    }

    /// From one form of a virtual server to another, or to none.
    fn server(&mut self, key: ServiceKey, pair: Pair, now: Instant, draft: &mut Draft) {
        let owner = pair.owner;
        match (pair.before, pair.after) {
            (None, None) => {}
            (None, Some(after)) => {
                // It may stand yet, draining.
                if self.drains.get(&key).is_some_and(Draining::ends_server) {
                    draft.servers.push(Op::SetServer(after.service), owner);
                    self.drains.keep_server(key);
                    self.let_go(key, draft);
                } else {
                    draft.servers.push(Op::NewServer(after.service), owner);
                }
                let stood = self.drains.get(&key).is_some();
                for to in self.order.of(&after) {
                    self.add_destination(key, to, owner, draft);
                }
                let all: Vec<_> = after.destinations.iter().map(|to| (to.address, to.port)).collect();
                if let Some(anew) = Order::anew(&after, &all).filter(|_| stood) {
                    draft.servers.push(Op::Reorder(key, anew), owner);
                }
            }
            (Some(before), Some(after)) => {
                if before.service != after.service {
                    draft.servers.push(Op::SetServer(after.service), owner);
                }
                self.destinations(key, &before, &after, owner, now, draft);
                // Maglev chosen anew: the order so far was the node's own.
                let all: Vec<_> = after.destinations.iter().map(|to| (to.address, to.port)).collect();
                if before.service.scheduler != after.service.scheduler
                    && let Some(anew) = Order::anew(&after, &all)
                {
                    draft.servers.push(Op::Reorder(key, anew), owner);
                }
            }
            (Some(before), None) => self.remove_server(key, before, pair.bound, owner, now, draft),
        }
    }

    /// Both lists are sorted by address and port.
    fn destinations(
        &mut self,
        key: ServiceKey,
        before: &Server,
        after: &Server,
        owner: Option<u32>,
        now: Instant,
        draft: &mut Draft,
    ) {
        let place = |to: &Destination| (to.address, to.port);
        let mut added = Vec::new();
        let (mut old, mut new) =
            (before.destinations.iter().peekable(), after.destinations.iter().peekable());
        loop {
            match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(from), Some(to)) if place(from) == place(to) => {
                    if from != to {
                        draft.servers.push(Op::SetDestination(key, **to), owner);
                    }
                    old.next();
                    new.next();
                }
                (Some(from), to) if to.is_none_or(|to| place(from) < place(to)) => {
                    self.remove_destination(key, **from, after.drains, owner, now, draft);
                    old.next();
                }
                (_, Some(to)) => {
                    self.add_destination(key, **to, owner, draft);
                    added.push(place(to));
                    new.next();
                }
                (Some(_), None) => unreachable!("taken by the guard above"),
            }
        }
        if let Some(anew) = Order::anew(after, &added) {
            draft.servers.push(Op::Reorder(key, anew), owner);
        }
    }

    fn add_destination(&mut self, key: ServiceKey, to: Destination, owner: Option<u32>, draft: &mut Draft) {
        let op = match self.drains.restore(key, to.address, to.port) {
            true => Op::SetDestination(key, to),
            false => Op::NewDestination(key, to),
        };
        draft.servers.push(op, owner);
    }

    fn remove_destination(
        &mut self,
        key: ServiceKey,
        from: Destination,
        drains: bool,
        owner: Option<u32>,
        now: Instant,
        draft: &mut Draft,
    ) {
        if !drains {
            draft.delete.push(Op::DeleteDestination(key, from.address, from.port), owner);
            return;
        }
        // Found with weight 0: it drained already before a restart.
        if from.weight != 0 {
            draft.servers.push(Op::SetDestination(key, Destination { weight: 0, ..from }), owner);
        }
        self.drains.begin(key, from.address, from.port, now);
    }

    fn remove_server(
        &mut self,
        key: ServiceKey,
        before: Server,
        bound: bool,
        owner: Option<u32>,
        now: Instant,
        draft: &mut Draft,
    ) {
        let idle = before.destinations.is_empty() && self.drains.get(&key).is_none();
        if !before.drains || idle {
            self.drains.forget(key);
            draft.delete.push(Op::DeleteServer(key), owner);
            return;
        }
        for from in before.destinations {
            self.remove_destination(key, from, true, owner, now, draft);
        }
        self.drains.end_server(key, now);
        // The address stays ours as long as connections to it do.
        if let ServiceKey::Address { address, .. } = key
            && (bound || self.vips.get(&address).is_some())
        {
            self.held.set(key, Some(address));
            self.count_vip(address, 1, None, draft);
        }
    }

    /// A virtual server that drained is in use again: its route counts by itself from here on.
    fn let_go(&mut self, key: ServiceKey, draft: &mut Draft) {
        if let Some(address) = self.held.get(&key).copied() {
            self.held.set(key, None);
            draft.let_go.push(address);
        }
    }

    /// Comes last: an address that something else wants by now stays bound throughout.
    fn release(&mut self, draft: &mut Draft) {
        for address in mem::take(&mut draft.let_go) {
            self.count_vip(address, -1, None, draft);
        }
        for address in mem::take(&mut self.released) {
            self.count_vip(address, -1, None, draft);
            self.releasing.push(address);
        }
    }

    fn count_vip(&mut self, addr: IpAddr, by: i32, owner: Option<u32>, draft: &mut Draft) {
        match self.vips.count(addr, by) {
            Some(true) => {
                draft.prepare.push(Op::AddElement(Element::Vip(addr)), owner);
                draft.bind.push(Op::Bind(addr), owner);
            }
            Some(false) => {
                draft.unbind.push(Op::Unbind(addr), owner);
                draft.clear.push(Op::DeleteElement(Element::Vip(addr)), owner);
            }
            None => {}
        }
    }

    /// Net changes of addresses and elements.
    fn count(&mut self, net: Net, draft: &mut Draft) {
        for (addr, (by, owner)) in net.vips {
            self.count_vip(addr, by, owner, draft);
        }
        for (element, (by, owner)) in net.elements {
            let appears = match element {
                Element::ClusterIp(addr) => self.cluster_ips.count(addr, by),
                Element::Hairpin(addr) => self.hairpins.count(addr, by),
                Element::Mark(mark) => self.mark_uses.count(mark, by),
                _ => match by {
                    0 => None,
                    by => Some(by > 0),
                },
            };
            match (appears, element) {
                (None, _) => {}
                // A key of a map or an interval set must go before another value or an overlapping interval comes, and
                // with it: in one transaction.
                (Some(false), Element::Allowed(..)) => draft.replace.push(Op::DeleteElement(element), owner),
                (Some(false), Element::ShortCircuit(..)) => {
                    draft.circuits.push(Op::DeleteElement(element), owner)
                }
                (Some(true), Element::ShortCircuit(..)) => {
                    draft.circuits.push(Op::AddElement(element), owner)
                }
                (Some(true), _) => draft.prepare.push(Op::AddElement(element), owner),
                (Some(false), _) => draft.clear.push(Op::DeleteElement(element), owner),
            }
        }
    }
}

/// A virtual server before and after, and whose change it is.
#[derive(Debug, Default)]
struct Pair {
    before: Option<Server>,
    after: Option<Server>,
    /// Its address was found bound.
    bound: bool,
    owner: Option<u32>,
}

/// What all changes come to together: one Service may give what another takes.
#[derive(Default)]
struct Net {
    servers: BTreeMap<ServiceKey, Pair>,
    vips: BTreeMap<IpAddr, (i32, Option<u32>)>,
    elements: BTreeMap<Element, (i32, Option<u32>)>,
}

impl Net {
    fn minus(&mut self, rendered: Rendered, owner: u32) {
        for server in rendered.servers {
            let pair = self.servers.entry(server.service.key).or_default();
            pair.before = Some(server);
            pair.owner.get_or_insert(owner);
        }
        self.count(rendered.vips, rendered.elements, -1, owner);
    }

    fn plus(&mut self, rendered: Rendered, owner: u32) {
        for server in rendered.servers {
            let pair = self.servers.entry(server.service.key).or_default();
            pair.after = Some(server);
            pair.owner = Some(owner);
        }
        self.count(rendered.vips, rendered.elements, 1, owner);
    }

    fn count(&mut self, vips: Vec<IpAddr>, elements: Vec<Element>, by: i32, owner: u32) {
        for vip in vips {
            let (count, of) = self.vips.entry(vip).or_default();
            *count += by;
            *of = Some(owner);
        }
        for element in elements {
            let (count, of) = self.elements.entry(element).or_default();
            *count += by;
            *of = Some(owner);
        }
    }
}

/// A plan in the making: operations by when they must happen.
#[derive(Default)]
struct Draft {
    device: Step<Op>,
    /// Elements that make room, in one transaction with `prepare`.
    replace: Step<Op>,
    /// What guards a virtual server: in force before it.
    prepare: Step<Op>,
    servers: Step<Op>,
    /// Marks: after the virtual servers that they lead to.
    circuits: Step<Op>,
    /// Now packets come.
    bind: Step<Op>,
    /// And from here on no more.
    unbind: Step<Op>,
    delete: Step<Op>,
    clear: Step<Op>,
    /// Addresses that no longer are held for a draining virtual server.
    let_go: Vec<IpAddr>,
    /// The rules in force take connections past every virtual server, and go with `prepare`: not before the virtual
    /// servers can be reached.
    translated: bool,
}

impl Draft {
    fn into_plan(mut self) -> Plan<Op> {
        // Rules come before the elements of the sets that they make.
        let rebuild = |op: &Op| matches!(op, Op::Rebuild(_) | Op::Rules(_));
        let at = self.prepare.ops.iter().take_while(|owned| rebuild(&owned.op)).count();
        self.prepare.ops.splice(at..at, self.replace.ops);
        // A map's key goes before it comes with another value.
        self.circuits.ops.sort_by_key(|owned| matches!(owned.op, Op::AddElement(_)));
        let (guards_first, guards_last) =
            if self.translated { (Step::default(), self.prepare) } else { (self.prepare, Step::default()) };
        let steps = [
            self.device,
            guards_first,
            self.servers,
            self.circuits,
            self.bind,
            guards_last,
            self.unbind,
            self.delete,
            self.clear,
        ];
        Plan { steps: steps.into_iter().filter(|step| !step.ops.is_empty()).collect() }
    }
}

fn same_addresses(one: &Environment, other: &Environment) -> bool {
    one.family == other.family
        && one.interface_addresses == other.interface_addresses
        && one.node_ports == other.node_ports
}

fn report_problems(name: &ServicePortName, route: &Route) {
    for problem in Options::problems(&route.options) {
        tracing::warn!(service = %name, "annotation {problem}");
    }
}

#[cfg(test)]
mod tests;
