//! A token bucket.

use std::time::{Duration, Instant};

/// So many at once, then one each so often.
#[derive(Debug, Clone)]
pub(super) struct Rate {
    burst: u32,
    refill: Duration,
    left: u32,
    counted: Option<Instant>,
}

impl Rate {
    pub(super) const fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, left: burst, counted: None }
    }

    fn count(&mut self, now: Instant) {
        let counted = *self.counted.get_or_insert(now);
        let passed = now.saturating_duration_since(counted).as_millis() / self.refill.as_millis().max(1);
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(passed).min(self.burst);
        self.counted = Some(if self.left == self.burst { now } else { counted + self.refill * passed });
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let ready = self.ready_at(now) <= now;
        if ready {
            self.left -= 1;
        }
        ready
    }

    /// When there is one to take.
    pub(super) fn ready_at(&mut self, now: Instant) -> Instant {
        self.count(now);
        if self.left > 0 { now } else { self.counted.unwrap_or(now) + self.refill }
    }

    pub(super) fn full(&mut self, now: Instant) -> bool {
        self.count(now);
        self.left == self.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn a_bucket_is_emptied_and_fills_up_to_its_size() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut rate = Rate::new(3, 2 * second);
        let taken = |rate: &mut Rate, at| (0..10).filter(|_| rate.take(at)).count();
        assert_eq!(taken(&mut rate, start), 3);
        assert_eq!(rate.ready_at(start + second), start + 2 * second);
        assert_eq!(taken(&mut rate, start + second), 0);
        assert_eq!(taken(&mut rate, start + 5 * second), 2);
        assert!(!rate.full(start + 5 * second));
        assert_eq!(taken(&mut rate, start + 3600 * second), 3);
    }
}
