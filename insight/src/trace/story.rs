//! What the kernel told of one packet, put together: where it came by, what was done to it, where its way ended.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use nft_netlink::{
    Family, Verdict,
    trace::{Packet, Step, TraceEvent, TraceVerdict},
};

use super::filter::{END_INPUT, END_POSTROUTING, MARK};

/// More events of one packet than that are counted, not kept.
const MOST_STEPS: usize = 1_000;
/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// A place in the kernel where rules are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum At {
    /// It came in by an interface.
    Prerouting,
    /// It is for this node.
    Input,
    /// It is for somebody else.
    Forward,
    /// This node sends it.
    Output,
    /// It leaves.
    Postrouting,
}

impl At {
    /// nft's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    fn of_own_chain(name: &str) -> Option<Self> {
        Some(match name.strip_prefix("mark-").unwrap_or(name) {
            "prerouting" => Self::Prerouting,
            "output" => Self::Output,
            "forward" => Self::Forward,
            "input" | END_INPUT => Self::Input,
            "postrouting" | END_POSTROUTING => Self::Postrouting,
            _ => return None,
        })
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A base chain of somebody's that the packet went through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// The hook.
    pub at: At,
    /// `None`: a family that is not known.
    pub family: Option<Family>,
    /// Its table.
    pub table: Box<str>,
    /// What matched, with the chain it stands in.
    pub steps: Vec<(Box<str>, Step)>,
}

/// The packet as it was seen somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// The hook.
    pub at: At,
    /// Its headers.
    pub packet: Packet,
    /// Index of the interface it came in by.
    pub input: Option<u32>,
    /// Index of the interface it will leave by.
    pub output: Option<u32>,
}

/// A rule, by which it can be looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleAt {
    /// Of its table.
    pub family: Family,
    /// Its table.
    pub table: Box<str>,
    /// Its chain.
    pub chain: Box<str>,
    /// Its handle.
    pub handle: u64,
}

/// How a packet's way ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It passed all chains of the hook `input`: to a socket of this node.
    Delivered,
    /// It passed all chains of the hook `postrouting`, and leaves by the interface with this index.
    Left(Option<u32>),
    /// A rule dropped it, or refused it with an answer.
    Dropped(RuleAt),
    /// The policy of a base chain dropped it.
    DroppedByPolicy {
        /// Of the table.
        family: Option<Family>,
        /// The table.
        table: Box<str>,
        /// The base chain.
        chain: Box<str>,
    },
    /// A rule gave it to a program in user space.
    Queued(RuleAt),
    /// Nothing more was seen of it.
    Unseen,
}

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// Hooks and headers, each time they were others than before.
    pub sights: Vec<Sight>,
    /// Base chains in the order in which it passed them.
    pub visits: Vec<Visit>,
    /// What became of it.
    pub end: End,
    /// Events that were not kept, as there were too many of one packet.
    pub left_out: u64,
}

impl Story {
    /// As it was when it was seen first, and when it was seen last.
    pub fn first_and_last(&self) -> Option<(Sight, Sight)> {
        Some((*self.sights.first()?, *self.sights.last()?))
    }

    /// Rules that matched.
    pub fn rules(&self) -> impl Iterator<Item = RuleAt> + '_ {
        self.visits.iter().flat_map(|visit| {
            visit.steps.iter().filter_map(|(chain, step)| {
                let Step::Rule { handle, .. } = step else { return None };
                Some(RuleAt {
                    family: visit.family?,
                    table: visit.table.clone(),
                    chain: chain.clone(),
                    handle: *handle,
                })
            })
        })
    }
}

/// Puts events together, for at most so many packets.
#[derive(Debug)]
pub struct Collector {
    /// The table that marks packets.
    own: Box<str>,
    most: usize,
    begun: usize,
    /// With the time of their last event.
    open: HashMap<u32, (usize, Duration, Story)>,
    now: Duration,
    /// On the loopback interface, behind which they have another number.
    looping: Vec<(usize, Story)>,
    /// By the order in which they began, as ends may come in another.
    finished: BTreeMap<usize, Story>,
}

impl Collector {
    /// `own`: the name of the table that marks packets.
    pub fn new(own: &str, most: usize) -> Self {
        Self {
            own: own.into(),
            most,
            begun: 0,
            open: HashMap::new(),
            now: Duration::ZERO,
            looping: Vec::new(),
            finished: BTreeMap::new(),
        }
    }

    /// Packets seen so far.
    pub const fn begun(&self) -> usize {
        self.begun
    }

