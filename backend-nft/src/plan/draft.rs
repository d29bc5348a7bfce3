//! A plan in the making: turns one Service port's change into operations and keeps the state in step.

use std::{net::IpAddr, sync::Arc, time::Instant};

use ipnet::IpNet;
use proxy_core::{
    backend::{Owned, Step},
    model::{Protocol, ServicePortName},
    route::Route,
};

use crate::{
    plan::{
        placement::{Group, Placement, Uses, derived, places, source_elements, uses},
        slots::{difference, refill},
        state::{Owed, Remains, State, Undo},
    },
    schema::{
        class_chain::Class,
        element::{Element, Key, Place},
        name::Set,
        operation::{List, Op, Operation, slot_element},
    },
};

/// How long elements that nothing points to any more stay for packets on their way.
pub(crate) const GRACE: std::time::Duration = std::time::Duration::from_secs(1);

/// Operations gathered so far. Deletions come before additions, so that a key may change hands.
pub(crate) struct Draft<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) undo: &'a mut Undo,
    pub(crate) generation: u32,
    pub(crate) now: Instant,
    /// Nothing is in the kernel yet: whole lists are added at once, and nothing is noted for undoing.
    pub(crate) fresh: bool,
    /// Index of the change being worked at.
    pub(crate) owner: Option<u32>,
    /// Classes whose chains must be made first, and for whom.
    pub(crate) classes: Vec<(Class, Option<u32>)>,
    pub(crate) deletes: Vec<Owned<Op>>,
    pub(crate) adds: Vec<Owned<Op>>,
    /// Deletions of what an address that is in use may still ask for: they come when everything else is done.
    pub(crate) last: Vec<Owned<Op>>,
    /// The Service networks, sorted, none inside another.
    pub(crate) networks: &'a [IpNet],
}

impl<'a> Draft<'a> {
    /// Of a table that is there and filled.
    pub(crate) fn new(
        state: &'a mut State,
        undo: &'a mut Undo,
        generation: u32,
        now: Instant,
        networks: &'a [IpNet],
    ) -> Self {
        Self {
            state,
            undo,
            generation,
            now,
            fresh: false,
            owner: None,
            classes: Vec::new(),
            deletes: Vec::new(),
            adds: Vec::new(),
            last: Vec::new(),
            networks,
        }
    }
}

