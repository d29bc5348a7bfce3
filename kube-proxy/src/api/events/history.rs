//! What was said before: a repeat is counted, and told as a growing series every few minutes.

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
/// Beyond this, the oldest are forgotten first.
const MOST_REMEMBERED: usize = 4096;

/// What becomes of an Event that was handed over.
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
}

#[derive(Debug, Default)]
pub(super) struct History {
    said: HashMap<Key, Said>,
}

/// The note is part of it: two ports of one Service may fail for two reasons.
pub(super) type Key = (Regarding, &'static str, String);

pub(super) fn key(event: &Event) -> Key {
    (event.regarding.clone(), event.reason, event.note.clone())
}

#[derive(Debug)]
struct Said {
    name: String,
    count: u32,
    seen: Instant,
    told: Instant,
}

impl History {
    pub(super) fn decide(&mut self, event: &Event, now: Instant, name: impl FnOnce() -> String) -> Decision {
        if let Some(said) = self.said.get_mut(&key(event))
            && now.saturating_duration_since(said.seen) < SERIES_END
        {
            said.count = said.count.saturating_add(1);
            said.seen = now;
            if event.shared.is_some() {
                // One node cannot count for all; but the API server forgets Events, after an hour by default.
                if now.saturating_duration_since(said.told) < SHARED_STEP {
                    return Decision::Quiet;
                }
                said.told = now;
                return Decision::Create { name: said.name.clone() };
            }
            // The first repeat makes the series known at once.
            if said.count > 2 && now.saturating_duration_since(said.told) < SERIES_STEP {
                return Decision::Quiet;
            }
            said.told = now;
            return Decision::Repeat { name: said.name.clone(), count: said.count };
        }
        self.make_room(now);
        let name = name();
        self.said.insert(key(event), Said { name: name.clone(), count: 1, seen: now, told: now });
        Decision::Create { name }
    }

    /// It was not said after all: the next time it is new.
    pub(super) fn forget(&mut self, key: &Key) {
        self.said.remove(key);
    }

    fn make_room(&mut self, now: Instant) {
        if self.said.len() < MOST_REMEMBERED {
            return;
        }
        self.said.retain(|_, said| now.saturating_duration_since(said.seen) < SERIES_END);
        if self.said.len() < MOST_REMEMBERED {
            return;
        }
        // A quarter at a time, so that a flood does not look for the oldest once for each of its Events.
        let mut seen: Vec<Instant> = self.said.values().map(|said| said.seen).collect();
        let (_, bound, _) = seen.select_nth_unstable(MOST_REMEMBERED / 4);
        let bound = *bound;
        let mut left = MOST_REMEMBERED / 4;
        self.said.retain(|_, said| {
            let go = said.seen <= bound && left > 0;
            left -= usize::from(go);
            !go
        });
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
    fn begin() -> (History, Instant) {
        (History::default(), Instant::now())
    }

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(60 * count)
    }

    #[test]
    fn repeats_become_a_series_that_is_told_about_now_and_then() {
        let (mut history, now) = begin();
        let mut at = |after| history.decide(&event(1), now + after, || "x".to_owned());
        assert_eq!(at(minutes(0)), created("x"));
        assert_eq!(at(minutes(1)), Decision::Repeat { name: "x".to_owned(), count: 2 });
        assert_eq!(at(minutes(2)), Decision::Quiet);
        assert_eq!(at(minutes(3)), Decision::Quiet);
        assert_eq!(at(minutes(7)), Decision::Repeat { name: "x".to_owned(), count: 5 });
        assert_eq!(at(minutes(19)), created("x"), "a new one after a long silence");
    }

    #[test]
    fn what_all_nodes_say_is_said_again_only_when_it_may_be_forgotten() {
        let (mut history, now) = begin();
        let service = ServiceName::new("ns", "s");
        let event = Event::address_conflict(&service, &ServiceName::new("ns", "old"), "192.0.2.1 80/TCP", 1);
        let mut decisions = Vec::new();
        for step in 0..8 {
            decisions.push(history.decide(&event, now + minutes(step * 10), || "x".to_owned()));
        }
        let made: Vec<usize> = (0..8).filter(|&at| decisions[at] == created("x")).collect();
        assert_eq!(made, [0, 3, 6]);
        assert_eq!(decisions[1], Decision::Quiet);
    }

    #[test]
    fn other_notes_are_other_events() {
        let (mut history, now) = begin();
        let name = ServiceName::new("ns", "s");
        for note in ["a", "b"] {
            let event = Event::service_health_check_failed(&name, note.to_owned());
            assert_eq!(history.decide(&event, now, || note.to_owned()), created(note));
        }
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go() {
        let (mut history, now) = begin();
        let seconds = |number: usize| Duration::from_millis(number as u64);
        for number in 0..MOST_REMEMBERED + 500 {
            assert_eq!(
                history.decide(&event(number), now + seconds(number), || "x".to_owned()),
                created("x")
            );
            assert!(history.said.len() <= MOST_REMEMBERED);
        }
        assert!(history.said.len() > MOST_REMEMBERED / 2);
        assert!(history.said.contains_key(&key(&event(MOST_REMEMBERED + 499))));
        assert!(!history.said.contains_key(&key(&event(0))));
    }
}
