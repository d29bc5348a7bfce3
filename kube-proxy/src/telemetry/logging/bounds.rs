//! How many lines of one kind are written: whatever goes wrong a thousand times a second, or for a thousand objects at
//! once, is told as often as somebody can read. A kind is a place in the program.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::callsite::Identifier;

/// So many lines at once, then one each so often.
pub(super) const BURST: u32 = 50;
const REFILL: Duration = Duration::from_secs(2);

/// The kinds that were written so far; there are as many as places in the program.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    kinds: Mutex<HashMap<Identifier, Kind>>,
}

#[derive(Debug)]
struct Kind {
    left: u32,
    counted: Instant,
    withheld: u64,
}

impl Bounds {
    /// Whether a line of this kind is written now; then with how many of its kind were not since the last one.
    pub(super) fn admit(&self, kind: Identifier, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.entry(kind).or_insert(Kind { left: BURST, counted: now, withheld: 0 }).admit(now)
    }
}

impl Kind {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.counted).as_millis() / REFILL.as_millis();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(passed).min(BURST);
        if self.left == BURST {
            self.counted = now;
        } else {
            self.counted += REFILL * passed;
        }
        if self.left == 0 {
            self.withheld += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn a_flood_of_one_kind_is_cut_off_counted_and_recovers() {
        let start = Instant::now();
        let mut kind = Kind { left: BURST, counted: start, withheld: 0 };
        let written = (0..10_000).filter(|_| kind.admit(start).is_some()).count();
        assert_eq!(written, 50);
        assert_eq!(kind.admit(start + Duration::from_secs(2)), Some(9_950), "what was withheld is told");
        assert_eq!(kind.admit(start + Duration::from_secs(3)), None);
        assert_eq!(kind.admit(start + Duration::from_secs(4)), Some(1));
        let hour = start + Duration::from_secs(3600);
        let written = (0..10_000).filter(|_| kind.admit(hour).is_some()).count();
        assert_eq!(written, 50, "it grows no further");
    }
}
