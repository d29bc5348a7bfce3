//! Which connection-tracking entries a sync has made stale. Pure: another part reads and deletes them.
//!
//! The kernel goes on translating an established UDP (or SCTP) flow as it began, also to an endpoint that is gone, and
//! it never begins to translate one that is older than its rule. [`FlowTracker`] remembers, for the protocols
//! concerned only, which endpoints serve each Service port, and turns what changed into [`FlowRule`]s; [`StaleFlows`]
//! merges rules until one pass over the kernel's table serves them all.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    backend::{Executor, Planner},
    claims::ClaimKey,
    environment::{Environment, NodePortAddresses},
    instance::{Instance, SyncReport},
    model::{Family, Protocol, ServiceName, ServicePortName},
    route::Route,
    store::Store,
};

/// Endpoints (address and port), sorted.
type Serving = Arc<[(IpAddr, u16)]>;

/// What may stay of the flows to one frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRule {
    pub frontend: ClaimKey,
    /// Flows that are translated to one of these stay; those translated to anything else are stale.
    pub serving: Serving,
    /// Whether flows that are not translated at all are stale: the frontend is in the kernel, and they are older.
    pub untranslated: bool,
    /// Some flow may have become stale. Otherwise the rule only brings an earlier one up to date, if that is still
    /// pending: an endpoint that came since must not lose its flows to a rule that does not know it.
    pub urgent: bool,
}

/// One entry of the kernel's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub protocol: Protocol,
    /// Where the client sent its first packet.
    pub destination: (IpAddr, u16),
    /// Where replies come from: the endpoint, if the destination was translated.
    pub replier: (IpAddr, u16),
}

/// Remembers what the flows of each Service port may be translated to.
#[derive(Debug, Default)]
pub struct FlowTracker {
    /// TCP connections to endpoints that are gone are stale, too.
    tcp: bool,
    known: HashMap<(Family, ServiceName), Vec<Known>>,
}

#[derive(Debug)]
struct Known {
    name: ServicePortName,
    frontends: HashSet<ClaimKey>,
    serving: Serving,
}

impl FlowTracker {
    /// `tcp`: whether TCP connections to endpoints that are gone are to be cut as well.
    pub fn new(tcp: bool) -> Self {
        Self { tcp, known: HashMap::new() }
    }

    /// Rules that follow from a sync; none if it failed. Call it with the report of every sync. The first one of a
    /// process covers every frontend: whatever went stale before it started is found then.
    pub fn rules<P, X>(
        &mut self,
        report: &SyncReport,
        store: &Store,
        instance: &Instance<P, X>,
    ) -> Vec<FlowRule>
    where
        P: Planner,
        X: Executor<Op = P::Op, Found = P::Found>,
    {
        if report.error.is_some() {
            return Vec::new();
        }
        let mut gone = Vec::new();
        let mut rules = Vec::new();
        for name in &report.services {
            self.update(report.family, name, store, instance.installed(name), &mut gone, &mut rules);
        }
        if report.full.is_some() {
            // The kernel's state may have been gone for a while; a flow that began then is not translated.
            rules.extend(self.every_frontend(report.family));
        }
        // An address that passed from one Service to another is in the kernel, whatever the order here.
        gone.extend(rules);
        gone
    }

    fn every_frontend(&self, family: Family) -> impl Iterator<Item = FlowRule> {
        let known = self.known.iter().filter(move |((of, _), _)| *of == family).flat_map(|(_, known)| known);
        known.flat_map(|known| known.frontends.iter().map(|frontend| known.rule(*frontend, true)))
    }

    fn update(
        &mut self,
        family: Family,
        service: &ServiceName,
        store: &Store,
        installed: &[(ServicePortName, Arc<Route>)],
        gone: &mut Vec<FlowRule>,
        rules: &mut Vec<FlowRule>,
    ) {
        let key = (family, service.clone());
        let mut before = self.known.remove(&key).unwrap_or_default();
        let mut now = Vec::new();
        for (name, route) in installed.iter().filter(|(_, route)| self.tcp || route.protocol != Protocol::Tcp)
        {
            let known = before.iter().position(|known| known.name == *name).map(|at| before.swap_remove(at));
            let (had, served) = match known {
                Some(known) => (known.frontends, known.serving),
                None => (HashSet::new(), Serving::default()),
            };
            let serving = serving(store, family, name);
            let lost_one = served.iter().any(|endpoint| serving.binary_search(endpoint).is_err());
            let frontends: HashSet<ClaimKey> =
                route.frontends.iter().map(|frontend| (route.protocol, frontend.at, frontend.port)).collect();
            gone.extend(had.difference(&frontends).filter_map(|frontend| removed(*frontend)));
            let changed = serving != served || frontends != had;
            let known = Known { name: name.clone(), frontends, serving };
            if changed {
                let rule = |frontend: &ClaimKey| known.rule(*frontend, lost_one || !had.contains(frontend));
                rules.extend(known.frontends.iter().map(rule));
            }
            now.push(known);
        }
        gone.extend(
            before.iter().flat_map(|known| &known.frontends).filter_map(|frontend| removed(*frontend)),
        );
        if !now.is_empty() {
            self.known.insert(key, now);
        }
    }
}

