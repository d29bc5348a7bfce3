//! Applies plans: one step, one transaction, one answer.

use std::{io, net::IpAddr, time::Duration};

use netlink::{Dump, Protocol as SocketProtocol, Socket};
use nft_netlink::{
    Batch,
    generation::OwnCommits,
    list::{self, FoundData, FoundElement},
};
use proxy_core::{
    backend::{ApplyError, Executor as Seam, Figures, Outcome, Owned, Plan, Rejection, Step},
    model::{Family, Protocol},
};

use crate::{
    kernel::{
        drift::Drift,
        encode::{Encoder, hook_of, table},
    },
    schema::{
        element::Data,
        found::{Found, FoundChain, FoundHook, FoundSticky, generation_of},
        name::{Base, ChainName, Place, REFUSED_ON_LOCALHOST, Set, SetName},
        operation::{Op, Operation},
    },
};

// asm-generic/errno.h
const ENOENT: i32 = 2;

/// How often a list is read again while others interfere.
const TRIES: usize = 4;

/// Writes one family's table.
#[derive(Debug)]
pub struct Executor {
    pub(crate) family: Family,
    pub(crate) socket: Socket,
    pub(crate) batch: Batch,
    pub(crate) encoder: Encoder,
    pub(crate) drift: Drift,
    /// Checks for drift until the next look at counters.
    checks_left: u32,
    figures: Figures,
    /// What the rules of earlier generations counted: they take their counters with them.
    before: Counted,
}

/// What rules have counted since the start.
#[derive(Debug, Clone, Default)]
struct Counted {
    /// Clients without affinity.
    lost: u64,
    /// Packets refused on loopback addresses, of each protocol ever refused there.
    refused: Vec<(Protocol, u64)>,
}

/// Checks for drift from one look at counters to the next: they are worth less than the check itself.
const CHECKS: u32 = 10;

impl Executor {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open(family: Family) -> Result<Self, netlink::Error> {
        Ok(Self {
            family,
            socket: Socket::open(SocketProtocol::Netfilter)?,
            batch: Batch::new(),
            encoder: Encoder::new(family),
            drift: Drift::new(family, OwnCommits::default()),
            checks_left: 0,
            figures: Figures::default(),
            before: Counted::default(),
        })
    }

    /// Has those that write into the same network namespace from this thread count their transactions together, so that
    /// the work of one is no news to the other.
    #[must_use]
    pub fn counting(mut self, own: &OwnCommits) -> Self {
        self.drift = Drift::new(self.family, own.clone());
        self
    }

    /// Has it notice what others did as on kernels that do not count the elements of sets (before 6.17), for tests of that.
    #[must_use]
    pub fn ignoring_counts(mut self) -> Self {
        self.drift.ignore_counts();
        self
    }

    /// How many new connections to Services with session affinity were not remembered because the map of clients is
    /// full, as the counters in the present rules say.
    fn clients_not_remembered(&mut self) -> Result<u64, netlink::Error> {
        Ok(self.counted_in("alb-")? + self.counted_in("allb-")?)
    }

    /// What the rules of our chains whose names begin so have counted.
    fn counted_in(&mut self, prefix: &str) -> Result<u64, netlink::Error> {
        let mut packets = 0;
        for chain in self.drift.chains_named(prefix) {
            let rules = list::rules(&mut self.socket, table(self.family), Some(&chain))?;
            packets += rules.iter().map(|rule| rule.counted).sum::<u64>();
        }
        Ok(packets)
    }

