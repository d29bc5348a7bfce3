//! One family's half of the engine: what is installed, what differs, and the planner and executor that close the gap.

mod addresses;
mod aside;
mod phases;

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use addresses::Addresses;
pub use addresses::Conflict;
use aside::Asides;
pub use phases::Phases;
use phases::Stopwatch;

use crate::{
    backend::{ApplyError, Change, Effect, Executor, Plan, Planned, Planner},
    claims::ClaimKey,
    environment::Environment,
    limits::Excess,
    model::{Family, Kind, ServiceName, ServicePortName, TrafficPolicy},
    reconciler::Pace,
    route::{self, Asked, Frontend, NodeView, Policy, Route},
    store::Store,
};

/// Routes of one Service, one per port, sorted by name.
type Routes = Box<[(ServicePortName, Arc<Route>)]>;

/// How many times one sync may find a Service at fault before it counts as failed.
const MOST_CULPRITS_PER_SYNC: usize = 32;

/// How many checks for drift in a row may fail before the kernel's state counts as changed.
const MOST_UNANSWERED_CHECKS: u32 = 3;

/// How many trigger times are kept while syncs fail: they feed a histogram only.
const MOST_TRIGGERS: usize = 16_384;

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
    addresses: Addresses,

    dirty: HashSet<ServiceName>,
    aside: Asides,
    /// The next sync is a full one, and why.
    full: Option<&'static str>,
    begun: bool,
    failures: u32,
    /// Checks for drift in a row that failed.
    unanswered_checks: u32,
    /// Pace and back-off: nothing is written before.
    not_before: Option<Instant>,
    /// Since when something has been waiting.
    queued_since: Option<Instant>,
    pending: Pending,
    triggers: Vec<i64>,
}

/// A plan that was not carried through, and the Service at fault where one is known.
struct Failure {
    error: ApplyError,
    culprit: Option<ServiceName>,
}

/// Services of which single operations were refused while everything else took effect.
type Rejected = HashMap<ServiceName, String>;

/// Inputs taken in since the last successful sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    pub services: u64,
    pub slices: u64,
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

