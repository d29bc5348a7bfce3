//! An executor that tells the health state when it writes.

use std::time::{Duration, Instant};

use proxy_core::{
    backend::{ApplyError, Executor, Figures, Outcome, Plan},
    model::Family,
};

use crate::telemetry::health::HealthState;

pub(crate) struct Watched<X> {
    pub(crate) family: Family,
    pub(crate) executor: X,
    pub(crate) health: HealthState,
}

impl<X: Executor> Executor for Watched<X> {
    type Op = X::Op;
    type Found = X::Found;

    fn survey(&mut self) -> Result<Self::Found, ApplyError> {
        self.executor.survey()
    }

    #[expect(clippy::disallowed_methods, reason = "health is about the time that passes")]
    fn apply(&mut self, plan: &Plan<Self::Op>) -> Result<Outcome, ApplyError> {
        self.health.writing(self.family, Instant::now());
        let result = self.executor.apply(plan);
        self.health.written(self.family, result.is_ok());
        result
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        self.executor.intact()
    }

    fn waited(&self) -> Duration {
        self.executor.waited()
    }

    fn figures(&self) -> Figures {
        self.executor.figures()
    }
}
