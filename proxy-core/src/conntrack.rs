//! Which connection-tracking entries a sync has made stale. Pure: another part reads and deletes them.
//!
//! The kernel goes on translating an established UDP (or SCTP) flow as it began, also to an endpoint that is gone, and
//! it never begins to translate one that is older than its rule. [`FlowTracker`] remembers, for the protocols
//! concerned only, which endpoints serve each Service port, and turns what changed into [`FlowRule`]s; [`StaleFlows`]
//! merges rules until one pass over the kernel's table serves them all.

use std::{
    collections::{HashMap, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
};

use crate::{
    backend::{Executor, Planner},
    claims::ClaimKey,
    environment::{Environment, NodePortAddresses},
    instance::{Instance, SyncReport},
    model::{Family, Protocol, ServiceName, ServicePortName},
    route::{Answer, Frontend, Route},
    store::{Endpoints, Store},
};

/// Endpoints (address and port), sorted.
type Serving = Arc<[(IpAddr, u16)]>;

/// What may stay of the flows to one frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRule {
    /// Where the flows are addressed to.
    pub frontend: ClaimKey,
    /// Flows that are translated to one of these stay.
    pub serving: Serving,
    /// Whether flows that are translated to anything else are stale.
    pub translated: bool,
    /// Whether flows that are not translated at all are stale: the frontend is in the kernel, and they are older. Of TCP
    /// only connections that were never answered: an established one goes to somebody who serves it.
    pub untranslated: bool,
    /// Some flow may have become stale. Otherwise the rule only brings an earlier one up to date, if that is still
    /// pending: an endpoint that came since must not lose its flows to a rule that does not know it.
    pub urgent: bool,
}

/// One entry of the kernel's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who sent its first packet, and from where.
    pub client: (IpAddr, u16),
    /// Where the client sent its first packet.
    pub destination: (IpAddr, u16),
    /// Where replies come from: the endpoint, if the destination was translated.
    pub replier: (IpAddr, u16),
    /// Nobody has answered yet.
    pub unanswered: bool,
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
        // A Service that was refused for a while is in the kernel only now.
        let restored: HashSet<&ServiceName> = report.restored.iter().collect();
        let mut opened: HashSet<ClaimKey> = HashSet::new();
        let mut gone = Vec::new();
        let mut rules = Vec::new();
        for change in &report.changes {
            let Some(after) = &change.after else { continue };
            let before = opened.len();
            newly_translated(change.before.as_deref(), after, &mut opened);
            if after.protocol == Protocol::Tcp && !self.tcp && opened.len() > before {
                let entry = store.entry(&change.name.service);
                let serving =
                    serving(entry.map(|entry| entry.endpoints(report.family)).as_ref(), &change.name);
                let known =
                    after.frontends.iter().map(|frontend| (after.protocol, frontend.at, frontend.port));
                rules.extend(known.filter(|frontend| opened.contains(frontend)).map(|frontend| FlowRule {
                    frontend,
                    serving: serving.clone(),
                    translated: false,
                    untranslated: true,
                    urgent: true,
                }));
            }
        }
        for name in &report.services {
            let all = restored.contains(name);
            let opened = |frontend: &ClaimKey| all || opened.contains(frontend);
            self.update(
                (report.family, name),
                store,
                instance.installed(name),
                &opened,
                (&mut gone, &mut rules),
            );
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
        (family, service): (Family, &ServiceName),
        store: &Store,
        installed: &[(ServicePortName, Arc<Route>)],
        opened: &dyn Fn(&ClaimKey) -> bool,
        (gone, rules): (&mut Vec<FlowRule>, &mut Vec<FlowRule>),
    ) {
        let tracked = || installed.iter().filter(|(_, route)| self.tcp || route.protocol != Protocol::Tcp);
        let key = (family, service.clone());
        let before = self.known.remove(&key).unwrap_or_default();
        if before.is_empty() && tracked().next().is_none() {
            return;
        }
        let mut before: HashMap<ServicePortName, Known> =
            before.into_iter().map(|known| (known.name.clone(), known)).collect();
        let endpoints = store.entry(service).map(|entry| entry.endpoints(family));
        let mut now = Vec::new();
        for (name, route) in tracked() {
            let (had, served) = match before.remove(name) {
                Some(known) => (known.frontends, known.serving),
                None => (HashSet::new(), Serving::default()),
            };
            let serving = serving(endpoints.as_ref(), name);
            let lost_one = served.iter().any(|endpoint| serving.binary_search(endpoint).is_err());
            let frontends: HashSet<ClaimKey> =
                route.frontends.iter().map(|frontend| (route.protocol, frontend.at, frontend.port)).collect();
            gone.extend(had.difference(&frontends).filter_map(|frontend| removed(*frontend)));
            let changed = serving != served || frontends != had;
            let known = Known { name: name.clone(), frontends, serving };
            for frontend in &known.frontends {
                let urgent = lost_one || !had.contains(frontend) || opened(frontend);
                if changed || urgent {
                    rules.push(known.rule(*frontend, urgent));
                }
            }
            now.push(known);
        }
        gone.extend(
            before.values().flat_map(|known| &known.frontends).filter_map(|frontend| removed(*frontend)),
        );
        if !now.is_empty() {
            self.known.insert(key, now);
        }
    }
}