    /// Whether as many packets were seen, to their ends, as were wanted.
    pub fn is_full(&self) -> bool {
        self.begun >= self.most && self.open.is_empty() && self.looping.is_empty()
    }

    /// Packets whose end was seen since the last call, in the order in which they began.
    pub fn take_finished(&mut self) -> Vec<Story> {
        std::mem::take(&mut self.finished).into_values().collect()
    }

    /// It is so late now; a packet of which nothing was told for a while ends unseen.
    pub fn pass(&mut self, now: Duration) {
        /// A packet passes all hooks at once, unless a program in user space has it.
        const PATIENCE: Duration = Duration::from_secs(3);
        self.now = now;
        let late = |(_, (_, at, _)): &(&u32, &(usize, Duration, Story))| now.saturating_sub(*at) > PATIENCE;
        let late: Vec<u32> = self.open.iter().filter(late).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.finish(id, End::Unseen));
        // What left by the loopback interface and did not come in.
        if self.open.is_empty() {
            self.finished.extend(self.looping.drain(..));
        }
    }

    /// Nothing more comes: what is open ends unseen.
    pub fn close(&mut self) -> Vec<Story> {
        let open: Vec<u32> = self.open.keys().copied().collect();
        open.into_iter().for_each(|id| self.finish(id, End::Unseen));
        self.finished.extend(self.looping.drain(..));
        self.take_finished()
    }

    /// Takes an event in.
    pub fn push(&mut self, event: TraceEvent) {
        let own = event.table == self.own;
        let from_loopback = own && self.comes_from_loopback(&event);
        // The chain's end is told as well.
        let marks = own && *event.chain == *MARK && matches!(event.step, Step::Rule { .. });
        if marks && !from_loopback && !self.is_with_ipvs(event.id) {
            // The number of a packet before, of which nothing more will be heard.
            self.finish(event.id, End::Unseen);
            if self.begun >= self.most {
                return;
            }
            let story = Story { sights: Vec::new(), visits: Vec::new(), end: End::Unseen, left_out: 0 };
            self.open.insert(event.id, (self.begun, self.now, story));
            self.begun += 1;
        }
        let Some((_, at, story)) = self.open.get_mut(&event.id) else { return };
        *at = self.now;
        let id = event.id;
        if let Some(end) = take(story, event, own) {
            self.finish(id, end);
        }
    }

    /// Whether the packet with this number was seen last at the hook `input`: IPVS takes it there and sends it out again.
    fn is_with_ipvs(&self, id: u32) -> bool {
        let last = self.open.get(&id).and_then(|(.., story)| story.sights.last());
        last.is_some_and(|sight| sight.at == At::Input)
    }

    /// Whether this is a packet that left by the loopback interface; then its story goes on under the new number.
    fn comes_from_loopback(&mut self, event: &TraceEvent) -> bool {
        let (Some(packet), Some(LOOPBACK)) = (event.packet, event.input) else { return false };
        let same =
            |(_, story): &(usize, Story)| story.sights.last().is_some_and(|last| last.packet == packet);
        let Some(at) = self.looping.iter().position(same) else { return false };
        self.finish(event.id, End::Unseen);
        let (order, story) = self.looping.remove(at);
        self.open.insert(event.id, (order, self.now, story));
        true
    }

    fn finish(&mut self, id: u32, end: End) {
        let Some((order, _, mut story)) = self.open.remove(&id) else { return };
        let loops = end == End::Left(Some(LOOPBACK));
        story.end = end;
        if loops {
            self.looping.push((order, story));
        } else {
            self.finished.insert(order, story);
        }
    }
}

/// Adds an event to the packet's story; answers its end if this is it.
fn take(story: &mut Story, event: TraceEvent, own: bool) -> Option<End> {
    let before = story.sights.last().map(|sight| sight.at);
    let at = match At::of_own_chain(&event.chain).filter(|_| own) {
        Some(at) => at,
        // The chain that marks is asked at two hooks; only what came in has an interface that it came in by.
        None if own => {
            if event.input.is_some() {
                At::Prerouting
            } else {
                At::Output
            }
        }
        None => before?,
    };
    if let Some(packet) = event.packet {
        let sight = Sight { at, packet, input: event.input, output: event.output };
        if story.sights.last() != Some(&sight) {
            story.sights.push(sight);
        }
    }
    if own {
        let passed = matches!(event.step, Step::Policy { accepts: true });
        return match &*event.chain {
            END_INPUT if passed => Some(End::Delivered),
            // The interface is told with the packet, at the beginning of the chain.
            END_POSTROUTING if passed => Some(End::Left(story.sights.last().and_then(|sight| sight.output))),
            _ => None,
        };
    }
    let end = end_of(&event);
    let steps: usize = story.visits.iter().map(|visit| visit.steps.len()).sum();
    if steps >= MOST_STEPS {
        story.left_out += 1;
        return end;
    }
    // The packet is shown once in each base chain, with the first event there.
    if event.packet.is_some() || story.visits.is_empty() {
        let visit = Visit { at, family: event.family, table: event.table, steps: Vec::new() };
        story.visits.push(visit);
    }
    if let Some(visit) = story.visits.last_mut() {
        visit.steps.push((event.chain, event.step));
    }
    end
}

