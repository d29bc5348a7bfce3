//! Makes the kernel forget flows that a sync has made stale: a thread that takes rules, waits for more of them, and
//! serves all that are pending with one pass over the kernel's table, at most one a second for each IP family.

use std::{
    io,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use netlink::{
    Dump, Pipeline, Socket,
    conntrack::{self, Filter, protocol, status},
    route::AddressFamily,
};
use proxy_core::{
    conntrack::{Flow, FlowRule, FlowTracker, NodePortDestinations, StaleFlows},
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

/// A tracker of what the environment variable asks for.
pub(crate) fn tracker() -> Result<FlowTracker, String> {
    resets_tcp(std::env::var(RESET_TCP).ok().as_deref()).map(FlowTracker::new)
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

/// The way to the thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ConntrackReconciler(Sender<Submission>);

#[derive(Debug)]
struct Submission {
    family: Family,
    rules: Vec<FlowRule>,
    node_ports: NodePortDestinations,
}

impl ConntrackReconciler {
    /// `start` starts the thread; `told` hears of every pass, on that thread.
    pub(crate) fn spawn(
        start: impl FnOnce(Work) -> io::Result<()>,
        told: impl FnMut(Pass) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, inbox) = mpsc::channel();
        let worker = Worker {
            inbox,
            families: [FamilyState::default(), FamilyState::default()],
            sockets: None,
            told: Box::new(told),
        };
        start(Box::new(move || worker.run()))?;
        Ok(Self(sender))
    }

    /// Hands over the rules of one sync ([`FlowTracker::rules`]). Does not
    /// wait for anything.
    pub(crate) fn submit(&self, rules: Vec<FlowRule>, environment: &Environment) {
        if rules.is_empty() {
            return;
        }
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
}

#[derive(Debug, Default)]
struct FamilyState {
    pending: StaleFlows,
    node_ports: NodePortDestinations,
    not_before: Option<Instant>,
    failures: u32,
}

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
            let due = self.families.iter().filter(|state| !state.pending.is_empty());
            let wait = due.map(|state| state.not_before.map_or(Duration::ZERO, |at| at - now.min(at))).min();
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
            }
        }
    }

    fn pass(&mut self, family: Family, started: Instant) {
        let mut active = std::mem::take(&mut self.families[at(family)].pending);
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

    fn clean(
        &mut self,
        family: Family,
        active: &mut StaleFlows,
        deleted: &mut usize,
    ) -> Result<(), netlink::Error> {
        if self.sockets.is_none() {
            let open = || Socket::open(netlink::Protocol::Netfilter);
            self.sockets = Some((open()?, open()?));
        }
        let Self { inbox, families, sockets: Some((reader, writer)), .. } = self else {
            return Ok(());
        };
        let protocols: Vec<Protocol> = active.protocols().collect();
        for protocol in protocols {
            let filter = Filter {
                family: Some(match family {
                    Family::V4 => AddressFamily::V4,
                    Family::V6 => AddressFamily::V6,
                }),
                protocol: Some(protocol.number()),
                // The kernel leaves out what nobody looks for: established connections are the bulk of a table.
                status: active.only_untranslated(protocol).then_some(UNTRANSLATED_AND_UNANSWERED),
                ..Filter::default()
            };
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

fn take(families: &mut [FamilyState; 2], submission: Submission) {
    let state = &mut families[at(submission.family)];
    state.node_ports = submission.node_ports;
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
