//! Applies plans: one step, one transaction, one answer.

use std::{io, net::IpAddr, time::Duration};

use netlink::{Dump, Protocol as SocketProtocol, Socket};
use nft_netlink::{
    Batch, CommitError, Refusal,
    generation::OwnCommits,
    list::{self, FoundData, FoundElement},
};
use proxy_core::{
    backend::{ApplyError, Executor as Seam, Figures, Outcome, Owned, Plan, Step},
    model::Family,
};

use crate::{
    drift::Drift,
    encode::{Encoder, table},
    found::{Found, FoundChain, FoundHook, FoundSticky, generation_of, hook_of},
    name::{Base, ChainName, Place, Set, SetName},
    operation::{Op, Operation},
};

// asm-generic/errno.h
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;

/// Refusals that no single object can be blamed for.
const NOBODYS_FAULT: [i32; 10] = [
    1,   // EPERM
    4,   // EINTR
    11,  // EAGAIN
    12,  // ENOMEM
    16,  // EBUSY
    23,  // ENFILE: a set is full
    85,  // ERESTART
    105, // ENOBUFS
    110, // ETIMEDOUT
    90,  // EMSGSIZE
];

/// How often a step is tried again without deletions of what is not there.
const TRIES: usize = 4;

/// Writes one family's table.
#[derive(Debug)]
pub struct Executor {
    family: Family,
    socket: Socket,
    batch: Batch,
    encoder: Encoder,
    drift: Drift,
    /// Checks for drift until the next look at counters.
    checks_left: u32,
    figures: Figures,
    /// Clients without affinity counted by earlier generations' rules.
    lost_before: u64,
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
            lost_before: 0,
        })
    }

    /// Has those that write into the same network namespace from this thread count their transactions together, so that
    /// the work of one is no news to the other.
    #[must_use]
    pub fn counting(mut self, own: &OwnCommits) -> Self {
        self.drift = Drift::new(self.family, own.clone());
        self
    }

    /// How many new connections to Services with session affinity were not remembered because the map of clients is
    /// full, as the counters in the present rules say.
    fn clients_not_remembered(&mut self) -> Result<u64, netlink::Error> {
        let mut packets = 0;
        for prefix in ["alb-", "allb-"] {
            for chain in self.drift.chains_named(prefix) {
                let rules = list::rules(&mut self.socket, table(self.family), Some(&chain))?;
                packets += rules.iter().map(|rule| rule.counted).sum::<u64>();
            }
        }
        Ok(packets)
    }

    fn look_at_counters(&mut self) -> Result<(), netlink::Error> {
        let lost = self.lost_before + self.clients_not_remembered()?;
        // Somebody may have deleted the rules that counted.
        self.figures.affinity_lost = self.figures.affinity_lost.max(lost);
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
        // The generation that the base chains lead to: one that was never switched to has rules but no jumps to it.
        let entrance = ChainName { place: Place::ToService, generation: 0 }.to_string();
        let live = chains
            .iter()
            .filter(|chain| chain.name.starts_with(entrance.trim_end_matches('0')))
            .max_by_key(|chain| chain.uses)
            .and_then(|chain| generation_of(&chain.name));
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

    /// Commits a step. What is to be deleted and is not there counts as done.
    fn commit(&mut self, step: &Step<Op>) -> Result<(), CommitError> {
        let mut done = Vec::new();
        for _ in 0..TRIES {
            self.batch.clear();
            self.encoder.encode(&step.ops, &done, &mut self.batch);
            let refusals = match self.batch.commit(&mut self.socket) {
                Ok(()) => {
                    let operations = step.ops.iter().map(|owned| &owned.op.0);
                    self.drift.done(operations, !self.batch.is_empty());
                    return Ok(());
                }
                Err(CommitError::Refused(refusals)) => refusals,
                Err(error) => return Err(error),
            };
            let gone = |refusal: &Refusal| {
                let at = self.encoder.operation_at(refusal.position?)?;
                (refusal.errno == ENOENT && deletes(&step.ops[at].op.0)).then_some(at)
            };
            let missing: Option<Vec<usize>> = refusals.iter().map(gone).collect();
            match missing {
                // A whole group's slots are one operation: leave them be rather than some of them.
                Some(missing) if !missing.is_empty() => done.extend(missing),
                _ => return Err(CommitError::Refused(refusals)),
            }
        }
        Ok(())
    }

    /// What a refusal of a step means to the engine.
    fn judge(&self, step: &Step<Op>, refusals: &[Refusal]) -> ApplyError {
        let at = |refusal: &Refusal| self.encoder.operation_at(refusal.position?);
        let state_differs = |refusal: &&Refusal| [ENOENT, EEXIST].contains(&refusal.errno);
        if let Some(refusal) = refusals.iter().find(state_differs) {
            // Somebody else changed the table.
            return ApplyError::Lost(self.described(step, refusal));
        }
        let blamable = refusals.iter().find(|refusal| !NOBODYS_FAULT.contains(&refusal.errno));
        let culprit = blamable.and_then(at).and_then(|at| step.ops[at].owner);
        let first = blamable.or_else(|| refusals.first());
        let reason = first.map_or_else(String::new, |refusal| self.described(step, refusal).to_string());
        ApplyError::Refused { reason, culprit }
    }

    fn described(&self, step: &Step<Op>, refusal: &Refusal) -> io::Error {
        let errno = io::Error::from_raw_os_error(refusal.errno);
        let what = refusal
            .position
            .and_then(|position| self.encoder.operation_at(position))
            .map_or_else(|| "the transaction".to_owned(), |at| first_line(&step.ops[at].op));
        let detail = refusal.message.as_deref().map_or(String::new(), |text| format!(" ({text})"));
        io::Error::new(errno.kind(), format!("{what}: {errno}{detail}"))
    }
}

