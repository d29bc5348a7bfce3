//! Connections, bytes and failures of single Services: who is counted, within which bound, and the text of it.
//!
//! Pure: events and walks come from `host/service_metrics.rs`, routes from each sync.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use netlink::{
    conntrack::{Flow, protocol, status, tcp_state},
    flow_events::{FlowEvent, Moment},
};
use proxy_core::{
    model::{Family, Protocol, ServiceName, ServicePortName},
    route::{Answer, Route},
};

use crate::settings::service_metrics::ServiceMetrics;

/// An address and port at which a Service answers; without an address: a node port of this family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Spot {
    pub(crate) family: Family,
    pub(crate) protocol: Protocol,
    pub(crate) at: Option<IpAddr>,
    pub(crate) port: u16,
}

/// What is counted of a Service port, or of one of its endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    connections: u64,
    bytes: u64,
    open: u64,
    failed_handshakes: u64,
    refused: u64,
}

#[derive(Debug, Default)]
struct Port {
    count: Count,
    endpoints: BTreeMap<(IpAddr, u16), Count>,
    /// Of each family.
    spots: [Vec<Spot>; 2],
}

#[derive(Debug, Default)]
struct Inner {
    ports: BTreeMap<ServicePortName, Port>,
    owners: HashMap<Spot, ServicePortName>,
    /// Allowed, but beyond the limit; with their spots.
    left_out: BTreeMap<ServicePortName, [Vec<Spot>; 2]>,
    left_out_owners: HashSet<Spot>,
    left_out_connections: u64,
    left_out_endpoints: u64,
    missed: u64,
    /// Frontends without endpoints: what they refuse is counted in the kernel.
    refusing: BTreeMap<Spot, ServicePortName>,
    /// Changes when `refusing` does.
    version: u64,
    /// What the kernel counted when it was asked last.
    refused: HashMap<Spot, u64>,
    /// Of virtual servers and their destinations, when they were asked last.
    ipvs: HashMap<Spot, (u64, u64)>,
}

/// Shared by the engines, which say what there is, the thread that counts, and the server that shows it.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    settings: Arc<ServiceMetrics>,
    inner: Arc<Mutex<Inner>>,
}

