//! Services that the kernel refused: each waits, longer each time, while all others go ahead.

use std::{collections::HashMap, time::Instant};

use crate::{model::ServiceName, reconciler::Pace};

#[derive(Debug, Default)]
pub(super) struct Asides(HashMap<ServiceName, Aside>);

#[derive(Debug)]
struct Aside {
    retry_at: Instant,
    attempts: u32,
    /// Part of it is in the kernel: only a full sync can mend it.
    partly_applied: bool,
}

impl Asides {
    /// Refused now, perhaps not for the first time.
    pub(super) fn put(&mut self, name: ServiceName, now: Instant, partly_applied: bool, pace: &Pace) {
        let aside = self.0.entry(name).or_insert(Aside { retry_at: now, attempts: 0, partly_applied });
        aside.attempts += 1;
        let wait = pace.first_retry.saturating_mul(4 << aside.attempts.min(16)).min(pace.max_retry);
        aside.retry_at = now + wait;
        aside.partly_applied |= partly_applied;
    }

    /// Its owner changed it: it gets another chance at once.
    pub(super) fn hurry(&mut self, name: &ServiceName, now: Instant) {
        if let Some(aside) = self.0.get_mut(name) {
            aside.retry_at = aside.retry_at.min(now);
        }
    }

    /// It works now. Returns whether it was set aside.
    pub(super) fn remove(&mut self, name: &ServiceName) -> bool {
        self.0.remove(name).is_some()
    }

    pub(super) fn waits(&self, name: &ServiceName, now: Instant) -> bool {
        self.0.get(name).is_some_and(|aside| aside.retry_at > now)
    }

    /// Those whose time has come, and whether only a full sync can mend them.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = (&ServiceName, bool)> {
        let due = self.0.iter().filter(move |(_, aside)| aside.retry_at <= now);
        due.map(|(name, aside)| (name, aside.partly_applied))
    }

    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.0.values().map(|aside| aside.retry_at).min()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.0.keys()
    }
}
