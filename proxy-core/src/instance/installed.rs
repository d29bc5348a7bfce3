//! What the last successful plans put into the kernel, and what differs from it.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use crate::{
    backend::Change,
    model::{ServiceName, ServicePortName, TrafficPolicy},
    route::Route,
};

/// Routes of one Service, one per port, sorted by name.
pub(super) type Routes = Box<[(ServicePortName, Arc<Route>)]>;

/// What is wanted of some Services.
pub(super) type Wanted = HashMap<ServiceName, Routes>;

/// Totals of what is installed, kept up to date by each commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ports of Services, each counted once.
    pub service_ports: usize,
    /// Endpoints of each port, by the larger of its lists.
    pub endpoints: usize,
    /// Service ports under internal policy Local whose endpoints are all elsewhere.
    pub no_local_internal: usize,
    /// Service ports under external policy Local whose endpoints are all elsewhere.
    pub no_local_external: usize,
}

#[derive(Debug, Default)]
pub(super) struct Installed {
    routes: Wanted,
    counts: Counts,
}

impl Installed {
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn of(&self, name: &ServiceName) -> &[(ServicePortName, Arc<Route>)] {
        self.routes.get(name).map_or(&[], |routes| routes)
    }

    pub(super) fn contains(&self, name: &ServiceName) -> bool {
        self.routes.contains_key(name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &(ServicePortName, Arc<Route>)> {
        self.routes.values().flat_map(|routes| routes.iter())
    }

    /// What is there once `wanted` is in force; sorted by name.
    pub(super) fn with(&self, wanted: &Wanted) -> Vec<(ServicePortName, Arc<Route>)> {
        let kept = self.routes.iter().filter(|(name, _)| !wanted.contains_key(*name));
        let mut routes: Vec<(ServicePortName, Arc<Route>)> =
            kept.chain(wanted).flat_map(|(_, routes)| routes.iter().cloned()).collect();
        routes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        routes
    }

    pub(super) fn set(&mut self, name: ServiceName, routes: Routes) {
        if let Some(before) = self.routes.remove(&name) {
            self.counts.remove(&before);
        }
        if !routes.is_empty() {
            self.counts.add(&routes);
            self.routes.insert(name, routes);
        }
    }

    /// Pairs what is wanted with what is installed; sorted by name.
    pub(super) fn changes(&self, wanted: &Wanted) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, after) in wanted {
            compare(self.of(name), after, &mut changes);
        }
        changes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        changes
    }
}

/// What differs between the routes of a Service before and after; both are sorted by name.
fn compare(
    before: &[(ServicePortName, Arc<Route>)],
    after: &[(ServicePortName, Arc<Route>)],
    changes: &mut Vec<Change>,
) {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((had, _)), Some((has, _))) => had.cmp(has),
        };
        let had = if order.is_le() { before.next() } else { None };
        let has = if order.is_ge() { after.next() } else { None };
        let (name, differs) = match (had, has) {
            (Some((name, had)), Some((_, has))) => (name, had != has),
            (Some((name, _)), None) | (None, Some((name, _))) => (name, true),
            (None, None) => return,
        };
        if differs {
            let route = |of: Option<&(ServicePortName, Arc<Route>)>| of.map(|(_, route)| route.clone());
            changes.push(Change { name: name.clone(), before: route(had), after: route(has) });
        }
    }
}

impl Counts {
    fn add(&mut self, routes: &Routes) {
        for (_, route) in routes {
            self.service_ports += 1;
            self.endpoints += route.cluster.len().max(route.local.len());
            let (internal, external) = no_local(route);
            self.no_local_internal += usize::from(internal);
            self.no_local_external += usize::from(external);
        }
    }

    fn remove(&mut self, routes: &Routes) {
        for (_, route) in routes {
            self.service_ports -= 1;
            self.endpoints -= route.cluster.len().max(route.local.len());
            let (internal, external) = no_local(route);
            self.no_local_internal -= usize::from(internal);
            self.no_local_external -= usize::from(external);
        }
    }
}

/// Whether traffic under (internal, external) policy Local finds no endpoint on this node though there are some.
fn no_local(route: &Route) -> (bool, bool) {
    let none_here = route.any_endpoint && route.local.is_empty();
    (
        none_here && route.policy.internal == TrafficPolicy::Local,
        none_here && route.external_policy == TrafficPolicy::Local,
    )
}