impl Services {
    pub(crate) fn new(settings: ServiceMetrics) -> Self {
        Self { settings: Arc::new(settings), inner: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These Services were looked at; `installed` is what of each is in the kernel now.
    pub(crate) fn follow<'a>(
        &self,
        family: Family,
        services: &[ServiceName],
        installed: impl Fn(&ServiceName) -> &'a [(ServicePortName, Arc<Route>)],
    ) {
        for name in services.iter().filter(|name| self.settings.allows(name.namespace(), name.name())) {
            let routes = installed(name);
            let mut inner = self.lock();
            inner.forget_missing(family, name, routes);
            for (port, route) in routes {
                inner.set(family, port, route, self.settings.limit);
            }
        }
    }

    /// A connection began, changed or ended.
    pub(crate) fn event(&self, event: &FlowEvent) {
        let flow = &event.flow;
        let Some(answers) = translated(flow) else { return };
        let mut inner = self.lock();
        let Some(owner) = inner.owner(flow) else {
            if event.moment == Moment::New && inner.is_left_out(flow) {
                inner.left_out_connections += 1;
            }
            return;
        };
        let answered = flow.status & status::SEEN_REPLY != 0;
        // One-way datagrams expect no answer.
        let failed = event.moment == Moment::Ended && !answered && flow.original.protocol != protocol::UDP;
        let add = |count: &mut Count| match event.moment {
            Moment::New => count.connections += 1,
            Moment::Changed => {}
            Moment::Ended => {
                count.bytes += event.carried.map_or(0, |carried| carried.bytes());
                count.failed_handshakes += u64::from(failed);
            }
        };
        inner.count(&owner, answers, &self.settings, add);
    }

    /// So many events were missed.
    pub(crate) fn missed(&self, count: u64) {
        self.lock().missed += count;
    }

    /// Counts what a walk through the table of connections finds; the numbers of open connections change at its end.
    pub(crate) fn open(&self, walk: &mut Walk, flow: &Flow) {
        let Some(answers) = translated(flow) else { return };
        // A TCP connection that has ended is remembered for a while.
        let state = flow.tcp_state.unwrap_or(tcp_state::ESTABLISHED);
        if matches!(state, tcp_state::TIME_WAIT | tcp_state::CLOSE) {
            return;
        }
        if let Some(owner) = self.lock().owner(flow) {
            *walk.0.entry((owner, answers)).or_default() += 1;
        }
    }

    /// A walk has ended.
    pub(crate) fn opened(&self, walk: Walk) {
        let mut inner = self.lock();
        for port in inner.ports.values_mut() {
            port.count.open = 0;
            port.endpoints.values_mut().for_each(|count| count.open = 0);
        }
        for ((owner, answers), open) in walk.0 {
            inner.count(&owner, answers, &self.settings, |count| count.open += open);
        }
    }

    /// Frontends that refuse, and a number that changes when they do.
    pub(crate) fn refusing(&self) -> (u64, Vec<Spot>) {
        let inner = self.lock();
        (inner.version, inner.refusing.keys().copied().collect())
    }

    /// What the kernel counted at such frontends, in all.
    pub(crate) fn refused(&self, counted: impl IntoIterator<Item = (Spot, u64)>) {
        let mut inner = self.lock();
        for (spot, count) in counted {
            let more = grown(inner.refused.insert(spot, count).unwrap_or(0), count);
            if let Some(port) = inner.refusing.get(&spot).or_else(|| inner.owners.get(&spot)).cloned()
                && let Some(port) = inner.ports.get_mut(&port)
            {
                port.count.refused += more;
            }
        }
    }

    /// The kernel's counters of refusals begin anew.
    pub(crate) fn forget_refused(&self) {
        self.lock().refused.clear();
    }

    /// Whether this is a frontend that is counted, or would be but for the limit.
    pub(crate) fn knows(&self, spot: &Spot) -> bool {
        let inner = self.lock();
        let node_port = Spot { at: None, ..*spot };
        [spot, &node_port]
            .iter()
            .any(|one| inner.owners.contains_key(one) || inner.left_out_owners.contains(one))
    }

    /// What IPVS says: connections and bytes of each virtual server since it was made, and open connections of it now.
    pub(crate) fn virtual_servers(&self, servers: impl IntoIterator<Item = (Spot, u64, u64, u64)>) {
        let mut inner = self.lock();
        let mut open: HashMap<ServicePortName, u64> = HashMap::new();
        let before = std::mem::take(&mut inner.ipvs);
        for (spot, connections, bytes, now_open) in servers {
            let was = before.get(&spot).copied().unwrap_or((0, 0));
            inner.ipvs.insert(spot, (connections, bytes));
            // A node port has a virtual server at each address of the node.
            let node_port = Spot { at: None, ..spot };
            let Some(owner) = inner.owners.get(&spot).or_else(|| inner.owners.get(&node_port)).cloned()
            else {
                if inner.left_out_owners.contains(&spot) || inner.left_out_owners.contains(&node_port) {
                    inner.left_out_connections += grown(was.0, connections);
                }
                continue;
            };
            *open.entry(owner.clone()).or_default() += now_open;
            if let Some(port) = inner.ports.get_mut(&owner) {
                port.count.connections += grown(was.0, connections);
                port.count.bytes += grown(was.1, bytes);
            }
        }
        for (name, port) in &mut inner.ports {
            port.count.open = open.get(name).copied().unwrap_or(0);
        }
    }

    /// The text for Prometheus.
    pub(crate) fn render(&self) -> String {
        self.lock().render(self.settings.endpoints)
    }
}

/// What a walk has found so far.
#[derive(Debug, Default)]
pub(crate) struct Walk(HashMap<(ServicePortName, (IpAddr, u16)), u64>);

/// How much a counter grew; one that is smaller began anew.
const fn grown(before: u64, now: u64) -> u64 {
    if now >= before { now - before } else { now }
}

/// Who answers a flow that is translated.
fn translated(flow: &Flow) -> Option<(IpAddr, u16)> {
    let (to, answers) = (&flow.original, &flow.reply);
    let same = (to.destination, to.destination_port) == (answers.source, answers.source_port);
    (!same).then_some((answers.source, answers.source_port))
}

const fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

impl Inner {
    fn owner(&self, flow: &Flow) -> Option<ServicePortName> {
        let (spot, node_port) = spots(flow)?;
        self.owners.get(&spot).or_else(|| self.owners.get(&node_port)).cloned()
    }

