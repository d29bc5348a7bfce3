//! Random histories of a server, in virtual time: whatever it does, the reflector asks no more often than its pauses
//! allow, never believes the past, and once the server is well, knows what the server knows.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{tests::Play, *};

/// What the server does with one request.
#[derive(Debug, Clone)]
enum Deed {
    /// As it should.
    Well,
    Refuse(u16),
    TooLarge,
    ConnectionRefused,
    Reset,
    /// Accepts and ends at once.
    EndAtOnce,
    /// Answers and then says nothing.
    Silence,
    /// Tells a part and breaks.
    Half,
    /// Answers lists from a state that lags so many changes.
    Lag(usize),
    /// The watch ends with this error after the changes.
    Error(u16),
}

#[derive(Debug, Clone)]
struct Turn {
    deed: Deed,
    /// What changes in the cluster before it.
    changes: Vec<(u8, bool)>,
    /// The history before now is forgotten.
    compact: bool,
    /// The storage is put back by so many changes.
    restore: Option<usize>,
    /// How long a watch lives.
    lives: u16,
    /// A watch from a version that is yet to come is accepted and silent.
    silent_future: bool,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => Just(Deed::Well),
        2 => prop::sample::select(vec![400_u16, 401, 403, 404, 410, 422, 429, 500, 503]).prop_map(Deed::Refuse),
        1 => Just(Deed::TooLarge),
        1 => Just(Deed::ConnectionRefused),
        1 => Just(Deed::Reset),
        1 => Just(Deed::EndAtOnce),
        1 => Just(Deed::Silence),
        1 => Just(Deed::Half),
        2 => (1_usize..4).prop_map(Deed::Lag),
        1 => prop::sample::select(vec![410_u16, 500, 504]).prop_map(Deed::Error),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    (
        deed(),
        prop::collection::vec((0_u8..6, any::<bool>()), 0..4),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.05, 1_usize..5),
        prop_oneof![Just(0_u16), 1_u16..3, 1_u16..700],
        any::<bool>(),
    )
        .prop_map(|(deed, changes, compact, restore, lives, silent_future)| Turn {
            deed,
            changes,
            compact,
            restore,
            lives,
            silent_future,
        })
}

type Cluster = BTreeMap<String, u64>;

/// The states of the cluster, by version; the last is the present one.
struct Server {
    states: Vec<(u64, Cluster)>,
    forgotten: u64,
}

impl Server {
    fn version(&self) -> u64 {
        self.states[self.states.len() - 1].0
    }

    fn present(&self) -> &Cluster {
        &self.states[self.states.len() - 1].1
    }

    fn change(&mut self, name: u8, delete: bool) {
        let version = self.version() + 1;
        let mut cluster = self.present().clone();
        let name = format!("object-{name}");
        if delete {
            cluster.remove(&name);
        } else {
            cluster.insert(name, version);
        }
        self.states.push((version, cluster));
    }

    /// A long history needs its latest states only.
    fn forget_but(&mut self, states: usize) {
        let old = self.states.len().saturating_sub(states);
        self.states.drain(..old);
        self.forgotten = self.forgotten.max(self.states[0].0);
    }

    /// The changes after a version.
    fn events(&self, after: u64) -> Vec<Event<String>> {
        let mut events = Vec::new();
        for pair in self.states.windows(2) {
            let ((_, before), (version, now)) = (&pair[0], &pair[1]);
            if *version <= after {
                continue;
            }
            for (name, changed) in now {
                if before.get(name) != Some(changed) {
                    events.push(applied(name, *changed));
                }
            }
            for name in before.keys().filter(|name| !now.contains_key(*name)) {
                let version = Version::new(&version.to_string());
                events.push(Event::Deleted { name: ObjectName::new("", name), version });
            }
        }
        events
    }
}

fn too_large() -> Refusal {
    Refusal { code: 504, too_large: true, ..Refusal::default() }
}

fn applied(name: &str, version: u64) -> Event<String> {
    let object = format!("{name}@{version}");
    Event::Applied { name: ObjectName::new("", name), version: Version::new(&version.to_string()), object }
}

struct History {
    play: Play,
    server: Server,
    /// What the reflector told.
    view: Cluster,
    /// When requests were sent, and whether what came of them was a failure.
    sent: Vec<(Instant, bool)>,
    /// The newest version that any complete list or event was of, since the storage was last put back.
    newest: u64,
}

impl History {
    fn new(seed: u64) -> Self {
        let server = Server { states: vec![(10, Cluster::new())], forgotten: 0 };
        let play = Play::begin(Selection::default(), seed);
        Self { play, server, view: Cluster::new(), sent: Vec::new(), newest: 0 }
    }

