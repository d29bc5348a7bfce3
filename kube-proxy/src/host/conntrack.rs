//! Makes the kernel forget flows that a sync has made stale: a thread that takes rules, waits for more of them, and
//! serves all that are pending with one pass over the kernel's table, at most one a second for each IP family.

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use netlink::{
    Dump, Pipeline, Socket,
    conntrack::{self, Filter, protocol, status},
    route::AddressFamily,
};
use proxy_core::{
    conntrack::{Flow, FlowRule, NodePortDestinations, StaleFlows},
    environment::Environment,
    model::{Family, Protocol},
};

/// The least time between the starts of two passes over one family's flows.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The longest pause after passes that failed.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// How often a dump is begun anew when the table changed under it.
const MOST_DUMPS: u32 = 5;
/// Stale flows are deleted in portions of this size, so that memory does not grow with the table.
const PORTION: usize = 4096;
/// Connections and datagrams are rare in other zones, and those who use them translate by themselves.
const DEFAULT_ZONE: u16 = 0;
/// (value, mask) of such flows' status.
const UNTRANSLATED_AND_UNANSWERED: (u32, u32) = (0, status::SEEN_REPLY | status::DNAT);
/// `ENOENT`: the flow ended by itself.
const GONE: i32 = 2;

/// `true` cuts TCP connections to endpoints that are gone: the kernel forgets them, so that the client's next packet goes
/// to another endpoint, which resets the connection.
const RESET_TCP: &str = "SWITCHYARD_RESET_TCP";

/// Whether the environment variable asks for it.
pub(crate) fn reset_tcp() -> Result<bool, String> {
    resets_tcp(std::env::var(RESET_TCP).ok().as_deref())
}

fn resets_tcp(chosen: Option<&str>) -> Result<bool, String> {
    match chosen {
        None | Some("" | "false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(format!("{RESET_TCP}: {other:?} is neither true nor false")),
    }
}

/// What one pass did.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) family: Family,
    pub(crate) took: Duration,
    pub(crate) deleted: usize,
    /// Why it ended early; what is left is tried again.
    pub(crate) error: Option<netlink::Error>,
}

/// What the thread does.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub(crate) struct ConntrackReconciler(Sender<Submission>);

#[derive(Debug)]
struct Submission {
    family: Family,
    rules: Vec<FlowRule>,
    node_ports: NodePortDestinations,
}

impl ConntrackReconciler {
    /// `replies`: whether flows that an endpoint's late reply began are stale, too ([`StaleFlows::with_replies`]).
    /// `start` starts the thread; `told` hears of every pass; `ask` of flows that are neither translated nor answered, so that
    /// whoever knows the frontends submits rules for those that should be. Both are called on the thread.
    pub(crate) fn spawn(
        replies: bool,
        start: impl FnOnce(Work) -> io::Result<()>,
        told: impl FnMut(Pass) + Send + 'static,
        ask: impl FnMut(Family, Destinations) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, inbox) = mpsc::channel();
        let worker = Worker {
            inbox,
            families: Family::BOTH.map(|_| FamilyState {
                pending: if replies { StaleFlows::with_replies() } else { StaleFlows::default() },
                ..FamilyState::default()
            }),
            sockets: None,
            told: Box::new(told),
            ask: Box::new(ask),
        };
        start(Box::new(move || worker.run()))?;
        Ok(Self(sender))
    }

    /// A family was written for the first time: from now on its flows are swept.
    pub(crate) fn begin(&self, environment: &Environment) {
        self.hand_over(Vec::new(), environment);
    }

    /// Hands over the rules of one sync ([`FlowTracker::rules`]). Does not
    /// wait for anything.
    pub(crate) fn submit(&self, rules: Vec<FlowRule>, environment: &Environment) {
        if rules.is_empty() {
            return;
        }
        self.hand_over(rules, environment);
    }

    fn hand_over(&self, rules: Vec<FlowRule>, environment: &Environment) {
        let node_ports = NodePortDestinations::of(environment);
        // The thread lives as long as this end of the channel; where it panicked, the process ends.
        let _ = self.0.send(Submission { family: environment.family, rules, node_ports });
    }
}

struct Worker {
    inbox: Receiver<Submission>,
    families: [FamilyState; 2],
    /// One to read and one to delete while reading; opened when first needed, and anew after an error.
    sockets: Option<(Socket, Socket)>,
    told: Box<dyn FnMut(Pass) + Send>,
    ask: Box<dyn FnMut(Family, Destinations) + Send>,
}

