//! The engine itself, over the inputs of a [`State`] and without a kernel: what it would put there is what is intended.

use std::{fmt, time::Instant};

use proxy_core::{
    backend::{ApplyError, Change, Effect, Executor, Outcome, Plan, Planned, Planner},
    environment::Environment,
    model::{Family, ServicePortName},
    reconciler::{Pace, Reconciler},
    route::Route,
};

use crate::state::State;

/// No operation is ever needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

/// A backend for which everything is in force as soon as it is wanted.
#[derive(Debug, Default)]
pub struct Nowhere;

impl Planner for Nowhere {
    type Op = Never;
    type Found = ();

    fn plan(&mut self, _: &[Change], _: &Environment, _: Instant) -> Planned<Never> {
        Planned::Plan(Plan::default())
    }

    fn plan_full(
        &mut self,
        _: &[(ServicePortName, std::sync::Arc<Route>)],
        _: &Environment,
        (): (),
        _: Instant,
    ) -> Plan<Never> {
        Plan::default()
    }

    fn settle(&mut self, _: Effect) {}

    fn plan_upkeep(&mut self, _: Instant) -> Option<Plan<Never>> {
        None
    }

    fn next_upkeep(&self) -> Option<Instant> {
        None
    }
}

impl Executor for Nowhere {
    type Op = Never;
    type Found = ();

    fn survey(&mut self) -> Result<(), ApplyError> {
        Ok(())
    }

    fn apply(&mut self, _: &Plan<Never>) -> Result<Outcome, ApplyError> {
        Ok(Outcome::default())
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        Ok(true)
    }
}

/// The engine without a kernel. It implements [`Look`](proxy_core::look::Look); what it says is installed is what is
/// intended.
pub type Engine = Reconciler<Nowhere, Nowhere>;

/// The engine after it was told everything that the state holds. `now`: any time; nothing depends on it.
pub fn engine(state: &State, now: Instant) -> Engine {
    let families: Vec<Family> = state.families().collect();
    let backends = families.iter().map(|family| (*family, Nowhere, Nowhere)).collect();
    let mut engine = Reconciler::new(state.header.environment.to_settings(), Pace::default(), backends);
    for input in state.inputs() {
        engine.handle(input, now);
    }
    // Nothing is ever refused, so one sync does all.
    engine.sync_due(&mut || now);
    engine
}

/// Everything that is intended in one family, sorted by name: what [`Planner::plan_full`] takes.
pub fn routes(engine: &Engine, family: Family) -> Vec<(ServicePortName, std::sync::Arc<Route>)> {
    let all = engine.instance(family).into_iter().flat_map(|instance| instance.all_installed());
    let mut routes: Vec<_> = all.cloned().collect();
    routes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    routes
}
