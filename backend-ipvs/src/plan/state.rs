//! What the planner believes the kernel to hold, and how one form of a virtual server becomes another.

use std::{mem, net::IpAddr, sync::Arc, time::Instant};

use ipvs_netlink::{Destination, Service, ServiceKey};
use proxy_core::{environment::Environment, model::ServicePortName, route::Route};

use crate::{
    plan::{
        draft::{Draft, Net, Pair},
        drain::Drains,
        journal::{Counts, Journal},
        marks::Marks,
        order::Order,
    },
    schema::{
        op::{Element, Op, Spot},
        ownership::{OURS, is_ours},
        render::{Server, has_node_port, is_on_node},
    },
};

/// Beside the routes, which the engine remembers.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) environment: Option<Arc<Environment>>,
    /// The one before a plan that is not settled yet.
    pub(crate) environment_before: Option<Option<Arc<Environment>>>,
    /// Addresses that are bound.
    pub(crate) vips: Counts<IpAddr>,
    /// Those on which everything else is refused: no interface of the node has them.
    pub(crate) guards: Counts<IpAddr>,
    pub(crate) cluster_ips: Counts<IpAddr>,
    pub(crate) hairpins: Counts<IpAddr>,
    pub(crate) health_checks: Counts<u16>,
    /// Endpoints that are addresses of the node itself.
    pub(crate) host_endpoints: Counts<IpAddr>,
    /// Addresses and ports of the node that Services claim by name, before any NodePort.
    pub(crate) claims: Counts<Spot>,
    /// What must be looked at again when the node's addresses change.
    pub(crate) node_ports: Journal<ServicePortName, Arc<Route>>,
    pub(crate) mark_uses: Counts<u32>,
    pub(crate) marks: Marks,
    pub(crate) drains: Drains,
    /// Addresses that stay bound for virtual servers that drain.
    pub(crate) held: Journal<ServiceKey, IpAddr>,
    /// Addresses whose draining virtual server has gone: to be let go of.
    pub(crate) released: Vec<IpAddr>,
    /// Those in a plan that is not settled yet.
    pub(crate) releasing: Vec<IpAddr>,
    pub(crate) order: Order,
}

impl State {
    pub(crate) fn commit(&mut self) {
        self.environment_before = None;
        self.releasing.clear();
        for counts in self.addresses() {
            counts.commit();
        }
        self.health_checks.commit();
        self.claims.commit();
        self.node_ports.commit();
        self.mark_uses.commit();
        self.marks.commit();
        self.drains.commit();
        self.held.commit();
    }

    pub(crate) fn roll_back(&mut self) {
        if let Some(before) = self.environment_before.take() {
            self.environment = before;
        }
        self.released.append(&mut self.releasing);
        for counts in self.addresses() {
            counts.roll_back();
        }
        self.health_checks.roll_back();
        self.claims.roll_back();
        self.node_ports.roll_back();
        self.mark_uses.roll_back();
        self.marks.roll_back();
        self.drains.roll_back();
        self.held.roll_back();
    }

    fn addresses(&mut self) -> [&mut Counts<IpAddr>; 5] {
        let Self { vips, guards, cluster_ips, hairpins, host_endpoints, .. } = self;
        [vips, guards, cluster_ips, hairpins, host_endpoints]
    }

    /// The NodePorts of a Service port, as they are now.
    pub(crate) fn note_node_ports(&mut self, name: &ServicePortName, route: Option<&Arc<Route>>) {
        let route = route.filter(|route| has_node_port(route));
        if route.is_some() || self.node_ports.get(name).is_some() {
            self.node_ports.set(name.clone(), route.cloned());
        }
    }

    /// Whether an address that the node gained or lost is one that more than NodePorts have to do with.
    pub(crate) fn concerns_others(&self, addr: &IpAddr) -> bool {
        self.vips.get(addr).is_some()
            || self.hairpins.get(addr).is_some()
            || self.host_endpoints.get(addr).is_some()
            || self.claims.iter().any(|(spot, _)| spot.addr == *addr)
    }