impl Known {
    fn rule(&self, frontend: ClaimKey, urgent: bool) -> FlowRule {
        let untranslated = self.name.protocol != Protocol::Tcp;
        FlowRule { frontend, serving: self.serving.clone(), untranslated, urgent }
    }
}

/// Nothing may stay translated for a frontend that is gone. A TCP connection may: its endpoint is not gone.
fn removed(frontend: ClaimKey) -> Option<FlowRule> {
    let rule = FlowRule { frontend, serving: Serving::default(), untranslated: false, urgent: true };
    (frontend.0 != Protocol::Tcp).then_some(rule)
}

/// Every endpoint whose flows may go on: those that serve, terminating or not, whatever policies and hints say of new
/// connections; and those that are ready all the same (publishNotReadyAddresses).
fn serving(store: &Store, family: Family, name: &ServicePortName) -> Serving {
    let Some(entry) = store.entry(&name.service) else { return Serving::default() };
    let endpoints = entry.endpoints(family, &name.port, name.protocol);
    let serving = endpoints.iter().filter(|(endpoint, _)| endpoint.serving || endpoint.ready);
    serving.map(|(endpoint, port)| (endpoint.addr, *port)).collect()
}

/// Where a flow to a NodePort may be addressed to; to any other address that port number means nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePortDestinations {
    addresses: HashSet<IpAddr>,
    /// All of 127.0.0.0/8.
    loopback: bool,
}

impl NodePortDestinations {
    pub fn of(environment: &Environment) -> Self {
        let addresses = match &environment.node_ports {
            NodePortAddresses::Any => &environment.interface_addresses,
            NodePortAddresses::Only(addresses) => addresses,
        };
        Self {
            addresses: addresses.iter().copied().filter(|addr| !addr.is_loopback()).collect(),
            loopback: environment.localhost_node_ports,
        }
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addresses.contains(&addr) || (self.loopback && addr.is_ipv4() && addr.is_loopback())
    }
}

/// Rules of many syncs of one family, by frontend; the latest counts.
#[derive(Debug, Default)]
pub struct StaleFlows {
    rules: HashMap<ClaimKey, FlowRule>,
}

impl StaleFlows {
    pub fn add(&mut self, rule: FlowRule) {
        let pending = self.rules.contains_key(&rule.frontend);
        if rule.urgent || pending {
            self.rules.insert(rule.frontend, rule);
        }
    }

    /// Brings rules that are here up to date with a newer one; others are not taken in.
    pub fn refresh(&mut self, rule: &FlowRule) {
        if let Some(known) = self.rules.get_mut(&rule.frontend) {
            known.clone_from(rule);
        }
    }

    /// Takes over the rules of `earlier` for which there is none here yet: a pass that failed.
    pub fn add_earlier(&mut self, earlier: Self) {
        for (frontend, rule) in earlier.rules {
            self.rules.entry(frontend).or_insert(rule);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// The protocols of which flows need to be read.
    pub fn protocols(&self) -> impl Iterator<Item = Protocol> {
        let wanted = |protocol: &Protocol| self.rules.keys().any(|(of, _, _)| of == protocol);
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().filter(wanted)
    }

    /// Whether the kernel must forget this flow.
    pub fn contains(&self, flow: &Flow, node_ports: &NodePortDestinations) -> bool {
        let (addr, port) = flow.destination;
        let rule = self.rules.get(&(flow.protocol, Some(addr), port)).or_else(|| {
            let rule = self.rules.get(&(flow.protocol, None, port))?;
            node_ports.contains(addr).then_some(rule)
        });
        rule.is_some_and(|rule| {
            if rule.serving.binary_search(&flow.replier).is_ok() {
                // Also a host-network endpoint at the very address and port of the frontend.
                return false;
            }
            flow.replier != flow.destination || rule.untranslated
        })
    }
}
