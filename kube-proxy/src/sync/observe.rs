//! What becomes of a sync outside the engine: logs, metrics, health, conntrack, health check node ports.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use proxy_core::{
    backend::{Executor, Figures, Planner},
    conntrack::FlowTracker,
    environment::NodePortAddresses,
    instance::{Pending, SyncReport},
    model::{Family, Protocol, ServiceName},
    reconciler::Reconciler,
};
use tokio::sync::watch;

use crate::{
    api::events::{Event, Events},
    engine::Observer,
    host::conntrack::ConntrackReconciler,
    serve::{localhost_node_ports::NodePorts, service_health::Wanted},
    settings::effective::Mode,
    sync::{
        localhost_node_ports::LocalhostNodePorts,
        open_load_balancers::OpenLoadBalancers,
        talk::Talk,
        topology_hints::{self, TopologyHints},
    },
    telemetry::{
        health::HealthState,
        metrics::{self, Changed, SyncSample},
        recent::Recent,
        service_metrics::Services,
    },
};

/// Called once, when every family has been written for the first time.
pub(crate) type AfterFirstSync = Box<dyn FnOnce() + Send>;

/// What the observers of both families share.
struct Shared {
    /// Inputs that wait, of each family.
    pending: Mutex<[Pending; 2]>,
    talk: Mutex<Talk>,
    /// Families that were not written yet, and what then.
    unsynced: Mutex<(Vec<Family>, Option<AfterFirstSync>)>,
    health_checks: watch::Sender<Wanted>,
    recent: Recent,
}

/// Makes an observer for each family.
pub(crate) struct Observers {
    mode: Mode,
    process_started: Timestamp,
    health: HealthState,
    reset_tcp: bool,
    conntrack: Option<ConntrackReconciler>,
    events: Events,
    node: String,
    /// NodePorts on ::1, where they are wanted.
    localhost_node_ports: Option<NodePorts>,
    /// Metrics of single Services, where they are asked for.
    services: Option<Services>,
    shared: Arc<Shared>,
}

impl Observers {
    pub(crate) fn new(
        mode: Mode,
        health: HealthState,
        (reset_tcp, conntrack): (bool, Option<ConntrackReconciler>),
        health_checks: watch::Sender<Wanted>,
        events: Events,
        node: String,
        after_first_sync: AfterFirstSync,
    ) -> Self {
        let shared = Shared {
            pending: Mutex::default(),
            talk: Mutex::default(),
            unsynced: Mutex::new((Vec::new(), Some(after_first_sync))),
            health_checks,
            recent: Recent::default(),
        };
        let process_started = Timestamp::now();
        let shared = Arc::new(shared);
        let localhost_node_ports = None;
        Self {
            mode,
            process_started,
            health,
            reset_tcp,
            conntrack,
            events,
            node,
            localhost_node_ports,
            services: None,
            shared,
        }
    }

    /// Where the last syncs are noted.
    pub(crate) fn recent(&self) -> Recent {
        self.shared.recent.clone()
    }

    /// NodePorts on ::1 are wanted.
    pub(crate) fn set_localhost_node_ports(&mut self, ports: NodePorts) {
        self.localhost_node_ports = Some(ports);
    }

    /// Metrics of single Services are wanted.
    pub(crate) fn set_services(&mut self, services: Services) {
        self.services = Some(services);
    }