    fn is_left_out(&self, flow: &Flow) -> bool {
        let Some((spot, node_port)) = spots(flow) else { return false };
        self.left_out_owners.contains(&spot) || self.left_out_owners.contains(&node_port)
    }

    fn count(
        &mut self,
        owner: &ServicePortName,
        answers: (IpAddr, u16),
        settings: &ServiceMetrics,
        add: impl Fn(&mut Count),
    ) {
        let series = self.series();
        let Some(port) = self.ports.get_mut(owner) else { return };
        add(&mut port.count);
        if !settings.endpoints {
            return;
        }
        if series < settings.limit || port.endpoints.contains_key(&answers) {
            add(port.endpoints.entry(answers).or_default());
        } else {
            self.left_out_endpoints += 1;
        }
    }

    /// Service ports and endpoints that have series.
    fn series(&self) -> usize {
        self.ports.values().map(|port| 1 + port.endpoints.len()).sum()
    }

    /// Takes away what a Service does not have any more in this family.
    fn forget_missing(&mut self, family: Family, name: &ServiceName, now: &[(ServicePortName, Arc<Route>)]) {
        let gone =
            |port: &ServicePortName| port.service == *name && !now.iter().any(|(there, _)| there == port);
        let ports: Vec<ServicePortName> =
            self.ports.keys().chain(self.left_out.keys()).filter(|port| gone(port)).cloned().collect();
        for port in ports {
            self.clear(family, &port);
            if self.ports.get(&port).is_some_and(|one| one.spots.iter().all(Vec::is_empty)) {
                self.ports.remove(&port);
            }
            if self.left_out.get(&port).is_some_and(|spots| spots.iter().all(Vec::is_empty)) {
                self.left_out.remove(&port);
            }
        }
    }

    /// Takes away the spots of a Service port in one family, but for those that passed to another one meanwhile.
    fn clear(&mut self, family: Family, port: &ServicePortName) {
        let spots = self.ports.get_mut(port).map(|one| std::mem::take(&mut one.spots[index(family)]));
        for spot in spots.unwrap_or_default() {
            if self.owners.get(&spot) == Some(port) {
                self.owners.remove(&spot);
            }
            if self.refusing.get(&spot) == Some(port) {
                self.refusing.remove(&spot);
                self.version += 1;
            }
        }
        let left_out = self.left_out.get_mut(port).map(|spots| std::mem::take(&mut spots[index(family)]));
        for spot in left_out.unwrap_or_default() {
            self.left_out_owners.remove(&spot);
        }
    }

    fn set(&mut self, family: Family, port: &ServicePortName, route: &Route, limit: usize) {
        let spots: Vec<Spot> = route
            .frontends
            .iter()
            .map(|frontend| Spot { family, protocol: route.protocol, at: frontend.at, port: frontend.port })
            .collect();
        let refusing: HashSet<Spot> = route
            .frontends
            .iter()
            .filter(|frontend| matches!(route.answer(frontend), Answer::Reject | Answer::Drop))
            .map(|frontend| Spot { family, protocol: route.protocol, at: frontend.at, port: frontend.port })
            .collect();
        let as_before = self.ports.get(port).is_some_and(|one| one.spots[index(family)] == spots)
            && spots.iter().all(|spot| (self.refusing.get(spot) == Some(port)) == refusing.contains(spot));
        if !as_before {
            self.clear(family, port);
        }
        if !self.ports.contains_key(port) && self.series() >= limit {
            self.left_out_owners.extend(spots.iter().copied());
            self.left_out.entry(port.clone()).or_default()[index(family)] = spots;
            return;
        }
        self.left_out.remove(port);
        let known: Vec<(IpAddr, u16)> = route
            .cluster
            .iter()
            .chain(&route.local)
            .chain(&route.kept)
            .map(|target| (target.addr, target.port))
            .collect();
        let entry = self.ports.entry(port.clone()).or_default();
        // An endpoint that is gone has no series any more, once nothing of it is open.
        let of_family = |at: &IpAddr| Family::of(*at) == family;
        entry.endpoints.retain(|at, count| !of_family(&at.0) || count.open > 0 || known.contains(at));
        if as_before {
            return;
        }
        for spot in &spots {
            self.owners.insert(*spot, port.clone());
            if refusing.contains(spot) {
                self.refusing.insert(*spot, port.clone());
                self.version += 1;
            }
        }
        entry.spots[index(family)] = spots;
    }

