//! Where the time of the first sync goes: waiting for lists, decoding them, planning, encoding, waiting for the kernel.
//!
//! Services and EndpointSlices are listed at the same time, and the engine begins when both are there: what counts is
//! the list that took longer.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::telemetry::metrics;

/// How long the slowest of the first lists took.
#[derive(Debug, Clone, Default)]
pub(crate) struct FirstLists(Arc<Mutex<Duration>>);

/// One of the first lists.
#[derive(Debug)]
pub(crate) struct Listing {
    all: FirstLists,
    begun: Instant,
    decoding: Duration,
}

impl FirstLists {
    /// A list is asked for now.
    pub(crate) fn begin(&self) -> Listing {
        self.begin_at(now())
    }

    fn begin_at(&self, begun: Instant) -> Listing {
        Listing { all: self.clone(), begun, decoding: Duration::ZERO }
    }
}

impl Listing {
    /// So long it took to make of bytes what the engine takes.
    pub(crate) fn decoded(&mut self, took: Duration) {
        self.decoding += took;
    }

    /// The list is complete.
    pub(crate) fn complete(self) {
        self.complete_at(now());
    }

    fn complete_at(self, end: Instant) {
        let took = end - self.begun;
        let mut longest = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if took >= *longest {
            *longest = took;
            metrics::first_lists(took.saturating_sub(self.decoding), self.decoding);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "measures where the time goes")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{FirstLists, now};
    use crate::telemetry::metrics::tests::recorded;

    const DECODING: Duration = Duration::from_millis(80);
    const WAITING: Duration = Duration::from_millis(400);

    fn figure(text: &str, phase: &str) -> Duration {
        let name = format!("switchyard_first_sync_seconds{{phase=\"{phase}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        Duration::from_secs_f64(line.expect("the phase is shown").parse().expect("a number"))
    }

    #[test]
    fn the_slowest_list_counts_with_the_time_that_decoding_took_told_apart() {
        let text = recorded(|| {
            let start = now();
            let lists = FirstLists::default();
            let (quick, mut slow) = (lists.begin_at(start), lists.begin_at(start));
            quick.complete_at(start + DECODING);
            slow.decoded(DECODING);
            slow.complete_at(start + DECODING + WAITING);
        });
        assert_eq!((figure(&text, "list"), figure(&text, "decode")), (WAITING, DECODING));
    }
}