    /// One for each of the families that are served.
    pub(crate) fn of(&self, families: &[Family]) -> Vec<Observations> {
        lock(&self.shared.unsynced).0 = families.to_vec();
        let observer = |family: &Family| Observations {
            family: *family,
            mode: self.mode,
            process_started: self.process_started,
            health: self.health.clone(),
            flows: FlowTracker::new(self.reset_tcp),
            conntrack: self.conntrack.clone(),
            events: self.events.clone(),
            open_load_balancers: OpenLoadBalancers::default(),
            topology_hints: TopologyHints::default(),
            localhost_node_ports: self.localhost_node_ports.clone().map(LocalhostNodePorts::new),
            services: self.services.clone(),
            node: self.node.clone(),
            shared: self.shared.clone(),
            synced: false,
            queued: None,
            shown: Pending::default(),
            figures: Figures::default(),
        };
        families.iter().map(observer).collect()
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is told of one family's syncs.
pub(crate) struct Observations {
    family: Family,
    mode: Mode,
    /// Changes older than this process say nothing about its speed.
    process_started: Timestamp,
    health: HealthState,
    flows: FlowTracker,
    conntrack: Option<ConntrackReconciler>,
    events: Events,
    open_load_balancers: OpenLoadBalancers,
    topology_hints: TopologyHints,
    localhost_node_ports: Option<LocalhostNodePorts>,
    services: Option<Services>,
    node: String,
    shared: Arc<Shared>,
    /// It was written once.
    synced: bool,
    /// Since when its oldest change has been known to wait.
    queued: Option<Instant>,
    shown: Pending,
    figures: Figures,
}

impl Observations {
    /// What only the backend knows.
    fn show(&mut self, figures: Figures) {
        if figures == self.figures {
            return;
        }
        let family = self.family;
        for (table, total, last) in &figures.rules {
            metrics::iptables_rules(family, table, *total, *last);
        }
        for (protocol, packets) in &figures.refused_on_localhost {
            metrics::refused_on_localhost(family, *protocol, *packets);
        }
        let shown = std::mem::replace(&mut self.figures, figures);
        let figures = &self.figures;
        metrics::affinity_lost(family, figures.affinity_lost.saturating_sub(shown.affinity_lost));
        metrics::nftables_cleanup_failed(
            family,
            figures.cleanup_failures.saturating_sub(shown.cleanup_failures),
        );
    }

    /// Whether something about an object of this namespace may be told; see [`Talk::may`].
    fn may_tell(&self, service: &ServiceName, now: Instant) -> Option<u64> {
        lock(&self.shared.talk).may(service.namespace(), now)
    }

    fn tell(&self, report: &SyncReport, took: Duration) {
        if let Some(error) = &report.error {
            tracing::error!(ipFamily = %report.family, error, "Sync failed");
        } else {
            tracing::debug!(ipFamily = %report.family, full = report.full, changes = report.changes.len(),
                elapsed = ?took, "SyncProxyRules complete");
        }
        let now = report.ended;
        for conflict in &report.conflicts {
            let Some(left_out) = self.may_tell(&conflict.service, now) else { continue };
            let (protocol, at, port) = conflict.first;
            let address = at.map_or_else(|| "node port".to_owned(), |at| at.to_string());
            tracing::warn!(service = %conflict.service, winner = %conflict.winner, address, port, %protocol,
                addresses = conflict.count, leftOut = left_out,
                "Two Services claim the same addresses; one of them goes without");
            let at = format!("{address} {port}/{protocol}");
            let event = Event::address_conflict(&conflict.service, &conflict.winner, &at, conflict.count);
            self.events.send(event);
        }
        for (service, excess) in &report.excesses {
            let Some(left_out) = self.may_tell(service, now) else { continue };
            tracing::error!(%service, ipFamily = %report.family, %excess, leftOut = left_out,
                "This Service asks for too much; it keeps its last good state");
            self.events.send(Event::too_large(service, report.family, excess));
        }
        for (service, reason) in &report.set_aside {
            let Some(left_out) = self.may_tell(service, now) else { continue };
            tracing::error!(%service, reason, leftOut = left_out,
                "The kernel refused this Service; it keeps its last good state");
            self.events.send(Event::set_aside(service, &self.node, reason));
        }
        for service in &report.restored {
            let Some(left_out) = self.may_tell(service, now) else { continue };
            tracing::info!(%service, leftOut = left_out, "A Service that the kernel had refused works again");
            self.events.send(Event::restored(service, &self.node));
        }
    }

    /// Counts what came since the last call and shows what waits.
    fn show_pending<P, X>(&mut self, engine: &Reconciler<P, X>)
    where
        P: Planner,
        X: Executor<Op = P::Op, Found = P::Found>,
    {
        let pending = engine.instances().iter().map(|instance| instance.pending());
        let pending = pending.fold(Pending::default(), sum);
        if pending == self.shown {
            return;
        }
        // As in kube-proxy, a Service counts once for each family, and a slice for the family that it is of.
        let mut of_families = lock(&self.shared.pending);
        of_families[index(self.family)] = pending;
        let all = of_families.iter().copied().fold(Pending::default(), sum);
        metrics::changed(Changed::Services, pending.services.saturating_sub(self.shown.services));
        metrics::changed(Changed::Endpoints, pending.slices.saturating_sub(self.shown.slices));
        metrics::pending(Changed::Services, usize::try_from(all.services).unwrap_or(usize::MAX));
        metrics::pending(Changed::Endpoints, usize::try_from(all.slices).unwrap_or(usize::MAX));
        drop(of_families);
        self.shown = pending;
    }

    fn measure(&mut self, report: &SyncReport, took: Duration) {
        let family = report.family;
        let succeeded = report.error.is_none();
        let since = if succeeded { self.queued.take() } else { None };
        let sample = SyncSample {
            family,
            mode: self.mode,
            full: report.full.is_some(),
            succeeded,
            took,
            since_change: since.map(|since| report.ended.saturating_duration_since(since)),
        };
        metrics::synced(sample, unix_now());
        if !succeeded {
            return;
        }
        let now = Timestamp::now();
        for trigger in &report.triggers {
            let Ok(trigger) = Timestamp::from_nanosecond(i128::from(*trigger)) else { continue };
            if trigger >= self.process_started {
                let latency = Duration::try_from(now.duration_since(trigger)).unwrap_or_default();
                metrics::programmed(family, latency);
            }
        }
    }
}

impl<P, X> Observer<P, X> for Observations
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    fn queued(&mut self, engine: &Reconciler<P, X>) {
        self.show_pending(engine);
        for instance in engine.instances() {
            let family = instance.family();
            let Some(since) = instance.queued_since() else { continue };
            if self.queued.is_none() {
                self.queued = Some(since);
                self.health.queued(family, since);
                metrics::queued(family, unix_now());
            }
        }
    }

    fn synced(&mut self, report: SyncReport, engine: &mut Reconciler<P, X>) {
        let took = report.ended.saturating_duration_since(report.started);
        self.tell(&report, took);
        self.shared.recent.note(&report);
        self.measure(&report, took);
        if !self.synced {
            metrics::first_sync(report.family, report.phases);
        }
        if report.error.is_some() {
            return;
        }
        let family = report.family;
        for service in self.open_load_balancers.news(family, &report.services, engine.store()) {
            if self.may_tell(service, report.ended).is_none() {
                continue;
            }
            tracing::warn!(%service, ipFamily = %family, "loadBalancerSourceRanges names no network of this family; \
                everybody may use the load balancer's addresses of it");
            self.events.send(Event::load_balancer_open(service, family));
        }
        self.health.updated(family, report.ended);
        let Some(instance) = engine.instances().iter().find(|instance| instance.family() == family) else {
            return;
        };
        let counts = instance.counts();
        metrics::installed(
            family,
            counts.service_ports,
            instance.set_aside_names().count(),
            instance.conflicts(),
        );
        let zone = engine.node().zone.as_deref();
        let hints = &mut self.topology_hints;
        let news =
            hints.news(family, &report.services, engine.store(), zone, |name| instance.installed(name));
        for (why, count) in hints.counts() {
            metrics::hints_ignored(family, topology_hints::word(why), count);
        }
        for (service, why) in news {
            if let Some(left_out) = self.may_tell(service, report.ended) {
                tracing::info!(%service, ipFamily = %family, reason = topology_hints::word(why), leftOut = left_out,
                    "Topology hints are ignored");
                self.events.send(Event::hints_ignored(service, &self.node, family, why));
            }
        }
        metrics::no_local_endpoints(family, counts.no_local_internal, counts.no_local_external);
        self.show(instance.executor().figures());
        if let Some(services) = &self.services {
            services.follow(family, &report.services, |name| instance.installed(name));
        }
        if let Some(ports) = &mut self.localhost_node_ports {
            ports.follow(family, &report.services, |name| instance.installed(name));
        }
        let rules = self.flows.rules(&report, engine.store(), instance);
        if let (Some(conntrack), Some(environment)) = (&self.conntrack, instance.environment()) {
            if !self.synced {
                conntrack.begin(environment);
            }
            conntrack.submit(rules, environment);
        }
        if !std::mem::replace(&mut self.synced, true) {
            let mut unsynced = lock(&self.shared.unsynced);
            unsynced.0.retain(|of| *of != family);
            let act = if unsynced.0.is_empty() { unsynced.1.take() } else { None };
            drop(unsynced);
            if let Some(act) = act {
                act();
            }
        }
    }

    fn drifted(&mut self, family: Family) {
        tracing::warn!(ipFamily = %family, "The kernel's state was changed by somebody else; rebuilding it");
        metrics::drifted(family);
        self.events.send(Event::drifted(format!(
            "the {family} rules were changed by another program; they are rebuilt"
        )));
    }

    fn asked(&mut self, untranslated: &HashSet<(Protocol, IpAddr, u16)>, engine: &Reconciler<P, X>) {
        for instance in engine.instances() {
            if let (Some(conntrack), Some(environment)) = (&self.conntrack, instance.environment()) {
                let rules = proxy_core::conntrack::untranslated(untranslated, engine.store(), instance);
                conntrack.submit(rules, environment);
            }
        }
    }

    fn round(&mut self, engine: &mut Reconciler<P, X>) {
        self.show_pending(engine);
        // What the kernel counts is read while it is looked at for drift, whether anything changes or not.
        if let Some(instance) = engine.instances().iter().find(|instance| instance.family() == self.family) {
            self.show(instance.executor().figures());
            if let Some(draining) = instance.draining() {
                metrics::ipvs_draining(self.family, draining);
            }
        }
        let (family, addresses) = (self.family, health_check_addresses(engine));
        let wanted = &self.shared.health_checks;
        if let Some(checks) = engine.take_health_checks() {
            wanted.send_modify(|wanted| wanted.set_checks(family, checks));
        }
        wanted.send_if_modified(|wanted| wanted.set_addresses(family, addresses));
    }
}

fn sum(a: Pending, b: Pending) -> Pending {
    Pending { services: a.services + b.services, slices: a.slices + b.slices }
}

const fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// Where health check node ports listen: where NodePorts answer.
fn health_check_addresses<P, X>(engine: &Reconciler<P, X>) -> Vec<IpAddr>
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    let mut addresses = Vec::new();
    for instance in engine.instances() {
        match instance.environment().map(|environment| &environment.node_ports) {
            None => {}
            Some(NodePortAddresses::Any) => addresses.push(match instance.family() {
                Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            }),
            Some(NodePortAddresses::Only(some)) => addresses.extend(some.iter().copied()),
        }
    }
    addresses
}

fn unix_now() -> f64 {
    Timestamp::now().as_duration().as_secs_f64()
}
