//! Which Event is sent next, and when: a state machine without a clock.
//!
//! What is about this node, and what is about the Services of each namespace, waits in a lane of its own, and lanes take
//! turns. So whoever makes a thousand Services of one namespace worth an Event keeps nobody else's from being sent, and
//! never what is about the node.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use http::StatusCode;
use jiff::Timestamp;

use super::{
    Event, Regarding,
    history::{Decision, History, key},
    object_name,
    rate::Rate,
};
use crate::api::cluster_size::{ClusterSize, hash};

/// Events of one lane that wait; what is more is dropped.
const MOST_WAITING: usize = 50;
/// Namespaces with something that waits or was sent a moment ago.
const MOST_LANES: usize = 1000;
/// One namespace's Events: so many at once, then one each so often.
const OF_NAMESPACE: Rate = Rate::new(10, Duration::from_secs(10));
/// Those of all namespaces together.
const OF_SERVICES: Rate = Rate::new(50, Duration::from_secs(2));
/// Those of the node.
const OF_NODE: Rate = Rate::new(50, Duration::from_secs(2));
const ATTEMPTS: u32 = 3;
/// After a failure nothing is sent for a while, which doubles with each; only a success ends that.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a lane stays quiet where its Events are refused: no right to make them, or the namespace is about to go.
const REFUSED_PAUSE: Duration = Duration::from_secs(600);
/// What all nodes see is said by about so many of them, so that one who cannot does not matter.
const SPEAKERS: u64 = 8;
/// Within this time.
const SPREAD: Duration = Duration::from_secs(2);

/// Where an Event waits. The node's goes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Node,
    Namespace(Box<str>),
}

impl Lane {
    fn of(event: &Event) -> Self {
        match &event.regarding {
            Regarding::Node => Self::Node,
            Regarding::Service(service) => Self::Namespace(service.namespace().into()),
        }
    }
}

#[derive(Debug)]
struct Waiting {
    jobs: VecDeque<Job>,
    rate: Rate,
    quiet_until: Option<Instant>,
}

/// A request that is to be made.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) event: Event,
    pub(super) act: Act,
    not_before: Instant,
    attempts: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Create { name: String },
    Repeat { name: String, count: u32 },
}

/// What to do now.
#[derive(Debug)]
pub(super) enum Next {
    Send(Box<Job>),
    /// Ask again then.
    Wait(Instant),
    /// Nothing waits.
    Idle,
}

#[derive(Debug)]
pub(super) struct Outbox {
    node: String,
    history: History,
    lanes: BTreeMap<Lane, Waiting>,
    /// Who had the last turn.
    last: Option<Lane>,
    services: Rate,
    pause_until: Option<Instant>,
    failures: u32,
    /// The process ends: what waits only for others does not.
    hurry: bool,
}