/// Adds the frontends that translate somebody's packets now and did not before: they were not there, or refused or
/// dropped all packets or those from outside, or allowed other sources. Whatever a backend's tables do one after the
/// other, a packet may have met the moment between, and have begun a flow that is not translated.
fn newly_translated(before: Option<&Route>, after: &Route, opened: &mut HashSet<ClaimKey>) {
    let had: HashMap<_, _> = before
        .into_iter()
        .flat_map(|route| {
            route.frontends.iter().map(move |frontend| ((frontend.at, frontend.port), (route, frontend)))
        })
        .collect();
    for frontend in &after.frontends {
        let now = translates(after, frontend);
        let is_new = match had.get(&(frontend.at, frontend.port)) {
            None => now.any(),
            Some((route, had)) => {
                let before = translates(route, had);
                now.inside && !before.inside
                    || now.outside && !before.outside
                    || now.any() && route.sources(had) != after.sources(frontend)
            }
        };
        if is_new {
            opened.insert((after.protocol, frontend.at, frontend.port));
        }
    }
}

/// Whose packets to a frontend are translated.
struct Translates {
    /// Those of this node and its pods.
    inside: bool,
    /// Those of others.
    outside: bool,
}

impl Translates {
    fn any(&self) -> bool {
        self.inside || self.outside
    }
}

fn translates(route: &Route, frontend: &Frontend) -> Translates {
    match route.answer(frontend) {
        Answer::To(_) => Translates { inside: true, outside: true },
        Answer::Local { here, anywhere } => {
            Translates { inside: !anywhere.is_empty(), outside: !here.is_empty() }
        }
        Answer::Reject | Answer::Drop => Translates { inside: false, outside: false },
    }
}

/// Rules for those destinations, of flows that are neither translated nor answered, at which something that is installed
/// should have translated them. A sweep over the kernel's table asks this from time to time, so that whatever
/// let such a flow begin, it is not for good.
pub fn untranslated<P, X>(
    destinations: &HashSet<(Protocol, IpAddr, u16)>,
    store: &Store,
    instance: &Instance<P, X>,
) -> Vec<FlowRule>
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    let mut wanted: HashMap<&ServiceName, HashSet<ClaimKey>> = HashMap::new();
    for (protocol, addr, port) in destinations {
        let keys = [(*protocol, Some(*addr), *port), (*protocol, None, *port)];
        if let Some((key, owner)) = keys.iter().find_map(|key| Some((*key, instance.owner(key)?))) {
            wanted.entry(owner).or_default().insert(key);
        }
    }
    let mut rules = Vec::new();
    for (owner, keys) in wanted {
        let endpoints = store.entry(owner).map(|entry| entry.endpoints(instance.family()));
        for (name, route) in instance.installed(owner) {
            let frontends = route.frontends.iter().filter(|frontend| translates(route, frontend).any());
            let frontends = frontends.map(|frontend| (route.protocol, frontend.at, frontend.port));
            let mut found = frontends.filter(|key| keys.contains(key)).peekable();
            if found.peek().is_some() {
                let serving = serving(endpoints.as_ref(), name);
                rules.extend(found.map(|frontend| FlowRule {
                    frontend,
                    serving: serving.clone(),
                    translated: false,
                    untranslated: true,
                    urgent: true,
                }));
            }
        }
    }
    rules
}

impl Known {
    fn rule(&self, frontend: ClaimKey, urgent: bool) -> FlowRule {
        FlowRule { frontend, serving: self.serving.clone(), translated: true, untranslated: true, urgent }
    }
}