/// What one sync did, for metrics, events, logs and the conntrack reconciler.
#[derive(Debug)]
pub struct SyncReport {
    pub family: Family,
    /// Why it was a full one; `None` for an incremental one.
    pub full: Option<&'static str>,
    pub started: Instant,
    pub ended: Instant,
    /// Where the time in between went.
    pub phases: Phases,
    /// Services that were looked at, whether their routes differed or not; empty if the sync failed.
    pub services: Vec<ServiceName>,
    /// Applied changes. Of a full sync: against what was installed before.
    pub changes: Vec<Change>,
    /// Services that lost addresses to another in this sync, the most addresses first.
    pub conflicts: Vec<Conflict>,
    /// Services that were found to ask for more than one may.
    pub excesses: Vec<(ServiceName, Excess)>,
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
            addresses: Addresses::new(family),
            dirty: HashSet::new(),
            aside: Asides::default(),
            full: Some("start"),
            begun: false,
            failures: 0,
            unanswered_checks: 0,
            not_before: None,
            queued_since: None,
            pending: Pending::default(),
            triggers: Vec::new(),
        }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// What the backend is told of the node; `None` until the node's facts were first resolved.
    pub fn environment(&self) -> Option<&Environment> {
        self.environment.as_ref()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many addresses Services of this family claim in vain.
    pub fn conflicts(&self) -> usize {
        self.addresses.conflicts()
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

    /// Who owns an address and port.
    pub fn owner(&self, key: &ClaimKey) -> Option<&ServiceName> {
        self.addresses.owner(key)
    }

    /// Everything that is installed, in no order.
    pub fn all_installed(&self) -> impl Iterator<Item = &(ServicePortName, Arc<Route>)> {
        self.installed.values().flat_map(|routes| routes.iter())
    }

    /// Services that the kernel refused and that wait for another try, and those that ask for more than one may.
    pub fn set_aside_names(&self) -> impl Iterator<Item = &ServiceName> {
        let refused = self.aside.names().filter(|name| !self.addresses.excesses().contains_key(*name));
        refused.chain(self.addresses.excesses().keys())
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
        self.aside.hurry(&service, now);
        self.dirty.insert(service);
        self.queued_since.get_or_insert(now);
    }

    pub(crate) fn note_trigger(&mut self, at: i64) {
        if self.triggers.len() < MOST_TRIGGERS {
            self.triggers.push(at);
        }
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
        let drifted = match self.executor.intact() {
            Ok(intact) => {
                self.unanswered_checks = 0;
                !intact
            }
            // A lock that is held, say: no reason yet to write everything anew.
            Err(_) => {
                self.unanswered_checks += 1;
                self.unanswered_checks >= MOST_UNANSWERED_CHECKS
            }
        };
        if drifted {
            self.unanswered_checks = 0;
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
        let retry = self.aside.next_retry();
        let retry = retry.map(|at| self.not_before.map_or(at, |not_before| at.max(not_before)));
        let upkeep = if self.keeps_up() { self.planner.next_upkeep() } else { None };
        [work, retry, upkeep].into_iter().flatten().min()
    }

    /// Upkeep builds on a kernel state that is known; a full sync makes it needless.
    fn keeps_up(&self) -> bool {
        self.failures == 0 && self.full.is_none()
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
            let waited_before = self.executor.waited();
            let mut stopwatch = Stopwatch::new(clock);
            let mut report = self.run(store, node, started, &mut stopwatch);
            let executing = stopwatch.stop();
            report.ended = clock();
            let took = report.ended.saturating_duration_since(started);
            let waited = self.executor.waited().saturating_sub(waited_before);
            report.phases = Phases::of(took, executing, waited);
            self.finish(&mut report, took);
            return Some(report);
        }
        if self.keeps_up()
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
            phases: Phases::default(),
            services: Vec::new(),
            changes: Vec::new(),
            conflicts: Vec::new(),
            excesses: Vec::new(),
            set_aside: Vec::new(),
            restored: Vec::new(),
            triggers: Vec::new(),
            pending: self.pending,
            error: None,
            retry_at: None,
        }
    }

    fn retry_set_aside(&mut self, now: Instant) {
        for (name, partly_applied) in self.aside.due(now) {
            self.dirty.insert(name.clone());
            self.queued_since.get_or_insert(now);
            if partly_applied {
                self.full.get_or_insert("a Service was applied in part");
            }
        }
    }

    /// Plans and applies until it succeeds, fails for good, or too many culprits were found.
    fn run(
        &mut self,
        store: &Store,
        node: &NodeView,
        started: Instant,
        stopwatch: &mut Stopwatch<'_>,
    ) -> SyncReport {
        let mut report = self.report(started);
        let mut work = mem::take(&mut self.dirty);
        let news = self.addresses.settle(&mut work, store);
        (report.conflicts, report.excesses) = (news.conflicts, news.excesses);
        // Who waits, or asks for too much, keeps the last good state, less what others own by now.
        let waits = |name: &ServiceName| {
            self.aside.waits(name, started) || self.addresses.excesses().contains_key(name)
        };
        let all = work.iter().chain(self.set_aside_names());
        let mut held: HashSet<ServiceName> = all.filter(|name| waits(name)).cloned().collect();
        let mut wanted: HashMap<ServiceName, Routes> = HashMap::with_capacity(work.len());
        wanted.extend(held.iter().filter_map(|name| Some((name.clone(), self.reduced(name)?))));
        for name in work.iter().filter(|name| !held.contains(*name)) {
            wanted.insert(name.clone(), self.routes(name, store, node));
        }

        for _ in 0..MOST_CULPRITS_PER_SYNC {
            match self.attempt(&wanted, started, &mut report, stopwatch) {
                Ok(rejected) => {
                    held.extend(rejected.keys().cloned());
                    self.commit(wanted, &held, &mut report);
                    report.services = work.into_iter().collect();
                    for (name, reason) in rejected {
                        self.aside.put(name.clone(), started, true, &self.pace);
                        report.set_aside.push((name, reason));
                    }
                    return report;
                }
                Err(Failure { error: ApplyError::Refused { reason, .. }, culprit: Some(name) })
                    if self.concede(&name, &mut wanted, &mut held) =>
                {
                    if !report.set_aside.iter().any(|(known, _)| *known == name) {
                        self.aside.put(name.clone(), started, false, &self.pace);
                        report.set_aside.push((name, reason));
                    }
                }
                Err(Failure { error, .. }) => {
                    report.error = Some(error.to_string());
                    if matches!(error, ApplyError::Lost(_)) || self.failures > 0 {
                        self.full.get_or_insert("the kernel's state is not known after a failure");
                    }
                    self.failures += 1;
                    break;
                }
            }
        }
        // Finding culprits is progress, not a failure: the rest is tried soon, without them.
        report.error.get_or_insert_with(|| {
            format!("more than {MOST_CULPRITS_PER_SYNC} Services were refused in one sync")
        });
        report.changes.clear();
        self.dirty.extend(work);
        report
    }

    /// Takes back what was wanted for a Service that the kernel refused: it keeps its last good state; where that is
    /// what was refused (the kernel's state may be gone), it is left out. False: there is nothing left to concede.
    fn concede(
        &self,
        name: &ServiceName,
        wanted: &mut HashMap<ServiceName, Routes>,
        held: &mut HashSet<ServiceName>,
    ) -> bool {
        if held.insert(name.clone()) && wanted.remove(name).is_some() {
            wanted.extend(self.reduced(name).map(|routes| (name.clone(), routes)));
            return true;
        }
        let left_out = wanted.insert(name.clone(), Routes::default());
        left_out.is_none_or(|routes| !routes.is_empty())
    }

    /// What is installed for a Service, less the addresses that other Services own by now; `None` if they own none.
    fn reduced(&self, name: &ServiceName) -> Option<Routes> {
        let own = |route: &Route, frontend: &Frontend| {
            self.addresses.grants(&(route.protocol, frontend.at, frontend.port), name)
        };
        let installed = self.installed(name);
        if installed.iter().all(|(_, route)| route.frontends.iter().all(|frontend| own(route, frontend))) {
            return None;
        }
        let reduce = |route: &Arc<Route>| {
            let frontends = route.frontends.iter().filter(|frontend| own(route, frontend)).cloned().collect();
            Arc::new(Route { frontends, ..Route::clone(route) })
        };
        Some(installed.iter().map(|(port, route)| (port.clone(), reduce(route))).collect())
    }

    /// One plan, applied.
    fn attempt(
        &mut self,
        wanted: &HashMap<ServiceName, Routes>,
        now: Instant,
        report: &mut SyncReport,
        stopwatch: &mut Stopwatch<'_>,
    ) -> Result<Rejected, Failure> {
        let environment = self.environment.clone().expect("checked by next_wakeup");
        report.changes = self.changes(wanted);
        if self.full.is_none() {
            if report.changes.is_empty() && !self.environment_stale {
                return Ok(Rejected::new());
            }
            match self.planner.plan(&report.changes, &environment, now) {
                Planned::Plan(plan) => {
                    let owner =
                        |at: u32| report.changes.get(at as usize).map(|change| change.name.service.clone());
                    return self.apply(&plan, owner, stopwatch);
                }
                Planned::StartOver(reason) => self.full = Some(reason),
            }
        }
        report.full = self.full;
        let found =
            stopwatch.time(|| self.executor.survey()).map_err(|error| Failure { error, culprit: None })?;
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
        let rejected = self.apply(&plan, owner, stopwatch)?;
        self.full = None;
        Ok(rejected)
    }

    fn apply(
        &mut self,
        plan: &Plan<P::Op>,
        owner: impl Fn(u32) -> Option<ServiceName>,
        stopwatch: &mut Stopwatch<'_>,
    ) -> Result<Rejected, Failure> {
        match stopwatch.time(|| self.executor.apply(plan)) {
            Ok(outcome) => {
                self.planner.settle(Effect::Applied);
                let mut rejected = Rejected::new();
                for rejection in outcome.rejected {
                    match rejection.owner.and_then(&owner) {
                        Some(name) => {
                            rejected.entry(name).or_insert(rejection.reason);
                        }
                        // The rest took effect, and nobody can be set aside for it: only a full sync can mend that.
                        None => {
                            let error = ApplyError::Lost(std::io::Error::other(rejection.reason));
                            return Err(Failure { error, culprit: None });
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
                Err(Failure { error, culprit })
            }
        }
    }

    fn finish(&mut self, report: &mut SyncReport, took: Duration) {
        if report.error.is_some() {
            let doubled = 1 << self.failures.saturating_sub(1).min(16);
            let wait = self.pace.first_retry.saturating_mul(doubled).min(self.pace.max_retry);
            self.not_before = Some(report.ended + wait);
            report.retry_at = self.not_before;
            return;
        }
        self.failures = 0;
        // Under load at most half of the time is spent syncing; what arrives meanwhile is taken together.
        self.not_before = Some(report.ended + self.pace.min_interval.max(took.min(Duration::from_secs(1))));
        report.triggers = mem::take(&mut self.triggers);
        report.pending = mem::take(&mut self.pending);
        self.queued_since = None;
    }

    /// What was wanted is installed; `held` names those for which it was not what their owners asked for.
    fn commit(
        &mut self,
        wanted: HashMap<ServiceName, Routes>,
        held: &HashSet<ServiceName>,
        report: &mut SyncReport,
    ) {
        self.environment_stale = false;
        for (name, routes) in wanted {
            if !held.contains(&name) && self.aside.remove(&name) && !routes.is_empty() {
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
            compare(self.installed(name), after, &mut changes);
        }
        changes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        changes
    }

    /// The routes that a Service should have: one per port, empty if it does not exist in this family.
    fn routes(&self, name: &ServiceName, store: &Store, node: &NodeView) -> Routes {
        let Some(entry) = store.entry(name) else { return Routes::default() };
        let Some(service) = &entry.service else { return Routes::default() };
        let asked = self.addresses.asked(name);
        if asked.is_empty() {
            return Routes::default();
        }
        let endpoints = entry.endpoints(self.family);
        let policy = Arc::new(Policy::of(service, self.family, node));
        let of_port = |asked: &[Asked]| {
            let port = &service.ports[usize::from(asked[0].port)];
            let mut divided = (Vec::with_capacity(asked.len()), Vec::new());
            for asked in asked {
                let granted = self.addresses.granted(asked, name);
                if granted { &mut divided.0 } else { &mut divided.1 }.push(asked.frontend);
            }
            let route = route::route(service, port, &policy, divided, &endpoints, node);
            let (port, protocol) = (port.name.clone(), port.protocol);
            (ServicePortName { service: name.clone(), port, protocol }, Arc::new(route))
        };
        let mut routes: Routes = asked.chunk_by(|a, b| a.port == b.port).map(of_port).collect();
        routes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        routes
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