    fn turn(&mut self, turn: &Turn) {
        for (name, delete) in &turn.changes {
            if !self.would_hide_a_restore() {
                self.server.change(*name, *delete);
            }
        }
        if turn.compact {
            self.server.forgotten = self.server.version();
        }
        if let Some(back) = turn.restore {
            let kept = self.server.states.len().saturating_sub(back).max(1);
            self.server.states.truncate(kept);
            self.newest = 0;
        }
        let request = loop {
            match self.play.reflector.next(self.play.now) {
                Next::Ask(request) => break request,
                Next::Wait(at) => self.play.now = at.max(self.play.now),
            }
        };
        let sent = self.play.now;
        self.answer(&request, turn);
        // Whoever did not end by itself is ended by its time, or goes on with the next turn's changes.
        let failed = self
            .play
            .reflector
            .take_notes()
            .iter()
            .any(|note| matches!(note, Note::Failed { wait, .. } if !wait.is_zero()));
        self.sent.push((sent, failed));
        self.take();
    }

    /// A storage that was put back, and has counted up to the version that was seen before anybody asked it, cannot be told
    /// from one that was not.
    fn would_hide_a_restore(&self) -> bool {
        let seen = self.play.reflector.seen.as_ref().and_then(Version::number);
        self.newest == 0 && seen == Some(self.server.version() + 1)
    }

    fn take(&mut self) {
        for told in std::mem::take(&mut self.play.told) {
            match told {
                Told::Applied(object) => {
                    let (name, version) = object.split_once('@').expect("as it was made");
                    self.view.insert(name.to_owned(), version.parse().expect("a number"));
                }
                Told::Gone(name) => drop(self.view.remove(name.name())),
                Told::Listed => {}
            }
        }
    }

    fn answer(&mut self, request: &Request, turn: &Turn) {
        let now = self.play.now;
        let reflector = &mut self.play.reflector;
        match &turn.deed {
            Deed::Refuse(code) => {
                return reflector.refused(now, &Refusal { code: *code, ..Refusal::default() });
            }
            Deed::TooLarge => return reflector.refused(now, &too_large()),
            Deed::ConnectionRefused => return reflector.unreachable(now, true, String::new()),
            Deed::Reset => return reflector.unreachable(now, false, String::new()),
            Deed::EndAtOnce => return reflector.ended(now, None),
            Deed::Silence => {
                reflector.opened(now);
                self.play.now = reflector.deadline();
                return self.play.reflector.silent(self.play.now);
            }
            Deed::Well | Deed::Half | Deed::Lag(_) | Deed::Error(_) => {}
        }
        // A server that lags is one that does not know the latest changes, and does not say so.
        let lag = if let Deed::Lag(lag) = turn.deed { lag } else { 0 };
        match &request.verb {
            Verb::List { from, .. } => self.list(from, lag, matches!(turn.deed, Deed::Half)),
            Verb::Stream { from, .. } => self.stream(from, lag, turn),
            Verb::Watch { from, .. } => {
                let from = from.number().expect("a number");
                if from < self.server.forgotten {
                    return reflector.refused(now, &Refusal { code: 410, ..Refusal::default() });
                }
                if from > self.server.version() {
                    if turn.silent_future {
                        return self.silence();
                    }
                    return reflector.refused(now, &too_large());
                }
                reflector.opened(now);
                self.follow(from, turn);
            }
        }
    }

    /// A watch of which nothing is heard, beside a storage that answers.
    fn silence(&mut self) {
        let Play { reflector, now, .. } = &mut self.play;
        reflector.opened(*now);
        while let Some(at) = reflector.doubt_at().filter(|at| *at < reflector.deadline()) {
            *now = at;
            let Some(request) = reflector.doubt(*now) else { continue };
            let Verb::List { from: From::NotBefore(version), limit: Some(1), .. } = &request.verb else {
                panic!("{request:?}")
            };
            let newest = self.server.version();
            let go = if version.number().expect("a number") > newest {
                reflector.doubt_refused(*now, &too_large())
            } else {
                reflector.doubt_answered(*now, &Version::new(&newest.to_string()))
            };
            if go == Go::Away {
                return;
            }
        }
        *now = reflector.deadline();
        reflector.silent(*now);
    }

    /// The state to answer from; `None` where the reflector was told why not.
    fn state(&mut self, from: &From, lag: usize) -> Option<(u64, Cluster)> {
        // The newest is asked of the storage, which does not lag.
        let lag = if *from == From::Newest { 0 } else { lag };
        if let From::NotBefore(version) = from
            && version.number().expect("a number") > self.server.version()
        {
            self.play.reflector.refused(self.play.now, &too_large());
            return None;
        }
        let index = (self.server.states.len() - 1).saturating_sub(lag);
        Some(self.server.states[index].clone())
    }

    fn list(&mut self, from: &From, lag: usize, half: bool) {
        let Some((version, cluster)) = self.state(from, lag) else { return };
        let Play { reflector, now, told } = &mut self.play;
        if reflector.page(*now, &Version::new(&version.to_string())) == Go::Away {
            return;
        }
        for (name, version) in cluster.iter().take(if half { cluster.len() / 2 } else { usize::MAX }) {
            let object = format!("{name}@{version}");
            let version = Version::new(&version.to_string());
            reflector.listed(ObjectName::new("", name), &version, object, &mut |word| told.push(word));
        }
        if half {
            return reflector.ended(*now, None);
        }
        reflector.page_end(*now, None, &mut |word| told.push(word));
        self.believed(version);
    }