#[derive(Debug, Default)]
struct FamilyState {
    pending: StaleFlows,
    node_ports: NodePortDestinations,
    not_before: Option<Instant>,
    failures: u32,
    /// When to look for flows that no rule has named; never before the family was written.
    sweep_at: Option<Instant>,
}

/// Where flows are addressed to.
pub(crate) type Destinations = HashSet<(Protocol, IpAddr, u16)>;

/// The least time between two sweeps of one family, and how many times as long as one took.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
const SWEEP_REST: u32 = 500;
/// So many destinations are asked about at once, so that memory does not grow with the table.
const MOST_ASKED: usize = 4096;

const fn at(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own paces itself")]
impl Worker {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            let until = |at: Instant| at.saturating_duration_since(now);
            let due = self.families.iter().filter(|state| !state.pending.is_empty());
            let due = due.map(|state| state.not_before.map_or(Duration::ZERO, until));
            let sweeps = self.families.iter().filter_map(|state| state.sweep_at).map(until);
            let wait = due.chain(sweeps).min();
            let received = match wait {
                Some(wait) => self.inbox.recv_timeout(wait),
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(submission) => take(&mut self.families, submission),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.inbox.try_iter().for_each(|submission| take(&mut self.families, submission));
            for family in Family::BOTH {
                let state = &self.families[at(family)];
                let now = Instant::now();
                if !state.pending.is_empty() && state.not_before.is_none_or(|at| at <= now) {
                    self.pass(family, now);
                }
                if self.families[at(family)].sweep_at.is_some_and(|at| at <= Instant::now()) {
                    self.sweep(family);
                }
            }
        }
    }

    fn pass(&mut self, family: Family, started: Instant) {
        let mut active = self.families[at(family)].pending.take();
        let mut deleted = 0;
        let error = self.clean(family, &mut active, &mut deleted).err();
        let state = &mut self.families[at(family)];
        let pause = if error.is_some() {
            self.sockets = None;
            state.pending.add_earlier(active);
            state.failures += 1;
            MIN_INTERVAL.saturating_mul(1 << state.failures.min(6)).min(MAX_RETRY)
        } else {
            state.failures = 0;
            MIN_INTERVAL
        };
        state.not_before = Some(started + pause);
        (self.told)(Pass { family, took: started.elapsed(), deleted, error });
    }

    /// Asks about every flow that is neither translated nor answered. Whatever let it begin, a moment between two tables of
    /// a backend or somebody else's change, it does not stay so for as long as the client goes on sending.
    fn sweep(&mut self, family: Family) {
        let started = Instant::now();
        if let Err(error) = self.look(family) {
            self.sockets = None;
            tracing::debug!(ipFamily = %family, %error, "A sweep over the kernel's flows failed");
        }
        let rest = SWEEP_INTERVAL.max(started.elapsed().saturating_mul(SWEEP_REST));
        self.families[at(family)].sweep_at = Some(Instant::now() + rest);
    }

    fn look(&mut self, family: Family) -> Result<(), netlink::Error> {
        let Some((reader, _)) = Self::open(&mut self.sockets)? else { return Ok(()) };
        let mut found = Destinations::new();
        for protocol in [Protocol::Udp, Protocol::Sctp, Protocol::Tcp] {
            let filter = Filter { status: Some(UNTRANSLATED_AND_UNANSWERED), ..filter(family, protocol) };
            let ask = &mut self.ask;
            // What a dump that was interrupted has missed, the next one finds.
            let _ = conntrack::walk(reader, &filter, |flow| {
                let (to, from) = (&flow.original, &flow.reply);
                let untranslated = (to.destination, to.destination_port) == (from.source, from.source_port);
                if flow.zone == DEFAULT_ZONE && untranslated {
                    found.insert((protocol, to.destination, to.destination_port));
                    if found.len() == MOST_ASKED {
                        ask(family, std::mem::take(&mut found));
                    }
                }
            })?;
        }
        if !found.is_empty() {
            (self.ask)(family, found);
        }
        Ok(())
    }

    fn open(sockets: &mut Option<(Socket, Socket)>) -> Result<Option<&mut (Socket, Socket)>, netlink::Error> {
        if sockets.is_none() {
            let open = || Socket::open(netlink::Protocol::Netfilter);
            *sockets = Some((open()?, open()?));
        }
        Ok(sockets.as_mut())
    }

    fn clean(
        &mut self,
        family: Family,
        active: &mut StaleFlows,
        deleted: &mut usize,
    ) -> Result<(), netlink::Error> {
        Self::open(&mut self.sockets)?;
        let Self { inbox, families, sockets: Some((reader, writer)), .. } = self else {
            return Ok(());
        };
        let protocols: Vec<Protocol> = active.protocols().collect();
        for protocol in protocols {
            // The kernel leaves out what nobody looks for: established connections are the bulk of a table.
            let status = active.only_untranslated(protocol).then_some(UNTRANSLATED_AND_UNANSWERED);
            let filter = Filter { status, ..filter(family, protocol) };
            complete(|| {
                let mut found = Vec::new();
                let mut failed = None;
                let outcome = conntrack::walk(reader, &filter, |flow| {
                    if !is_stale(flow, active, &families[at(family)].node_ports) {
                        return;
                    }
                    found.push(*flow);
                    if found.len() == PORTION && failed.is_none() {
                        refresh(inbox, families, family, active);
                        match delete(writer, &mut found, active, &families[at(family)].node_ports) {
                            Ok(count) => *deleted += count,
                            Err(error) => failed = Some(error),
                        }
                        found.clear();
                    }
                })?;
                if let Some(error) = failed {
                    return Err(error);
                }
                refresh(inbox, families, family, active);
                *deleted += delete(writer, &mut found, active, &families[at(family)].node_ports)?;
                Ok(outcome)
            })?;
        }
        Ok(())
    }
}