fn first_line(op: &Op) -> String {
    op.to_string().lines().next().unwrap_or_default().to_owned()
}

fn deletes(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Delete { .. }
            | Operation::DeleteGroup { .. }
            | Operation::FlushChain { .. }
            | Operation::DeleteChain { .. }
            | Operation::DeleteSet { .. }
    )
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

fn write_parameter(path: &str, value: &str) {
    let file = format!("/proc/sys/{path}");
    if let Err(error) = std::fs::write(&file, value) {
        tracing::warn!(%error, "could not write {value} to {file}");
    }
}

impl Seam for Executor {
    type Op = Op;
    type Found = Found;

    fn survey(&mut self) -> Result<Found, ApplyError> {
        // The rules that counted until now are about to go.
        self.look_at_counters().map_err(lost)?;
        self.lost_before = self.figures.affinity_lost;
        self.drift.forget();
        self.read_found().map_err(lost)
    }

    fn apply(&mut self, plan: &Plan<Op>) -> Result<Outcome, ApplyError> {
        self.drift.begin(&mut self.socket).map_err(lost)?;
        for step in &plan.steps {
            for owned in &step.ops {
                if let Operation::Parameter { path, value } = &owned.op.0 {
                    write_parameter(path, value);
                }
            }
            match self.commit(step) {
                Ok(()) => {}
                Err(CommitError::Refused(refusals)) if clears_away(step) => {
                    let error = self.judge(step, &refusals);
                    self.figures.cleanup_failures += 1;
                    tracing::warn!(table = %table(self.family).family.name(), %error, "left old rules behind");
                }
                Err(CommitError::Refused(refusals)) => return Err(self.judge(step, &refusals)),
                Err(CommitError::Lost(error)) => return Err(lost(error)),
                Err(CommitError::Invalid(error)) => {
                    return Err(ApplyError::Refused { reason: error.to_string(), culprit: None });
                }
            }
        }
        self.drift.remember_rules(&mut self.socket).map_err(lost)?;
        Ok(Outcome::default())
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

fn lost(error: netlink::Error) -> ApplyError {
    ApplyError::Lost(io::Error::other(error))
}
