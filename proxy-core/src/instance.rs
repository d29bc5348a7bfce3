//! One family's half of the engine: what is installed, what differs, and the planner and executor that close the gap.

use std::{
    collections::{HashMap, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backend::{ApplyError, Change, Effect, Executor, Plan, Planned, Planner},
    claims::{ClaimKey, Claimant, Claims},
    environment::Environment,
    model::{Family, Kind, Protocol, Service, ServiceName, ServicePortName, TrafficPolicy},
    reconciler::Pace,
    route::{self, Frontend, FrontendKind, NodeView, Route},
    store::Store,
};

/// Routes of one Service, one per port.
type Routes = Box<[(ServicePortName, Arc<Route>)]>;

/// How many Services may be set aside within one sync before the sync counts as failed.
const MOST_CULPRITS_PER_SYNC: usize = 32;

pub struct Instance<P, X> {
    family: Family,
    planner: P,
    executor: X,
    pace: Pace,
    /// Wanted; `None` until the node's facts were first resolved.
    environment: Option<Environment>,
    environment_stale: bool,

    /// What the last successful plans put into the kernel.
    installed: HashMap<ServiceName, Routes>,
    counts: Counts,
    claims: Claims,
    /// What each Service claims at present, to release it later.
    claimed: HashMap<ServiceName, Box<[ClaimKey]>>,
    /// Claims that another Service won.
    lost: HashMap<ServiceName, Vec<Conflict>>,

    dirty: HashSet<ServiceName>,
    set_aside: HashMap<ServiceName, SetAside>,
    /// The next sync is a full one, and why.
    full: Option<&'static str>,
    begun: bool,
    failures: u32,
    /// Pace and back-off: nothing is written before.
    not_before: Option<Instant>,
    /// Since when something has been waiting.
    queued_since: Option<Instant>,
    pending: Pending,
    triggers: Vec<i64>,
}

/// Inputs taken in since the last successful sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    pub services: u64,
    pub slices: u64,
}

#[derive(Debug, Clone)]
struct SetAside {
    retry_at: Instant,
    attempts: u32,
    /// Part of it is in the kernel: only a full sync can mend it.
    partly_applied: bool,
}

/// Totals of what is installed, kept up to date by each commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub service_ports: usize,
    pub endpoints: usize,
    /// Service ports under policy Local whose endpoints are all elsewhere.
    pub no_local_internal: usize,
    pub no_local_external: usize,
}

/// An address that two Services want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub service: ServiceName,
    pub winner: ServiceName,
    pub protocol: Protocol,
    /// `None`: a node port.
    pub at: Option<IpAddr>,
    pub port: u16,
}

/// What one sync did, for metrics, events, logs and the conntrack reconciler.
#[derive(Debug)]
pub struct SyncReport {
    pub family: Family,
    /// Why it was a full one; `None` for an incremental one.
    pub full: Option<&'static str>,
    pub started: Instant,
    pub ended: Instant,
    /// Applied changes. Of a full sync: against what was installed before.
    pub changes: Vec<Change>,
    /// Services that lost an address to another in this sync.
    pub conflicts: Vec<Conflict>,
    /// Services that the kernel refused; all others went ahead.
    pub set_aside: Vec<(ServiceName, String)>,
    /// Services set aside earlier that work now.
    pub restored: Vec<ServiceName>,
    /// `last-change-trigger-time` of the slices that took effect, in nanoseconds since the Unix epoch.
    pub triggers: Vec<i64>,
    pub pending: Pending,
    /// Nothing took effect; it is tried again at `retry_at`.
    pub error: Option<String>,
    pub retry_at: Option<Instant>,
}

