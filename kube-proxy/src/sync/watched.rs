//! An executor that tells the health state when it writes.

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError},
    time::{Duration, Instant},
};

use proxy_core::{
    backend::{ApplyError, Executor, Figures, Outcome, Plan},
    model::Family,
};

use crate::telemetry::health::HealthState;

/// What both families share is one rule set, whose generation tells whether somebody else changed it. So nobody may look at
/// it while a transaction of ours is made and not counted yet.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    shared: Arc<RwLock<()>>,
    /// The kernel makes the transactions one at a time anyway, and nothing else is waited for.
    exclusive: bool,
}

/// Held while something is written.
enum Turn<'a> {
    Alone(#[expect(dead_code, reason = "it is held")] RwLockWriteGuard<'a, ()>),
    Beside(#[expect(dead_code, reason = "it is held")] RwLockReadGuard<'a, ()>),
}

impl Turns {
    /// One family at a time.
    pub(crate) fn one_at_a_time() -> Self {
        Self { shared: Arc::default(), exclusive: true }
    }

    /// Both may write at once: programs that do it may wait for other programs' locks.
    pub(crate) fn side_by_side() -> Self {
        Self { shared: Arc::default(), exclusive: false }
    }

    fn write(&self) -> Turn<'_> {
        if self.exclusive {
            Turn::Alone(self.shared.write().unwrap_or_else(PoisonError::into_inner))
        } else {
            Turn::Beside(self.shared.read().unwrap_or_else(PoisonError::into_inner))
        }
    }

    /// `None`: the other family is writing; the next look will do.
    fn look(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self.shared.try_write() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

pub(crate) struct Watched<X> {
    pub(crate) family: Family,
    pub(crate) executor: X,
    pub(crate) health: HealthState,
    pub(crate) turns: Turns,
    /// Since when looks have been put off.
    pub(crate) put_off: Option<Instant>,
}

/// Where both may write at once, one may be waiting for another program's lock: for so long the other's looks are put off.
const MOST_PUT_OFF: Duration = Duration::from_secs(1);

impl<X: Executor> Executor for Watched<X> {
    type Op = X::Op;
    type Found = X::Found;

    fn survey(&mut self) -> Result<Self::Found, ApplyError> {
        let _turn = self.turns.write();
        self.executor.survey()
    }

    #[expect(clippy::disallowed_methods, reason = "health is about the time that passes")]
    fn apply(&mut self, plan: &Plan<Self::Op>) -> Result<Outcome, ApplyError> {
        self.health.writing(self.family, Instant::now());
        let turn = self.turns.write();
        let result = self.executor.apply(plan);
        drop(turn);
        self.health.written(self.family, result.is_ok());
        result
    }

    #[expect(clippy::disallowed_methods, reason = "what is put off is put off for a time")]
    fn intact(&mut self) -> Result<bool, ApplyError> {
        let turn = self.turns.look();
        if turn.is_none() {
            let since = *self.put_off.get_or_insert_with(Instant::now);
            if self.turns.exclusive || since.elapsed() < MOST_PUT_OFF {
                return Ok(true);
            }
            // What the other has not counted yet looks like somebody else's work, and costs a reading at most.
        } else {
            self.put_off = None;
        }
        self.executor.intact()
    }

    fn waited(&self) -> Duration {
        self.executor.waited()
    }

    fn figures(&self) -> Figures {
        self.executor.figures()
    }
}
