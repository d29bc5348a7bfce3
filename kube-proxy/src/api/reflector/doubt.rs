//! Whether the server that a watch runs at knows the version that it began from.
//!
//! A storage that was put back to an older copy counts its versions from there. A watch from a version that such a
//! storage has not reached yet is accepted and silent until it has: what changes meanwhile is never told. So after an
//! interruption, which is what a restart of the API server looks like, one small question is asked beside a watch that
//! tells nothing: a list of one object, not older than what was seen.

use std::time::{Duration, Instant};

/// A watch that tells something so soon leaves no doubt.
const FIRST: Duration = Duration::from_millis(200);
/// Up to so much is added at random, so that the nodes of a cluster do not ask all at once.
const JITTER: Duration = Duration::from_millis(800);
/// Whatever is interrupted how often, the question is asked no more often than this.
const SPACING: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Doubt {
    is_open: bool,
    /// When to ask.
    at: Option<Instant>,
    asked: Option<Instant>,
}

impl Doubt {
    /// A watch ended before its time, or there was no answer.
    pub(super) fn rise(&mut self) {
        self.is_open = true;
        self.at = None;
    }

    /// A watch was accepted. `random` is from 0 to 1.
    pub(super) fn watch_began(&mut self, now: Instant, random: f64) {
        let soon = now + FIRST + JITTER.mul_f64(random);
        let at = self.asked.map_or(soon, |asked| soon.max(asked + SPACING));
        self.at = self.is_open.then_some(at);
    }

    /// The server told something of a version that fits, or everything.
    pub(super) fn settle(&mut self) {
        self.is_open = false;
        self.at = None;
    }

    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Whether to ask now.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.at.is_some_and(|at| at <= now);
        if is_due {
            self.at = None;
            self.asked = Some(now);
        }
        is_due
    }
}
