//! One family's half of the engine: what is installed, what differs, and the planner and executor that close the gap.
//!
//! What is installed is in `installed.rs`, when to act in `schedule.rs`, whom the kernel refused in `aside.rs`, who owns
//! which address in `addresses.rs`, how a gap is closed in `sync.rs`, and what is told of it in `report.rs`.

mod addresses;
mod aside;
mod batch;
mod installed;
mod phases;
mod report;
mod schedule;
mod sync;

use std::{collections::HashSet, mem, sync::Arc, time::Instant};

use addresses::Addresses;
pub use addresses::Conflict;
use aside::Asides;
pub use installed::Counts;
use installed::Installed;
pub use phases::Phases;
use phases::Stopwatch;
pub use report::{Pending, SetAside, Standing, SyncReport};
use schedule::Schedule;

use crate::{
    backend::{Effect, Executor, Planner},
    claims::ClaimKey,
    environment::Environment,
    model::{Family, Kind, ServiceName, ServicePortName},
    pace::Pace,
    route::{NodeView, Policy, Route},
    store::Store,
};

/// How many trigger times are kept while syncs fail: they feed a histogram only.
const MOST_TRIGGERS: usize = 16_384;

/// One family's half of the engine.
pub struct Instance<P, X> {
    family: Family,
    planner: P,
    executor: X,
    schedule: Schedule,
    /// Wanted; `None` until the node's facts were first resolved.
    environment: Option<Environment>,
    environment_stale: bool,
    installed: Installed,
    addresses: Addresses,
    /// Services that may differ from what is installed.
    dirty: HashSet<ServiceName>,
    aside: Asides,
    /// The policy of most Services, shared by all of them.
    usual: Arc<Policy>,
    pending: Pending,
    triggers: Vec<i64>,
}

