//! Closes the gap between what is wanted and what is installed, whatever the kernel refuses.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io, mem,
    sync::Arc,
};

use super::{
    Instance, SyncReport, batch,
    installed::{Routes, Wanted},
    phases::Stopwatch,
};
use crate::{
    backend::{ApplyError, Change, Effect, Executor, Plan, Planned, Planner},
    model::{ServiceName, ServicePortName},
    route::{self, Asked, Frontend, NodeView, Policy, Route},
    store::Store,
};

/// How many transactions one sync may make; what is left then waits for the next, which follows at once. In between, inputs
/// are taken in, and what they want goes first.
const MOST_TRANSACTIONS: usize = 64;
/// How often a full plan may be refused in one sync,
const MOST_FULL_REFUSALS: usize = 32;
/// and how often until the rest of the culprits' namespaces is left for afterwards.
const FEW_REFUSALS: usize = 4;
/// How many probes of Services that were set aside one round makes.
const MOST_PROBES: usize = 8;

/// A plan that was not carried through, and the Service at fault where one is known.
struct Failure {
    error: ApplyError,
    culprit: Option<ServiceName>,
}

/// A plan that was.
#[derive(Default)]
struct Applied {
    changes: Vec<Change>,
    /// Services of which single operations were refused while everything else took effect.
    rejected: HashMap<ServiceName, String>,
}

/// One sync, as far as it has come.
struct Progress<'a, 'b> {
    report: &'a mut SyncReport,
    stopwatch: &'a mut Stopwatch<'b>,
    /// Those that do not get what their owners asked for.
    held: HashSet<ServiceName>,
    transactions: usize,
    /// Something took effect.
    committed: bool,
}