impl Draft<'_> {
    /// Turns `before` into `after`.
    pub(crate) fn change(
        &mut self,
        name: &ServicePortName,
        before: Option<&Arc<Route>>,
        after: Option<&Arc<Route>>,
    ) {
        let old = self.state.placements.remove(name);
        if !self.fresh {
            self.undo.placements.push((name.clone(), old.clone()));
        }
        let mut had = Vec::new();
        if let (Some(before), Some(old)) = (before, &old) {
            derived(before, old, &mut had);
        }
        let protocol = before.or(after).map_or(name.protocol, |route| route.protocol);
        let placement = self.place(name, old.unwrap_or_default(), (before, after), protocol);
        let mut wanted = Vec::new();
        if let Some(after) = after {
            derived(after, &placement, &mut wanted);
        }
        self.exchange(had, wanted);
        self.sources(before, after);
        self.shared_keys(before, after);
        if after.is_some() {
            self.state.placements.insert(name.clone(), placement);
        }
    }

    /// Deletes what is only in the first list, adds what is only in the second.
    pub(crate) fn exchange(&mut self, mut had: Vec<Element>, mut wanted: Vec<Element>) {
        had.sort_unstable();
        wanted.sort_unstable();
        let mut wanted = wanted.into_iter().peekable();
        for old in had {
            while wanted.peek().is_some_and(|new| *new < old) {
                let new = wanted.next().expect("just peeked");
                self.add(new);
            }
            if wanted.peek() == Some(&old) {
                wanted.next();
            } else {
                self.delete(old);
            }
        }
        for new in wanted {
            self.add(new);
        }
    }

    pub(crate) fn add(&mut self, element: Element) {
        let mut new = Vec::new();
        self.state.added(&element, self.undo, &mut new);
        self.classes.extend(new.into_iter().map(|class| (class, self.owner)));
        let op = Op(Operation::Add { generation: self.generation, element });
        self.adds.push(Owned { op, owner: self.owner });
    }

    pub(crate) fn delete(&mut self, element: Element) {
        self.state.deleted(&element, self.now, self.undo);
        // Who may use an address is asked for after the address was found.
        let later = element.set == Set::AllowedSources;
        let op = Op(Operation::Delete { generation: self.generation, element });
        let to = if later { &mut self.last } else { &mut self.deletes };
        to.push(Owned { op, owner: self.owner });
    }

    /// Decides where a Service port's endpoints stand.
    fn place(
        &mut self,
        name: &ServicePortName,
        old: Placement,
        (before, route): (Option<&Arc<Route>>, Option<&Arc<Route>>),
        protocol: Protocol,
    ) -> Placement {
        let wanted = route.map(|route| uses(route)).unwrap_or_default();
        let mut new = Placement::default();
        let Placement { cluster, local, sticky } = old;
        if let Some(route) = route
            && let Some(seconds) = route.policy.affinity
            && (wanted.cluster || wanted.local)
        {
            // Without a free id the Service port is served without stickiness.
            new.sticky = self.place_sticky(name, sticky.as_deref(), route, wanted, seconds);
        }
        if let Some(sticky) = sticky
            && new.sticky.as_ref().is_none_or(|new| (new.port, new.wide) != (sticky.port, sticky.wide))
        {
            self.retire_sticky(name, &sticky, protocol);
        }
        let plain = if new.sticky.is_some() { Uses::default() } else { wanted };
        new.cluster = self.place_group(cluster, (before, route), List::Cluster, plain.cluster, protocol);
        new.local = self.place_group(local, (before, route), List::Local, plain.local, protocol);
        new
    }

    fn place_group(
        &mut self,
        old: Option<Group>,
        (before, route): (Option<&Arc<Route>>, Option<&Arc<Route>>),
        list: List,
        wanted: bool,
        protocol: Protocol,
    ) -> Option<Group> {
        let had = || before.map_or_else(Vec::new, |before| places(list.of(before)));
        let (Some(route), true) = (route, wanted) else {
            if let Some(Group { id, slots, .. }) = old {
                let slots = slots.map_or_else(had, Vec::from);
                self.owe(Remains::Group { id, protocol, slots });
            }
            return None;
        };
        let targets = list.of(route);
        let wanted = places(targets);
        let Some(Group { id, slots, .. }) = old else {
            let Some(id) = self.state.groups.take() else {
                self.adds.push(Owned { op: Op(Operation::LeaveOut), owner: self.owner });
                return None;
            };
            if wanted.len() == targets.len() {
                let length = wanted.len() as u32;
                self.state.counts[Set::Endpoints as usize] += length;
                let route = Arc::clone(route);
                let op = Operation::AddGroup { generation: self.generation, group: id, route, list };
                self.adds.push(Owned { op: Op(op), owner: self.owner });
                return Some(Group { id, length, slots: None });
            }
            return Some(self.refill(id, Vec::new(), &[], &wanted, protocol));
        };
        let had = had();
        let slots = slots.map_or_else(|| had.clone(), Vec::from);
        Some(self.refill(id, slots, &had, &wanted, protocol))
    }

    /// `had` and `wanted` are sorted; what the group had stands in its slots in any order.
    fn refill(
        &mut self,
        id: u32,
        mut slots: Vec<Place>,
        had: &[Place],
        wanted: &[Place],
        protocol: Protocol,
    ) -> Group {
        debug_assert_eq!(had.len(), slots.len());
        let gone: Vec<Place> = difference(had, wanted).copied().collect();
        for change in refill(&mut slots, &gone, difference(wanted, had).copied()) {
            let element = |place: Place| slot_element(id, protocol, change.slot, place);
            if let Some(place) = change.before {
                self.delete(element(place));
            }
            if let Some(place) = change.after {
                self.add(element(place));
            }
        }
        let length = slots.len() as u32;
        let slots = (!slots.is_sorted()).then(|| slots.into_boxed_slice());
        Group { id, length, slots }
    }

    pub(crate) fn owe(&mut self, what: Remains) {
        self.state.owed.push_back(Owed { due: self.now + GRACE, what });
        self.undo.owed_added += 1;
    }

    /// Source ranges. They can be many: nothing is computed where they are the same ones.
    fn sources(&mut self, before: Option<&Arc<Route>>, after: Option<&Arc<Route>>) {
        let of = |route: Option<&Arc<Route>>| route.and_then(|route| route.policy.sources.clone());
        let (had, wanted) = (of(before), of(after));
        if had.is_none() && wanted.is_none() || had == wanted && frontends(before) == frontends(after) {
            return;
        }
        let elements = |route: Option<&Arc<Route>>| {
            let mut elements = Vec::new();
            if let Some(route) = route {
                route.frontends.iter().for_each(|frontend| source_elements(route, frontend, &mut elements));
            }
            elements
        };
        self.exchange(elements(before), elements(after));
    }

    /// Keys that other Service ports may need as well.
    fn shared_keys(&mut self, before: Option<&Arc<Route>>, after: Option<&Arc<Route>>) {
        let (had, wanted) = (cluster_ips(before), cluster_ips(after));
        for addr in difference(&had, &wanted) {
            if self.state.cluster_ips.leave(*addr) {
                self.delete(Element::member(Set::ClusterIps, Key::Address(*addr)));
            }
        }
        for addr in difference(&wanted, &had) {
            if self.state.cluster_ips.join(*addr) {
                self.add(Element::member(Set::ClusterIps, Key::Address(*addr)));
            }
        }
        let (had, wanted) = (self.outside(before), self.outside(after));
        for addr in difference(&had, &wanted) {
            if self.state.outside_vips.leave(*addr) {
                self.delete(Element::member(Set::OutsideVips, Key::Address(*addr)));
            }
        }
        for addr in difference(&wanted, &had) {
            if self.state.outside_vips.join(*addr) {
                self.add(Element::member(Set::OutsideVips, Key::Address(*addr)));
            }
        }
        self.endpoint_ports(before, after);
    }

    /// The addresses of a route that lie in none of the Service networks, sorted.
    fn outside(&self, route: Option<&Arc<Route>>) -> Vec<IpAddr> {
        let outside = |addr: &IpAddr| !self.networks.iter().any(|net| net.contains(addr));
        let mut addresses: Vec<IpAddr> =
            frontends(route).iter().filter_map(|frontend| frontend.at).filter(outside).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Every endpoint, for those that reach themselves and for packets that conntrack takes for INVALID.
    fn endpoint_ports(&mut self, before: Option<&Arc<Route>>, after: Option<&Arc<Route>>) {
        let (had, wanted) = (endpoints(before), endpoints(after));
        if self.fresh
            && let Some(route) = after
            && !wanted.is_empty()
        {
            self.fresh_endpoints(route, &wanted);
            return;
        }
        for (addr, port) in difference(&had, &wanted) {
            if self.state.sources.leave(*addr, *port) {
                self.delete(Element::member(Set::EndpointPorts, Key::Twice(*addr, *port)));
            }
        }
        for (addr, port) in difference(&wanted, &had) {
            if self.state.sources.join(*addr, *port) {
                self.add(Element::member(Set::EndpointPorts, Key::Twice(*addr, *port)));
            }
        }
    }

    /// A fresh table takes whole lists: one operation where all of a list is new, and nothing beside it.
    fn fresh_endpoints(&mut self, route: &Arc<Route>, wanted: &[Place]) {
        let mut new = wanted.to_vec();
        new.retain(|(addr, port)| self.state.sources.join(*addr, *port));
        if new.is_empty() {
            return;
        }
        let whole = [List::Cluster, List::Local].into_iter().find(|list| places(list.of(route)) == new);
        match whole {
            Some(list) if list.of(route).len() == new.len() => {
                self.state.counts[Set::EndpointPorts as usize] += new.len() as u32;
                let route = Arc::clone(route);
                let op = Operation::AddEndpoints { generation: self.generation, route, list };
                self.adds.push(Owned { op: Op(op), owner: self.owner });
            }
            _ => {
                for (addr, port) in new {
                    self.add(Element::member(Set::EndpointPorts, Key::Twice(addr, port)));
                }
            }
        }
    }

    /// Deletions, then additions: one transaction. Then what has to wait for it.
    pub(crate) fn into_steps(self) -> [Step<Op>; 2] {
        let mut ops = self.deletes;
        ops.extend(self.adds);
        [Step { ops }, Step { ops: self.last }]
    }
}

fn frontends(route: Option<&Arc<Route>>) -> &[proxy_core::route::Frontend] {
    route.map_or(&[], |route| &route.frontends)
}

fn cluster_ips(route: Option<&Arc<Route>>) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = route
        .iter()
        .flat_map(|route| &route.frontends)
        .filter(|frontend| frontend.kind == proxy_core::route::FrontendKind::ClusterIp)
        .filter_map(|frontend| frontend.at)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The endpoints that traffic of the route may reach, sorted, each once.
fn endpoints(route: Option<&Arc<Route>>) -> Vec<Place> {
    let Some(route) = route else { return Vec::new() };
    let uses = uses(route);
    let list = |list: List, used: bool| if used { list.of(route) } else { &[] };
    let mut places: Vec<Place> = list(List::Cluster, uses.cluster)
        .iter()
        .chain(list(List::Local, uses.local))
        .map(|target| (target.addr, target.port))
        .collect();
    if !places.is_sorted() {
        places.sort_unstable();
    }
    places.dedup();
    places
}