impl Outbox {
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            history: History::default(),
            lanes: BTreeMap::new(),
            last: None,
            services: OF_SERVICES,
            pause_until: None,
            failures: 0,
            hurry: false,
        }
    }

    /// Takes an Event; the error is why it is dropped.
    pub(super) fn offer(
        &mut self,
        event: Event,
        cluster: &ClusterSize,
        now: Instant,
        wall: Timestamp,
    ) -> Result<(), &'static str> {
        let lane = Lane::of(&event);
        self.forget_lanes(now);
        if self.lanes.len() >= MOST_LANES && lane != Lane::Node && !self.lanes.contains_key(&lane) {
            return Err("rate");
        }
        let waiting = self.lanes.entry(lane).or_insert_with_key(|lane| Waiting {
            jobs: VecDeque::new(),
            rate: if *lane == Lane::Node { OF_NODE } else { OF_NAMESPACE },
            quiet_until: None,
        });
        if waiting.quiet_until.is_some_and(|until| now < until) {
            return Err("forbidden");
        }
        if waiting.jobs.len() >= MOST_WAITING {
            return Err("rate");
        }
        let act = match self.history.decide(&event, now, || object_name(&event, &self.node, wall)) {
            Decision::Quiet => return Ok(()),
            Decision::Create { name } => Act::Create { name },
            Decision::Repeat { name, count } => Act::Repeat { name, count },
        };
        let mut not_before = now;
        if let (Some(_), Act::Create { name }) = (&event.shared, &act) {
            // One of all nodes is enough. Each draws a number for itself, another one for each Event and time.
            let epoch = (wall.as_second() / 1800).to_string();
            let drawn = hash(&[name, &self.node, &epoch]);
            if drawn % cluster.nodes().max(1) >= SPEAKERS {
                return Ok(());
            }
            not_before = now + SPREAD.mul_f64((drawn >> 32) as f64 / f64::from(u32::MAX));
        }
        waiting.jobs.push_back(Job { event, act, not_before, attempts: 0 });
        Ok(())
    }

    /// What does not wait for a moment goes at once from now on, as the process ends.
    pub(super) fn hurry(&mut self) {
        self.hurry = true;
    }

    #[cfg(test)]
    pub(super) fn take_waiting(&mut self) -> Vec<Event> {
        self.lanes.values_mut().flat_map(|waiting| waiting.jobs.drain(..)).map(|job| job.event).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.values().all(|waiting| waiting.jobs.is_empty())
    }

    pub(super) fn next(&mut self, now: Instant) -> Next {
        if self.is_empty() {
            return Next::Idle;
        }
        if let Some(until) = self.pause_until.filter(|until| now < *until) {
            return Next::Wait(until);
        }
        let mut wake: Option<Instant> = None;
        // The node's own first, then whose turn it is.
        let after = self.lanes.keys().filter(|lane| **lane != Lane::Node && Some(*lane) > self.last.as_ref());
        let before =
            self.lanes.keys().filter(|lane| **lane != Lane::Node && Some(*lane) <= self.last.as_ref());
        let turns: Vec<Lane> = [Lane::Node].iter().chain(after).chain(before).cloned().collect();
        for lane in turns {
            let Some(waiting) = self.lanes.get_mut(&lane) else { continue };
            if waiting.jobs.is_empty() {
                continue;
            }
            let mut ready = waiting.rate.ready_at(now);
            if lane != Lane::Node {
                ready = ready.max(self.services.ready_at(now));
            }
            let due = |job: &Job| if self.hurry { now } else { job.not_before };
            let first = waiting.jobs.iter().map(due).min().unwrap_or(now).max(ready);
            if first > now {
                wake = Some(wake.map_or(first, |wake| wake.min(first)));
                continue;
            }
            let Some(at) = waiting.jobs.iter().position(|job| due(job) <= now) else { continue };
            let Some(job) = waiting.jobs.remove(at) else { continue };
            waiting.rate.take(now);
            if lane != Lane::Node {
                self.services.take(now);
                self.last = Some(lane);
            }
            return Next::Send(Box::new(job));
        }
        wake.map_or(Next::Idle, Next::Wait)
    }

    /// A job's request was answered, or not. The error is why it is given up, if it is.
    pub(super) fn done(
        &mut self,
        mut job: Job,
        outcome: Result<(), Option<StatusCode>>,
        now: Instant,
    ) -> Result<(), &'static str> {
        let created = matches!(job.act, Act::Create { .. });
        match outcome {
            Ok(()) => self.answered(),
            // Another node was faster, or an answer to this one was lost.
            Err(Some(StatusCode::CONFLICT)) if created => self.answered(),
            Err(Some(StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)) if created => {
                self.answered();
                if let Some(waiting) = self.lanes.get_mut(&Lane::of(&job.event)) {
                    waiting.jobs.clear();
                    waiting.quiet_until = Some(now + REFUSED_PAUSE);
                }
                self.history.forget(&key(&job.event));
                return Err("forbidden");
            }
            // Refused as it is: asking again does not help. A series that is gone begins anew with the next Event.
            Err(Some(code)) if code.is_client_error() && code != StatusCode::TOO_MANY_REQUESTS => {
                self.answered();
                self.history.forget(&key(&job.event));
                return Err("error");
            }
            Err(_) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
                self.failures = self.failures.saturating_add(1);
                self.pause_until = Some(now + pause);
                job.attempts += 1;
                if job.attempts >= ATTEMPTS {
                    self.history.forget(&key(&job.event));
                    return Err("error");
                }
                if let Some(waiting) = self.lanes.get_mut(&Lane::of(&job.event)) {
                    waiting.jobs.push_front(job);
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self) {
        self.failures = 0;
        self.pause_until = None;
    }

    fn forget_lanes(&mut self, now: Instant) {
        if self.lanes.len() < MOST_LANES {
            return;
        }
        self.lanes.retain(|_, waiting| {
            !waiting.jobs.is_empty()
                || waiting.quiet_until.is_some_and(|until| now < until)
                || !waiting.rate.full(now)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proxy_core::model::ServiceName;

    use super::*;

    struct Rig {
        outbox: Outbox,
        cluster: Arc<ClusterSize>,
        begun: Instant,
        wall: Timestamp,
        passed: Duration,
    }

    impl Rig {
        fn new(node: &str) -> Self {
            Self::among(node, &cluster(1))
        }

        #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
        fn among(node: &str, cluster: &Arc<ClusterSize>) -> Self {
            let outbox = Outbox::new(node);
            let cluster = Arc::clone(cluster);
            let wall = "2026-12-01T00:00:00Z".parse().expect("a timestamp");
            Self { outbox, cluster, begun: Instant::now(), wall, passed: Duration::ZERO }
        }

        fn now(&self) -> Instant {
            self.begun + self.passed
        }

        fn offer(&mut self, event: Event) -> Result<(), &'static str> {
            let (now, wall) = (self.now(), self.wall + self.passed);
            self.outbox.offer(event, &self.cluster, now, wall)
        }

        /// Everything that is sent within so long a time, when each request is answered so at once.
        fn sent(
            &mut self,
            within: Duration,
            answer: impl Fn(&Job) -> Result<(), Option<StatusCode>>,
        ) -> Vec<(Duration, Event)> {
            let end = self.passed + within;
            let mut sent = Vec::new();
            loop {
                match self.outbox.next(self.now()) {
                    Next::Send(job) => {
                        sent.push((self.passed, job.event.clone()));
                        let outcome = answer(&job);
                        let now = self.now();
                        let _ = self.outbox.done(*job, outcome, now);
                    }
                    Next::Wait(until) if until - self.begun <= end => self.passed = until - self.begun,
                    Next::Wait(_) | Next::Idle => {
                        self.passed = end;
                        return sent;
                    }
                }
            }
        }
    }

    fn cluster(nodes: usize) -> Arc<ClusterSize> {
        let cluster = ClusterSize::new();
        (0..nodes).for_each(|node| cluster.saw(&format!("node-{node}")));
        Arc::new(cluster)
    }

    fn of(namespace: &str, number: usize) -> Event {
        let name = ServiceName::new(namespace, &format!("s{number}"));
        Event::service_health_check_failed(&name, String::new())
    }

    fn conflict() -> Event {
        let winner = ServiceName::new("shop", "old");
        Event::address_conflict(&ServiceName::new("shop", "web"), &winner, "192.0.2.1 80/TCP", 1)
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_flood_of_one_namespace_starves_neither_others_nor_the_node() {
        let mut rig = Rig::new("a");
        let taken = (0..100_000).filter(|&number| rig.offer(of("flood", number)).is_ok()).count();
        assert_eq!(taken, MOST_WAITING, "memory is bounded");
        rig.sent(MINUTE / 60, |_| Ok(()));
        rig.offer(of("quiet", 1)).expect("taken");
        for reason in ["changed", "lacking"] {
            rig.offer(Event::drifted(reason.to_owned())).expect("taken");
        }
        let sent = rig.sent(MINUTE / 60, |_| Ok(()));
        let kinds: Vec<(&'static str, bool)> =
            sent.iter().map(|(_, event)| (event.reason, event.regarding == Regarding::Node)).collect();
        assert_eq!(
            kinds,
            [
                ("RulesChangedByOthers", true),
                ("RulesChangedByOthers", true),
                ("FailedToStartServiceHealthcheck", false)
            ]
        );
        let hour = rig.sent(60 * MINUTE, |_| Ok(())).len();
        assert_eq!(hour, MOST_WAITING - 10, "the rest follows at its pace");
    }

    #[test]
    fn namespaces_take_turns() {
        let mut rig = Rig::new("a");
        for number in 0..20 {
            for namespace in 0..30 {
                rig.offer(of(&format!("ns-{namespace:02}"), number)).expect("taken");
            }
        }
        let sent = rig.sent(Duration::from_secs(20), |_| Ok(()));
        // 50 at once and one each 2 s.
        assert_eq!(sent.len(), 60);
        for namespace in 0..30 {
            let name = format!("ns-{namespace:02}");
            let count = sent
                .iter()
                .filter(|(_, event)| matches!(&event.regarding, Regarding::Service(service) if service.namespace() == name))
                .count();
            assert_eq!(count, 2, "{name}");
        }
    }

    #[test]
    fn a_namespace_that_refuses_silences_itself_only() {
        let mut rig = Rig::new("a");
        let refused = |job: &Job| match &job.event.regarding {
            Regarding::Service(service) if service.namespace() == "going" => Err(Some(StatusCode::FORBIDDEN)),
            _ => Ok(()),
        };
        rig.offer(of("going", 1)).expect("taken");
        rig.offer(of("going", 2)).expect("taken");
        assert_eq!(rig.sent(MINUTE, refused).len(), 1);
        assert_eq!(rig.offer(of("going", 3)), Err("forbidden"));
        rig.offer(of("other", 1)).expect("taken");
        rig.offer(Event::drifted(String::new())).expect("taken");
        assert_eq!(rig.sent(MINUTE, refused).len(), 2);
        rig.passed += REFUSED_PAUSE;
        rig.offer(of("going", 3)).expect("asked again in the end");
        assert_eq!(rig.sent(MINUTE, |_| Ok(())).len(), 1);
    }

    #[test]
    fn what_all_nodes_see_is_said_by_few_of_them_and_not_at_once() {
        for (nodes, speakers) in [(1, 1..=1), (5, 5..=5), (5_000, 2..=24)] {
            let mut times = Vec::new();
            let cluster = cluster(nodes);
            for node in 0..nodes {
                let mut rig = Rig::among(&format!("node-{node}"), &cluster);
                rig.offer(conflict()).expect("taken");
                let conflict = |_: &Job| Err(Some(StatusCode::CONFLICT));
                times.extend(rig.sent(MINUTE, conflict).into_iter().map(|(at, _)| at));
            }
            assert!(speakers.contains(&times.len()), "{nodes}: {}", times.len());
            assert!(times.iter().all(|at| *at <= SPREAD), "{times:?}");
            times.sort_unstable();
            times.dedup();
            assert!(nodes == 1 || times.len() > 1, "spread: {times:?}");
        }
    }

    #[test]
    fn an_event_that_is_there_already_is_a_success() {
        let mut rig = Rig::new("a");
        rig.offer(conflict()).expect("taken");
        assert_eq!(rig.sent(MINUTE, |_| Err(Some(StatusCode::CONFLICT))).len(), 1);
        rig.offer(of("ns", 1)).expect("taken");
        assert_eq!(
            rig.sent(MINUTE, |_| Err(Some(StatusCode::CONFLICT))).len(),
            1,
            "its first try was answered, unheard"
        );
    }

    #[test]
    fn a_server_that_is_away_is_asked_ever_more_rarely() {
        let mut rig = Rig::new("a");
        for number in 0..40 {
            rig.offer(of(&format!("ns-{number}"), 0)).expect("taken");
        }
        let asked = rig.sent(30 * MINUTE, |_| Err(None));
        assert!((30..60).contains(&asked.len()), "once a minute in the end: {}", asked.len());
        rig.offer(of("late", 0)).expect("taken");
        rig.sent(2 * MINUTE, |_| Ok(()));
        rig.offer(of("later", 0)).expect("taken");
        assert_eq!(rig.sent(MINUTE / 60, |_| Ok(())).len(), 1, "only a success ends that");
    }

    #[test]
    fn what_was_given_up_is_new_the_next_time() {
        let mut rig = Rig::new("a");
        rig.offer(of("ns", 1)).expect("taken");
        assert_eq!(rig.sent(MINUTE, |_| Err(Some(StatusCode::INTERNAL_SERVER_ERROR))).len(), 3);
        rig.offer(of("ns", 1)).expect("taken");
        let mut acts = Vec::new();
        while let Next::Send(job) = rig.outbox.next(rig.now() + MINUTE) {
            acts.push(job.act);
        }
        assert!(matches!(&acts[..], [Act::Create { .. }]), "{acts:?}");
    }

    #[test]
    fn at_the_end_of_the_process_nothing_waits_for_other_nodes() {
        let mut rig = Rig::new("a");
        rig.offer(conflict()).expect("taken");
        rig.outbox.hurry();
        assert!(matches!(rig.outbox.next(rig.now()), Next::Send(_)));
    }

    #[test]
    fn lanes_are_bounded() {
        let mut rig = Rig::new("a");
        let taken =
            (0..3 * MOST_LANES).filter(|number| rig.offer(of(&format!("ns-{number}"), 0)).is_ok()).count();
        assert_eq!(taken, MOST_LANES);
        rig.offer(Event::starting()).expect("the node's is not one of them");
        rig.sent(120 * MINUTE, |_| Ok(()));
        rig.offer(of("new", 0)).expect("there is room again");
    }
}