impl<P, X> Instance<P, X>
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    /// Everything that differs, but for what was set aside: those Services keep their last good state, less what others
    /// own by now.
    pub(super) fn run(
        &mut self,
        store: &Store,
        node: &NodeView,
        report: &mut SyncReport,
        stopwatch: &mut Stopwatch<'_>,
    ) {
        let mut work = mem::take(&mut self.dirty);
        let news = self.addresses.settle(&mut work, store, report.started);
        (report.conflicts, report.excesses) = (news.conflicts, news.excesses);
        let mut held = HashSet::new();
        let mut wanted = Wanted::with_capacity(work.len());
        for name in work {
            let exists = store.entry(&name).is_some_and(|entry| entry.service.is_some());
            let too_large = self.addresses.excesses().contains_key(&name);
            if too_large {
                // It is looked at when it changes, not by the clock.
                self.aside.remove(&name);
            }
            let routes = if too_large || exists && self.aside.contains(&name) {
                held.insert(name.clone());
                self.addresses.keep(&name, self.installed.of(&name));
                // As it is, where nobody took anything: it has been looked at.
                self.reduced(&name).unwrap_or_else(|| self.installed.of(&name).into())
            } else {
                self.routes(&name, store, node)
            };
            wanted.insert(name, routes);
        }
        let mut progress = Progress { report, stopwatch, held, transactions: 0, committed: false };
        let mut batches = VecDeque::from([wanted]);
        if self.schedule.full.is_some() && !self.everything(&mut batches, &mut progress) {
            return self.leave(batches);
        }
        self.carry(batches, &mut progress);
    }

    /// Tries some Services that the kernel refused before, apart from everything else.
    pub(super) fn probe(
        &mut self,
        mut due: Vec<ServiceName>,
        store: &Store,
        node: &NodeView,
        report: &mut SyncReport,
        stopwatch: &mut Stopwatch<'_>,
    ) {
        let started = report.started;
        let mut refused = false;
        for _ in 0..MOST_PROBES {
            due.retain(|name| self.aside.contains(name));
            if due.is_empty() {
                break;
            }
            let wanted: Wanted =
                due.iter().map(|name| (name.clone(), self.routes(name, store, node))).collect();
            let mut progress =
                Progress { report, stopwatch, held: HashSet::new(), transactions: 0, committed: false };
            match self.attempt(&wanted, &mut progress) {
                Ok(applied) if applied.rejected.is_empty() => {
                    self.commit(wanted, applied, &mut progress);
                    self.aside.worked();
                }
                Ok(applied) => {
                    self.commit(wanted, applied, &mut progress);
                    self.aside.refused();
                    refused = true;
                }
                Err(Failure { error: ApplyError::Refused { reason, .. }, culprit: Some(name) }) => {
                    self.set_aside(name, reason, &mut progress);
                    self.aside.refused();
                    refused = true;
                }
                Err(Failure { error, .. }) => {
                    if matches!(error, ApplyError::Lost(_)) {
                        self.schedule.start_over("the kernel's state is not known after a failure", started);
                    }
                    return self.aside.rest(started + self.schedule.pace.first_retry);
                }
            }
            due = self.aside.due(started);
        }
        if refused {
            self.aside.pause(started);
        }
    }

    /// One plan for everything. Whoever is refused is left with the last good state; after a few, all that is not
    /// installed yet of the culprits' namespaces is left for afterwards. False: it failed, and `batches` is what was
    /// wanted.
    fn everything(&mut self, batches: &mut VecDeque<Wanted>, progress: &mut Progress<'_, '_>) -> bool {
        let mut wanted = batches.pop_front().unwrap_or_default();
        let mut later = Wanted::new();
        let mut culprits: HashSet<Box<str>> = HashSet::new();
        for refusals in 1..=MOST_FULL_REFUSALS {
            match self.attempt(&wanted, progress) {
                Ok(applied) => {
                    self.commit(wanted, applied, progress);
                    if !later.is_empty() {
                        batches.push_back(later);
                    }
                    return true;
                }
                Err(Failure { error: ApplyError::Refused { reason, .. }, culprit: Some(name) })
                    if self.concede(&name, &mut wanted, progress) =>
                {
                    culprits.insert(name.namespace().into());
                    self.set_aside(name, reason, progress);
                    if refusals >= FEW_REFUSALS {
                        let suspects = wanted.extract_if(|name, routes| {
                            !routes.is_empty()
                                && culprits.contains(name.namespace())
                                && !self.installed.contains(name)
                                && !progress.held.contains(name)
                        });
                        later.extend(suspects);
                    }
                }
                Err(failure) => {
                    self.failed(failure, progress);
                    break;
                }
            }
        }
        let refused = || format!("a plan for everything was refused {MOST_FULL_REFUSALS} times");
        progress.report.error.get_or_insert_with(refused);
        progress.report.changes.clear();
        batches.extend([wanted, later]);
        false
    }

    /// Batch by batch. One that is refused is divided, so that what is good in it soon goes through.
    fn carry(&mut self, mut batches: VecDeque<Wanted>, progress: &mut Progress<'_, '_>) {
        let mut refusals = 0;
        while let Some(mut wanted) = batches.pop_front() {
            if progress.transactions >= MOST_TRANSACTIONS {
                batches.push_front(wanted);
                return self.leave(batches);
            }
            match self.attempt(&wanted, progress) {
                Ok(applied) => self.commit(wanted, applied, progress),
                Err(Failure { error: ApplyError::Refused { reason, .. }, culprit: Some(name) })
                    if self.concede(&name, &mut wanted, progress) =>
                {
                    self.set_aside(name, reason, progress);
                    refusals += 1;
                    if refusals < FEW_REFUSALS {
                        batches.push_front(wanted);
                        continue;
                    }
                    let (first, second) = batch::halves(wanted, &self.installed);
                    if !second.is_empty() {
                        batches.push_front(second);
                    }
                    batches.push_front(first);
                }
                Err(failure) => {
                    batches.push_front(wanted);
                    self.leave(batches);
                    // What took effect is told now; the failure, should it last, by the next try.
                    if !progress.committed {
                        progress.report.changes.clear();
                        return self.failed(failure, progress);
                    }
                    if matches!(failure.error, ApplyError::Lost(_)) {
                        self.schedule.full.get_or_insert("the kernel's state is not known after a failure");
                    }
                    return;
                }
            }
        }
    }

    /// What is left waits for the next sync.
    fn leave(&mut self, batches: VecDeque<Wanted>) {
        self.dirty.extend(batches.into_iter().flat_map(HashMap::into_keys));
    }

    fn failed(&mut self, failure: Failure, progress: &mut Progress<'_, '_>) {
        progress.report.error = Some(failure.error.to_string());
        if matches!(failure.error, ApplyError::Lost(_)) || self.schedule.failed_last() {
            self.schedule.full.get_or_insert("the kernel's state is not known after a failure");
        }
        self.schedule.failed();
    }

    fn set_aside(&mut self, name: ServiceName, reason: String, progress: &mut Progress<'_, '_>) {
        let report = &mut progress.report;
        if !report.set_aside.iter().any(|(known, _)| *known == name) {
            self.aside.put(name.clone(), &reason, report.started, &self.schedule.pace);
            report.set_aside.push((name.clone(), reason));
        }
        self.addresses.keep(&name, self.installed.of(&name));
    }

    /// Takes back what was wanted for a Service that the kernel refused: it keeps its last good state; where that is
    /// what was refused (the kernel's state may be gone), it is left out. False: there is nothing left to concede.
    fn concede(&self, name: &ServiceName, wanted: &mut Wanted, progress: &mut Progress<'_, '_>) -> bool {
        if progress.held.insert(name.clone()) && wanted.remove(name).is_some() {
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
        let installed = self.installed.of(name);
        if installed.iter().all(|(_, route)| route.frontends.iter().all(|frontend| own(route, frontend))) {
            return None;
        }
        let reduce = |route: &Arc<Route>| {
            let frontends = route.frontends.iter().filter(|frontend| own(route, frontend)).copied().collect();
            Arc::new(Route { frontends, ..Route::clone(route) })
        };
        Some(installed.iter().map(|(port, route)| (port.clone(), reduce(route))).collect())
    }

    /// One plan, applied.
    fn attempt(&mut self, wanted: &Wanted, progress: &mut Progress<'_, '_>) -> Result<Applied, Failure> {
        let environment = self.environment.clone().expect("checked by next_wakeup");
        let changes = self.installed.changes(wanted);
        let now = progress.report.started;
        if self.schedule.full.is_none() {
            if changes.is_empty() && !self.environment_stale {
                return Ok(Applied::default());
            }
            match self.planner.plan(&changes, &environment, now) {
                Planned::Plan(plan) => {
                    let owner = |at: u32| changes.get(at as usize).map(|change| change.name.service.clone());
                    let rejected = self.apply(&plan, owner, progress)?;
                    return Ok(Applied { changes, rejected });
                }
                Planned::StartOver(reason) => self.schedule.full = Some(reason),
            }
        }
        progress.report.full = self.schedule.full;
        let found = progress
            .stopwatch
            .time(|| self.executor.survey())
            .map_err(|error| Failure { error, culprit: None })?;
        let routes = self.installed.with(wanted);
        let plan = self.planner.plan_full(&routes, &environment, found, now);
        let owner = |at: u32| routes.get(at as usize).map(|(name, _)| name.service.clone());
        let rejected = self.apply(&plan, owner, progress)?;
        self.schedule.full = None;
        Ok(Applied { changes, rejected })
    }

    fn apply(
        &mut self,
        plan: &Plan<P::Op>,
        owner: impl Fn(u32) -> Option<ServiceName>,
        progress: &mut Progress<'_, '_>,
    ) -> Result<HashMap<ServiceName, String>, Failure> {
        progress.transactions += 1;
        match progress.stopwatch.time(|| self.executor.apply(plan)) {
            Ok(outcome) => {
                self.planner.settle(Effect::Applied);
                let mut rejected = HashMap::new();
                for rejection in outcome.rejected {
                    // Without an owner: the rest took effect, and nobody can be set aside for it. Only a full sync can
                    // mend that.
                    let Some(name) = rejection.owner.and_then(&owner) else {
                        let error = ApplyError::Lost(io::Error::other(rejection.reason));
                        return Err(Failure { error, culprit: None });
                    };
                    rejected.entry(name).or_insert(rejection.reason);
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

    /// What was wanted is installed, but for what was rejected of it.
    fn commit(&mut self, wanted: Wanted, applied: Applied, progress: &mut Progress<'_, '_>) {
        progress.committed = true;
        self.environment_stale = false;
        let Applied { changes, rejected } = applied;
        progress.report.changes.extend(changes);
        let mut before = Wanted::new();
        for (name, routes) in wanted {
            progress.report.services.push(name.clone());
            if rejected.contains_key(&name) {
                before.insert(name.clone(), self.installed.of(&name).into());
            } else if !progress.held.contains(&name) {
                self.addresses.keep_no_more(&name);
                if self.aside.remove(&name) && !routes.is_empty() {
                    progress.report.restored.push(name.clone());
                }
            }
            self.installed.set(name, routes);
        }
        for (name, reason) in rejected {
            let last_good = before.remove(&name).unwrap_or_else(|| self.installed.of(&name).into());
            progress.held.insert(name.clone());
            self.set_aside(name.clone(), reason, progress);
            self.take_back(name, last_good, progress);
        }
    }

    /// A Service is in the kernel in part. It is put back to its last good state, or else taken out, by itself: what the
    /// kernel holds of it is known again, and the next try is a plan like any other.
    fn take_back(&mut self, name: ServiceName, last_good: Routes, progress: &mut Progress<'_, '_>) {
        let mut tries = vec![Routes::default()];
        if !last_good.is_empty() && *last_good != *self.installed.of(&name) {
            tries.push(last_good);
        }
        while let Some(routes) = tries.pop() {
            let wanted = Wanted::from([(name.clone(), routes)]);
            match self.attempt(&wanted, progress) {
                Ok(Applied { changes, rejected }) => {
                    progress.report.changes.extend(changes);
                    wanted.into_iter().for_each(|(name, routes)| self.installed.set(name, routes));
                    self.addresses.keep(&name, self.installed.of(&name));
                    if rejected.is_empty() {
                        return;
                    }
                }
                Err(Failure { error: ApplyError::Refused { .. }, .. }) => {}
                Err(_) => break,
            }
        }
        self.schedule.start_over("a Service was applied in part", progress.report.started);
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
        let policy = Policy::of(service, self.family, node);
        let policy = if policy == *self.usual { self.usual.clone() } else { Arc::new(policy) };
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