    /// From one form of a virtual server to another, or to none.
    pub(crate) fn server(&mut self, key: ServiceKey, pair: Pair, now: Instant, draft: &mut Draft) {
        let owner = pair.owner;
        match (pair.before, pair.after) {
            (None, None) => {}
            (None, Some(after)) if self.drains.get(&key).is_none() => {
                draft.servers.push(Op::NewServer(after.service, self.order.of(after)), owner);
            }
            // It stands yet, draining.
            (None, Some(after)) => {
                draft.servers.push(Op::SetServer(after.service), owner);
                self.drains.keep_server(key);
                self.let_go(key, draft);
                let all: Vec<_> = after.destinations.iter().map(|to| (to.address, to.port)).collect();
                let anew = Order::anew(&after, &all);
                let lasting = (after.drains, after.stays.clone());
                for to in self.order.of(after) {
                    self.add_destination(key, to, owner, draft);
                }
                if let Some(anew) = anew {
                    draft.servers.push(Op::Reorder(key, anew), owner);
                }
                self.end_flows(key, lasting.0, &lasting.1, owner, draft);
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
    pub(crate) fn destinations(
        &mut self,
        key: ServiceKey,
        before: &Server,
        after: &Server,
        owner: Option<u32>,
        now: Instant,
        draft: &mut Draft,
    ) {
        let place = |to: &Destination| (to.address, to.port);
        let (mut added, mut gone) = (Vec::new(), Vec::new());
        let (mut old, mut new) =
            (before.destinations.iter().peekable(), after.destinations.iter().peekable());
        loop {
            match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(from), Some(to)) if place(from) == place(to) => {
                    if from != to {
                        draft.servers.push(Op::SetDestination { key, to: **to, was: from.weight }, owner);
                    }
                    old.next();
                    new.next();
                }
                (Some(from), to) if to.is_none_or(|to| place(from) < place(to)) => {
                    let drains = after.drains || after.stays.binary_search(&place(from)).is_ok();
                    if remove_destination(key, **from, drains, owner, draft) {
                        gone.push(place(from));
                    }
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
        self.drains.begin(key, &gone, now);
        if let Some(anew) = Order::anew(after, &added) {
            draft.servers.push(Op::Reorder(key, anew), owner);
        }
        self.end_flows(key, after.drains, &after.stays, owner, draft);
    }

    /// Where endpoints that go do not wait for their connections to end: those that were kept for their flows, and serve
    /// no more, are deleted.
    fn end_flows(
        &mut self,
        key: ServiceKey,
        drains: bool,
        stays: &[(IpAddr, u16)],
        owner: Option<u32>,
        draft: &mut Draft,
    ) {
        let Some(draining) = self.drains.get(&key).filter(|_| !drains) else { return };
        let ended: Vec<_> = draining.all().filter(|at| stays.binary_search(at).is_err()).collect();
        for (addr, port) in ended {
            self.drains.restore(key, addr, port);
            draft.delete.push(Op::DeleteDestination(key, Destination::new(addr, port, 0)), owner);
        }
    }

    pub(crate) fn add_destination(
        &mut self,
        key: ServiceKey,
        to: Destination,
        owner: Option<u32>,
        draft: &mut Draft,
    ) {
        let op = match self.drains.restore(key, to.address, to.port) {
            true => Op::SetDestination { key, to, was: 0 },
            false => Op::NewDestination(key, to),
        };
        draft.servers.push(op, owner);
    }

    pub(crate) fn remove_server(
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
        // What another proxy made is marked, so that who comes after us knows whose it is.
        if !is_ours(&before.service) {
            let service = Service { flags: before.service.flags.union(OURS), ..before.service };
            draft.servers.push(Op::SetServer(service), owner);
        }
        let gone: Vec<_> = before.destinations.iter().map(|from| (from.address, from.port)).collect();
        for from in before.destinations {
            remove_destination(key, from, true, owner, draft);
        }
        self.drains.begin(key, &gone, now);
        self.drains.end_server(key, now);
        // The address stays ours as long as connections to it do.
        if let ServiceKey::Address { address, .. } = key
            && (bound || self.vips.get(&address).is_some())
        {
            self.held.set(key, Some(address));
            self.hold(address, 1, draft);
        }
    }

    /// A virtual server that drained is in use again: its route counts by itself from here on.
    pub(crate) fn let_go(&mut self, key: ServiceKey, draft: &mut Draft) {
        if let Some(address) = self.held.get(&key).copied() {
            self.held.set(key, None);
            draft.let_go.push(address);
        }
    }

    /// Comes last: an address that something else wants by now stays bound throughout.
    pub(crate) fn release(&mut self, draft: &mut Draft) {
        for address in mem::take(&mut draft.let_go) {
            self.hold(address, -1, draft);
        }
        for address in mem::take(&mut self.released) {
            self.hold(address, -1, draft);
            self.releasing.push(address);
        }
    }

    /// An address of a virtual server that drains stays bound and guarded.
    fn hold(&mut self, addr: IpAddr, by: i32, draft: &mut Draft) {
        self.bind(addr, by, None, draft);
        // Where it becomes the node's own, or no longer is, everything is planned anew.
        if !self.environment.as_ref().is_some_and(|environment| is_on_node(environment, &addr)) {
            self.element(Element::Vip(addr), by, None, draft);
        }
    }

    fn bind(&mut self, addr: IpAddr, by: i32, owner: Option<u32>, draft: &mut Draft) {
        match self.vips.count(addr, by) {
            Some(true) => draft.bind.push(Op::Bind(addr), owner),
            Some(false) => draft.unbind.push(Op::Unbind(addr), owner),
            None => {}
        }
    }

    /// Net changes of addresses and elements.
    pub(crate) fn count(&mut self, net: Net, draft: &mut Draft) {
        for (addr, by, owner) in net.vips.sums() {
            self.bind(addr, by, owner, draft);
        }
        for (addr, by, _) in net.host_endpoints.sums() {
            self.host_endpoints.count(addr, by);
        }
        for (element, by, owner) in net.elements.sums() {
            self.element(element, by, owner, draft);
        }
    }

    fn element(&mut self, element: Element, by: i32, owner: Option<u32>, draft: &mut Draft) {
        let appears = match element {
            Element::Vip(addr) => self.guards.count(addr, by),
            Element::ClusterIp(addr) => self.cluster_ips.count(addr, by),
            Element::Hairpin(addr) => self.hairpins.count(addr, by),
            Element::Mark(mark) => self.mark_uses.count(mark, by),
            Element::HealthCheck(port) => self.health_checks.count(port, by),
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
                draft.circuits.push(Op::DeleteElement(element), owner);
            }
            (Some(true), Element::ShortCircuit(..)) => draft.circuits.push(Op::AddElement(element), owner),
            // Refused until its virtual server has an endpoint.
            (Some(false), Element::Refused(_)) => draft.circuits.push(Op::DeleteElement(element), owner),
            (Some(true), _) => draft.prepare.push(Op::AddElement(element), owner),
            (Some(false), _) => draft.clear.push(Op::DeleteElement(element), owner),
        }
    }
}

/// Deletes a destination, or lets it drain; answers which.
fn remove_destination(
    key: ServiceKey,
    from: Destination,
    drains: bool,
    owner: Option<u32>,
    draft: &mut Draft,
) -> bool {
    if !drains {
        draft.delete.push(Op::DeleteDestination(key, from), owner);
    } else if from.weight != 0 {
        let to = Destination { weight: 0, ..from };
        draft.servers.push(Op::SetDestination { key, to, was: from.weight }, owner);
    }
    // Found with weight 0: it drained already before a restart.
    drains
}
