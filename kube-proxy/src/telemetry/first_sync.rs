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
        Listing { all: self.clone(), begun: now(), decoding: Duration::ZERO }
    }
}

impl Listing {
    /// So long it took to make of bytes what the engine takes.
    pub(crate) fn decoded(&mut self, took: Duration) {
        self.decoding += took;
    }

    /// The list is complete.
    pub(crate) fn complete(self) {
        let took = self.begun.elapsed();
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
    use std::{thread::sleep, time::Duration};

    use super::FirstLists;
    use crate::telemetry::metrics::tests::recorded;

    const DECODING: Duration = Duration::from_millis(80);
    const WAITING: Duration = Duration::from_millis(400);

    fn figure(text: &str, phase: &str) -> f64 {
        let name = format!("switchyard_first_sync_seconds{{phase=\"{phase}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.expect("the phase is shown").parse().expect("a number")
    }

    #[test]
    fn the_slowest_list_counts_with_the_time_that_decoding_took_told_apart() {
        let text = recorded(|| {
            let lists = FirstLists::default();
            let (quick, mut slow) = (lists.begin(), lists.begin());
            quick.complete();
            sleep(WAITING);
            slow.decoded(DECODING);
            slow.complete();
        });
        let (list, decode) = (figure(&text, "list"), figure(&text, "decode"));
        assert!((0.0799..0.0801).contains(&decode), "decoding took {decode} s, not 0.08");
        assert!((0.31..2.0).contains(&list), "waiting took {list} s, not 0.32");
    }
}