/// Nothing may stay translated for a frontend that is gone. A TCP connection may: its endpoint is not gone.
fn removed(frontend: ClaimKey) -> Option<FlowRule> {
    let serving = Serving::default();
    let rule = FlowRule { frontend, serving, translated: true, untranslated: false, urgent: true };
    (frontend.0 != Protocol::Tcp).then_some(rule)
}

/// Every endpoint whose flows may go on: those that serve, terminating or not, whatever policies and hints say of new
/// connections; and those that are ready all the same (publishNotReadyAddresses).
fn serving(endpoints: Option<&Endpoints<'_>>, name: &ServicePortName) -> Serving {
    let endpoints = endpoints.map(|endpoints| endpoints.of(&name.port, name.protocol)).unwrap_or_default();
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
    /// The addresses at which NodePorts answer in this environment.
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

    /// Whether a NodePort's number means anything at this address.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addresses.contains(&addr) || (self.loopback && addr.is_ipv4() && addr.is_loopback())
    }
}

/// Rules of many syncs of one family, by frontend; the latest counts.
#[derive(Debug, Default)]
pub struct StaleFlows {
    rules: HashMap<ClaimKey, FlowRule>,
    /// Endpoints of UDP ports, where flows that their replies began are looked for.
    repliers: Option<HashSet<(IpAddr, u16)>>,
}

impl StaleFlows {
    /// Looks for flows that an endpoint's reply began, too. Where a connection is forgotten while its reply is under way, that
    /// reply begins a flow of its own, the other way round. A table that translates then gives the client's next packet
    /// another source port; IPVS does not, and `nf_conntrack_confirm` drops every packet of that client as a clash, for as
    /// long as the flow of the reply is known.
    pub fn with_replies() -> Self {
        Self { repliers: Some(HashSet::new()), ..Self::default() }
    }

    /// Takes everything out.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let empty = Self { repliers: self.repliers.as_ref().map(|_| HashSet::new()), ..Self::default() };
        mem::replace(self, empty)
    }

    /// Takes in a rule that is urgent, or that is newer than one that is here.
    pub fn add(&mut self, mut rule: FlowRule) {
        let pending = self.rules.get(&rule.frontend);
        if rule.urgent || pending.is_some() {
            // What is looked for by an earlier rule is not there by chance.
            rule.translated |= pending.is_some_and(|pending| pending.translated);
            self.note_repliers(&rule);
            self.rules.insert(rule.frontend, rule);
        }
    }

    /// Brings rules that are here up to date with a newer one; others are not taken in.
    pub fn refresh(&mut self, rule: &FlowRule) {
        if let Some(known) = self.rules.get_mut(&rule.frontend) {
            known.clone_from(rule);
            self.note_repliers(rule);
        }
    }

    fn note_repliers(&mut self, rule: &FlowRule) {
        if let Some(repliers) = self.repliers.as_mut().filter(|_| rule.frontend.0 == Protocol::Udp) {
            repliers.extend(rule.serving.iter());
        }
    }

    /// Takes over the rules of `earlier` for which there is none here yet: a pass that failed.
    pub fn add_earlier(&mut self, earlier: Self) {
        for (frontend, rule) in earlier.rules {
            self.rules.entry(frontend).or_insert(rule);
        }
        if let (Some(repliers), Some(earlier)) = (&mut self.repliers, earlier.repliers) {
            repliers.extend(earlier);
        }
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// How many frontends have a rule.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether of a protocol only flows matter that are neither translated nor answered.
    pub fn only_untranslated(&self, protocol: Protocol) -> bool {
        let mut of = self.rules.values().filter(|rule| rule.frontend.0 == protocol);
        of.all(|rule| !rule.translated && protocol == Protocol::Tcp)
    }

    /// The protocols of which flows need to be read.
    pub fn protocols(&self) -> impl Iterator<Item = Protocol> {
        let wanted = |protocol: &Protocol| self.rules.keys().any(|(of, _, _)| of == protocol);
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().filter(wanted)
    }

    /// Whether the kernel must forget this flow.
    pub fn contains(&self, flow: &Flow, node_ports: &NodePortDestinations) -> bool {
        let untranslated = flow.replier == flow.destination;
        if untranslated
            && flow.unanswered
            && flow.protocol == Protocol::Udp
            && self.repliers.as_ref().is_some_and(|repliers| repliers.contains(&flow.client))
        {
            return true;
        }
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
            if !untranslated {
                return rule.translated;
            }
            rule.untranslated && (flow.protocol != Protocol::Tcp || flow.unanswered)
        })
    }
}