fn end_of(event: &TraceEvent) -> Option<End> {
    let rule = |handle: u64| {
        let (table, chain) = (event.table.clone(), event.chain.clone());
        Some(RuleAt { family: event.family?, table, chain, handle })
    };
    match &event.step {
        Step::Rule { handle, verdict: TraceVerdict::Plain(Verdict::Drop) } => rule(*handle).map(End::Dropped),
        Step::Rule { handle, verdict: TraceVerdict::Queue } => rule(*handle).map(End::Queued),
        Step::Policy { accepts: false } => Some(End::DroppedByPolicy {
            family: event.family,
            table: event.table.clone(),
            chain: event.chain.clone(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn packet(destination: [u8; 4], port: u16) -> Packet {
        Packet {
            source: [10, 0, 1, 2].into(),
            destination: destination.into(),
            protocol: 6,
            source_port: 40_000,
            destination_port: port,
            tcp_flags: 2,
        }
    }

    fn event(id: u32, table: &str, chain: &str, step: Step, packet: Option<Packet>) -> TraceEvent {
        let family = Some(if table == "own" { Family::Inet } else { Family::Ip });
        let (table, chain) = (table.into(), chain.into());
        TraceEvent { id, family, table, chain, step, packet, input: Some(2), output: None, mark: 0 }
    }

    fn rule(verdict: Verdict) -> Step {
        Step::Rule { handle: 7, verdict: TraceVerdict::Plain(verdict) }
    }

    const ACCEPTS: Step = Step::Policy { accepts: true };

    /// The events of a packet that is translated and leaves, or that the chain `forward` of table `f` drops.
    fn forwarded(id: u32, dropped: bool) -> Vec<TraceEvent> {
        let (vip, endpoint) = (packet([172, 30, 0, 1], 80), packet([10, 0, 2, 9], 8080));
        let mut events = vec![
            event(id, "own", MARK, rule(Verdict::Continue), Some(vip)),
            event(id, "own", MARK, Step::Return, None),
            event(id, "own", "prerouting", ACCEPTS, None),
            event(id, "nat", "pre", rule(Verdict::Jump("svc".into())), Some(vip)),
            event(id, "nat", "svc", rule(Verdict::Accept), None),
            event(id, "own", "forward", ACCEPTS, Some(endpoint)),
        ];
        if dropped {
            events.push(event(id, "f", "forward", rule(Verdict::Drop), Some(endpoint)));
        } else {
            events.push(event(id, "f", "forward", ACCEPTS, Some(endpoint)));
            events.push(event(id, "own", "postrouting", ACCEPTS, Some(endpoint)));
            let shown = event(id, "own", END_POSTROUTING, Step::Return, Some(endpoint));
            events.push(TraceEvent { output: Some(3), ..shown });
            events.push(event(id, "own", END_POSTROUTING, ACCEPTS, None));
        }
        events
    }

    #[test]
    fn packets_told_in_a_jumble_are_told_apart_and_in_their_order() {
        let mut collector = Collector::new("own", 2);
        let (left, dropped) = (forwarded(1, false), forwarded(2, true));
        for index in 0..left.len() {
            for events in [&left, &dropped] {
                events.get(index).into_iter().for_each(|event| collector.push(event.clone()));
            }
        }
        assert!(collector.is_full());
        let stories = collector.take_finished();
        assert_eq!(stories[0].end, End::Left(Some(3)));
        let End::Dropped(at) = &stories[1].end else { panic!("{:?}", stories[1].end) };
        assert_eq!((&*at.table, &*at.chain, at.handle), ("f", "forward", 7));
        let (first, last) = stories[1].first_and_last().expect("seen");
        assert_eq!((first.packet.destination_port, last.packet.destination_port), (80, 8080));
        assert_eq!((first.at, last.at), (At::Prerouting, At::Forward));
        let visits: Vec<_> = stories[1].visits.iter().map(|visit| (&*visit.table, visit.at)).collect();
        assert_eq!(visits, [("nat", At::Prerouting), ("f", At::Forward)]);
    }

    #[test]
    fn a_packet_of_which_nothing_more_comes_ends_unseen_also_when_its_number_comes_again() {
        let mut collector = Collector::new("own", 5);
        forwarded(1, false).into_iter().take(5).for_each(|event| collector.push(event));
        forwarded(1, false).into_iter().take(5).for_each(|event| collector.push(event));
        assert_eq!(collector.take_finished().len(), 1);
        let rest = collector.close();
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].end, End::Unseen);
    }

    #[test]
    fn a_packet_of_which_nothing_is_told_for_a_while_ends_unseen() {
        let mut collector = Collector::new("own", 2);
        forwarded(1, false).into_iter().take(4).for_each(|event| collector.push(event));
        collector.pass(Duration::from_secs(2));
        forwarded(2, false).into_iter().take(4).for_each(|event| collector.push(event));
        collector.pass(Duration::from_secs(4));
        assert_eq!(collector.take_finished().len(), 1);
        assert!(!collector.is_full());
        collector.pass(Duration::from_secs(6));
        assert!(collector.is_full());
        assert_eq!(collector.take_finished()[0].end, End::Unseen);
    }

    #[test]
    fn what_ipvs_takes_at_input_goes_on_at_output() {
        let mut collector = Collector::new("own", 5);
        let (vip, endpoint) = (packet([172, 30, 0, 1], 80), packet([10, 0, 2, 9], 8080));
        collector.push(event(1, "own", MARK, rule(Verdict::Continue), Some(vip)));
        collector.push(event(1, "own", "input", ACCEPTS, Some(vip)));
        let out = |chain, step| TraceEvent {
            input: None,
            output: Some(3),
            ..event(1, "own", chain, step, Some(endpoint))
        };
        collector.push(out(MARK, rule(Verdict::Continue)));
        collector.push(out("output", ACCEPTS));
        collector.push(out(END_POSTROUTING, ACCEPTS));
        let stories = collector.take_finished();
        assert_eq!(stories.len(), 1);
        assert_eq!(stories[0].end, End::Left(Some(3)));
    }

    #[test]
    fn what_leaves_by_the_loopback_interface_comes_in_again_under_another_number() {
        let mut collector = Collector::new("own", 1);
        let out = |chain: &str, packet| TraceEvent {
            input: None,
            output: Some(LOOPBACK),
            ..event(1, "own", chain, ACCEPTS, packet)
        };
        let sent = packet([192, 168, 0, 1], 80);
        collector.push(TraceEvent { step: rule(Verdict::Continue), ..out(MARK, Some(sent)) });
        collector.push(out("output", None));
        collector.push(out(END_POSTROUTING, Some(sent)));
        assert!(!collector.is_full());
        let lo =
            |chain: &str| TraceEvent { input: Some(LOOPBACK), ..event(2, "own", chain, ACCEPTS, Some(sent)) };
        collector.push(lo("prerouting"));
        collector.push(lo("input"));
        collector.push(lo(END_INPUT));
        assert!(collector.is_full());
        let stories = collector.take_finished();
        assert_eq!(stories.iter().map(|story| &story.end).collect::<Vec<_>>(), [&End::Delivered]);
        let hooks: Vec<_> = stories[0].sights.iter().map(|sight| sight.at).collect();
        assert_eq!(hooks, [At::Output, At::Postrouting, At::Prerouting, At::Input]);
    }

    #[test]
    fn no_more_packets_than_wanted_are_kept_and_no_more_steps_than_one_packet_may_have() {
        let mut collector = Collector::new("own", 1);
        for id in 1..10 {
            forwarded(id, false).into_iter().for_each(|event| collector.push(event));
        }
        assert_eq!(collector.take_finished().len(), 1);
        let mut collector = Collector::new("own", 1);
        collector.push(event(1, "own", MARK, rule(Verdict::Continue), Some(packet([1; 4], 1))));
        for _ in 0..MOST_STEPS + 5 {
            collector.push(event(1, "t", "c", rule(Verdict::Continue), None));
        }
        assert_eq!(collector.close()[0].left_out, 5);
    }
}