    fn look_at_counters(&mut self) -> Result<(), netlink::Error> {
        let lost = self.before.lost + self.clients_not_remembered()?;
        // Somebody may have deleted the rules that counted.
        self.figures.affinity_lost = self.figures.affinity_lost.max(lost);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let chains = format!("{REFUSED_ON_LOCALHOST}{}-", protocol.as_str());
            if self.drift.chains_named(&chains).is_empty() {
                continue;
            }
            let now = self.counted_in(&chains)?;
            let of = |refused: &[(Protocol, u64)]| {
                refused.iter().find(|(of, _)| *of == protocol).map_or(0, |(_, count)| *count)
            };
            let now = (of(&self.before.refused) + now).max(of(&self.figures.refused_on_localhost));
            self.figures.refused_on_localhost.retain(|(of, _)| *of != protocol);
            self.figures.refused_on_localhost.push((protocol, now));
        }
        self.checks_left = CHECKS;
        Ok(())
    }

    fn read_found(&mut self) -> Result<Found, netlink::Error> {
        let mut chains = list::chains(&mut self.socket, table(self.family))?;
        // A list may lack some while others commit; a base chain overlooked would keep its old rules.
        for base in Base::ALL.iter().map(|base| base.as_str()) {
            if !chains.iter().any(|chain| &*chain.name == base) {
                chains.extend(list::chain(&mut self.socket, table(self.family), base)?);
            }
        }
        let sets = list::sets(&mut self.socket, table(self.family))?;
        let sets = sets.into_iter().filter(|set| !set.is_anonymous()).map(|set| set.name).collect();
        let live = live_generation(&chains);
        let sticky = live.map_or_else(|| Ok(FoundSticky::default()), |live| self.read_sticky(live))?;
        let chains = chains
            .into_iter()
            .map(|chain| FoundChain {
                hook: chain.hook.map(|_| hook_of(&chain).map_or(FoundHook::Other, FoundHook::Like)),
                name: chain.name,
            })
            .collect();
        Ok(Found { chains, sets, sticky })
    }

    fn read_sticky(&mut self, generation: u32) -> Result<FoundSticky, netlink::Error> {
        let v4 = self.family == Family::V4;
        let id = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let mut sticky = FoundSticky::default();
        for set in [Set::StickySizes, Set::StickyLocalSizes] {
            for element in self.elements(set, generation)? {
                if let (Some(base), Some(comment)) = (id(&element.key), element.comment) {
                    sticky.ports.push((comment, base));
                }
            }
        }
        for set in [Set::StickyEndpoints, Set::StickyLocal] {
            for element in self.elements(set, generation)? {
                if let FoundData::Value(data) = element.data
                    && let (Some(id), Some((addr, port))) = (id(&element.key), target(&data, v4))
                {
                    sticky.endpoints.push((id, addr, port));
                }
            }
        }
        sticky.ports.sort_unstable();
        sticky.ports.dedup();
        Ok(sticky)
    }

    /// The elements of a small map, read again while somebody else's commits interfere, a few times.
    fn elements(&mut self, set: Set, generation: u32) -> Result<Vec<FoundElement>, netlink::Error> {
        let name = SetName::new(set, generation).to_string();
        let mut elements = Vec::new();
        for _ in 0..TRIES {
            elements.clear();
            let dump = list::elements(&mut self.socket, table(self.family), &name, |element| {
                elements.push(element);
            });
            match dump {
                Ok(Dump::Complete) => break,
                Ok(Dump::Interrupted) => {}
                Err(error) if error.refused() == Some(ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(elements)
    }
}

/// The generation that the base chains lead to: one that was never switched to has rules but no jumps to it.
pub(crate) fn live_generation(chains: &[list::FoundChain]) -> Option<u32> {
    let entrance = ChainName { place: Place::ToClass, generation: 0 }.to_string();
    chains
        .iter()
        .filter(|chain| chain.name.starts_with(entrance.trim_end_matches('0')))
        .max_by_key(|chain| chain.uses)
        .and_then(|chain| generation_of(&chain.name))
}

/// Whether a step only clears away chains and sets of the past.
fn clears_away(step: &Step<Op>) -> bool {
    step.ops.iter().all(|Owned { op, .. }| {
        matches!(
            op.0,
            Operation::FlushChain { .. } | Operation::DeleteChain { .. } | Operation::DeleteSet { .. }
        )
    })
}

fn makes_the_table(step: &Step<Op>) -> bool {
    step.ops.iter().any(|Owned { op, .. }| matches!(op.0, Operation::Table { .. }))
}

/// Whether it matters that a step was applied when a later one is not: chains that nobody uses, and the way to them, may be
/// made twice.
fn leaves_a_mark(step: &Step<Op>) -> bool {
    let prepares = |operation: &Operation| match operation {
        Operation::Add { element, .. } => matches!(element.data, Data::Goto(_) | Data::Jump(_)),
        Operation::AddSet { .. }
        | Operation::AddChain { .. }
        | Operation::AddBase { .. }
        | Operation::FlushChain { .. }
        | Operation::AddRule { .. } => true,
        _ => false,
    };
    !step.ops.iter().all(|owned| prepares(&owned.op.0))
}

impl Seam for Executor {
    type Op = Op;
    type Found = Found;

    fn survey(&mut self) -> Result<Found, ApplyError> {
        // The rules that counted until now are about to go.
        self.look_at_counters().map_err(lost)?;
        // The new rules' counters are worth a look soon: what they count is there from then on.
        self.checks_left = 0;
        let figures = &self.figures;
        self.before = Counted { lost: figures.affinity_lost, refused: figures.refused_on_localhost.clone() };
        self.drift.forget();
        self.read_found().map_err(lost)
    }

    fn apply(&mut self, plan: &Plan<Op>) -> Result<Outcome, ApplyError> {
        self.drift.begin(&mut self.socket).map_err(lost)?;
        // A generation of its own leads nobody anywhere before its last step.
        let anew = plan.steps.first().is_some_and(makes_the_table);
        let mut changed = false;
        let mut outcome = Outcome::default();
        for step in &plan.steps {
            for Owned { op, owner } in &step.ops {
                match op.0 {
                    Operation::Loopback { open } => loopback(open),
                    Operation::LeaveOut => {
                        outcome.rejected.push(Rejection { owner: *owner, reason: op.to_string() });
                    }
                    _ => {}
                }
            }
            match self.commit(step, anew) {
                Ok(()) => changed |= !anew && leaves_a_mark(step),
                Err(ApplyError::Refused { reason, .. }) if clears_away(step) => {
                    self.figures.cleanup_failures += 1;
                    let table = table(self.family).family.name();
                    tracing::warn!(table, reason, "left old rules behind");
                }
                // A part of the plan stands, and only a full plan knows what to do about that.
                Err(ApplyError::Refused { reason, .. }) if changed => {
                    return Err(ApplyError::Lost(io::Error::other(reason)));
                }
                Err(error) => return Err(error),
            }
        }
        self.drift.remember_rules(&mut self.socket).map_err(lost)?;
        Ok(outcome)
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        match self.checks_left.checked_sub(1) {
            Some(left) => self.checks_left = left,
            None => self.look_at_counters().map_err(lost)?,
        }
        self.drift.intact(&mut self.socket).map_err(lost)
    }

    fn waited(&self) -> Duration {
        self.socket.waited()
    }

    fn figures(&self) -> Figures {
        self.figures.clone()
    }
}

/// An extra that fails costs nothing else.
fn loopback(open: bool) {
    let result = if open { localnet::open() } else { localnet::close() };
    if let Err(error) = result {
        tracing::warn!(%error, open, "NodePorts on 127.0.0.1 are not as they were configured");
    }
}

/// An address and port as they stand in a map's data.
fn target(data: &[u8], v4: bool) -> Option<(IpAddr, u16)> {
    let (addr, port) = data.split_at_checked(if v4 { 4 } else { 16 })?;
    let port = u16::from_be_bytes(*port.first_chunk()?);
    let addr = match addr.first_chunk::<16>() {
        Some(addr) => IpAddr::from(*addr),
        None => IpAddr::from(*addr.first_chunk::<4>()?),
    };
    Some((addr, port))
}

pub(crate) fn lost(error: netlink::Error) -> ApplyError {
    ApplyError::Lost(io::Error::other(error))
}