    fn stream(&mut self, from: &From, lag: usize, turn: &Turn) {
        let Some((version, cluster)) = self.state(from, lag) else { return };
        let half = matches!(turn.deed, Deed::Half);
        for (name, version) in cluster.iter().take(if half { cluster.len() / 2 } else { usize::MAX }) {
            if self.event(applied(name, *version)) == Go::Away {
                return;
            }
        }
        if half {
            return self.play.reflector.ended(self.play.now, None);
        }
        let end = Event::Bookmark { version: Version::new(&version.to_string()), ends_list: true };
        if self.event(end) == Go::On {
            self.believed(version);
            self.follow(version, turn);
        }
    }

    fn follow(&mut self, from: u64, turn: &Turn) {
        let half = matches!(turn.deed, Deed::Half);
        let events = self.server.events(from);
        let count = if half { events.len() / 2 } else { events.len() };
        for event in events.into_iter().take(count) {
            let (Event::Applied { version, .. } | Event::Deleted { version, .. }) = &event else { continue };
            let version = version.number().expect("a number");
            if self.event(event) == Go::Away {
                return;
            }
            self.believed(version);
        }
        self.play.now += Duration::from_secs(turn.lives.into());
        if let Deed::Error(code) = turn.deed {
            let refusal = Refusal { code, too_large: code == 504, ..Refusal::default() };
            assert_eq!(self.event(Event::Error(refusal)), Go::Away);
            return;
        }
        self.play.reflector.ended(self.play.now, None);
    }

    fn event(&mut self, event: Event<String>) -> Go {
        let Play { reflector, now, told } = &mut self.play;
        reflector.event(*now, event, &mut |word| told.push(word))
    }

    /// Nothing that is complete is older than what was complete before.
    fn believed(&mut self, version: u64) {
        assert!(version >= self.newest, "version {version} is believed after {}", self.newest);
        self.newest = version;
    }

    /// After a failure follows a pause, and never are there more than four requests without one: two where the answer
    /// says that asking differently helps, the one before them, and the watch after a list.
    fn assert_paced(&self) {
        for pair in self.sent.windows(2) {
            let ((sent, failed), (next, _)) = (pair[0], pair[1]);
            assert!(!failed || next - sent >= Duration::from_millis(800), "after {:?}", next - sent);
        }
        for some in self.sent.windows(5) {
            let time = some[4].0 - some[0].0;
            assert!(time >= Duration::from_millis(800), "5 requests within {time:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_server_does(turns in prop::collection::vec(turn(), 1..60), seed: u64) {
        let mut history = History::new(seed);
        for turn in &turns {
            history.turn(turn);
        }
        history.assert_paced();
        // Then all is well.
        let well = Turn { deed: Deed::Well, changes: vec![], compact: false, restore: None, lives: 60, silent_future: false };
        let begun = history.play.now;
        for _ in 0..5 {
            history.turn(&well);
        }
        prop_assert_eq!(&history.view, history.server.present());
        prop_assert!(history.play.reflector.known.len() == history.view.len());
        prop_assert!(history.play.now - begun < Duration::from_secs(10 * 60), "it took {:?}", history.play.now - begun);
    }

    #[test]
    fn a_server_that_only_fails_is_asked_no_more_often_than_the_pauses_say(
        deeds in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec![401_u16, 403, 429, 500, 503]).prop_map(Deed::Refuse),
                Just(Deed::ConnectionRefused), Just(Deed::Reset), Just(Deed::EndAtOnce), Just(Deed::Silence),
            ], 30),
        seed: u64,
    ) {
        let mut history = History::new(seed);
        for deed in deeds {
            history.turn(&Turn {
                deed,
                changes: vec![],
                compact: false,
                restore: None,
                lives: 0,
                silent_future: false,
            });
        }
        for (nth, pair) in history.sent.windows(2).enumerate() {
            let least = (0.8 * f64::from(1 << nth.min(10))).min(30.0);
            prop_assert!((pair[1].0 - pair[0].0).as_secs_f64() > least - 1e-6, "request {nth}");
        }
    }
}

#[test]
fn ten_thousand_faults_leave_nothing_behind() {
    use proptest::strategy::ValueTree as _;

    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut history = History::new(1);
    let mut faults = 0;
    while faults < 10_000 {
        let turn = turn().new_tree(&mut runner).expect("nothing is rejected").current();
        faults += u32::from(!matches!(turn.deed, Deed::Well));
        history.turn(&turn);
        // As few objects as there are names, and as many held back as one list has.
        assert!(history.play.reflector.known.len() <= 12, "{}", history.play.reflector.known.len());
        assert_eq!(history.play.reflector.unreadable.len(), 0);
        history.sent.clear();
        history.server.forget_but(20);
    }
}
