//! What is asked and believed, in virtual time: each test is one row of what a server can do wrong.

use super::*;

/// A reflector and its clock. Objects are told by a word.
pub(super) struct Play {
    pub(super) reflector: Reflector<String>,
    pub(super) now: Instant,
    pub(super) told: Vec<Told<String>>,
}

impl Play {
    #[expect(clippy::disallowed_methods, reason = "somewhere to begin")]
    pub(super) fn begin(selection: Selection, seed: u64) -> Self {
        let now = Instant::now();
        Self { reflector: Reflector::new(selection, seed, now), now, told: Vec::new() }
    }

    fn new() -> Self {
        Self::begin(Selection::default(), 1)
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Waits for the next request, and for how long.
    fn ask(&mut self) -> (Duration, String) {
        let begun = self.now;
        loop {
            match self.reflector.next(self.now) {
                Next::Ask(request) => return (self.now - begun, request.query()),
                Next::Wait(at) => self.now = at.max(self.now),
            }
        }
    }

    /// The next request, which must be that and come at once.
    fn at_once(&mut self, part: &str) {
        let (waited, query) = self.ask();
        assert_eq!(waited, Duration::ZERO, "{query}");
        assert!(query.contains(part), "{query} has no {part}");
    }

    /// The next request, which must be that and come after the pause of the n-th failure in a row.
    fn after_failure(&mut self, nth: u32, part: &str) {
        let (waited, query) = self.ask();
        let least = (0.8 * f64::from(1 << nth)).min(30.0);
        let waited = waited.as_secs_f64();
        assert!(
            (least - 1e-6..=least * 1.5 + 1e-6).contains(&waited),
            "{waited} after failure {nth}: {query}"
        );
        assert!(query.contains(part), "{query} has no {part}");
    }

    fn event(&mut self, event: Event<String>) -> Go {
        self.reflector.event(self.now, event, &mut |told| self.told.push(told))
    }

    fn applied(&mut self, name: &str, version: u64) -> Go {
        let object = format!("{name}@{version}");
        self.event(Event::Applied { name: named(name), version: at(version), object })
    }

    fn bookmark(&mut self, version: u64, ends_list: bool) -> Go {
        self.event(Event::Bookmark { version: at(version), ends_list })
    }

    fn refuse(&mut self, code: u16) {
        self.reflector.refused(self.now, &Refusal { code, ..Refusal::default() });
    }

    fn too_large(&mut self) {
        let refusal = Refusal { code: 504, too_large: true, ..Refusal::default() };
        self.reflector.refused(self.now, &refusal);
    }

    /// A whole list in one page.
    fn list(&mut self, version: u64, objects: &[(&str, u64)]) -> Go {
        if self.reflector.page(self.now, &at(version)) == Go::Away {
            return Go::Away;
        }
        for (name, version) in objects {
            let object = format!("{name}@{version}");
            self.reflector.listed(named(name), &at(*version), object, &mut |told| self.told.push(told));
        }
        self.reflector.page_end(self.now, None, &mut |told| self.told.push(told));
        Go::On
    }

    /// What was told since this was asked last, as words.
    fn heard(&mut self) -> Vec<String> {
        let word = |told| match told {
            Told::Applied(object) => object,
            Told::Gone(name) => format!("-{}", name.name()),
            Told::Listed => "listed".to_owned(),
        };
        let mut words: Vec<String> = self.told.drain(..).map(word).collect();
        words.sort();
        words
    }

    /// A watch that runs from version 100, with two objects.
    fn watching() -> Self {
        let mut play = Self::new();
        play.at_once("sendInitialEvents=true");
        assert_eq!(play.applied("a", 50), Go::On);
        assert_eq!(play.applied("b", 60), Go::On);
        assert_eq!(play.bookmark(100, true), Go::On);
        assert_eq!(play.heard(), ["a@50", "b@60", "listed"]);
        play
    }
}

fn named(name: &str) -> ObjectName {
    ObjectName::new("ns", name)
}

fn at(version: u64) -> Version {
    Version::new(&version.to_string())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn row_1_a_list_that_is_refused_again_and_again_is_asked_for_ever_more_rarely() {
    for code in [500, 503, 403, 401, 404, 429] {
        let mut play = Play::new();
        play.at_once("resourceVersion=0");
        for nth in 0..12 {
            play.refuse(code);
            play.after_failure(nth, "resourceVersion=0");
        }
    }
}

#[test]
fn row_2_a_streamed_list_or_a_watch_that_ends_at_once_has_failed() {
    let mut play = Play::new();
    play.at_once("sendInitialEvents");
    for nth in 0..12 {
        play.reflector.ended(play.now, None);
        play.after_failure(nth, "resourceVersion=0");
    }
    let mut play = Play::watching();
    play.pass(seconds(2));
    play.reflector.ended(play.now, None);
    play.at_once("watch=true&resourceVersion=100");
    // What is told with it changes nothing if it is nothing new.
    assert_eq!(play.bookmark(100, false), Go::On);
    play.reflector.ended(play.now, None);
    play.after_failure(0, "resourceVersion=100");
    for nth in 1..8 {
        // Lists work, watches do not.
        assert_eq!(play.list_or_stream(100), Go::On);
        if play.reflector.seen.is_some() && matches!(play.reflector.state, State::Due { .. }) {
            play.at_once("watch=true&resourceVersion=100");
        }
        play.reflector.ended(play.now, None);
        play.after_failure(nth, "resourceVersion=100");
    }
}

impl Play {
    fn list_or_stream(&mut self, version: u64) -> Go {
        match self.reflector.state {
            State::Streaming { .. } => self.bookmark(version, true),
            _ => self.list(version, &[]),
        }
    }
}

#[test]
fn row_3_a_watch_that_cannot_be_started_leads_to_a_new_list() {
    for code in [410, 500, 403, 400, 422, 302] {
        let mut play = Play::watching();
        play.pass(seconds(60));
        play.reflector.ended(play.now, None);
        play.at_once("watch=true&resourceVersion=100");
        play.refuse(code);
        play.after_failure(0, "resourceVersion=100&resourceVersionMatch=NotOlderThan");
    }
}

#[test]
fn row_3_a_server_that_is_busy_or_not_there_is_asked_the_same_again() {
    let mut play = Play::watching();
    play.pass(seconds(60));
    play.reflector.ended(play.now, None);
    play.at_once("watch=true&resourceVersion=100");
    play.refuse(429);
    play.after_failure(0, "watch=true&resourceVersion=100");
    play.reflector.unreachable(play.now, true, "refused".to_owned());
    play.after_failure(1, "watch=true&resourceVersion=100");
    let busy = Refusal { code: 429, retry_after: Some(seconds(17)), ..Refusal::default() };
    play.reflector.refused(play.now, &busy);
    assert_eq!(play.ask().0, seconds(17), "the server says when");
    play.reflector.unreachable(play.now, false, "reset".to_owned());
    play.after_failure(3, "resourceVersionMatch=NotOlderThan");
}

#[test]
fn row_4_where_the_version_is_not_to_be_had_the_newest_is_listed_at_once() {
    // At the start of a watch, in a watch, and by HTTP 410 first.
    for how in 0..4 {
        let mut play = Play::watching();
        play.pass(seconds(60));
        play.reflector.ended(play.now, None);
        play.at_once("watch=true&resourceVersion=100");
        match how {
            0 => play.too_large(),
            1 => {
                let refusal = Refusal { code: 504, too_large: true, ..Refusal::default() };
                assert_eq!(play.event(Event::Error(refusal)), Go::Away);
            }
            2 => {
                // A bookmark tells that the storage is older than what was seen.
                assert_eq!(play.bookmark(40, false), Go::Away);
                play.at_once("resourceVersion=100");
                play.too_large();
            }
            _ => {
                play.refuse(410);
                play.after_failure(0, "resourceVersion=100");
                play.too_large();
            }
        }
        let (waited, query) = play.ask();
        assert_eq!(waited, Duration::ZERO, "{how}: {query}");
        assert!(!query.contains("resourceVersion="), "{how}: {query}");
        assert_eq!(play.applied("a", 30), Go::On);
        assert_eq!(play.bookmark(40, true), Go::On);
        assert_eq!(play.heard(), ["-b", "a@30", "listed"], "{how}");
        play.pass(seconds(60));
        play.reflector.ended(play.now, None);
        play.at_once("watch=true&resourceVersion=40");
    }
}

#[test]
fn row_4_a_watch_that_is_silent_after_an_interruption_is_doubted_once_a_minute() {
    let mut play = Play::watching();
    let mut asked: Option<Instant> = None;
    for interruption in 0..4 {
        play.pass(seconds(20));
        play.reflector.ended(play.now, Some("reset".to_owned()));
        play.at_once("watch=true&resourceVersion=100");
        play.reflector.unreachable(play.now, true, "refused".to_owned());
        play.ask();
        assert_eq!(play.reflector.doubt_at(), None, "nothing was accepted");
        play.reflector.opened(play.now);
        let at = play.reflector.doubt_at().expect("it is doubted");
        assert!(asked.is_none_or(|asked| at - asked >= seconds(60)), "{interruption}");
        assert!(asked.is_some() || at - play.now <= seconds(1), "the first one waits");
        if at - play.now < seconds(20) {
            play.now = at;
            let request = play.reflector.doubt(play.now).expect("it is time").query();
            assert_eq!(request, "resourceVersion=100&resourceVersionMatch=NotOlderThan&limit=1");
            assert_eq!(play.reflector.doubt(play.now), None);
            asked = Some(at);
            // It cannot say.
            let unknown = Refusal { code: 500, ..Refusal::default() };
            assert_eq!(play.reflector.doubt_refused(play.now, &unknown), Go::On);
        }
    }
    // A word of the watch, or of the server, settles it.
    assert_eq!(play.bookmark(101, false), Go::On);
    assert_eq!(play.reflector.doubt_at(), None);
    play.pass(seconds(61));
    play.reflector.ended(play.now, None);
    play.at_once("watch=true&resourceVersion=101");
    play.reflector.opened(play.now);
    assert!(play.reflector.doubt_at().is_some());
    assert_eq!(play.reflector.doubt_answered(play.now, &at(102)), Go::On);
    assert_eq!(play.reflector.doubt_at(), None);
}

#[test]
fn row_4_a_storage_that_never_knew_the_version_is_listed_at_once() {
    let mut play = Play::watching();
    play.pass(seconds(60));
    play.reflector.ended(play.now, None);
    play.at_once("watch=true&resourceVersion=100");
    play.reflector.opened(play.now);
    play.now = play.reflector.doubt_at().expect("it ended before its time");
    assert!(play.reflector.doubt(play.now).is_some());
    let too_large = Refusal { code: 504, too_large: true, ..Refusal::default() };
    assert_eq!(play.reflector.doubt_refused(play.now, &too_large), Go::Away);
    let (waited, query) = play.ask();
    assert!(waited.is_zero() && !query.contains("resourceVersion="), "{query}");
    assert_eq!(play.bookmark(40, true), Go::On);
    assert_eq!(play.heard(), ["-a", "-b", "listed"]);
}

#[test]
fn a_watch_that_ends_when_it_was_to_end_is_not_doubted() {
    let mut play = Play::watching();
    play.pass(seconds(600));
    play.reflector.ended(play.now, None);
    play.at_once("watch=true&resourceVersion=100");
    play.reflector.opened(play.now);
    assert_eq!(play.reflector.doubt_at(), None);
}

#[test]
fn only_a_watch_that_lived_ends_the_growth_of_the_pauses() {
    let mut play = Play::watching();
    play.pass(seconds(60));
    play.reflector.ended(play.now, None);
    play.at_once("watch=true");
    for nth in 0..4 {
        play.reflector.unreachable(play.now, true, "refused".to_owned());
        play.after_failure(nth, "watch=true&resourceVersion=");
    }
    // Accepted and broken at once: worse still, whatever it tells.
    let _ = play.applied("a", 110);
    play.refuse(500);
    play.after_failure(4, "resourceVersion=110");
    assert_eq!(play.bookmark(110, true), Go::On);
    play.pass(seconds(2));
    let _ = play.applied("a", 120);
    play.refuse(500);
    assert!(play.reflector.take_notes().contains(&Note::Recovered(5)));
    play.after_failure(0, "resourceVersion=120");
}

#[test]
fn row_5_a_list_of_the_past_is_not_believed() {
    let mut play = Play::watching();
    play.pass(seconds(60));
    assert_eq!(play.event(Event::Error(Refusal { code: 410, ..Refusal::default() })), Go::Away);
    play.after_failure(0, "resourceVersion=100&resourceVersionMatch=NotOlderThan");
    // Streamed: what is told on the way looks old and waits for the end.
    assert_eq!(play.applied("a", 20), Go::On);
    assert_eq!(play.applied("long-gone", 10), Go::On);
    assert_eq!(play.bookmark(90, true), Go::Away);
    assert!(play.heard().is_empty(), "the past is told");
    play.after_failure(1, "resourceVersion=100");
    // Listed.
    play.refuse(422);
    play.at_once("resourceVersion=100&resourceVersionMatch=NotOlderThan");
    assert_eq!(play.list(90, &[]), Go::Away);
    play.after_failure(2, "resourceVersion=100");
    assert_eq!(play.list(130, &[("a", 120)]), Go::On);
    assert_eq!(play.heard(), ["-b", "a@120", "listed"]);
}

#[test]
fn row_5_a_server_that_never_catches_up_is_asked_for_the_newest() {
    let mut play = Play::watching();
    play.pass(seconds(60));
    assert_eq!(play.event(Event::Error(Refusal { code: 410, ..Refusal::default() })), Go::Away);
    let mut asked = 0;
    let query = loop {
        let (_, query) = play.ask();
        if !query.contains("resourceVersion=100") {
            break query;
        }
        asked += 1;
        assert!(asked < 20, "for ever");
        assert_eq!(play.bookmark(90, true), Go::Away);
    };
    assert_eq!(asked, PATIENCE_WITH_THE_PAST);
    assert!(!query.contains("resourceVersion="), "{query}");
}

#[test]
fn an_object_that_looks_old_in_a_list_that_is_new_is_believed_at_its_end() {
    let mut play = Play::watching();
    play.pass(seconds(60));
    play.refuse(500);
    play.after_failure(0, "resourceVersion=100");
    // The storage was put back and has gone on since, past what was seen.
    assert_eq!(play.applied("a", 20), Go::On);
    assert!(play.heard().is_empty());
    assert_eq!(play.bookmark(140, true), Go::On);
    assert_eq!(play.heard(), ["-b", "a@20", "listed"]);
}

#[test]
fn row_6_a_silent_watch_is_given_up() {
    let mut play = Play::watching();
    play.pass(seconds(10));
    let _ = play.bookmark(101, false);
    assert_eq!(play.reflector.deadline(), play.now + WATCH_SILENCE);
    play.pass(WATCH_SILENCE);
    play.reflector.silent(play.now);
    play.at_once("watch=true&resourceVersion=101");
    // A watch of which nothing is heard at all may be one from a version that is not there.
    play.reflector.opened(play.now);
    play.pass(WATCH_SILENCE);
    play.reflector.silent(play.now);
    play.after_failure(0, "resourceVersion=101&resourceVersionMatch=NotOlderThan");
}

#[test]
fn row_9_an_object_that_cannot_be_read_keeps_its_last_state_and_is_asked_for_again() {
    let mut play = Play::watching();
    let unreadable =
        |version| Event::Unreadable { name: named("a"), version: at(version), why: "x".to_owned() };
    assert_eq!(play.event(unreadable(110)), Go::On);
    assert_eq!(play.event(unreadable(110)), Go::On);
    assert_eq!(play.reflector.take_notes(), [Note::Unreadable { name: named("a"), why: "x".to_owned() }]);
    assert!(play.heard().is_empty());
    // It is asked for a few times, ever more rarely, then no more.
    let mut waits = Vec::new();
    while let Some(due) = play.reflector.again_at() {
        waits.push((due - play.now).as_secs());
        play.now = due;
        assert_eq!(play.reflector.again(play.now), Some(named("a")));
        assert!(play.reflector.again(play.now).is_none(), "one at a time");
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32]);
    let query = play.reflector.request_for(&named("a")).query();
    assert!(query.contains("fieldSelector=metadata.name%3Da") && !query.contains("watch"), "{query}");
    // What comes for it is believed only if it is not older than what could not be read.
    for (version, believed) in [(109, false), (110, true)] {
        play.reflector
            .came_again(&named("a"), &at(version), "again".to_owned(), &mut |told| play.told.push(told));
        assert_eq!(!play.heard().is_empty(), believed, "{version}");
    }
    // In a list it counts as there.
    play.refuse(500);
    play.after_failure(0, "sendInitialEvents");
    play.refuse(422);
    play.at_once("resourceVersion=110");
    assert_eq!(play.reflector.page(play.now, &at(120)), Go::On);
    play.reflector.unreadable(play.now, &named("a"), &at(115), "y".to_owned());
    play.reflector.page_end(play.now, None, &mut |told| play.told.push(told));
    assert_eq!(play.heard(), ["-b", "listed"]);
    // It is asked for again while a watch runs; once it is gone, no more.
    play.at_once("watch=true&resourceVersion=120");
    assert!(play.reflector.again_at().is_some());
    assert_eq!(play.event(Event::Deleted { name: named("a"), version: at(130) }), Go::On);
    assert!(play.reflector.again_at().is_none());
}

#[test]
fn row_10_streaming_is_tried_again_after_the_network_was_down() {
    let mut play = Play::new();
    play.at_once("sendInitialEvents=true");
    play.pass(STREAM_SILENCE);
    play.reflector.silent(play.now);
    let (_, query) = play.ask();
    assert!(!query.contains("watch"), "listed for once: {query}");
    assert_eq!(play.list(5, &[]), Go::On);
    play.at_once("watch=true&resourceVersion=5");
    play.pass(seconds(40));
    let _ = play.bookmark(6, false);
    play.refuse(500);
    play.after_failure(0, "sendInitialEvents=true");
}

#[test]
fn a_server_that_does_not_stream_is_asked_to_again_ten_minutes_later() {
    for ignores in [false, true] {
        let mut play = Play::new();
        play.at_once("sendInitialEvents=true");
        if ignores {
            // The objects come, but the end of the list is never told.
            assert_eq!(play.applied("a", 1), Go::On);
            play.pass(STREAM_SILENCE);
            play.reflector.silent(play.now);
        } else {
            play.refuse(422);
        }
        play.at_once("resourceVersion=0&limit=500");
        assert_eq!(play.list(5, &[]), Go::On);
        play.at_once("watch=true");
        play.refuse(500);
        let (_, query) = play.ask();
        assert!(!query.contains("sendInitialEvents"), "{query}");
        assert_eq!(play.list(7, &[]), Go::On);
        play.at_once("watch=true");
        play.pass(NOT_STREAMED);
        play.refuse(500);
        let (_, query) = play.ask();
        assert!(query.contains("sendInitialEvents"), "{query}");
    }
}

#[test]
fn a_field_selector_that_is_not_known_is_left_out() {
    let selection = Selection {
        fields: Some("spec.a!=b".to_owned()),
        fields_may_be_unknown: true,
        ..Selection::default()
    };
    let mut play = Play::begin(selection, 1);
    play.at_once("fieldSelector=spec.a%21%3Db");
    play.refuse(400);
    let (waited, query) = play.ask();
    assert_eq!(waited, Duration::ZERO);
    assert!(!query.contains("fieldSelector"), "{query}");
    play.refuse(400);
    play.after_failure(0, "resourceVersion=0");
}

#[test]
fn a_kind_that_is_not_offered_is_asked_for_rarely() {
    let mut play = Play::begin(Selection { optional: true, ..Selection::default() }, 1);
    for code in [404, 403, 404] {
        play.ask();
        play.refuse(code);
        assert_eq!(play.reflector.next(play.now), Next::Wait(play.now + NOT_OFFERED));
    }
}

#[test]
fn pages_belong_together_and_one_that_expired_leads_to_the_whole_list() {
    let mut play = Play::new();
    play.at_once("sendInitialEvents");
    play.refuse(422);
    play.at_once("limit=500");
    assert_eq!(play.reflector.page(play.now, &at(9)), Go::On);
    play.reflector.listed(named("a"), &at(1), "a".to_owned(), &mut |told| play.told.push(told));
    play.reflector.page_end(play.now, Some("next".to_owned()), &mut |told| play.told.push(told));
    play.at_once("continue=next&limit=500");
    assert_eq!(play.reflector.page(play.now, &at(9)), Go::On);
    play.reflector.listed(named("b"), &at(1), "b".to_owned(), &mut |told| play.told.push(told));
    play.reflector.page_end(play.now, Some("last".to_owned()), &mut |told| play.told.push(told));
    play.at_once("continue=last");
    play.refuse(410);
    let (waited, query) = play.ask();
    assert_eq!((waited, query.contains("limit"), query.contains("continue")), (Duration::ZERO, false, false));
    assert_eq!(play.list(12, &[("b", 11)]), Go::On);
    assert_eq!(play.heard(), ["-a", "a", "b", "b@11", "listed"]);
}

#[test]
fn watches_begin_at_least_so_far_apart_whatever_they_deliver() {
    let mut play = Play::watching();
    for version in 101..120 {
        assert_eq!(play.applied("a", version), Go::On);
        play.reflector.ended(play.now, None);
        let (waited, query) = play.ask();
        assert_eq!(waited, WATCH_SPACING);
        assert!(query.contains(&format!("watch=true&resourceVersion={version}")), "{query}");
    }
}

#[test]
fn lists_that_work_and_watches_that_are_of_the_future_are_no_circle_without_a_pause() {
    let mut play = Play::watching();
    play.pass(seconds(60));
    play.reflector.ended(play.now, None);
    play.at_once("watch=true");
    play.too_large();
    play.at_once("sendInitialEvents");
    play.refuse(422);
    play.at_once("limit=500");
    assert_eq!(play.list(130, &[]), Go::On);
    play.at_once("watch=true&resourceVersion=130");
    play.too_large();
    play.after_failure(0, "");
}

#[test]
fn watches_ask_for_five_to_ten_minutes_at_random() {
    let mut lengths: Vec<u32> = (0..50)
        .map(|seed| {
            let (_, query) = Play::begin(Selection::default(), seed).ask();
            let (_, rest) = query.split_once("timeoutSeconds=").expect("a time");
            rest.parse().expect("a number")
        })
        .collect();
    lengths.sort_unstable();
    lengths.dedup();
    assert!(lengths.len() > 30 && lengths[0] >= 300 && lengths[lengths.len() - 1] < 600, "{lengths:?}");
}

#[test]
fn too_much_that_looks_old_ends_a_streamed_list() {
    let mut play = Play::watching();
    play.pass(seconds(60));
    play.refuse(500);
    play.after_failure(0, "resourceVersion=100");
    let mut held = 0;
    while play.applied(&format!("old-{held}"), 3) == Go::On {
        held += 1;
        assert!(held < 10_000, "without bound");
    }
    let (_, query) = play.ask();
    assert!(!query.contains("resourceVersion="), "only the newest can settle it: {query}");
    assert!(play.heard().is_empty());
    assert_eq!(play.reflector.known.len(), 2);
    assert_eq!(play.reflector.unreadable.len(), 0);
}
