//! A bound on what the objects of one namespace can make this process say: the first few findings are told at once, later
//! ones at a steady rate, and how many were left out is told with the next. A namespace that keeps the process busy with
//! complaints costs no other its own.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// So many at once, for each namespace,
const BURST: u32 = 8;
/// then one more each so often.
const REFILL: Duration = Duration::from_secs(30);
/// Beyond so many namespaces the rest share one allowance.
const MOST_NAMESPACES: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Talk {
    namespaces: HashMap<Box<str>, Allowance>,
}

#[derive(Debug)]
struct Allowance {
    left: u32,
    counted: Instant,
    left_out: u64,
}

impl Allowance {
    fn refill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.counted).as_secs() / REFILL.as_secs();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(earned).min(BURST);
        self.counted = if self.left == BURST { now } else { self.counted + REFILL * earned };
    }
}

impl Talk {
    /// Whether something about an object of this namespace may be told, and how many such findings were not since the last
    /// one that was.
    pub(crate) fn may(&mut self, namespace: &str, now: Instant) -> Option<u64> {
        if self.namespaces.len() >= MOST_NAMESPACES && !self.namespaces.contains_key(namespace) {
            self.namespaces.retain(|_, allowance| {
                allowance.refill(now);
                allowance.left < BURST || allowance.left_out > 0
            });
        }
        let known = self.namespaces.len() < MOST_NAMESPACES || self.namespaces.contains_key(namespace);
        let key = if known { namespace } else { "" };
        let fresh = || Allowance { left: BURST, counted: now, left_out: 0 };
        let allowance = self.namespaces.entry(key.into()).or_insert_with(fresh);
        allowance.refill(now);
        if allowance.left == 0 {
            allowance.left_out += 1;
            return None;
        }
        allowance.left -= 1;
        Some(std::mem::take(&mut allowance.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
    fn one_namespace_has_its_say_and_costs_no_other_its_own() {
        let start = Instant::now();
        let mut talk = Talk::default();
        let told = (0..1000).filter(|_| talk.may("loud", start).is_some()).count();
        assert_eq!(told, 8);
        assert_eq!(talk.may("quiet", start), Some(0));
        let later = start + REFILL;
        assert_eq!(talk.may("loud", later), Some(992), "what was left out is counted");
        assert_eq!(talk.may("loud", later), None);
        let in_an_hour = (1..=3600).filter(|at| talk.may("loud", later + Duration::from_secs(*at)).is_some());
        assert_eq!(in_an_hour.count(), 120);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
    fn memory_does_not_grow_with_namespaces() {
        let start = Instant::now();
        let mut talk = Talk::default();
        for at in 0..100_000 {
            talk.may(&format!("namespace-{at}"), start);
        }
        assert!(talk.namespaces.len() <= MOST_NAMESPACES + 1);
        let later = start + 10 * REFILL;
        assert_eq!(talk.may("another", later), Some(0), "those that were silent for a while make room");
    }
}