impl<P, X> Instance<P, X>
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    /// One that has written nothing yet.
    pub fn new(family: Family, planner: P, executor: X, pace: Pace) -> Self {
        Self {
            family,
            planner,
            executor,
            schedule: Schedule::new(pace),
            environment: None,
            environment_stale: false,
            installed: Installed::default(),
            addresses: Addresses::new(family),
            dirty: HashSet::new(),
            aside: Asides::default(),
            usual: Arc::default(),
            pending: Pending::default(),
            triggers: Vec::new(),
        }
    }

    /// The family that it serves.
    pub fn family(&self) -> Family {
        self.family
    }

    /// What the backend is told of the node; `None` until the node's facts were first resolved.
    pub fn environment(&self) -> Option<&Environment> {
        self.environment.as_ref()
    }

    /// Totals of what is installed.
    pub fn counts(&self) -> Counts {
        self.installed.counts()
    }

    /// How many addresses Services of this family claim in vain.
    pub fn conflicts(&self) -> usize {
        self.addresses.conflicts()
    }

    /// Since when something has been waiting; never before all lists are complete.
    pub fn queued_since(&self) -> Option<Instant> {
        self.schedule.queued_since()
    }

    /// Inputs taken in since the last successful sync.
    pub fn pending(&self) -> Pending {
        self.pending
    }

    /// What is installed for one Service.
    pub fn installed(&self, name: &ServiceName) -> &[(ServicePortName, Arc<Route>)] {
        self.installed.of(name)
    }

    /// Who owns an address and port.
    pub fn owner(&self, key: &ClaimKey) -> Option<&ServiceName> {
        self.addresses.owner(key)
    }

    /// Everything that is installed, in no order.
    pub fn all_installed(&self) -> impl Iterator<Item = &(ServicePortName, Arc<Route>)> {
        self.installed.all()
    }

    /// Services that the kernel refused and that wait for another try, and those that ask for more than one may.
    pub fn set_aside_names(&self) -> impl Iterator<Item = &ServiceName> {
        self.aside.names().chain(self.addresses.excesses().keys())
    }

    /// Why a Service does not get what it asks for, if the kernel refused it or it asks for too much.
    pub fn why_aside(&self, name: &ServiceName) -> Option<SetAside> {
        if let Some((excess, since)) = self.addresses.excesses().get(name) {
            return Some(SetAside { since: *since, reason: excess.to_string(), retry_at: None });
        }
        let (since, reason, retry_at) = self.aside.of(name)?;
        Some(SetAside { since, reason: reason.to_owned(), retry_at: Some(retry_at) })
    }

    /// Addresses that a Service asks for and that others have, by whom has them.
    pub fn lost(&self, name: &ServiceName) -> &[Conflict] {
        self.addresses.lost(name)
    }

    /// Whether a Service waits for its next sync.
    pub fn waits(&self, name: &ServiceName) -> bool {
        self.dirty.contains(name)
    }

    /// What the next syncs owe.
    pub fn standing(&self) -> Standing {
        Standing {
            waiting: self.dirty.len(),
            queued_since: self.schedule.queued_since(),
            full: self.schedule.full,
            failures: self.schedule.failures(),
        }
    }

    /// The half that touches the kernel.
    pub fn executor(&self) -> &X {
        &self.executor
    }

    /// Endpoints that get no new connections and are kept for those they have; `None` where there is no such thing.
    pub fn draining(&self) -> Option<usize> {
        self.planner.draining()
    }

    /// All watches are complete: from now on the instance may write.
    pub(crate) fn begin(&mut self, now: Instant) {
        if !self.schedule.begun() {
            self.schedule.begin(now);
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
        self.schedule.queue(now);
    }

    pub(crate) fn note_trigger(&mut self, at: i64) {
        if self.triggers.len() < MOST_TRIGGERS {
            self.triggers.push(at);
        }
    }

    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.schedule.pace = pace;
    }

    pub(crate) fn set_environment(&mut self, environment: Environment, now: Instant) {
        if self.environment.as_ref() != Some(&environment) {
            self.environment = Some(environment);
            self.environment_stale = true;
            self.schedule.queue(now);
        }
    }

    pub(crate) fn start_over(&mut self, reason: &'static str, now: Instant) {
        self.schedule.start_over(reason, now);
    }

    pub(crate) fn check_drift(&mut self, now: Instant) -> bool {
        // Before the first sync and while one is owed anyway there is nothing to compare with.
        if self.schedule.full.is_some() {
            return false;
        }
        let intact = self.executor.intact().ok();
        let drifted = self.schedule.checked(intact);
        if drifted {
            self.start_over("the kernel's state was changed by somebody else", now);
        }
        drifted
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next_wakeup().is_some_and(|at| at <= now)
    }

    /// Something is to be written beside what was set aside.
    fn owes(&self) -> bool {
        !self.dirty.is_empty() || self.schedule.full.is_some() || self.environment_stale
    }

    pub(crate) fn next_wakeup(&self) -> Option<Instant> {
        if !self.schedule.begun() || self.environment.is_none() {
            return None;
        }
        let work = self.owes().then(|| self.schedule.queued_since()).flatten();
        let work = work.into_iter().chain(self.aside.next_retry()).map(|at| self.schedule.from(at));
        let upkeep = if self.schedule.keeps_up() { self.planner.next_upkeep() } else { None };
        work.chain(upkeep).min()
    }

    /// One round: at most one sync, probes of what was set aside, or one piece of upkeep.
    pub(crate) fn sync(
        &mut self,
        store: &Store,
        node: &NodeView,
        clock: &mut dyn FnMut() -> Instant,
    ) -> Option<SyncReport> {
        let started = clock();
        let probes = if self.schedule.keeps_up() { self.aside.due(started) } else { Vec::new() };
        if (self.owes() || !probes.is_empty()) && self.schedule.allows(started) {
            let waited_before = self.executor.waited();
            let mut stopwatch = Stopwatch::new(clock);
            let mut report = SyncReport::new(self.family, started, self.pending);
            if self.owes() {
                self.run(store, node, &mut report, &mut stopwatch);
            }
            if report.error.is_none() && self.schedule.keeps_up() {
                self.probe(probes, store, node, &mut report, &mut stopwatch);
            }
            let executing = stopwatch.stop();
            report.ended = clock();
            let took = report.ended.saturating_duration_since(started);
            let waited = self.executor.waited().saturating_sub(waited_before);
            report.phases = Phases::of(took, executing, waited);
            self.finish(&mut report);
            return Some(report);
        }
        if self.schedule.keeps_up()
            && let Some(plan) = self.planner.plan_upkeep(started)
        {
            let result = self.executor.apply(&plan);
            self.planner.settle(if result.is_ok() { Effect::Applied } else { Effect::Nothing });
            if let Err(error) = result {
                self.start_over("upkeep failed", started);
                let mut report = SyncReport::new(self.family, started, self.pending);
                report.retry_at = Some(self.schedule.back_off(started));
                report.error = Some(error.to_string());
                return Some(report);
            }
        }
        None
    }

    fn finish(&mut self, report: &mut SyncReport) {
        if report.error.is_some() {
            report.retry_at = Some(self.schedule.back_off(report.ended));
            return;
        }
        let took = report.ended.saturating_duration_since(report.started);
        let left = self.owes();
        self.schedule.succeeded(report.ended, took, left);
        report.triggers = mem::take(&mut self.triggers);
        report.pending = mem::take(&mut self.pending);
    }
}
