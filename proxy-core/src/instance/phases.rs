//! Where the time of one sync goes: deciding, translating, waiting for the kernel.

use std::time::{Duration, Instant};

/// The parts of one sync, which add up to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Deciding: routes, what differs, operations.
    pub plan: Duration,
    /// From operations to the kernel's language, and back from it.
    pub encode: Duration,
    /// Waiting for the kernel, or for a program that talks to it.
    pub kernel: Duration,
}

impl Phases {
    /// `executing`: the executor's part of all that was taken; `waited`: the part of that in which it waited.
    pub(super) fn of(took: Duration, executing: Duration, waited: Duration) -> Self {
        let executing = executing.min(took);
        let kernel = waited.min(executing);
        Self { plan: took - executing, encode: executing - kernel, kernel }
    }
}

/// Adds up how long the executor's calls take.
pub(super) struct Stopwatch<'a> {
    clock: &'a mut dyn FnMut() -> Instant,
    total: Duration,
}

impl<'a> Stopwatch<'a> {
    pub(super) fn new(clock: &'a mut dyn FnMut() -> Instant) -> Self {
        Self { clock, total: Duration::ZERO }
    }

    pub(super) fn time<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let begun = (self.clock)();
        let result = act();
        self.total += (self.clock)().saturating_duration_since(begun);
        result
    }

    pub(super) fn stop(self) -> Duration {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
    fn only_what_is_timed_counts_and_it_adds_up() {
        let origin = Instant::now();
        let passed = std::cell::Cell::new(Duration::ZERO);
        let pass = |seconds| passed.set(passed.get() + Duration::from_secs(seconds));
        let mut clock = || origin + passed.get();
        let mut stopwatch = Stopwatch::new(&mut clock);
        pass(5);
        assert_eq!(
            stopwatch.time(|| {
                pass(2);
                7
            }),
            7
        );
        pass(1);
        stopwatch.time(|| pass(4));
        assert_eq!(stopwatch.stop(), Duration::from_secs(6));
    }

    #[test]
    fn the_phases_add_up_to_the_whole_whatever_the_clocks_say() {
        for (took, executing, waited) in [(10, 6, 4), (10, 11, 4), (10, 6, 7), (0, 1, 1)] {
            let [took, executing, waited] = [took, executing, waited].map(Duration::from_secs);
            let Phases { plan, encode, kernel } = Phases::of(took, executing, waited);
            assert_eq!(plan + encode + kernel, took);
        }
        let seconds = Duration::from_secs;
        let phases = Phases::of(seconds(10), seconds(6), seconds(4));
        assert_eq!(phases, Phases { plan: seconds(4), encode: seconds(2), kernel: seconds(4) });
    }
}