fn filter(family: Family, protocol: Protocol) -> Filter {
    let family = match family {
        Family::V4 => AddressFamily::V4,
        Family::V6 => AddressFamily::V6,
    };
    Filter { family: Some(family), protocol: Some(protocol.number()), ..Filter::default() }
}

/// Repeats a dump that saw only a part of the table. After the last try what was found has to do: the rest is as it
/// would be if it had changed a moment later.
fn complete(mut dump: impl FnMut() -> Result<Dump, netlink::Error>) -> Result<(), netlink::Error> {
    for _ in 0..MOST_DUMPS {
        match dump() {
            Ok(Dump::Complete) => return Ok(()),
            Ok(Dump::Interrupted) | Err(netlink::Error::RepliesLost) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The first sweep follows the first rules at once: they may be few, and flows older than this process many.
#[expect(clippy::disallowed_methods, reason = "a thread of its own paces itself")]
fn soon() -> Instant {
    Instant::now()
}

fn take(families: &mut [FamilyState; 2], submission: Submission) {
    let state = &mut families[at(submission.family)];
    state.node_ports = submission.node_ports;
    state.sweep_at.get_or_insert_with(soon);
    submission.rules.into_iter().for_each(|rule| state.pending.add(rule));
}

/// Takes in what came while the table was read: an endpoint that came since must keep its flows.
fn refresh(
    inbox: &Receiver<Submission>,
    families: &mut [FamilyState; 2],
    family: Family,
    active: &mut StaleFlows,
) {
    for submission in inbox.try_iter() {
        if submission.family == family {
            submission.rules.iter().for_each(|rule| active.refresh(rule));
        }
        take(families, submission);
    }
}

fn is_stale(flow: &conntrack::Flow, stale: &StaleFlows, node_ports: &NodePortDestinations) -> bool {
    let protocol = match flow.original.protocol {
        protocol::TCP => Protocol::Tcp,
        protocol::UDP => Protocol::Udp,
        protocol::SCTP => Protocol::Sctp,
        _ => return false,
    };
    let seen = Flow {
        protocol,
        client: (flow.original.source, flow.original.source_port),
        destination: (flow.original.destination, flow.original.destination_port),
        replier: (flow.reply.source, flow.reply.source_port),
        unanswered: flow.status & status::SEEN_REPLY == 0,
    };
    // In a zone of somebody else's a flow may pass untranslated on its way to where it is translated.
    (flow.zone == DEFAULT_ZONE || seen.replier != seen.destination) && stale.contains(&seen, node_ports)
}

/// Deletes what is still stale, by tuple, zone and id. Returns how many there were.
fn delete(
    socket: &mut Socket,
    found: &mut Vec<conntrack::Flow>,
    stale: &StaleFlows,
    node_ports: &NodePortDestinations,
) -> Result<usize, netlink::Error> {
    found.retain(|flow| is_stale(flow, stale, node_ports));
    let mut requests = Pipeline::new();
    for flow in &*found {
        flow.push_delete(&mut requests);
    }
    let failures = requests.run(socket)?;
    let deleted = found.len() - failures.len();
    match failures.into_iter().find(|failure| failure.errno != GONE) {
        Some(failure) => Err(netlink::Error::Refused(failure)),
        None => Ok(deleted),
    }
}

#[cfg(test)]
mod tests;
