//! How long to wait after a failure. The figures are those that client-go documents for its reflector: 0.8 s, doubled up
//! to 30 s, and a part of it more at random.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// Up to so much of a wait is added at random, so that the nodes of a cluster do not come back all at once.
const JITTER: f64 = 0.5;
/// Without a failure for so long, the server counts as well.
const CALM: Duration = Duration::from_secs(120);
/// So often a watch that delivered and lived for a moment takes the pauses back to the shortest before a calm is needed:
/// a server that delivers one event and fails, again and again, is not well.
const DELIVERIES: u8 = 8;
/// So many requests may follow one another without a pause where the answer says that asking differently helps, until
/// there was a pause or a watch that lived. With the first one and the watch after a list these are four at once.
const PROMPT: u8 = 2;

#[derive(Debug)]
pub(super) struct BackOff {
    failures: u32,
    deliveries: u8,
    prompt: u8,
    last: Option<Instant>,
}

impl BackOff {
    pub(super) fn new() -> Self {
        Self { failures: 0, deliveries: DELIVERIES, prompt: PROMPT, last: None }
    }

    /// A request failed. `random` is from 0 to 1.
    pub(super) fn wait(&mut self, now: Instant, random: f64) -> Duration {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) > CALM) {
            self.deliveries = DELIVERIES;
        }
        let wait = (FIRST * (1 << self.failures.min(10))).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.prompt = PROMPT;
        self.last = Some(now);
        wait.mul_f64(1.0 + JITTER * random)
    }

    /// Whether the next request may be sent at once.
    pub(super) fn prompt(&mut self) -> bool {
        let may = self.prompt > 0;
        self.prompt = self.prompt.saturating_sub(1);
        may
    }

    /// A list is complete: if what follows it fails, asking differently does not help.
    pub(super) fn listed(&mut self) {
        self.prompt = 0;
    }

    /// Time has passed without a failure.
    pub(super) fn rested(&mut self) {
        self.prompt = PROMPT;
    }

    /// A watch told of a change and lived for a moment. Answers how many failures that ends.
    pub(super) fn delivered(&mut self) -> u32 {
        if self.failures == 0 || self.deliveries == 0 {
            return 0;
        }
        self.deliveries -= 1;
        std::mem::take(&mut self.failures)
    }

    /// A watch lived long enough for the server to count as well.
    pub(super) fn lived(&mut self) -> u32 {
        std::mem::take(&mut self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "somewhere to begin")]
    fn pauses_double_up_to_30_seconds() {
        let now = Instant::now();
        let mut back_off = BackOff::new();
        let waits: Vec<f64> = (0..8).map(|_| back_off.wait(now, 0.0).as_secs_f64()).collect();
        assert_eq!(waits, [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]);
        assert_eq!(back_off.wait(now, 1.0), Duration::from_secs(45));
        assert_eq!(back_off.lived(), 9);
        assert_eq!(back_off.wait(now, 0.0), FIRST);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "somewhere to begin")]
    fn deliveries_between_failures_do_not_count_for_ever() {
        let mut now = Instant::now();
        let mut back_off = BackOff::new();
        let mut cycle = |now| {
            back_off.delivered();
            back_off.wait(now, 0.0)
        };
        let waits: Vec<Duration> = (0..12).map(|_| cycle(now)).collect();
        assert!(waits[..9].iter().all(|wait| *wait == FIRST), "{waits:?}");
        assert!(waits[9..].is_sorted() && waits[11] > FIRST * 4, "{waits:?}");
        now += CALM + Duration::from_secs(1);
        cycle(now);
        assert_eq!(cycle(now), FIRST, "calm");
    }
}
