//! When to act: since when something waits, what the pace and failures allow, and whether everything is to be written anew.

use std::time::{Duration, Instant};

use crate::pace::Pace;

/// How many checks for drift in a row may fail before the kernel's state counts as changed.
const MOST_UNANSWERED_CHECKS: u32 = 3;
/// The longest rest after a sync that succeeded.
const LONGEST_REST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) pace: Pace,
    /// All lists are complete: it may write, and what comes waits for it.
    begun: bool,
    /// The next sync is a full one, and why.
    pub(super) full: Option<&'static str>,
    /// Syncs in a row that failed.
    failures: u32,
    /// Checks for drift in a row that failed.
    unanswered_checks: u32,
    /// Pace and back-off: nothing is written before.
    not_before: Option<Instant>,
    /// Since when something has been waiting.
    queued_since: Option<Instant>,
}

impl Schedule {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            begun: false,
            full: Some("start"),
            failures: 0,
            unanswered_checks: 0,
            not_before: None,
            queued_since: None,
        }
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.begun = true;
        self.queued_since.get_or_insert(now);
    }

    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// Something is to be done. Before the lists are complete nothing waits for this instance: it waits for them.
    pub(super) fn queue(&mut self, now: Instant) {
        if self.begun {
            self.queued_since.get_or_insert(now);
        }
    }

    pub(super) fn queued_since(&self) -> Option<Instant> {
        self.queued_since
    }

    pub(super) fn start_over(&mut self, reason: &'static str, now: Instant) {
        self.full.get_or_insert(reason);
        self.queue(now);
    }

    /// Whether pace and back-off allow to write.
    pub(super) fn allows(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// The first time from `at` on at which pace and back-off allow to write.
    pub(super) fn from(&self, at: Instant) -> Instant {
        self.not_before.map_or(at, |not_before| at.max(not_before))
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn failed_last(&self) -> bool {
        self.failures > 0
    }

    /// Upkeep builds on a kernel state that is known; a full sync makes it needless.
    pub(super) fn keeps_up(&self) -> bool {
        self.failures == 0 && self.full.is_none()
    }

    pub(super) fn failed(&mut self) {
        self.failures += 1;
    }

    /// After a failure. Returns when it is tried again.
    pub(super) fn back_off(&mut self, ended: Instant) -> Instant {
        let doubled = 1 << self.failures.saturating_sub(1).min(16);
        let wait = self.pace.first_retry.saturating_mul(doubled).min(self.pace.max_retry);
        *self.not_before.insert(ended + wait)
    }

    /// After a success. `took`: under load at most half of the time is spent syncing; what arrives meanwhile is
    /// taken together. `rest`: something is left to do.
    pub(super) fn succeeded(&mut self, ended: Instant, took: Duration, left: bool) {
        self.failures = 0;
        self.not_before = Some(ended + self.pace.min_interval.max(took.min(LONGEST_REST)));
        self.queued_since = if left { self.queued_since.or(Some(ended)) } else { None };
    }

    /// What a check for drift said; `None`: nothing (a lock that is held, say). Whether that counts as drift.
    pub(super) fn checked(&mut self, intact: Option<bool>) -> bool {
        self.unanswered_checks = if intact.is_some() { 0 } else { self.unanswered_checks + 1 };
        // One that fails is no reason yet to write everything anew.
        let drifted = intact == Some(false) || self.unanswered_checks >= MOST_UNANSWERED_CHECKS;
        if drifted {
            self.unanswered_checks = 0;
        }
        drifted
    }
}