    fn render(&self, endpoints: bool) -> String {
        type Of = fn(&Count) -> u64;
        const METRICS: [(&str, &str, &str, Of); 5] = [
            ("connections_total", "counter", "Connections that began", |count| count.connections),
            (
                "bytes_total",
                "counter",
                "Bytes of both directions of connections that ended (IPVS: of all)",
                |count| count.bytes,
            ),
            ("open_connections", "gauge", "Connections there are", |count| count.open),
            (
                "failed_handshakes_total",
                "counter",
                "Connections of TCP and SCTP that nobody answered, or that were answered by a reset",
                |count| count.failed_handshakes,
            ),
            (
                "refused_total",
                "counter",
                "First packets that were refused or dropped as the Service has no endpoint for them",
                |count| count.refused,
            ),
        ];
        let mut text = String::new();
        for (name, kind, help, of) in METRICS {
            let _ = writeln!(
                text,
                "# HELP switchyard_service_{name} {help}\n# TYPE switchyard_service_{name} {kind}"
            );
            for (port, one) in &self.ports {
                let labels = labels(port);
                let _ = writeln!(text, "switchyard_service_{name}{{{labels}}} {}", of(&one.count));
            }
            if !endpoints || name == "refused_total" {
                continue;
            }
            let _ = writeln!(
                text,
                "# HELP switchyard_endpoint_{name} {help}\n# TYPE switchyard_endpoint_{name} {kind}"
            );
            for (port, one) in &self.ports {
                let labels = labels(port);
                for ((at, number), count) in &one.endpoints {
                    let endpoint = std::net::SocketAddr::new(*at, *number);
                    let _ = writeln!(
                        text,
                        "switchyard_endpoint_{name}{{{labels},endpoint=\"{endpoint}\"}} {}",
                        of(count)
                    );
                }
            }
        }
        for (name, kind, help, value) in [
            (
                "left_out_ports",
                "gauge",
                "Service ports that have no series as there are too many",
                self.left_out.len() as u64,
            ),
            (
                "left_out_connections_total",
                "counter",
                "Connections of Service ports that have no series",
                self.left_out_connections,
            ),
            (
                "left_out_endpoint_events_total",
                "counter",
                "Events of endpoints that have no series as there are too many",
                self.left_out_endpoints,
            ),
            (
                "missed_events_total",
                "counter",
                "Events of connections that the kernel had no room for",
                self.missed,
            ),
        ] {
            let _ = writeln!(
                text,
                "# HELP switchyard_service_metrics_{name} {help}\n# TYPE switchyard_service_metrics_{name} {kind}\n\
                 switchyard_service_metrics_{name} {value}"
            );
        }
        text
    }
}

/// The frontend that a flow goes to, and the node port that it may go to.
fn spots(flow: &Flow) -> Option<(Spot, Spot)> {
    let to = &flow.original;
    let protocol = match to.protocol {
        protocol::TCP => Protocol::Tcp,
        protocol::UDP => Protocol::Udp,
        protocol::SCTP => Protocol::Sctp,
        _ => return None,
    };
    let spot = Spot {
        family: Family::of(to.destination),
        protocol,
        at: Some(to.destination),
        port: to.destination_port,
    };
    Some((spot, Spot { at: None, ..spot }))
}

/// Names of objects need no escapes.
fn labels(port: &ServicePortName) -> String {
    format!(
        "namespace=\"{}\",name=\"{}\",port=\"{}\",protocol=\"{}\"",
        port.service.namespace(),
        port.service.name(),
        port.port,
        port.protocol.as_str().to_uppercase()
    )
}

/// Every metric that can be shown.
#[cfg(test)]
pub(crate) fn names() -> Vec<String> {
    let text = Inner::default().render(true);
    text.lines()
        .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split_once(' ')?.0.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests;
