//! Services that the kernel refused: each waits, longer each time, while all others go ahead. They are tried again by
//! probes of their own, so that a refusal delays nobody else.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{model::ServiceName, pace::Pace};

/// The least time between two rounds of probes of which one was refused.
const REST: Duration = Duration::from_millis(100);
/// How many Services one probe may try together, after others have worked.
const MOST_TOGETHER: usize = 64;

#[derive(Debug)]
pub(super) struct Asides {
    waiting: HashMap<ServiceName, Aside>,
    /// No probe before.
    not_before: Option<Instant>,
    /// How many the next probe tries together.
    together: usize,
}

#[derive(Debug)]
struct Aside {
    since: Instant,
    retry_at: Instant,
    attempts: u32,
    /// What the kernel said last.
    reason: Box<str>,
    /// Its owner changed it since it was refused: it goes before those of which only the time has come.
    edited: bool,
}

impl Default for Asides {
    fn default() -> Self {
        Self { waiting: HashMap::new(), not_before: None, together: 1 }
    }
}

impl Asides {
    /// Refused now, perhaps not for the first time.
    pub(super) fn put(&mut self, name: ServiceName, reason: &str, now: Instant, pace: &Pace) {
        let new = || Aside { since: now, retry_at: now, attempts: 0, reason: Box::default(), edited: false };
        let aside = self.waiting.entry(name).or_insert_with(new);
        aside.attempts += 1;
        if *aside.reason != *reason {
            aside.reason = reason.into();
        }
        let wait = pace.first_retry.saturating_mul(4 << aside.attempts.min(16)).min(pace.max_retry);
        aside.retry_at = now + wait;
        aside.edited = false;
    }

    /// Its owner changed it: it gets another chance at once.
    pub(super) fn hurry(&mut self, name: &ServiceName, now: Instant) {
        if let Some(aside) = self.waiting.get_mut(name) {
            aside.retry_at = aside.retry_at.min(now);
            aside.edited = true;
        }
    }

    /// It works now, or is not wanted any more. Returns whether it was set aside.
    pub(super) fn remove(&mut self, name: &ServiceName) -> bool {
        self.waiting.remove(name).is_some()
    }

    pub(super) fn contains(&self, name: &ServiceName) -> bool {
        self.waiting.contains_key(name)
    }

    /// Those that the next probe tries: some of those whose time has come, those first that were edited, then the longest due.
    pub(super) fn due(&self, now: Instant) -> Vec<ServiceName> {
        if self.not_before.is_some_and(|at| at > now) {
            return Vec::new();
        }
        let due = self.waiting.iter().filter(|(_, aside)| aside.retry_at <= now);
        let mut due: Vec<(bool, Instant, &ServiceName)> =
            due.map(|(name, aside)| (!aside.edited, aside.retry_at, name)).collect();
        if due.len() > self.together {
            due.select_nth_unstable(self.together - 1);
            due.truncate(self.together);
        }
        due.into_iter().map(|(.., name)| name.clone()).collect()
    }

    /// A probe worked: whatever the kernel lacked may be there now, so the next one tries more.
    pub(super) fn worked(&mut self) {
        self.together = (self.together * 2).min(MOST_TOGETHER);
    }

    /// A probe was refused: the next one tries one.
    pub(super) fn refused(&mut self) {
        self.together = 1;
    }

    /// After a round of probes of which some were refused.
    pub(super) fn pause(&mut self, now: Instant) {
        self.not_before = Some(now + REST);
    }

    /// Nobody is to blame: all probes rest for so long.
    pub(super) fn rest(&mut self, until: Instant) {
        self.not_before = Some(until);
    }

    pub(super) fn next_retry(&self) -> Option<Instant> {
        let first = self.waiting.values().map(|aside| aside.retry_at).min()?;
        Some(self.not_before.map_or(first, |at| at.max(first)))
    }

    /// Since when, why, and when it is tried again at the earliest.
    pub(super) fn of(&self, name: &ServiceName) -> Option<(Instant, &str, Instant)> {
        self.waiting.get(name).map(|aside| (aside.since, &*aside.reason, aside.retry_at))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.waiting.keys()
    }
}
