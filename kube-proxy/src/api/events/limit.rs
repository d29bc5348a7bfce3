//! Which Events are sent: new ones up to a rate, repeats as a growing series every few minutes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Event, Regarding};

/// A repeat after so long a time is a new Event.
const SERIES_END: Duration = Duration::from_secs(12 * 60);
/// A series is told to the API server no more often.
const SERIES_STEP: Duration = Duration::from_secs(6 * 60);
/// An Event that all nodes share is made anew, should it be gone, no more often.
const SHARED_STEP: Duration = Duration::from_secs(30 * 60);
/// New Events: so many at once, then one each so often.
const BURST: u32 = 50;
const REFILL: Duration = Duration::from_secs(2);
/// Beyond this, the oldest are forgotten first.
const MOST_REMEMBERED: usize = 4096;

#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    Create {
        name: String,
    },
    /// Say that it happened `count` times by now.
    Repeat {
        name: String,
        count: u32,
    },
    /// Counted; the series is told about later.
    Quiet,
    /// Over the rate.
    Drop,
}

#[derive(Debug, Default)]
pub(super) struct Limiter {
    sent: HashMap<Key, Sent>,
    tokens: Option<Tokens>,
}

/// The note is part of it: two ports of one Service may fail for two reasons.
type Key = (Regarding, &'static str, String);

#[derive(Debug)]
struct Sent {
    name: String,
    count: u32,
    seen: Instant,
    told: Instant,
}

#[derive(Debug)]
struct Tokens {
    left: u32,
    counted: Instant,
}

impl Limiter {
    pub(super) fn decide(&mut self, event: &Event, now: Instant, name: impl FnOnce() -> String) -> Decision {
        let key = (event.regarding.clone(), event.reason, event.note.clone());
        if let Some(sent) = self.sent.get_mut(&key)
            && now.saturating_duration_since(sent.seen) < SERIES_END
        {
            sent.count = sent.count.saturating_add(1);
            sent.seen = now;
            if event.shared.is_some() {
                // One node cannot count for all; but the API server forgets Events, after an hour by default.
                if now.saturating_duration_since(sent.told) < SHARED_STEP {
                    return Decision::Quiet;
                }
                sent.told = now;
                return Decision::Create { name: sent.name.clone() };
            }
            // The first repeat makes the series known at once.
            if sent.count > 2 && now.saturating_duration_since(sent.told) < SERIES_STEP {
                return Decision::Quiet;
            }
            sent.told = now;
            return Decision::Repeat { name: sent.name.clone(), count: sent.count };
        }
        if !self.take_token(now) {
            return Decision::Drop;
        }
        self.forget(now);
        let name = name();
        self.sent.insert(key, Sent { name: name.clone(), count: 1, seen: now, told: now });
        Decision::Create { name }
    }

    fn take_token(&mut self, now: Instant) -> bool {
        let tokens = self.tokens.get_or_insert(Tokens { left: BURST, counted: now });
        let passed = now.saturating_duration_since(tokens.counted).as_millis() / REFILL.as_millis();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if passed > 0 {
            tokens.left = tokens.left.saturating_add(passed).min(BURST);
            tokens.counted += REFILL * passed.min(BURST);
            if tokens.left == BURST {
                tokens.counted = now;
            }
        }
        let allowed = tokens.left > 0;
        tokens.left = tokens.left.saturating_sub(1);
        allowed
    }

    fn forget(&mut self, now: Instant) {
        if self.sent.len() < MOST_REMEMBERED {
            return;
        }
        self.sent.retain(|_, sent| now.saturating_duration_since(sent.seen) < SERIES_END);
        while self.sent.len() >= MOST_REMEMBERED {
            let oldest = self.sent.iter().min_by_key(|(_, sent)| sent.seen).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            self.sent.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_core::model::ServiceName;

    use super::*;

    fn event(number: usize) -> Event {
        Event::service_health_check_failed(&ServiceName::new("ns", &format!("s{number}")), String::new())
    }

    fn created(name: &str) -> Decision {
        Decision::Create { name: name.to_owned() }
    }

    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn begin() -> (Limiter, Instant) {
        (Limiter::default(), Instant::now())
    }

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(60 * count)
    }

    #[test]
    fn repeats_become_a_series_that_is_told_about_now_and_then() {
        let (mut limiter, now) = begin();
        let mut at = |after| limiter.decide(&event(1), now + after, || "x".to_owned());
        assert_eq!(at(minutes(0)), created("x"));
        assert_eq!(at(minutes(1)), Decision::Repeat { name: "x".to_owned(), count: 2 });
        assert_eq!(at(minutes(2)), Decision::Quiet);
        assert_eq!(at(minutes(3)), Decision::Quiet);
        assert_eq!(at(minutes(7)), Decision::Repeat { name: "x".to_owned(), count: 5 });
        assert_eq!(at(minutes(19)), created("x"), "a new one after a long silence");
    }

    #[test]
    fn what_all_nodes_say_is_said_again_only_when_it_may_be_forgotten() {
        let (mut limiter, now) = begin();
        let service = ServiceName::new("ns", "s");
        let event = Event::address_conflict(&service, &ServiceName::new("ns", "old"), "192.0.2.1 80/TCP", 1);
        let mut decisions = Vec::new();
        for step in 0..8 {
            decisions.push(limiter.decide(&event, now + minutes(step * 10), || "x".to_owned()));
        }
        let made: Vec<usize> = (0..8).filter(|&at| decisions[at] == created("x")).collect();
        assert_eq!(made, [0, 3, 6]);
        assert_eq!(decisions[1], Decision::Quiet);
    }

    #[test]
    fn a_flood_is_cut_off_and_recovers() {
        let (mut limiter, now) = begin();
        let mut allowed = 0;
        for number in 0..500 {
            if limiter.decide(&event(number), now, || "x".to_owned()) != Decision::Drop {
                allowed += 1;
            }
        }
        assert_eq!(allowed, 50);
        assert_eq!(
            limiter.decide(&event(900), now + Duration::from_secs(2), || "y".to_owned()),
            created("y")
        );
        assert_eq!(
            limiter.decide(&event(901), now + Duration::from_secs(3), || "y".to_owned()),
            Decision::Drop
        );
        let later = now + minutes(60);
        let allowed =
            (1000..2000).filter(|&n| limiter.decide(&event(n), later, String::new) != Decision::Drop);
        assert_eq!(allowed.count(), 50, "the bucket does not grow beyond its size");
    }

    #[test]
    fn other_notes_are_other_events() {
        let (mut limiter, now) = begin();
        let name = ServiceName::new("ns", "s");
        for note in ["a", "b"] {
            let event = Event::service_health_check_failed(&name, note.to_owned());
            assert_eq!(limiter.decide(&event, now, || note.to_owned()), created(note));
        }
    }

    #[test]
    fn memory_is_bounded() {
        let (mut limiter, now) = begin();
        for number in 0..MOST_REMEMBERED + 500 {
            let at = now + REFILL * u32::try_from(number).expect("small");
            assert_eq!(limiter.decide(&event(number), at, || "x".to_owned()), created("x"));
        }
        assert!(limiter.sent.len() <= MOST_REMEMBERED);
    }
}