impl<P, X> Instance<P, X>
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    pub fn new(family: Family, planner: P, executor: X, pace: Pace) -> Self {
        Self {
            family,
            planner,
            executor,
            pace,
            environment: None,
            environment_stale: false,
            installed: HashMap::new(),
            counts: Counts::default(),
            claims: Claims::default(),
            claimed: HashMap::new(),
            lost: HashMap::new(),
            dirty: HashSet::new(),
            set_aside: HashMap::new(),
            full: Some("start"),
            begun: false,
            failures: 0,
            not_before: None,
            queued_since: None,
            pending: Pending::default(),
            triggers: Vec::new(),
        }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn queued_since(&self) -> Option<Instant> {
        self.queued_since
    }

    pub fn pending(&self) -> Pending {
        self.pending
    }

    /// What is installed for one Service.
    pub fn installed(&self, name: &ServiceName) -> &[(ServicePortName, Arc<Route>)] {
        self.installed.get(name).map_or(&[], |routes| routes)
    }

    /// Everything that is installed, in no order.
    pub fn all_installed(&self) -> impl Iterator<Item = &(ServicePortName, Arc<Route>)> {
        self.installed.values().flat_map(|routes| routes.iter())
    }

    /// Services that the kernel refused and that wait for another try.
    pub fn set_aside_names(&self) -> impl Iterator<Item = &ServiceName> {
        self.set_aside.keys()
    }

    pub fn executor(&self) -> &X {
        &self.executor
    }

    /// All watches are complete: from now on the instance may write.
    pub(crate) fn begin(&mut self, now: Instant) {
        if !mem::replace(&mut self.begun, true) {
            self.queued_since.get_or_insert(now);
        }
    }

    pub(crate) fn touch(&mut self, service: ServiceName, kind: Kind, now: Instant) {
        match kind {
            Kind::Service => self.pending.services += 1,
            Kind::Slice => self.pending.slices += 1,
        }
        self.touch_again(service, now);
    }

    /// Marks a Service without counting an input.
    pub(crate) fn touch_again(&mut self, service: ServiceName, now: Instant) {
        // A Service that its owner has edited gets another chance at once.
        if let Some(aside) = self.set_aside.get_mut(&service) {
            aside.retry_at = now;
        }
        self.dirty.insert(service);
        self.queued_since.get_or_insert(now);
    }

    pub(crate) fn note_trigger(&mut self, at: i64) {
        self.triggers.push(at);
    }

    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    pub(crate) fn set_environment(&mut self, environment: Environment, now: Instant) {
        if self.environment.as_ref() != Some(&environment) {
            self.environment = Some(environment);
            self.environment_stale = true;
            self.queued_since.get_or_insert(now);
        }
    }

    pub(crate) fn start_over(&mut self, reason: &'static str, now: Instant) {
        self.full.get_or_insert(reason);
        self.queued_since.get_or_insert(now);
    }

    pub(crate) fn check_drift(&mut self, now: Instant) -> bool {
        // Before the first sync and while one is owed anyway there is nothing to compare with.
        if self.full.is_some() {
            return false;
        }
        let drifted = !matches!(self.executor.intact(), Ok(true));
        if drifted {
            self.start_over("the kernel's state was changed by somebody else", now);
        }
        drifted
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next_wakeup().is_some_and(|at| at <= now)
    }

    pub(crate) fn next_wakeup(&self) -> Option<Instant> {
        if !self.begun || self.environment.is_none() {
            return None;
        }
        let owed = !self.dirty.is_empty() || self.full.is_some() || self.environment_stale;
        let work = match (owed.then_some(self.queued_since).flatten(), self.not_before) {
            (Some(since), Some(not_before)) => Some(since.max(not_before)),
            (since, _) => since,
        };
        let retry = self.set_aside.values().map(|aside| aside.retry_at).min();
        let retry = retry.map(|at| self.not_before.map_or(at, |not_before| at.max(not_before)));
        [work, retry, self.planner.next_upkeep()].into_iter().flatten().min()
    }

    /// One round: at most one sync and one piece of upkeep.
    pub(crate) fn sync(
        &mut self,
        store: &Store,
        node: &NodeView,
        clock: &mut dyn FnMut() -> Instant,
    ) -> Option<SyncReport> {
        let started = clock();
        self.retry_set_aside(started);
        let owed = !self.dirty.is_empty() || self.full.is_some() || self.environment_stale;
        if owed && self.not_before.is_none_or(|at| at <= started) {
            let mut report = self.run(store, node, started);
            report.ended = clock();
            let waited = report.ended.saturating_duration_since(started);
            self.finish(&mut report, waited);
            return Some(report);
        }
        if self.failures == 0
            && let Some(plan) = self.planner.plan_upkeep(started)
        {
            let result = self.executor.apply(&plan);
            self.planner.settle(if result.is_ok() { Effect::Applied } else { Effect::Nothing });
            if let Err(error) = result {
                self.start_over("upkeep failed", started);
                self.not_before = Some(started + self.pace.first_retry);
                return Some(SyncReport {
                    error: Some(error.to_string()),
                    retry_at: self.not_before,
                    ..self.report(started)
                });
            }
        }
        None
    }

    fn report(&self, started: Instant) -> SyncReport {
        SyncReport {
            family: self.family,
            full: None,
            started,
            ended: started,
            changes: Vec::new(),
            conflicts: Vec::new(),
            set_aside: Vec::new(),
            restored: Vec::new(),
            triggers: Vec::new(),
            pending: self.pending,
            error: None,
            retry_at: None,
        }
    }

    fn retry_set_aside(&mut self, now: Instant) {
        for (name, aside) in &self.set_aside {
            if aside.retry_at <= now {
                self.dirty.insert(name.clone());
                self.queued_since.get_or_insert(now);
                if aside.partly_applied {
                    self.full.get_or_insert("a Service was applied in part");
                }
            }
        }
    }

    /// Plans and applies until it succeeds, fails for good, or too many culprits were found.
    fn run(&mut self, store: &Store, node: &NodeView, started: Instant) -> SyncReport {
        let mut report = self.report(started);
        let mut work = mem::take(&mut self.dirty);
        if self.full.is_some() && self.installed.is_empty() {
            work.extend(store.names().cloned());
        }
        report.conflicts = self.settle_claims(&mut work, store, node);
        // What is still being waited for keeps its last good state.
        let waits = |aside: &SetAside| aside.retry_at > started;
        let mut wanted: HashMap<ServiceName, Routes> = work
            .iter()
            .filter(|name| !self.set_aside.get(*name).is_some_and(waits))
            .map(|name| (name.clone(), self.routes(name, store, node)))
            .collect();

        for _ in 0..MOST_CULPRITS_PER_SYNC {
            match self.attempt(&wanted, started, &mut report) {
                Ok(()) => {
                    self.commit(wanted, &mut report);
                    return report;
                }
                Err((ApplyError::Refused { reason, culprit: Some(_) }, Some(name))) => {
                    wanted.remove(&name);
                    self.put_aside(name.clone(), started, false);
                    report.set_aside.push((name, reason));
                }
                Err((error, _)) => {
                    report.error = Some(error.to_string());
                    if matches!(error, ApplyError::Lost(_)) || self.failures > 0 {
                        self.full.get_or_insert("the kernel's state is not known after a failure");
                    }
                    break;
                }
            }
        }
        if report.error.is_none() {
            report.error =
                Some(format!("more than {MOST_CULPRITS_PER_SYNC} Services were refused in one sync"));
        }
        self.dirty.extend(work);
        report
    }

    /// One plan, applied. An error comes with the Service at fault where one is known.
    fn attempt(
        &mut self,
        wanted: &HashMap<ServiceName, Routes>,
        now: Instant,
        report: &mut SyncReport,
    ) -> Result<(), (ApplyError, Option<ServiceName>)> {
        let environment = self.environment.clone().expect("checked by next_wakeup");
        report.changes = self.changes(wanted);
        if self.full.is_none() {
            if report.changes.is_empty() && !self.environment_stale {
                return Ok(());
            }
            match self.planner.plan(&report.changes, &environment, now) {
                Planned::Plan(plan) => {
                    let owner =
                        |at: u32| report.changes.get(at as usize).map(|change| change.name.service.clone());
                    let rejected = self.apply(&plan, owner)?;
                    report.set_aside.extend(rejected);
                    return Ok(());
                }
                Planned::StartOver(reason) => self.full = Some(reason),
            }
        }
        report.full = self.full;
        let found = self.executor.survey().map_err(|error| (error, None))?;
        let mut routes: Vec<(ServicePortName, Arc<Route>)> = self
            .installed
            .iter()
            .filter(|(name, _)| !wanted.contains_key(*name))
            .chain(wanted)
            .flat_map(|(_, routes)| routes.iter().cloned())
            .collect();
        routes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let plan = self.planner.plan_full(&routes, &environment, found, now);
        let owner = |at: u32| routes.get(at as usize).map(|(name, _)| name.service.clone());
        let rejected = self.apply(&plan, owner)?;
        report.set_aside.extend(rejected);
        self.full = None;
        Ok(())
    }

    /// Returns the Services of which single operations were refused.
    #[expect(clippy::type_complexity, reason = "used once")]
    fn apply(
        &mut self,
        plan: &Plan<P::Op>,
        owner: impl Fn(u32) -> Option<ServiceName>,
    ) -> Result<Vec<(ServiceName, String)>, (ApplyError, Option<ServiceName>)> {
        match self.executor.apply(plan) {
            Ok(outcome) => {
                self.planner.settle(Effect::Applied);
                let mut rejected: Vec<(ServiceName, String)> = Vec::new();
                for rejection in outcome.rejected {
                    match rejection.owner.and_then(&owner) {
                        Some(name) if rejected.iter().any(|(known, _)| *known == name) => {}
                        Some(name) => rejected.push((name, rejection.reason)),
                        None => {
                            return Err((
                                ApplyError::Refused { reason: rejection.reason, culprit: None },
                                None,
                            ));
                        }
                    }
                }
                Ok(rejected)
            }
            Err(error) => {
                self.planner.settle(Effect::Nothing);
                let culprit = match &error {
                    ApplyError::Refused { culprit: Some(at), .. } => owner(*at),
                    _ => None,
                };
                Err((error, culprit))
            }
        }
    }

    fn finish(&mut self, report: &mut SyncReport, took: Duration) {
        if report.error.is_some() {
            let wait =
                self.pace.first_retry.saturating_mul(1 << self.failures.min(16)).min(self.pace.max_retry);
            self.failures += 1;
            self.not_before = Some(report.ended + wait);
            report.retry_at = self.not_before;
            return;
        }
        self.failures = 0;
        // Under load at most half of the time is spent syncing; what arrives meanwhile is taken together.
        self.not_before = Some(report.ended + self.pace.min_interval.max(took.min(Duration::from_secs(1))));
        let rejected: Vec<ServiceName> = report.set_aside.iter().map(|(name, _)| name.clone()).collect();
        for name in rejected {
            if !self.set_aside.contains_key(&name) {
                self.put_aside(name, report.ended, true);
            }
        }
        report.triggers = mem::take(&mut self.triggers);
        report.pending = mem::take(&mut self.pending);
        self.queued_since = None;
    }

    fn put_aside(&mut self, name: ServiceName, now: Instant, partly_applied: bool) {
        let attempts = self.set_aside.get(&name).map_or(0, |aside| aside.attempts) + 1;
        let wait = self.pace.first_retry.saturating_mul(4 << attempts.min(16)).min(self.pace.max_retry);
        self.set_aside.insert(name, SetAside { retry_at: now + wait, attempts, partly_applied });
    }

    fn commit(&mut self, wanted: HashMap<ServiceName, Routes>, report: &mut SyncReport) {
        self.environment_stale = false;
        let refused: HashSet<&ServiceName> = report.set_aside.iter().map(|(name, _)| name).collect();
        for (name, routes) in wanted {
            if !refused.contains(&name) && self.set_aside.remove(&name).is_some() {
                report.restored.push(name.clone());
            }
            if let Some(before) = self.installed.remove(&name) {
                self.counts.remove(&before);
            }
            if !routes.is_empty() {
                self.counts.add(&routes);
                self.installed.insert(name, routes);
            }
        }
    }

    /// Pairs what is wanted with what is installed; sorted by name.
    fn changes(&self, wanted: &HashMap<ServiceName, Routes>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, after) in wanted {
            let before = self.installed(name);
            for (port, route) in after {
                let known = before.iter().find(|(known, _)| known == port).map(|(_, route)| route);
                if known.is_none_or(|known| known != route) {
                    changes.push(Change {
                        name: port.clone(),
                        before: known.cloned(),
                        after: Some(route.clone()),
                    });
                }
            }
            for (port, route) in before {
                if !after.iter().any(|(known, _)| known == port) {
                    changes.push(Change { name: port.clone(), before: Some(route.clone()), after: None });
                }
            }
        }
        changes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        changes
    }

    /// Brings the claims of every Service in `work` up to date; Services that win or lose an address by it join.
    fn settle_claims(
        &mut self,
        work: &mut HashSet<ServiceName>,
        store: &Store,
        node: &NodeView,
    ) -> Vec<Conflict> {
        let mut queue: Vec<ServiceName> = work.iter().cloned().collect();
        let mut moved: Vec<ServiceName> = Vec::new();
        while let Some(name) = queue.pop() {
            let service = store.entry(&name).and_then(|entry| entry.service.as_ref());
            let wanted: Vec<(ClaimKey, Claimant)> =
                service.map(|service| self.wanted_claims(service, node)).unwrap_or_default();
            let before = self.claimed.remove(&name).unwrap_or_default();
            for key in before.iter().filter(|key| !wanted.iter().any(|(wanted, _)| wanted == *key)) {
                moved.extend(self.claims.release(key, &name));
            }
            if !wanted.is_empty() {
                self.claimed.insert(name, wanted.iter().map(|(key, _)| *key).collect());
            }
            for (key, claimant) in wanted {
                moved.extend(self.claims.claim(key, claimant));
            }
        }
        work.extend(moved);
        self.note_conflicts(work, store)
    }

    fn wanted_claims(&self, service: &Service, node: &NodeView) -> Vec<(ClaimKey, Claimant)> {
        let claimant = |kind| Claimant {
            external: kind != FrontendKind::ClusterIp,
            created: service.created,
            service: service.name.clone(),
        };
        let mut claims: Vec<(ClaimKey, Claimant)> = Vec::new();
        for port in &service.ports {
            for frontend in route::wanted_frontends(service, port, self.family, node).into_iter().flatten() {
                claims.push(((port.protocol, frontend.at, frontend.port), claimant(frontend.kind)));
            }
        }
        claims
    }

    /// Conflicts that are new.
    fn note_conflicts(&mut self, work: &HashSet<ServiceName>, store: &Store) -> Vec<Conflict> {
        let mut news = Vec::new();
        for name in work {
            let lost: Vec<Conflict> = self
                .claimed
                .get(name)
                .into_iter()
                .flatten()
                .filter_map(|key| {
                    let winner = self.claims.winner(key).filter(|winner| *winner != name)?;
                    let (protocol, at, port) = *key;
                    Some(Conflict { service: name.clone(), winner: winner.clone(), protocol, at, port })
                })
                .collect();
            let exists = store.entry(name).is_some_and(|entry| entry.service.is_some());
            let known = self.lost.remove(name).unwrap_or_default();
            if exists && !lost.is_empty() {
                news.extend(lost.iter().filter(|conflict| !known.contains(conflict)).cloned());
                self.lost.insert(name.clone(), lost);
            }
        }
        news
    }

    /// The routes that a Service should have: one per port, empty if it does not exist in this family.
    fn routes(&self, name: &ServiceName, store: &Store, node: &NodeView) -> Routes {
        let Some(entry) = store.entry(name) else { return Routes::default() };
        let Some(service) = &entry.service else { return Routes::default() };
        let mut routes: Vec<(ServicePortName, Arc<Route>)> = Vec::with_capacity(service.ports.len());
        for port in &service.ports {
            let Some(wanted) = route::wanted_frontends(service, port, self.family, node) else { continue };
            let own = |frontend: &&Frontend| {
                self.claims
                    .winner(&(port.protocol, frontend.at, frontend.port))
                    .is_none_or(|winner| winner == name)
            };
            let granted = wanted.iter().filter(own).cloned().collect();
            let route = route::route(entry, service, port, self.family, &wanted, granted, node);
            let port =
                ServicePortName { service: name.clone(), port: port.name.clone(), protocol: port.protocol };
            routes.push((port, Arc::new(route)));
        }
        routes.into()
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
        none_here && route.internal_policy == TrafficPolicy::Local,
        none_here && route.external_policy == TrafficPolicy::Local,
    )
}
