//! Looks at an engine, each so short that no change waits for it.

use std::sync::Arc;

use insight::{
    digest,
    state::{Aside, Conflict, Filter, Installed, InstalledPort},
};
use proxy_core::{
    environment::{EnvironmentSettings, NodeFacts},
    instance::{self, SetAside, Standing},
    look::Look,
    model::{Family, Service, ServiceName, ServicePortName, Slice},
    route::{NodeView, Route},
};

use super::Clocks;

/// A look ends with the object that makes it so many: Services, slices and Service ports. None of them is copied.
pub(crate) const MOST_OBJECTS: usize = 512;

/// The first look: what there is.
#[derive(Debug)]
pub(super) struct Overview {
    pub(super) facts: NodeFacts,
    pub(super) node: NodeView,
    pub(super) settings: EnvironmentSettings,
    pub(super) standing: Option<Standing>,
    /// Of everything that is known, slices without a Service too; in no order.
    pub(super) names: Vec<ServiceName>,
}

/// What is known about one Service in one family.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) name: ServiceName,
    pub(super) service: Option<Arc<Service>>,
    pub(super) slices: Vec<Arc<Slice>>,
    installed: Vec<(ServicePortName, Arc<Route>)>,
    aside: Option<SetAside>,
    pub(super) lost: Vec<instance::Conflict>,
    waits: bool,
}

/// Names are taken at once: one reference for each.
pub(super) fn overview(look: &dyn Look, family: Family, filter: &Filter) -> Overview {
    let names = match &filter.service {
        Some(wanted) => {
            let (namespace, name) = wanted.split_once('/').unwrap_or(("default", wanted));
            let wanted = ServiceName::new(namespace, name);
            look.store().entry(&wanted).map(|_| wanted).into_iter().collect()
        }
        None => look.store().all_names().filter(|name| filter.wants_name(name)).cloned().collect(),
    };
    Overview {
        facts: look.facts().clone(),
        node: look.node().clone(),
        settings: look.settings().clone(),
        standing: look.standing(family),
        names,
    }
}

/// What is known about the first of these names, and how many that were. Names that are gone are passed over.
pub(super) fn some(look: &dyn Look, family: Family, names: &[ServiceName]) -> (Vec<Seen>, usize) {
    let (mut seen, mut touched) = (Vec::new(), 0);
    for (at, name) in names.iter().enumerate() {
        if touched >= MOST_OBJECTS {
            return (seen, at);
        }
        let installed = look.installed(family, name).to_vec();
        let entry = look.store().entry(name);
        let service = entry.and_then(|entry| entry.service.clone());
        let slices: Vec<Arc<Slice>> =
            entry.into_iter().flat_map(|entry| entry.slices.shared()).cloned().collect();
        touched += 1 + slices.len() + installed.len();
        if entry.is_none() && installed.is_empty() {
            continue;
        }
        seen.push(Seen {
            service,
            slices,
            installed,
            aside: look.set_aside(family, name),
            lost: look.lost(family, name).to_vec(),
            waits: look.waits(family, name),
            name: name.clone(),
        });
    }
    (seen, names.len())
}

impl Seen {
    /// What is in the kernel for it, if anything is.
    pub(super) fn installed(&self, family: Family) -> Option<Installed> {
        let ports = self.installed.iter().map(|(name, route)| InstalledPort {
            port: name.port.to_string(),
            protocol: name.protocol,
            digest: digest::of_route(route),
            frontends: route.frontends.len(),
            cluster: route.cluster.len(),
            local: route.local.len(),
        });
        (!self.installed.is_empty() || self.waits).then(|| Installed {
            family,
            service: self.name.to_string(),
            waits: self.waits,
            ports: ports.collect(),
        })
    }

    /// Why it is not in the kernel as it asks to be.
    pub(super) fn aside(&self, family: Family, clocks: Clocks) -> Option<Aside> {
        self.aside.as_ref().map(|aside| Aside {
            family,
            service: self.name.to_string(),
            since: clocks.time(aside.since),
            reason: aside.reason.clone(),
            retry_at: aside.retry_at.map(|at| clocks.time(at)),
        })
    }

    /// What it asks for in vain.
    pub(super) fn conflicts(&self, family: Family) -> impl Iterator<Item = Conflict> {
        self.lost.iter().map(move |lost| {
            let (protocol, address, port) = lost.first;
            Conflict {
                family,
                service: lost.service.to_string(),
                winner: lost.winner.to_string(),
                protocol,
                address,
                port,
                count: lost.count,
            }
        })
    }
}

#[cfg(test)]
#[path = "look_tests.rs"]
mod tests;
